//! The newest events of this worker's keys, in memory. Pure.

use std::collections::VecDeque;

use crate::event::Event;
use crate::plan::KeySet;
use crate::scope::Scope;
use crate::store::events::{Batch, Bounds, Range};

/// Every event of `keys` above `start` and at or below `end` that any projection of the worker
/// needs.
#[derive(Debug, Default)]
pub(super) struct Tail {
    keys: KeySet,
    start: i64,
    end: i64,
    /// The events with their keys.
    events: VecDeque<(i32, Event)>,
    weight: usize,
}

impl Tail {
    /// Restarts at a position, with nothing in memory.
    pub(super) fn restart(&mut self, keys: KeySet, at: i64) {
        *self = Self { keys, start: at, end: at, ..Self::default() };
    }

    /// Restarts at a position, for the same keys.
    pub(super) fn skip_to(&mut self, at: i64) {
        let keys = std::mem::take(&mut self.keys);
        self.restart(keys, at);
    }

    pub(super) fn keys(&self) -> &KeySet {
        &self.keys
    }

    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Adds the events that were read for `keys` above `after`, and drops the oldest events beyond
    /// the bounds. Events that were read for other keys, or that do not follow on the tail's end,
    /// are ignored: the tail has been restarted since they were requested.
    pub(super) fn extend(&mut self, keys: &KeySet, after: i64, batch: Batch, bounds: Bounds) {
        if *keys != self.keys || after != self.end {
            return;
        }
        self.weight += batch.events.iter().map(Event::weight).sum::<usize>();
        self.events.extend(batch.keys.into_iter().zip(batch.events));
        self.end = batch.end;
        while self.events.len() > bounds.events.saturating_mul(4) || self.weight > bounds.bytes {
            let Some((_, oldest)) = self.events.pop_front() else { break };
            self.weight -= oldest.weight();
            self.start = oldest.global_position();
        }
    }

    /// Whether the tail holds the beginning of the range.
    pub(super) fn holds(&self, range: &Range) -> bool {
        (self.start..self.end).contains(&range.after) && range.keys.intersection(&self.keys) == range.keys
    }

