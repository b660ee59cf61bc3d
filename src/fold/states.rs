//! The states that stay in memory from one batch to the next. Pure.

use std::collections::{HashMap, HashSet};

/// The most keys that one runner keeps in memory, and the most bytes of their states as JSON.
pub(super) const MOST_KEYS: usize = 65_536;
pub(super) const MOST_BYTES: usize = 16 << 20;

/// A state as it is in the table, or that there is none.
#[derive(Debug)]
pub(super) struct Kept<S> {
    pub(super) state: Option<S>,
    pub(super) seen: Option<Seen>,
    /// How many bytes of JSON the state has.
    pub(super) bytes: usize,
}

/// The version and the position of a row, by which a change of another worker is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) version: i64,
    pub(super) position: i64,
}

/// What a fold keeps in memory: the states that were used last, in two halves. When the younger
/// half is full, it becomes the older one, whose states are dropped. So a state stays if it was
/// used lately, and nothing has to be sorted.
#[derive(Debug)]
pub(super) struct States<S> {
    young: Half<S>,
    old: Half<S>,
    /// The keys whose rows were handled again since the rows of an aggregate were forgotten.
    pub(super) renewed: Option<HashSet<String>>,
}

#[derive(Debug)]
struct Half<S> {
    states: HashMap<String, Kept<S>>,
    bytes: usize,
}

impl<S> Default for Half<S> {
    fn default() -> Self {
        Self { states: HashMap::new(), bytes: 0 }
    }
}

impl<S> Default for States<S> {
    fn default() -> Self {
        Self { young: Half::default(), old: Half::default(), renewed: None }
    }
}

impl<S> Half<S> {
    fn take(&mut self, key: &str) -> Option<Kept<S>> {
        let kept = self.states.remove(key)?;
        self.bytes = self.bytes.saturating_sub(kept.bytes);
        Some(kept)
    }
}

impl<S> States<S> {
    pub(super) fn clear(&mut self) {
        (self.young, self.old) = Default::default();
    }

    pub(super) fn take(&mut self, key: &str) -> Option<Kept<S>> {
        self.young.take(key).or_else(|| self.old.take(key))
    }

    /// Keeps the state of a key that was taken before.
    pub(super) fn put(&mut self, key: String, kept: Kept<S>) {
        if self.young.states.len() >= MOST_KEYS / 2 || self.young.bytes + kept.bytes > MOST_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        if kept.bytes <= MOST_BYTES / 2 {
            self.young.bytes += kept.bytes;
            self.young.states.insert(key, kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(bytes: usize) -> Kept<()> {
        Kept { state: Some(()), seen: None, bytes }
    }

    fn size(states: &States<()>) -> (usize, usize) {
        let halves = [&states.young, &states.old];
        (halves.iter().map(|half| half.states.len()).sum(), halves.iter().map(|half| half.bytes).sum())
    }

    #[test]
    fn memory_is_bounded_by_keys_and_bytes() {
        let mut states = States::default();
        for number in 0..3 * MOST_KEYS {
            states.put(number.to_string(), kept(1));
            assert!(size(&states).0 <= MOST_KEYS);
        }
        let mut states = States::default();
        for number in 0..100 {
            states.put(number.to_string(), kept(MOST_BYTES / 7));
            assert!(size(&states).1 <= MOST_BYTES);
        }
        states.put("large".into(), kept(MOST_BYTES));
        assert!(states.take("large").is_none());
    }

    #[test]
    fn states_that_are_used_stay() {
        let mut states = States::default();
        states.put("hot".into(), kept(1));
        for number in 0..3 * MOST_KEYS {
            states.put(number.to_string(), kept(1));
            if number % 1_000 == 0 {
                let hot = states.take("hot").expect("it was used lately");
                states.put("hot".into(), hot);
            }
        }
        assert!(states.take("0").is_none());
        while states.take("hot").is_some() {}
        let (_, bytes) = size(&states);
        assert!(bytes > 0 && bytes == size(&states).0);
    }
}
