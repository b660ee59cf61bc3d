//! Reactions: effects outside of the database.

use std::sync::Arc;
use std::time::Instant;

use super::declared::{declare, forward};
use crate::config::Options;
use crate::error::BoxError;
use crate::event::Event;
use crate::scope::{Scope, StartAt};

/// Reacts to events with effects outside of the database: an e-mail, a webhook, a message to a
/// broker. What builds a read model is a [`Projection`](crate::Projection) or a
/// [`Fold`](crate::Fold).
///
/// While it runs, the library holds neither a transaction nor a connection for it. The checkpoint
/// moves after it has returned.
///
/// # Guarantees
///
/// Each event is reacted to **at least once**, and those of one aggregate in the order of their
/// versions. What can be repeated is one call: the one that was in progress, or whose checkpoint
/// was not stored yet, when the process was killed, or when the worker lost its partition. So give
/// the [event id](Event::event_id) to the receiver as a key that makes a repetition harmless. With
/// [`in_flight`](Options::in_flight) above 1, these are the events in flight, and those that were
/// handled while an earlier one was not: at most 16 for each that may be in flight.
///
/// A call that takes long delays neither heartbeats nor other projections. But a redistribution of
/// the partitions waits for it, for as long as
/// [`coordination_timeout`](crate::Builder::coordination_timeout). After that, the worker is left
/// out, another one gets its partition, and reacts to the events of the call again, perhaps while
/// the first call still runs. A call that ends before its [deadline](Call::deadline) never causes
/// that.
///
/// # Errors and panics
///
/// An error or a panic means that the first of the given events could not be handled. It is
/// retried, and then the reaction halts or parks the event's aggregate, as for a
/// [`Projection`](crate::Projection). If some events from the front were handled before the one
/// that fails, return their number: the next call begins with the failing one.
///
/// ```
/// use pupsourcing_orchestrator::{BoxError, Call, Event, Reaction};
///
/// struct Mails;
///
/// impl Reaction for Mails {
///     fn name(&self) -> &str {
///         "mails"
///     }
///
///     fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
///         for (done, event) in events.iter().enumerate() {
///             match send(event) {
///                 Ok(()) => {}
///                 Err(error) if done == 0 => return Err(error),
///                 Err(_) => return Ok(done),
///             }
///         }
///         Ok(events.len())
///     }
/// }
///
/// fn send(event: &Event) -> Result<(), BoxError> {
///     // ...
/// #   Ok(())
/// }
/// ```
pub trait Reaction: Send + Sync {
    declare!(named);

    /// Where the reaction begins when it is run for the first time. Defaults to the end: a new
    /// sender of mails must not send one about each event of the past.
    fn start_at(&self) -> StartAt {
        StartAt::End
    }

    /// Reacts to events from the front of `events`, which is never empty, and returns how many: at
    /// least one. The checkpoint moves past them at once. See [`Reaction`] for errors.
    ///
    /// With [`in_flight`](Options::in_flight) above 1, it is called from as many threads at once,
    /// with one event each.
    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError>;
}

/// What a [`Reaction`] may ask about the current call.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    pub(crate) projection: &'a str,
    pub(crate) generation: i64,
    pub(crate) is_replay: bool,
    pub(crate) deadline: Instant,
    pub(crate) is_pause_requested: &'a (dyn Fn() -> bool + Sync),
}

impl Call<'_> {
    /// The name of the reaction.
    pub fn projection(&self) -> &str {
        self.projection
    }

    /// The number of the generation in which the events are handled.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// Whether the events were handled before, and are handled again after a rewind that an
    /// operator has forced. As [`Tx::is_replay`](crate::Tx::is_replay).
    pub fn is_replay(&self) -> bool {
        self.is_replay
    }

    /// Until when the call has to return, so that other workers do not go on without this one:
    /// [`coordination_timeout`](crate::Builder::coordination_timeout) after the call began. If a
    /// redistribution begins later than the call, there is more time.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the worker has been asked to pause or to leave. A call that has many events left can
    /// then return the number of those that it has handled.
    pub fn is_pause_requested(&self) -> bool {
        (self.is_pause_requested)()
    }
}

impl std::fmt::Debug for Call<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call")
            .field("projection", &self.projection)
            .field("generation", &self.generation)
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<R: Reaction + ?Sized> Reaction for Arc<R> {
    forward!(named);

    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        (**self).react(call, events)
    }
}

impl<R: Reaction + ?Sized> Reaction for Box<R> {
    forward!(named);

    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        (**self).react(call, events)
    }
}
