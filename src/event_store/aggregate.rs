//! Aggregates: the state that follows from a stream, and commands that depend on it.

use postgres::Client;
use uuid::Uuid;

use super::streams::{AppendError, AppendResult, EventStore, ExpectedVersion};
use crate::database::AsClient;
use crate::error::{BoxError, Error};
use crate::event::{Event, NewEvent, StreamId};

/// The most events of a stream that are in memory at once.
const PAGE: i64 = 1_000;

/// The most times that a command is decided.
const ATTEMPTS: u32 = 10;

/// Why an aggregate could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The aggregate's events could not be read.
    #[error("the stream cannot be read")]
    Read(#[source] Error),

    /// The fold refused an event.
    #[non_exhaustive]
    #[error("the {event_type} at global position {position} (event {event_id}) cannot be folded")]
    Fold {
        /// The event's global position.
        position: i64,
        /// The event's identifier.
        event_id: Uuid,
        /// The event's type.
        event_type: String,
        /// The error that the fold returned.
        source: BoxError,
    },
}

/// Why a command changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError<E> {
    /// The function `decide` rejected the command.
    #[error("the command was rejected: {0}")]
    Rejected(E),

    /// The aggregate could not be loaded.
    #[error("the aggregate cannot be loaded")]
    Load(#[source] LoadError),

    /// The events could not be appended, for a reason other than a conflict.
    #[error("the command's events cannot be appended")]
    Append(#[source] AppendError),

    /// Other writers appended to the aggregate during every attempt.
    #[non_exhaustive]
    #[error("other writers changed {stream} during each of {attempts} attempts")]
    Contended {
        /// The aggregate.
        stream: StreamId,
        /// How many times the command was decided.
        attempts: u32,
    },
}

impl LoadError {
    /// Whether loading again may help: see [`Error::is_transient`].
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Read(error) if error.is_transient())
    }
}

impl<E> CommandError<E> {
    /// Whether executing the command again may help: other writers were faster, or the database
    /// failed for a transient reason (see [`Error::is_transient`]). If the connection was lost, the
    /// command may have taken effect.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Rejected(_) => false,
            Self::Load(error) => error.is_transient(),
            Self::Append(error) => error.is_transient(),
            Self::Contended { .. } => true,
        }
    }
}

impl EventStore {
    /// Loads an aggregate: folds its events, in order, into a state that `init` creates. Returns
    /// the state and the aggregate's version, which is 0 if it has no events.
    ///
    /// The events are read in pages, each with a statement of its own. An event that is appended
    /// meanwhile is either in both the state and the version, or in neither.
    ///
    /// # Errors
    ///
    /// [`LoadError::Fold`] names the event that the fold refused.
    pub fn load<S, E: Into<BoxError>>(
        &self,
        client: &mut impl AsClient,
        stream: &StreamId,
        init: impl FnOnce() -> S,
        mut fold: impl FnMut(&mut S, &Event) -> Result<(), E>,
    ) -> Result<(S, i64), LoadError> {
        let (mut state, mut version) = (init(), 0);
        loop {
            let page = self.read_page(client, stream, (version + 1, i64::MAX), Some(PAGE)).map_err(LoadError::Read)?;
            for event in &page {
                fold(&mut state, event).map_err(|error| LoadError::Fold {
                    position: event.global_position(),
                    event_id: event.event_id(),
                    event_type: event.event_type().to_owned(),
                    source: error.into(),
                })?;
                version = event.aggregate_version();
            }
            if i64::try_from(page.len()).is_ok_and(|events| events < PAGE) {
                return Ok((state, version));
            }
        }
    }

    /// Executes a command: [loads](Self::load) the aggregate, calls `decide` with its state, and
    /// appends the events that `decide` returns. Returns `None` if it returns no events. If another
    /// writer has appended meanwhile, all of this is repeated, up to ten attempts in all. The
    /// events are committed when this method returns, so it takes a connection and not a
    /// transaction. Afterwards, [`hint`](Self::hint) may tell the workers.
    ///
    /// ```no_run
    /// use pupsourcing_orchestrator::{BoxError, Database, Event, EventStore, NewEvent, StreamId};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// enum OrderEvent {
    ///     OrderPlaced { total: i64 },
    ///     OrderPaid,
    /// }
    ///
    /// #[derive(Default)]
    /// struct Order {
    ///     is_paid: bool,
    /// }
    ///
    /// impl Order {
    ///     fn apply(&mut self, event: &Event) -> Result<(), BoxError> {
    ///         self.is_paid |= matches!(event.decode()?, OrderEvent::OrderPaid);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let mut client = Database::from_url("postgres://app@localhost/shop")?.connect()?;
    /// let order = StreamId::new("shop", "Order", "order-7");
    /// let store = EventStore::default();
    /// let pay = |order: &Order| -> Result<_, BoxError> {
    ///     if order.is_paid {
    ///         return Err("the order has been paid".into());
    ///     }
    ///     Ok(vec![NewEvent::encode(&OrderEvent::OrderPaid)?])
    /// };
    /// store.execute(&mut client, &order, Order::default, Order::apply, pay)?;
    /// # Ok::<(), BoxError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CommandError`]. Then nothing was appended, except that the outcome is unknown if the
    /// connection was lost.
    pub fn execute<S, F: Into<BoxError>, E>(
        &self,
        client: &mut impl AsClient<Client = Client>,
        stream: &StreamId,
        init: impl Fn() -> S,
        mut fold: impl FnMut(&mut S, &Event) -> Result<(), F>,
        mut decide: impl FnMut(&S) -> Result<Vec<NewEvent>, E>,
    ) -> Result<Option<AppendResult>, CommandError<E>> {
        for _ in 0..ATTEMPTS {
            let (state, version) = self.load(client, stream, &init, &mut fold).map_err(CommandError::Load)?;
            let events = decide(&state).map_err(CommandError::Rejected)?;
            if events.is_empty() {
                return Ok(None);
            }
            match self.append(client, stream, ExpectedVersion::Exact(version), &events) {
                Ok(appended) => return Ok(Some(appended)),
                Err(AppendError::Conflict { .. }) => {}
                Err(error) => return Err(CommandError::Append(error)),
            }
        }
        Err(CommandError::Contended { stream: stream.clone(), attempts: ATTEMPTS })
    }
}
