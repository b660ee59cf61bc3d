//! The event store: appending events, reading streams, loading aggregates, and waiting for
//! projections.
//!
//! The orchestrator does not need this module: it processes events that any program inserts. It is
//! for applications that have no event store of their own. It writes the same rows as pupsourcing's
//! own stores.

mod aggregate;
mod streams;
mod wait;
mod wait_error;
mod wait_group;
mod wait_room;

pub use self::aggregate::{CommandError, LoadError};
pub use self::streams::{AppendError, AppendResult, EventStore, ExpectedVersion};
pub use self::wait_error::WaitError;
#[cfg(feature = "cli")]
pub(crate) use self::wait_room::Goal;
