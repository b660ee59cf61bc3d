//! What a user of the library writes: a projection.

use postgres::Transaction;

use crate::error::BoxError;
use crate::event::Event;

/// Which events a projection wants. The server filters; what is out of scope never leaves it.
///
/// ```
/// use pupsourcing_orchestrator::Scope;
///
/// let scope = Scope::all().aggregate_types(["Order", "Invoice"]).bounded_contexts(["shop"]);
/// assert!(scope.contains("shop", "Order"));
/// assert!(!scope.contains("shop", "Customer"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    pub(crate) aggregate_types: Option<Vec<String>>,
    pub(crate) bounded_contexts: Option<Vec<String>>,
}

impl Scope {
    /// Every event.
    pub fn all() -> Self {
        Self::default()
    }

    /// Only events of these aggregate types. Defaults to every type.
    pub fn aggregate_types(mut self, types: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.aggregate_types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    /// Only events of these bounded contexts. Defaults to every context.
    pub fn bounded_contexts(mut self, contexts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.bounded_contexts = Some(contexts.into_iter().map(Into::into).collect());
        self
    }

    /// Whether an event of this context and aggregate type is wanted.
    pub fn contains(&self, bounded_context: &str, aggregate_type: &str) -> bool {
        let among = |list: &Option<Vec<String>>, name: &str| list.as_ref().is_none_or(|l| l.iter().any(|x| x == name));
        among(&self.aggregate_types, aggregate_type) && among(&self.bounded_contexts, bounded_context)
    }
}

/// Where a projection begins that no replica set has run yet. Later starts continue from the
/// checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum StartAt {
    /// With the first event there is.
    #[default]
    Beginning,
    /// With the first event whose global position is above the highest visible when the projection is first registered.
    End,
    /// With the first event whose global position is above this one, which may be yet to come.
    Position(i64),
}

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
/// An error or a panic rolls the whole batch back. Deadlocks, serialisation failures and lost connections are retried at once;
/// anything else is retried with growing delays, and when the attempts are used up ([`Retry`](crate::Retry)) this projection halts
/// on this worker while all others continue. No event is ever skipped.
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
