//! The event store: appending events, reading streams, and loading aggregates.
//!
//! The orchestrator does not need this module: it processes events that any program inserts. It is
//! for applications that have no event store of their own, and writes what pupsourcing's own stores
//! write.

mod aggregate;
mod streams;

pub use self::aggregate::{CommandError, LoadError};
pub use self::streams::{AppendError, AppendResult, EventStore, ExpectedVersion};
