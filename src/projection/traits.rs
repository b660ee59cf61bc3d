//! The projections that a user of the library writes.

use std::sync::Arc;

use super::declared::{declare, forward};
use super::refused::Refused;
use crate::config::Options;
use crate::error::BoxError;
use crate::event::{Event, StreamId};
use crate::scope::{Scope, StartAt};
use crate::tx::Tx;

/// Builds a read model from events, one by one. A [`BatchProjection`] handles many at once, which
/// is faster.
///
/// One instance serves every partition that the worker holds. The orchestrator never calls it on
/// two threads at once for the same aggregate.
///
/// # Guarantees
///
/// What a handler writes through its transaction is committed together with the checkpoint. So
/// these effects of each event are committed **exactly once**, whatever crashes. Events of one
/// aggregate arrive in the order of their versions.
///
/// Anything else a handler does (an e-mail, an HTTP call, a file, a second database connection)
/// happens **at least once**, in order: if the batch is rolled back afterwards, its events are
/// handled again. Make such effects idempotent, for example with [`Event::event_id`].
///
/// # Errors and panics
///
/// An error or a panic rolls the whole batch back. Then the events before the failing one are
/// committed, and the failing one is retried with growing delays. When its attempts are used up
/// ([`Retry`](crate::Retry)), this projection halts on this worker while all others continue, and
/// retries at an interval. Or it parks the event's aggregate and handles all others
/// ([`OnFailure`](crate::OnFailure)). No event is ever skipped silently.
///
/// Failures that the handler does not cause do not count as attempts: deadlocks, serialisation
/// failures, connections that are lost outside a handler, a full disk, a statement or a lock that
/// took too long, and failures that the handler returns as [`Passing`](crate::Passing).
///
/// An event that ends the process, the server or its connection counts as well, across restarts and
/// workers: the worker records which event it is about to handle, finds the event among the others,
/// and halts before it, or parks its aggregate. The exception: if the server says that it ended the
/// session for another reason (SQLSTATE 57P01 to 57P04: `pg_terminate_backend`, a shutdown, the
/// crash of another session), the event is retried without a limit. The server does not report who
/// ended the session, so a handler must not terminate its own session.
///
/// A program that is compiled with `panic = "abort"` ends at the first panic of a handler. So does
/// a program whose handler overflows its stack, or panics in a destructor during unwinding. Other
/// workers take over and reach the same event. Leave `panic` at `"unwind"`, the default, in the
/// profile of a program that runs projections.
///
/// ```
/// use pupsourcing_orchestrator::{BoxError, Event, Projection, Scope, Tx};
///
/// struct OrderCount;
///
/// impl Projection for OrderCount {
///     fn name(&self) -> &str {
///         "order_count"
///     }
///
///     fn scope(&self) -> Scope {
///         Scope::all().aggregate_types(["Order"]).event_types(["OrderPlaced"])
///     }
///
///     fn handle(&self, tx: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
///         tx.execute("UPDATE order_count SET placed = placed + 1", &[])?;
///         Ok(())
///     }
/// }
/// ```
pub trait Projection: Send + Sync {
    declare!(named);
    declare!(starting at the beginning);
    declare!(built);
    declare!(owner);

    /// Handles one event. The transaction is READ COMMITTED and read-write; its other settings are
    /// those of the role and the database. Do not end it: the orchestrator commits it together with
    /// the checkpoint, and halts the projection if it finds another transaction, or none. The
    /// library resets what a handler changes in the session (`SET`, temporary tables, `LISTEN`)
    /// before another projection gets the connection. It does not with
    /// [`heartbeats_only`](crate::Builder::heartbeats_only), where the session belongs to the
    /// pooler.
    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError>;
}

/// Builds a read model from events, many at once. With one statement for many events, it is several
/// times as fast as a [`Projection`]. The same guarantees hold, and errors have the same effects:
/// see [`Projection`].
///
/// Write the rows in the order of their key: sort them, and combine the events of each row. Workers
/// and lanes write at the same time. If two of them lock the same rows in different orders, they
/// wait for each other (a deadlock); PostgreSQL then ends one of the transactions, and its batch is
/// retried. Nothing is lost, but the work is done twice. Only one worker at a time writes rows that
/// belong to one aggregate.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use pupsourcing_orchestrator::{BatchProjection, BoxError, Event, Tx};
///
/// struct EventsPerType;
///
/// impl BatchProjection for EventsPerType {
///     fn name(&self) -> &str {
///         "events_per_type"
///     }
///
///     fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
///         // A sorted map: one row per type, in the order of the key.
///         let mut counts = BTreeMap::<&str, i64>::new();
///         for event in events {
///             *counts.entry(event.event_type()).or_default() += 1;
///         }
///         let (types, counts): (Vec<_>, Vec<_>) = counts.into_iter().unzip();
///         tx.execute(
///             "INSERT INTO events_per_type (event_type, events)
///              SELECT * FROM unnest($1::text[], $2::bigint[])
///              ON CONFLICT (event_type)
///              DO UPDATE SET events = events_per_type.events + excluded.events",
///             &[&types, &counts],
///         )?;
///         Ok(events.len())
///     }
/// }
/// ```
pub trait BatchProjection: Send + Sync {
    declare!(named);
    declare!(starting at the beginning);
    declare!(built);
    declare!(owner);

    /// Handles events from the front of `events`, which is never empty, and returns how many: at
    /// least one, usually all of them, like [`Write::write`](std::io::Write::write). The
    /// orchestrator calls it again with the rest, in the same transaction, unless it has to pause
    /// or the batch has taken long. The transaction is as in [`Projection::handle`].
    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError>;
}

impl<P: Projection + ?Sized> Projection for Arc<P> {
    forward!(named);
    forward!(built);
    forward!(owner);

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        (**self).handle(tx, event)
    }
}

impl<P: Projection + ?Sized> Projection for Box<P> {
    forward!(named);
    forward!(built);
    forward!(owner);

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        (**self).handle(tx, event)
    }
}

impl<P: BatchProjection + ?Sized> BatchProjection for Arc<P> {
    forward!(named);
    forward!(built);
    forward!(owner);

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        (**self).handle_batch(tx, events)
    }
}

impl<P: BatchProjection + ?Sized> BatchProjection for Box<P> {
    forward!(named);
    forward!(built);
    forward!(owner);

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        (**self).handle_batch(tx, events)
    }
}
