//! Key sets and how partitions cut the key space.

use std::fmt;

/// The number of keys: an event's key is the low 16 bits of the hash of its aggregate id.
pub(crate) const KEY_SPACE: i32 = 65_536;

/// A set of keys: sorted, disjoint, non-adjacent, half-open ranges within `[0, 65536)`.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct KeySet {
    ranges: Vec<(i32, i32)>,
}

impl KeySet {
    /// All keys.
    pub(crate) fn all() -> Self {
        Self::from_ranges([(0, KEY_SPACE)])
    }

    /// The k-th of `total` equal contiguous ranges. The ranges of all k are disjoint and cover the key space.
    pub(crate) fn partition(k: usize, total: usize) -> Self {
        let bound = |k: usize| i32::try_from(k * 65_536 / total.max(1)).unwrap_or(KEY_SPACE);
        Self::from_ranges([(bound(k), bound(k + 1))])
    }

    /// The union of half-open ranges. What lies outside the key space is dropped.
    pub(crate) fn from_ranges(ranges: impl IntoIterator<Item = (i32, i32)>) -> Self {
        let mut sorted: Vec<(i32, i32)> = ranges
            .into_iter()
            .map(|(low, high)| (low.max(0), high.min(KEY_SPACE)))
            .filter(|(low, high)| low < high)
            .collect();
        sorted.sort_unstable();
        let mut ranges: Vec<(i32, i32)> = Vec::with_capacity(sorted.len());
        for (low, high) in sorted {
            match ranges.last_mut() {
                Some(last) if low <= last.1 => last.1 = last.1.max(high),
                _ => ranges.push((low, high)),
            }
        }
        Self { ranges }
    }

    /// The ranges, ascending.
    pub(crate) fn ranges(&self) -> &[(i32, i32)] {
        &self.ranges
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn contains(&self, key: i32) -> bool {
        let after = self.ranges.partition_point(|(low, _)| *low <= key);
        after > 0 && key < self.ranges[after - 1].1
    }

    pub(crate) fn union(&self, other: &Self) -> Self {
        Self::from_ranges(self.ranges.iter().chain(&other.ranges).copied())
    }

    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self::from_ranges(
            self.ranges.iter().flat_map(|a| other.ranges.iter().map(move |b| (a.0.max(b.0), a.1.min(b.1)))),
        )
    }

    /// How many keys the set holds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> i32 {
        self.ranges.iter().map(|(low, high)| high - low).sum()
    }
}

/// As PostgreSQL writes an `int4multirange`.
impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (i, (low, high)) in self.ranges.iter().enumerate() {
            write!(f, "{}[{low},{high})", if i > 0 { "," } else { "" })?;
        }
        f.write_str("}")
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_are_disjoint_and_cover_the_key_space() {
        for total in 1..=257 {
            let parts: Vec<KeySet> = (0..total).map(|k| KeySet::partition(k, total)).collect();
            assert_eq!(parts.iter().map(KeySet::len).sum::<i32>(), KEY_SPACE, "{total} partitions");
            assert_eq!(parts.iter().fold(KeySet::default(), |all, part| all.union(part)), KeySet::all());
            let sizes: Vec<i32> = parts.iter().map(KeySet::len).collect();
            assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{total} partitions: {sizes:?}");
        }
    }

    #[test]
    fn ranges_are_sorted_merged_and_clipped() {
        let set = KeySet::from_ranges([(10, 20), (-5, 3), (20, 30), (65_000, 70_000), (7, 7)]);
        assert_eq!(set.to_string(), "{[0,3),[10,30),[65000,65536)}");
        assert_eq!(KeySet::default().to_string(), "{}");
    }

    #[test]
    fn membership_follows_half_open_bounds() {
        let set = KeySet::from_ranges([(10, 20), (30, 40)]);
        for (key, inside) in
            [(9, false), (10, true), (19, true), (20, false), (29, false), (30, true), (39, true), (40, false)]
        {
            assert_eq!(set.contains(key), inside, "key {key}");
        }
        assert!(!KeySet::default().contains(0));
    }

    #[test]
    fn intersection_of_two_cuts() {
        let half = KeySet::partition(1, 2);
        let third = KeySet::partition(1, 3);
        assert_eq!(half.intersection(&third).to_string(), "{[32768,43690)}");
        assert!(KeySet::partition(0, 2).intersection(&half).is_empty());
    }
}
