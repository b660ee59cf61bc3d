//! One round of a fold, without its statements: which keys a batch concerns, and what becomes of
//! their states. Pure, except that it calls the application's code.

use std::collections::HashMap;

use serde::Serialize;

use super::column::Column;
use super::states::{Kept, Seen};
use super::traits::Fold;
use crate::error::BoxError;
use crate::event::Event;
use crate::projection::{Failed, guarded};

/// How many events are applied before the worker is asked again whether it has to pause.
const BETWEEN_LOOKS: usize = 16;

/// The keys of a batch, each with its state.
pub(super) struct Round<S> {
    pub(super) slots: Vec<Slot<S>>,
    /// For each event, the number of its slot.
    of_events: Vec<Option<usize>>,
    /// Whether a key is not the id of its event's aggregate.
    pub(super) has_other_keys: bool,
}

/// A key and its state.
pub(super) struct Slot<S> {
    pub(super) key: String,
    /// The row as it was read.
    pub(super) seen: Option<Seen>,
    pub(super) state: Option<S>,
    pub(super) bytes: usize,
    version: i64,
    position: i64,
    is_changed: bool,
    /// Whether the row only exists because it was locked.
    is_placeholder: bool,
}

impl<S> Slot<S> {
    fn new(key: String) -> Self {
        Self {
            key,
            seen: None,
            state: None,
            bytes: 0,
            version: 0,
            position: 0,
            is_changed: false,
            is_placeholder: false,
        }
    }

    /// Begins with what is in the table, or was kept in memory.
    pub(super) fn fill(&mut self, kept: Kept<S>) {
        let Kept { state, seen, bytes } = kept;
        let Seen { version, position } = seen.unwrap_or(Seen { version: 0, position: 0 });
        (self.state, self.seen, self.bytes, self.version, self.position) = (state, seen, bytes, version, position);
    }

    /// Begins with a row that exists only because it was locked.
    pub(super) fn fill_placeholder(&mut self, seen: Seen) {
        self.fill(Kept { state: None, seen: Some(seen), bytes: 0 });
        self.is_placeholder = true;
    }

    /// Begins without a state, although there may be a row.
    pub(super) fn forget(&mut self) {
        (self.state, self.bytes, self.version, self.position) = (None, 0, 0, 0);
        self.is_changed = self.seen.is_some();
    }

    fn is_to_be_written(&self) -> bool {
        let is_in_vain = self.seen.is_none() && self.state.is_none();
        (self.is_changed && !is_in_vain) || (self.is_placeholder && self.state.is_none())
    }

    /// What is in the table once the slot is written.
    pub(super) fn into_kept(self) -> (String, Kept<S>) {
        let Self { key, state, bytes, version, position, .. } = self;
        let seen = state.is_some().then_some(Seen { version, position });
        (key, Kept { state, seen, bytes })
    }
}

impl<S: Serialize> Round<S> {
    /// Asks for the keys of these events.
    pub(super) fn new<F: Fold<State = S>>(fold: &F, events: &[Event]) -> Result<Self, Failed> {
        let mut numbers: HashMap<String, usize> = HashMap::with_capacity(events.len());
        let mut of_events = Vec::with_capacity(events.len());
        let mut has_other_keys = false;
        for (at, event) in events.iter().enumerate() {
            let key = guarded(|| Ok(fold.key(event))).map_err(|error| Failed { error, at: Some(at) })?;
            of_events.push(key.map(|key| {
                has_other_keys |= key != event.aggregate_id();
                let next = numbers.len();
                *numbers.entry(key).or_insert(next)
            }));
        }
        let mut keys: Vec<(usize, String)> = numbers.into_iter().map(|(key, number)| (number, key)).collect();
        keys.sort_unstable_by_key(|(number, _)| *number);
        let slots = keys.into_iter().map(|(_, key)| Slot::new(key)).collect();
        Ok(Self { slots, of_events, has_other_keys })
    }

    /// The index of the first event with the key of this slot.
    pub(super) fn first_event_of(&self, slot: usize) -> Option<usize> {
        self.of_events.iter().position(|of_event| *of_event == Some(slot))
    }

