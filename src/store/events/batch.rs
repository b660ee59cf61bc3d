//! Requests to a reader, and its results.

use crate::error::Error;
use crate::event::Event;
use crate::plan::KeySet;

/// Which events to read: those of these keys, above one position and at or below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) keys: KeySet,
    pub(crate) after: i64,
    pub(crate) upto: i64,
}

impl Range {
    /// The number of positions in the range, which is the most events it can have.
    pub(super) fn positions(&self) -> u64 {
        self.upto.abs_diff(self.after)
    }

    /// The rest of the range after its first batch, if there is any.
    pub(crate) fn following(&self, batch: &Batch) -> Option<Self> {
        (batch.end < self.upto).then(|| Self { after: batch.end, ..self.clone() })
    }
}

/// The most to read at once. One event is always read, unless it is too large by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
    pub(crate) event_bytes: usize,
}

/// Why events could not be read.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// The connection or the server failed.
    Database(postgres::Error),
    /// The first event of the range cannot be read by any worker. The events before it can.
    Event(UnreadableEvent),
}

/// An event that cannot be read.
#[derive(Debug)]
pub(crate) struct UnreadableEvent {
    pub(crate) position: i64,
    pub(crate) problem: String,
}

impl From<postgres::Error> for ReadError {
    fn from(error: postgres::Error) -> Self {
        Self::Database(error)
    }
}

impl ReadError {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Database(source) => Error::Database { doing: "reading events", source },
            Self::Event(UnreadableEvent { position, problem }) => Error::UnreadableEvent { position, problem },
        }
    }
}

/// Events in the order of their positions, and how far they reach.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    /// The key of each event, if the reader returns keys.
    pub(crate) keys: Vec<i32>,
    /// Every matching event above the range's start and at or below this position is in the batch.
    pub(crate) end: i64,
}