    /// Reads the first events of a range, within the bounds; `None` if the tail does not hold its
    /// beginning.
    pub(super) fn read(&self, range: &Range, scope: &Scope, bounds: Bounds) -> Option<Batch> {
        if !self.holds(range) {
            return None;
        }
        let upto = range.upto.min(self.end);
        let first = self.events.partition_point(|(_, event)| event.global_position() <= range.after);
        let mut batch = Batch { end: upto, ..Batch::default() };
        let mut weight = 0;
        for (key, event) in self.events.range(first..).take_while(|(_, event)| event.global_position() <= upto) {
            if range.keys.contains(*key) && scope.contains(event) {
                weight += event.weight();
                // At least one event is returned, whatever its size.
                if let Some(last) = batch.events.last()
                    && (batch.events.len() >= bounds.events || weight > bounds.bytes)
                {
                    batch.end = last.global_position();
                    break;
                }
                batch.events.push(event.clone());
            }
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventParts;

    const BOUNDS: Bounds = Bounds { events: 2, bytes: 1_000, event_bytes: 1_000 };

    /// Events with their keys.
    fn batch(events: impl IntoIterator<Item = (i64, i32)>, end: i64) -> Batch {
        let event = |(global_position, key)| {
            let aggregate_type: String = if global_position % 2 == 0 { "even" } else { "odd" }.into();
            // Ten bytes in total.
            let payload = vec![0; 10 - aggregate_type.len()];
            let parts = EventParts { global_position, aggregate_type, payload, ..EventParts::default() };
            (Event::from(parts), key)
        };
        let (events, keys) = events.into_iter().map(event).unzip();
        Batch { events, keys, end }
    }

    fn range(keys: KeySet, after: i64, upto: i64) -> Range {
        Range { keys, after, upto }
    }

    fn tail() -> Tail {
        let mut tail = Tail::default();
        tail.restart(KeySet::partition(0, 2), 10);
        tail.extend(&KeySet::partition(0, 2), 10, batch([(11, 5), (12, 6), (14, 5), (15, 30_000)], 20), BOUNDS);
        tail
    }

    fn positions(batch: &Batch) -> Vec<i64> {
        batch.events.iter().map(Event::global_position).collect()
    }

    #[test]
    fn reads_within_the_bounds_and_says_how_far_it_got() {
        let tail = tail();
        let mine = KeySet::partition(0, 2);
        let first = tail.read(&range(mine.clone(), 10, 99), &Scope::all(), BOUNDS).unwrap();
        assert_eq!((positions(&first), first.end), (vec![11, 12], 12));
        let rest = tail.read(&range(mine.clone(), 12, 14), &Scope::all(), BOUNDS).unwrap();
        assert_eq!((positions(&rest), rest.end), (vec![14], 14), "no further than asked");
        let none = tail.read(&range(mine.clone(), 15, 99), &Scope::all(), BOUNDS).unwrap();
        assert_eq!((positions(&none), none.end), (vec![], 20), "no further than it reaches");
        let within = |bytes| {
            tail.read(&range(mine.clone(), 10, 99), &Scope::all(), Bounds { events: 9, bytes, ..BOUNDS }).unwrap()
        };
        for (bytes, last) in [(9, 11), (10, 11), (19, 11), (20, 12), (29, 12), (30, 14)] {
            let batch = within(bytes);
            assert_eq!((positions(&batch).last(), batch.end), (Some(&last), last), "{bytes} bytes");
        }
    }

    #[test]
    fn filters_by_key_and_scope() {
        let tail = tail();
        let some = tail.read(&range(KeySet::from_ranges([(5, 6)]), 10, 99), &Scope::all(), BOUNDS).unwrap();
        assert_eq!(positions(&some), [11, 14]);
        let even = Scope::all().aggregate_types(["even"]);
        let even = tail.read(&range(KeySet::partition(0, 2), 10, 99), &even, BOUNDS).unwrap();
        assert_eq!(positions(&even), [12, 14]);
    }

    #[test]
    fn a_range_the_tail_does_not_hold_is_not_answered() {
        let tail = tail();
        assert!(tail.read(&range(KeySet::partition(0, 2), 9, 99), &Scope::all(), BOUNDS).is_none(), "before its start");
        assert!(tail.read(&range(KeySet::partition(0, 2), 20, 99), &Scope::all(), BOUNDS).is_none(), "at its end");
        assert!(tail.read(&range(KeySet::all(), 10, 99), &Scope::all(), BOUNDS).is_none(), "keys of others");
    }

    #[test]
    fn oldest_events_beyond_either_bound_are_dropped() {
        let mine = KeySet::partition(0, 2);
        for (bounds, start, first_kept) in [
            // Four times as many events as a batch may have.
            (Bounds { events: 2, bytes: 1_000, ..BOUNDS }, 12, 14),
            (Bounds { events: 9, bytes: 100, ..BOUNDS }, 10, 11),
            (Bounds { events: 9, bytes: 99, ..BOUNDS }, 11, 12),
            (Bounds { events: 9, bytes: 60, ..BOUNDS }, 15, 21),
            (Bounds { events: 9, bytes: 9, ..BOUNDS }, 26, 27),
        ] {
            let mut tail = tail();
            tail.extend(&mine, 20, batch((21..=26).map(|position| (position, 1)), 27), bounds);
            let all = Bounds { events: 99, bytes: 1_000, ..BOUNDS };
            assert!(tail.read(&range(mine.clone(), start - 1, 99), &Scope::all(), all).is_none(), "{bounds:?}");
            let held = positions(&tail.read(&range(mine.clone(), start, 99), &Scope::all(), all).unwrap());
            let expected = [11, 12, 14, 15, 21, 22, 23, 24, 25, 26].into_iter().filter(|at| *at >= first_kept);
            assert_eq!(held, expected.collect::<Vec<_>>(), "{bounds:?}");
        }
    }

    #[test]
    fn skipping_empties_the_tail_and_keeps_its_keys() {
        let mut tail = tail();
        let mine = KeySet::partition(0, 2);
        tail.skip_to(30);
        assert_eq!((tail.keys(), tail.end()), (&mine, 30));
        assert!(tail.read(&range(mine.clone(), 15, 99), &Scope::all(), BOUNDS).is_none(), "what it held is gone");
        tail.extend(&mine, 30, batch([(31, 1)], 31), BOUNDS);
        assert_eq!(positions(&tail.read(&range(mine, 30, 99), &Scope::all(), BOUNDS).unwrap()), [31]);
    }

    #[test]
    fn events_read_before_a_restart_are_ignored() {
        let mut tail = tail();
        let late = || batch([(21, 1)], 21);
        tail.extend(&KeySet::all(), 20, late(), BOUNDS);
        tail.extend(&KeySet::partition(0, 2), 19, late(), BOUNDS);
        assert_eq!(tail.end(), 20);
    }
}