    /// Applies events from the front, until all are applied or a pause is requested. Returns how
    /// many.
    pub(super) fn apply<F: Fold<State = S>>(
        &mut self,
        fold: &F,
        events: &[Event],
        is_pause_requested: impl Fn() -> bool,
    ) -> Result<usize, Failed> {
        for (at, (event, slot)) in events.iter().zip(&self.of_events).enumerate() {
            if at > 0 && at % BETWEEN_LOOKS == 0 && is_pause_requested() {
                return Ok(at);
            }
            let Some(slot) = slot.and_then(|number| self.slots.get_mut(number)) else { continue };
            let before = slot.state.take();
            let is_new = before.is_none();
            slot.state = guarded(|| fold.apply(before, event)).map_err(|error| Failed { error, at: Some(at) })?;
            let position = event.global_position();
            // The version and the position of a new row do not depend on those of a deleted one. So
            // another worker notices that the row is not the one that it has read.
            (slot.version, slot.position) =
                if is_new { (1, position) } else { (slot.version + 1, slot.position.max(position)) };
            slot.is_changed = true;
        }
        Ok(events.len())
    }

    /// Returns the rows to be written.
    pub(super) fn changes(&mut self, columns: &[Column<S>]) -> Result<Changes, BoxError> {
        let mut changes = Changes { values: vec![Vec::new(); columns.len()], ..Changes::default() };
        for slot in self.slots.iter_mut().filter(|slot| slot.is_to_be_written()) {
            let text =
                match &slot.state {
                    Some(state) => Some(serde_json::to_string(state).map_err(|error| {
                        format!("the state of key {:?} cannot be written as JSON: {error}", slot.key)
                    })?),
                    None => None,
                };
            slot.bytes = text.as_ref().map_or(0, String::len);
            changes.keys.push(slot.key.clone());
            changes.states.push(text);
            changes.versions.push(slot.version);
            changes.positions.push(slot.position);
            changes.were.0.push(slot.seen.map(|seen| seen.version));
            changes.were.1.push(slot.seen.map(|seen| seen.position));
            for (column, values) in columns.iter().zip(&mut changes.values) {
                values.push(match &slot.state {
                    Some(state) => guarded(|| Ok(column.value(state)))?,
                    None => None,
                });
            }
        }
        Ok(changes)
    }
}

