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
