//! What a reaction is given, and what it has done. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::pace::Pace;
use crate::error::BoxError;
use crate::event::Event;
use crate::feed::Mark;
use crate::store::fence::{Checkpoint, EventMark, Owner, Progress};
use crate::store::parked::{Parked, Waiting};

/// The positions of events that are done behind one that is not.
pub(super) type DoneBeyond = BTreeSet<i64>;

/// Events for a reaction, and what has to be known to record that they are handled.
pub(super) struct Portion {
    pub(super) row: Checkpoint,
    pub(super) owner: Owner,
    pub(super) counted_from: i64,
    pub(super) is_replay: bool,
    pub(super) events: Arc<[Event]>,
    pub(super) origin: Origin,
    pub(super) mark: Mark,
    pub(super) pace: Option<Pace>,
}

/// Where the events of a portion come from.
pub(super) enum Origin {
    /// They are first in the range that follows on the row, up to `end`, and these come after them.
    Range { rest: Vec<Event>, end: i64 },
    /// They are the first of those that wait because their aggregate is parked.
    Parked { parked: Parked, waiting: Vec<Waiting> },
}

/// What a reaction has done with a portion.
pub(super) struct Owed {
    pub(super) portion: Portion,
    /// How many events from the front it has handled.
    pub(super) done: usize,
    /// How many of these are recorded.
    pub(super) recorded: usize,
    /// The error at the next event.
    pub(super) error: Option<BoxError>,
    /// Whether the row was found to be another worker's.
    pub(super) is_fenced: bool,
}

impl Portion {
    /// What handling the events from one index to another has brought.
    pub(super) fn progress(&self, from: usize, to: usize, end: i64) -> Option<Progress> {
        let done = self.events.get(from..to)?;
        let last = done.last().map(|last| EventMark { position: last.global_position(), id: last.event_id() })?;
        let counted = done.iter().filter(|event| event.global_position() > self.counted_from).count();
        let handled = i64::try_from(counted).unwrap_or(i64::MAX);
        Some(Progress { to: if to == self.events.len() { end } else { last.position }, last, handled })
    }

    /// Up to which position the row moves once all of these events are handled.
    pub(super) fn end(&self) -> i64 {
        match &self.origin {
            Origin::Range { rest, end } if rest.is_empty() => *end,
            _ => self.events.last().map_or(self.row.position, Event::global_position),
        }
    }
}
