//! What a user of the library writes: a projection, and what its handler may return.

use std::fmt;

use postgres::Transaction;

use crate::config::Retry;
use crate::error::BoxError;
use crate::event::Event;
use crate::scope::{Scope, StartAt};

/// Builds a read model from events.
///
/// One instance serves every partition the worker holds; the orchestrator never calls it from two threads at once for the same
/// keys.
///
/// # Guarantees
///
/// What a handler writes through the transaction it is given is committed together with the checkpoint: each event's effects
/// there are committed **exactly once**, whatever crashes. Events of one aggregate come in the order of their versions.
///
/// Anything else a handler does (an e-mail, an HTTP call, a file, a second database connection) happens **at least once**, in
/// order: if the batch is rolled back afterwards, its events are handled again. Make such effects idempotent, for instance with
/// [`Event::event_id`].
///
/// # Errors and panics
///
/// An error or a panic rolls the whole batch back; then the events before the failing one are committed, and that one is tried
/// again with growing delays. When its attempts are used up ([`Retry`]), this projection halts on this worker while all others
/// continue, and tries again now and then. No event is ever skipped.
///
/// What is not the handler's failure does not count: deadlocks, serialisation failures, connections that are lost outside a handler, a
/// full disk, a statement or a lock that took too long, and what the handler itself calls [`Passing`].
///
/// An event that ends the process, the server or its connection counts as well, across restarts and workers: the worker records
/// which event it is about to handle, finds it among the others, and halts before it.
/// The exception: if the server says that it ended the session for another reason (SQLSTATE 57P01
/// to 57P04: `pg_terminate_backend`, a shutdown, the crash of another session), the event is retried
/// without a limit. The server cannot tell who gave the order, so do not let a handler terminate its
/// own session.
///
/// A program that is compiled with `panic = "abort"` ends at the first panic of a handler, as does
/// one whose handler overflows its stack or panics in a destructor while it unwinds. Other workers
/// take over and reach the same event. Leave `panic` at `"unwind"`, the default, in such a program's
/// profile.
///
/// ```
/// use postgres::Transaction;
/// use pupsourcing_orchestrator::{BoxError, Event, Projection, Scope};
///
/// struct OrderCount;
///
/// impl Projection for OrderCount {
///     fn name(&self) -> &str {
///         "order_count"
///     }
///
///     fn scope(&self) -> Scope {
///         Scope::all().aggregate_types(["Order"])
///     }
///
///     fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
///         if event.event_type() == "OrderPlaced" {
///             tx.execute("UPDATE order_count SET placed = placed + 1", &[])?;
///         }
///         Ok(())
///     }
/// }
/// ```
pub trait Projection: Send + Sync {
    /// The name its checkpoints are kept under: 1 to 255 bytes, unique in the database, and the same for ever.
    fn name(&self) -> &str;

    /// Which events it wants. Read once, at start. Defaults to every event.
    fn scope(&self) -> Scope {
        Scope::all()
    }

    /// Where it begins when it is run for the first time. Defaults to the beginning.
    fn start_at(&self) -> StartAt {
        StartAt::Beginning
    }

    /// How it is retried when it fails. Read at start. Defaults to the settings of the
    /// [builder](crate::Builder::retry).
    fn retry(&self) -> Option<Retry> {
        None
    }

    /// Handles one event. The transaction is READ COMMITTED and read-write; its other settings are
    /// those of the role and the database. Do not end it: the orchestrator commits it, together
    /// with the checkpoint, and halts the projection if it finds another transaction, or none. What
    /// is set for the session (`SET`, temporary tables, `LISTEN`) is reset before another
    /// projection gets the connection, except with
    /// [`heartbeats_only`](crate::Builder::heartbeats_only), where the session is the pooler's.
    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError>;

    /// Handles events from the front of `events` (never empty), and returns how many: at least one, like
    /// [`Write::write`](std::io::Write::write). The orchestrator calls again with the rest, in the same transaction, unless it has
    /// to pause or the batch has become long.
    ///
    /// Override it to write many events with one statement, and return `Ok(events.len())`. Defaults to handling the first event
    /// with [`handle`](Self::handle).
    ///
    /// Write the rows in the order of their key: sort them, and combine the events of each row. Workers and lanes write at the
    /// same time. If two of them lock the same rows in different orders, they wait for each other (a deadlock); PostgreSQL
    /// then ends one of the transactions, and its batch is retried. Nothing is lost, but the work is done twice. Rows that
    /// belong to one aggregate are written by one worker only.
    fn handle_batch(&self, tx: &mut Transaction<'_>, events: &[Event]) -> Result<usize, BoxError> {
        match events.first() {
            Some(event) => self.handle(tx, event).map(|()| 1),
            None => Ok(0),
        }
    }
}

/// A failure that passes by itself: a service that the handler needs is away. A handler returns it,
/// or an error whose [source](std::error::Error::source) it is. The event is retried without limit,
/// after the delays of [`Retry`], and no attempt is counted.
///
/// ```
/// use postgres::Transaction;
/// use pupsourcing_orchestrator::{BoxError, Event, Passing, Projection};
///
/// struct Mails;
///
/// impl Projection for Mails {
///     fn name(&self) -> &str {
///         "mails"
///     }
///
///     fn handle(&self, _: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
///         let address = std::str::from_utf8(event.payload())?; // counts: no attempt will make it an address
///         send(address).map_err(Passing::new)?;
///         Ok(())
///     }
/// }
///
/// fn send(address: &str) -> std::io::Result<()> {
///     // ...
/// #   Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Passing(BoxError);

impl Passing {
    /// Says that this failure passes by itself.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Passing {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}