/// Rows to be written, as the arrays of the statement.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) keys: Vec<String>,
    /// As JSON, or none for a row to be deleted.
    pub(super) states: Vec<Option<String>>,
    pub(super) versions: Vec<i64>,
    pub(super) positions: Vec<i64>,
    /// The versions and positions that were read, or none for a row to be inserted.
    pub(super) were: (Vec<Option<i64>>, Vec<Option<i64>>),
    /// The values of each extracted column.
    pub(super) values: Vec<Vec<Option<String>>>,
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::event::EventParts;

    /// Counts events per type. The type `fail` fails, and `none` deletes the state.
    struct Counts;

    impl Fold for Counts {
        type State = i64;

        fn name(&self) -> &str {
            "counts"
        }

        fn key(&self, event: &Event) -> Option<String> {
            (event.event_type() != "other").then(|| event.aggregate_id().to_owned())
        }

        fn apply(&self, state: Option<i64>, event: &Event) -> Result<Option<i64>, BoxError> {
            match event.event_type() {
                "fail" => Err("no such customer".into()),
                "panic" => panic!("it fell"),
                "none" => Ok(None),
                _ => Ok(Some(state.unwrap_or(0) + 1)),
            }
        }
    }

    fn event(position: i64, id: &str, event_type: &str) -> Event {
        Event::from(EventParts {
            global_position: position,
            aggregate_id: id.into(),
            event_type: event_type.into(),
            ..EventParts::default()
        })
    }

    /// The rows that are written: key, state, version, position, and the version that was read.
    type Written<'a> = (&'a str, Option<&'a str>, i64, i64, Option<i64>);

    /// The same, as the round returns it.
    type Row = (String, Option<String>, i64, i64, Option<i64>);

    fn written(events: &[(&str, &str)], held: &[(&str, i64, i64, i64)]) -> Vec<Row> {
        let events: Vec<Event> =
            (101..).zip(events).map(|(position, (id, event_type))| event(position, id, event_type)).collect();
        let mut round = Round::new(&Counts, &events).unwrap();
        for slot in &mut round.slots {
            if let Some((_, state, version, position)) = held.iter().find(|(key, ..)| *key == slot.key) {
                let seen = Seen { version: *version, position: *position };
                if *version == 0 {
                    slot.fill_placeholder(seen);
                } else {
                    slot.fill(Kept { state: Some(*state), seen: Some(seen), bytes: 1 });
                }
            }
        }
        assert_eq!(round.apply(&Counts, &events, || false).unwrap(), events.len());
        let changes = round.changes(&[]).unwrap();
        let Changes { keys, states, versions, positions, were, .. } = changes;
        (0..keys.len())
            .map(|at| (keys[at].clone(), states[at].clone(), versions[at], positions[at], were.0[at]))
            .collect()
    }

    #[test]
    fn rows_have_the_version_and_position_of_their_events() {
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, i64, i64, i64)], &'a [Written<'a>]);
        let cases: [Case<'_>; 9] = [
            (
                &[("a", "x"), ("b", "x"), ("a", "x")],
                &[],
                &[("a", Some("2"), 2, 103, None), ("b", Some("1"), 1, 102, None)],
            ),
            (&[("a", "x")], &[("a", 7, 7, 50)], &[("a", Some("8"), 8, 101, Some(7))]),
            // Another worker has applied a later event.
            (&[("a", "x")], &[("a", 7, 7, 500)], &[("a", Some("8"), 8, 500, Some(7))]),
            (&[("a", "none")], &[("a", 7, 7, 50)], &[("a", None, 8, 101, Some(7))]),
            // The new row does not look like the former one.
            (&[("a", "none"), ("a", "x")], &[("a", 1, 1, 500)], &[("a", Some("1"), 1, 102, Some(1))]),
            (&[("a", "none")], &[], &[]),
            (&[("a", "none")], &[("a", 0, 0, 0)], &[("a", None, 1, 101, Some(0))]),
            (&[("a", "x")], &[("a", 0, 0, 0)], &[("a", Some("1"), 1, 101, Some(0))]),
            (&[("a", "other")], &[("a", 7, 7, 50)], &[]),
        ];
        for (events, held, expected) in cases {
            let found = written(events, held);
            let found: Vec<Written<'_>> =
                found.iter().map(|(key, state, v, p, was)| (key.as_str(), state.as_deref(), *v, *p, *was)).collect();
            assert_eq!(found, expected, "{events:?} {held:?}");
        }
    }

    #[test]
    fn failing_event_is_known_by_its_index() {
        for (event_type, text) in [("fail", "no such customer"), ("panic", "it fell")] {
            let events = [event(1, "a", "x"), event(2, "b", "x"), event(3, "a", event_type)];
            let mut round = Round::new(&Counts, &events).unwrap();
            let Failed { error, at } = round.apply(&Counts, &events, || false).unwrap_err();
            assert!(at == Some(2) && error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn pause_ends_a_round_early() {
        let events: Vec<Event> = (0..100).map(|at| event(at + 1, &format!("k{at}"), "x")).collect();
        let mut round = Round::new(&Counts, &events).unwrap();
        for slot in &mut round.slots {
            slot.fill_placeholder(Seen { version: 0, position: 0 });
        }
        let looks = Cell::new(0);
        let is_pause_requested = || {
            looks.set(looks.get() + 1);
            looks.get() == 2
        };
        assert_eq!(round.apply(&Counts, &events, is_pause_requested).unwrap(), 2 * BETWEEN_LOOKS);
        let states = round.changes(&[]).unwrap().states;
        // The rows that were only locked are deleted.
        assert_eq!((states.len(), states.iter().flatten().count()), (100, 2 * BETWEEN_LOOKS));
    }
}
