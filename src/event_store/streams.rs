//! Appends events to streams, and reads streams.

use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use postgres::Client;
use postgres::error::{DbError, SqlState};
use uuid::Uuid;

use super::wait_room::Room;
use crate::blocking::blocking;
use crate::database::AsClient;
use crate::error::{Error, Shown as _, describe_any, field, is_away, is_transient};
use crate::event::{Event, NewEvent, StreamId};
use crate::metrics::Metrics;
use crate::store::event_store::{Appended, append, read_stream};
use crate::store::{Names, notifications};
use crate::threads::safely;

/// What the caller of [`EventStore::append`] expects of the aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExpectedVersion {
    /// Any version: the events are appended after those that exist.
    Any,
    /// The aggregate has no events yet.
    NoStream,
    /// The aggregate's last event has this version.
    Exact(i64),
}

/// The positions and versions of appended events.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppendResult {
    /// The global position of each event, in the order they were given.
    pub positions: Vec<i64>,
    /// The aggregate version of each event, in the order they were given.
    pub versions: RangeInclusive<i64>,
    /// The identifier of each event, in the order they were given.
    pub event_ids: Vec<Uuid>,
}

/// Why events were not appended. The call has written nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The aggregate is not at the expected version: another writer has appended. Read the
    /// aggregate and decide again.
    ///
    /// If a unique constraint reported the conflict within the caller's transaction, that
    /// transaction can only be rolled back.
    #[error(
        "aggregate {stream} is not at the expected version: expected {expected:?}{}",
        actual.map_or(String::new(), |actual| format!(", it is at {actual}"))
    )]
    #[non_exhaustive]
    Conflict {
        /// The aggregate.
        stream: StreamId,
        /// What the caller expected.
        expected: ExpectedVersion,
        /// The aggregate's version, 0 if it has no events; `None` if a unique constraint reported
        /// the conflict.
        actual: Option<i64>,
    },

    /// The events cannot be appended: there are none, or a name or a version is not valid.
    #[error("the events cannot be appended: {problem}")]
    #[non_exhaustive]
    Invalid {
        /// Which event or name is wrong, and why.
        problem: String,
    },

    /// The schema has no function to append events with.
    #[error("the schema cannot be used: {problem}")]
    #[non_exhaustive]
    Schema {
        /// What is missing, and the remedy.
        problem: String,
    },

    /// The operating system refused to start a thread. One is needed for the statement if the
    /// caller's thread belongs to an asynchronous runtime.
    #[error("cannot start a thread to append on")]
    #[non_exhaustive]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },

    /// The statement failed.
    #[error("appending failed")]
    #[non_exhaustive]
    Database {
        /// What the server or the network said.
        source: postgres::Error,
    },
}

impl AppendError {
    /// Whether another writer has appended to the aggregate: read it and decide again.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// Whether the same append may succeed later without any change: see
    /// [`Error::is_transient`].
    ///
    /// If the connection was lost, the events may have been appended nevertheless. In that case,
    /// with an [`ExpectedVersion`] other than `Any`, the second attempt is a conflict.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Database { source } if is_away(source) || is_transient(source))
    }

    /// Returns the error and its causes in one text: see [`Error::with_causes`].
    pub fn with_causes(&self) -> String {
        describe_any(self)
    }
}

/// For other statements of the application in the same transaction.
impl From<postgres::Error> for AppendError {
    fn from(source: postgres::Error) -> Self {
        Self::Database { source }
    }
}

/// Appends events, reads an aggregate's stream, and waits for projections. It holds no connection:
/// the caller passes one to each method. A clone is cheap, and shares the polling of those that
/// wait.
///
/// The methods may be called on any thread, including a thread of an asynchronous runtime. They
/// block for a round trip, and on such a thread also for starting another thread. An application
/// with an asynchronous client can call the SQL function `orchestrator_append` with that client
/// instead, with the same guarantees: see the example `async_append`.
///
/// ```no_run
/// use pupsourcing_orchestrator::{Database, EventStore, ExpectedVersion, NewEvent, StreamId};
///
/// let mut client = Database::from_url("postgres://app@localhost/shop")?.connect()?;
/// let store = EventStore::default();
/// let order = StreamId::new("shop", "Order", "order-7");
/// let placed = NewEvent::new("OrderPlaced", br#"{"total":12}"#.as_slice());
/// let appended = store.append(&mut client, &order, ExpectedVersion::NoStream, &[placed])?;
/// store.hint(&mut client);
/// assert_eq!(appended.versions, 1..=1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct EventStore {
    pub(super) names: Names,
    /// The callers that wait for projections. Clones share them.
    pub(super) room: Arc<Room>,
    pub(super) metrics: Option<Metrics>,
}

