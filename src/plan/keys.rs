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
    /// The set of all keys.
    pub(crate) fn all() -> Self {
        Self::from_ranges([(0, KEY_SPACE)])
    }

    /// The k-th of `total` equal contiguous ranges. The ranges of all k are disjoint and cover the
    /// key space.
    pub(crate) fn partition(k: usize, total: usize) -> Self {
        Self::all().part(k, total)
    }

    /// The k-th of `total` equal parts of each of the set's ranges. The parts of all k are disjoint
    /// and cover the set.
    pub(crate) fn part(&self, k: usize, total: usize) -> Self {
        // The product of a key and a number of parts fits into 64 bits.
        let (k, total) = (i64::try_from(k).unwrap_or(i64::MAX), i64::try_from(total).unwrap_or(i64::MAX).max(1));
        Self::from_ranges(self.ranges.iter().map(|&(low, high)| {
            let length = i64::from(high) - i64::from(low);
            let bound = |k: i64| low + i32::try_from(length.saturating_mul(k) / total).unwrap_or(high - low);
            (bound(k), bound(k.saturating_add(1)))
        }))
    }

    /// The union of half-open ranges. Keys outside the key space are dropped.
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
    pub(crate) fn len(&self) -> i32 {
        self.ranges.iter().map(|(low, high)| high - low).sum()
    }
}

/// In the form in which PostgreSQL writes an `int4multirange`.
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
    use proptest::prelude::*;

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
        assert_eq!(format!("{set:?}"), set.to_string());
        assert_eq!(set.ranges(), [(0, 3), (10, 30), (65_000, 65_536)]);
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

    /// Ranges that often touch, overlap, are empty or upside down, or stick out of the key space.
    fn ranges() -> impl Strategy<Value = Vec<(i32, i32)>> {
        let bound = || prop_oneof![4 => -2..40, 1 => KEY_SPACE - 3..KEY_SPACE + 3, 1 => any::<i32>()];
        prop::collection::vec((bound(), bound()), 0..8)
    }

    fn bitmap(ranges: &[(i32, i32)]) -> Vec<bool> {
        (0..KEY_SPACE).map(|key| ranges.iter().any(|(low, high)| (*low..*high).contains(&key))).collect()
    }

    fn is_canonical(set: &KeySet) -> bool {
        set.ranges.iter().all(|(low, high)| 0 <= *low && low < high && *high <= KEY_SPACE)
            && set.ranges.windows(2).all(|pair| pair[0].1 < pair[1].0)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn sets_do_what_bitmaps_do(a in ranges(), b in ranges()) {
            let (left, right) = (bitmap(&a), bitmap(&b));
            let (a, b) = (KeySet::from_ranges(a), KeySet::from_ranges(b));
            let (union, intersection) = (a.union(&b), a.intersection(&b));
            for set in [&a, &b, &union, &intersection] {
                prop_assert!(is_canonical(set), "{}", set);
            }
            for ((key, left), right) in (0..).zip(left.iter().copied()).zip(right) {
                prop_assert_eq!(a.contains(key), left, "{} in {}", key, a);
                prop_assert_eq!(union.contains(key), left || right, "{} in {}", key, union);
                prop_assert_eq!(intersection.contains(key), left && right, "{} in {}", key, intersection);
            }
            prop_assert_eq!(usize::try_from(a.len()), Ok(left.iter().filter(|key| **key).count()));
            prop_assert_eq!(a.is_empty(), !left.contains(&true));
            prop_assert_eq!(a == b, (0..KEY_SPACE).all(|key| a.contains(key) == b.contains(key)));
            prop_assert!(!a.contains(-1) && !a.contains(KEY_SPACE) && !a.contains(i32::MIN) && !a.contains(i32::MAX));
        }

        /// However often the keys are cut, every key is in exactly one piece.
        #[test]
        fn cuts_of_cuts_lose_nothing(totals in prop::collection::vec(1..40_usize, 1..4)) {
            let mut pieces = vec![KeySet::all()];
            for total in totals {
                let parts: Vec<KeySet> = (0..total).map(|k| KeySet::partition(k, total)).collect();
                pieces = pieces.iter().flat_map(|old| parts.iter().map(|part| old.intersection(part))).collect();
                pieces.retain(|piece| !piece.is_empty());
                prop_assert_eq!(pieces.iter().map(KeySet::len).sum::<i32>(), KEY_SPACE);
                prop_assert_eq!(pieces.iter().fold(KeySet::default(), |all, piece| all.union(piece)), KeySet::all());
            }
        }
    }
}
