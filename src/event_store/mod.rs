//! The event store: appending events, reading streams, and loading aggregates.
//!
//! The orchestrator does not need this module: it processes events that any program inserts. It is
//! for applications that have no event store of their own. It writes the same rows as pupsourcing's
//! own stores.

mod aggregate;
mod streams;

pub use self::aggregate::{CommandError, LoadError};
pub use self::streams::{AppendError, AppendResult, EventStore, ExpectedVersion};