impl EventStore {
    /// Creates an event store that uses these tables.
    pub fn new(names: Names) -> Result<Self, Error> {
        names.validate()?;
        Ok(Self { names, ..Self::default() })
    }

    /// Counts in these metrics how long [`wait_for`](Self::wait_for) takes. Defaults to none.
    #[must_use = "it returns the changed event store"]
    pub fn metrics(mut self, metrics: &Metrics) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// Appends events to one aggregate, in one round trip, regardless of their number and of the
    /// outcome.
    ///
    /// With a client, the events are committed when this method returns; with a transaction, when
    /// the transaction commits. Afterwards, [`hint`](Self::hint) may tell the workers, which detect
    /// the events in any case. The versions of the events continue those of the aggregate, and
    /// their positions ascend in the same order.
    ///
    /// The statements are in a function that the migrations create, `orchestrator_append` by
    /// default. Programs in other languages can call it too. It runs with the caller's privileges.
    ///
    /// # Errors
    ///
    /// [`AppendError::Conflict`] if the aggregate is not at the expected version,
    /// [`AppendError::Invalid`] if there are no events or a name is empty,
    /// [`AppendError::Schema`] if the migrations have not been applied, [`AppendError::Database`]
    /// for anything else.
    pub fn append(
        &self,
        client: &mut impl AsClient,
        stream: &StreamId,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<AppendResult, AppendError> {
        validate(stream, expected, events)?;
        let exact = match expected {
            ExpectedVersion::Any => None,
            ExpectedVersion::NoStream => Some(0),
            ExpectedVersion::Exact(version) => Some(version),
        };
        let conflict = |actual| AppendError::Conflict { stream: stream.clone(), expected, actual };
        let client = client.as_client();
        match blocking(|| append(client, &self.names, stream, exact, events))
            .map_err(|source| AppendError::Thread { source })?
        {
            Ok(Appended::Stored { positions, versions }) => {
                let event_ids = events.iter().map(|event| event.event_id).collect();
                Ok(AppendResult { positions, versions, event_ids })
            }
            Ok(Appended::Conflict(actual)) => Err(conflict(Some(actual))),
            Err(error) if is_version_taken(&error) => Err(conflict(None)),
            Err(error) => Err(self.explained(error)),
        }
    }

    /// Tells the workers that events were appended, so that they read them at once. It is best
    /// effort: an error is logged, and no event is lost without the hint. Call it after the commit,
    /// never within the transaction, because notifications serialise commits.
    pub fn hint(&self, client: &mut Client) {
        let error = match blocking(|| notifications::notify_events(client, &self.names)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.shown(),
            Err(error) => error.shown(),
        };
        safely(|| log::debug!("no hint sent: error={error}", error = field(&error)));
    }

    /// Reads the events of one aggregate whose versions are in `versions`, in ascending order. `..`
    /// reads all of them, `7..` those from version 7.
    pub fn read_stream(
        &self,
        client: &mut impl AsClient,
        stream: &StreamId,
        versions: impl RangeBounds<i64>,
    ) -> Result<Vec<Event>, Error> {
        self.read_page(client, stream, inclusive(&versions), None)
    }

    pub(super) fn read_page(
        &self,
        client: &mut impl AsClient,
        stream: &StreamId,
        (from, to): (i64, i64),
        limit: Option<i64>,
    ) -> Result<Vec<Event>, Error> {
        let client = client.as_client();
        blocking(|| read_stream(client, &self.names, stream, from, to, limit))
            .map_err(|source| Error::Spawn { thread: "to read the stream".to_owned(), source })?
            .map_err(Error::database("reading the stream"))
    }

    /// Names the remedy if the function is missing. The server's message only suggests type casts.
    fn explained(&self, error: postgres::Error) -> AppendError {
        // If a trigger calls a missing function, the error has a context (`where`).
        let is_missing = |error: &DbError| *error.code() == SqlState::UNDEFINED_FUNCTION && error.where_().is_none();
        if !error.as_db_error().is_some_and(is_missing) {
            return AppendError::from(error);
        }
        AppendError::Schema {
            problem: format!(
                "there is no function {} of this version: create it with Orchestrator::migrate() or the command `migrate` of a worker program, or apply Names::schema_sql()",
                self.names.append()
            ),
        }
    }
}

/// Whether the error comes from the unique constraint on the aggregate's versions, and not from
/// another constraint, such as the one on event ids.
fn is_version_taken(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::UNIQUE_VIOLATION
            && error.detail().is_some_and(|detail| detail.contains("aggregate_version"))
    })
}

/// Returns the first and the last version of a range.
fn inclusive(versions: &impl RangeBounds<i64>) -> (i64, i64) {
    let from = match versions.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => i64::MIN,
    };
    let to = match versions.end_bound() {
        Bound::Included(to) => *to,
        Bound::Excluded(end) => end.saturating_sub(1),
        Bound::Unbounded => i64::MAX,
    };
    (from, to)
}

fn validate(stream: &StreamId, expected: ExpectedVersion, events: &[NewEvent]) -> Result<(), AppendError> {
    let invalid = |problem: String| Err(AppendError::Invalid { problem });
    if events.is_empty() {
        return invalid("there are none".into());
    }
    if let ExpectedVersion::Exact(version @ ..0) = expected {
        return invalid(format!("the expected version {version} is negative"));
    }
    let StreamId { bounded_context, aggregate_type, aggregate_id } = stream;
    let names =
        [("bounded_context", bounded_context), ("aggregate_type", aggregate_type), ("aggregate_id", aggregate_id)];
    for (field, name) in names {
        if name.is_empty() {
            return invalid(format!("the stream has an empty {field}"));
        }
        if name.contains('\0') {
            return invalid(format!("the stream has a NUL character in {field}, which PostgreSQL cannot store"));
        }
    }
    for (i, event) in events.iter().enumerate() {
        if event.event_type.is_empty() {
            return invalid(format!("event {i} has an empty event_type"));
        }
        let texts = [
            ("event_type", Some(&event.event_type)),
            ("trace_id", event.trace_id.as_ref()),
            ("correlation_id", event.correlation_id.as_ref()),
            ("causation_id", event.causation_id.as_ref()),
        ];
        if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.is_some_and(|text| text.contains('\0'))) {
            return invalid(format!("event {i} has a NUL character in {field}, which PostgreSQL cannot store"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_appended_is_named() {
        let any = ExpectedVersion::Any;
        let stream = |id: &str| StreamId::new("shop", "Order", id);
        let event = || NewEvent::new("OrderPlaced", []);
        for (outcome, part) in [
            (validate(&stream("a"), any, &[]), "there are none"),
            (validate(&stream(""), any, &[event()]), "the stream has an empty aggregate_id"),
            (validate(&stream("a\0"), any, &[event()]), "the stream has a NUL character in aggregate_id"),
            (validate(&stream("a"), any, &[event(), NewEvent::new("", [])]), "event 1 has an empty event_type"),
            (
                validate(&stream("a"), any, &[event(), event().trace_id("x\0")]),
                "event 1 has a NUL character in trace_id",
            ),
            (validate(&stream("a"), ExpectedVersion::Exact(-1), &[event()]), "-1 is negative"),
        ] {
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains(part), "{message:?} should contain {part:?}");
        }
        validate(&stream("a"), any, &[event(), event()]).unwrap();
    }

    #[test]
    fn ranges_of_versions_include_their_ends() {
        assert_eq!(inclusive(&..), (i64::MIN, i64::MAX));
        assert_eq!(inclusive(&(2..)), (2, i64::MAX));
        assert_eq!(inclusive(&(2..5)), (2, 4));
        assert_eq!(inclusive(&(2..=5)), (2, 5));
        assert_eq!(inclusive(&(Bound::Excluded(2), Bound::Excluded(i64::MIN))), (3, i64::MIN));
    }
}
