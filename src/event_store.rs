//! Appending events and reading an aggregate's stream.
//!
//! The orchestrator does not need this module: it serves events that any program inserts. It is here for applications that have no
//! event store of their own, and writes what pupsourcing's own stores write.

use std::fmt;
use std::ops::RangeInclusive;

use postgres::error::SqlState;
use postgres::types::{ToSql, Type};
use postgres::{Client, GenericClient, Row, Statement};
use uuid::Uuid;

use crate::error::{Error, describe};
use crate::event::{Event, NewEvent};
use crate::store::{Names, events, session};

/// What the caller of [`EventStore::append`] knows of the aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpectedVersion {
    /// Nothing: append after whatever is there.
    Any,
    /// It has no events yet.
    NoStream,
    /// Its last event has this version.
    Exact(i64),
}

/// Where appended events went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppendResult {
    /// The global position of each event, in the order they were given.
    pub positions: Vec<i64>,
    /// The aggregate version of each event, in the order they were given.
    pub versions: RangeInclusive<i64>,
}

/// Why events were not appended. Nothing of the call was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The aggregate is not at the expected version: somebody else has appended. Read it again, decide again.
    ///
    /// Where a unique constraint reported it within a transaction of the caller's, that transaction can only be rolled back.
    #[error(
        "aggregate {bounded_context}/{aggregate_type}/{aggregate_id} is not at the expected version: expected {expected:?}{}",
        actual.map_or(String::new(), |actual| format!(", it is at {actual}"))
    )]
    Conflict {
        /// The aggregate's bounded context.
        bounded_context: String,
        /// The aggregate's type.
        aggregate_type: String,
        /// The aggregate's identifier.
        aggregate_id: String,
        /// What the caller expected.
        expected: ExpectedVersion,
        /// Its version, 0 if it has no events; unknown where a unique constraint reported the conflict.
        actual: Option<i64>,
    },

    /// The events cannot be appended in one call.
    #[error("the events cannot be appended: {problem}")]
    Invalid {
        /// What is wrong with which event.
        problem: String,
    },

    /// The statement failed.
    #[error("appending failed: {}", describe(.0))]
    Database(#[source] postgres::Error),
}

/// Appends events and reads an aggregate's stream. Holds no connection: every call is given one.
///
/// ```no_run
/// use pupsourcing_orchestrator::{Database, EventStore, ExpectedVersion, NewEvent};
///
/// let mut client = Database::from_url("postgres://app@localhost/shop")?.connect()?;
/// let store = EventStore::default();
/// let placed = NewEvent::new("shop", "Order", "order-7", "OrderPlaced", br#"{"total":12}"#.as_slice());
/// let appended = store.append(&mut client, ExpectedVersion::NoStream, &[placed])?;
/// store.hint(&mut client);
/// assert_eq!(appended.versions, 1..=1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct EventStore {
    names: Names,
}

impl EventStore {
    /// An event store in these tables.
    pub fn new(names: Names) -> Result<Self, Error> {
        names.validate()?;
        Ok(Self { names })
    }

    /// Appends events to one aggregate, in one round trip whatever their number.
    ///
    /// Given a client, they are committed when this returns; given a transaction, with it. Afterwards [`hint`](Self::hint) may tell
    /// the workers; they notice anyway. Versions follow on the aggregate's last one, positions ascend with them.
    ///
    /// # Errors
    ///
    /// [`AppendError::Conflict`] if the aggregate is not at the expected version, [`AppendError::Invalid`] if there are no events or
    /// they belong to several aggregates, [`AppendError::Database`] for anything else.
    pub fn append(
        &self,
        client: &mut impl GenericClient,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<AppendResult, AppendError> {
        self.append_by(client, expected, events, |client, params| client.query_typed(&insert_sql(&self.names), params))
    }

    /// Has the server parse and plan the append, for a connection that appends often: an append of one event then takes a fraction of
    /// the server's time.
    ///
    /// # Errors
    ///
    /// [`Error::Database`] if the connection is lost, or the tables are not there.
    ///
    /// ```no_run
    /// # use pupsourcing_orchestrator::{Database, EventStore, ExpectedVersion, NewEvent};
    /// let mut client = Database::from_url("postgres://app@localhost/shop")?.connect()?;
    /// let prepared = EventStore::default().prepare(&mut client)?;
    /// for n in 0..1000 {
    ///     let placed = NewEvent::new("shop", "Order", format!("order-{n}"), "OrderPlaced", b"{}".as_slice());
    ///     prepared.append(&mut client, ExpectedVersion::NoStream, &[placed])?;
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn prepare(&self, client: &mut impl GenericClient) -> Result<PreparedAppend, Error> {
        let statement = client
            .prepare_typed(&insert_sql(&self.names), &INSERT_TYPES)
            .map_err(Error::database("preparing the append"))?;
        Ok(PreparedAppend { store: self.clone(), statement })
    }

    fn append_by<C: GenericClient>(
        &self,
        client: &mut C,
        expected: ExpectedVersion,
        events: &[NewEvent],
        run: impl FnOnce(&mut C, &[Param<'_>]) -> Result<Vec<Row>, postgres::Error>,
    ) -> Result<AppendResult, AppendError> {
        let first = validate(expected, events)?;
        let exact = match expected {
            ExpectedVersion::Any => None,
            ExpectedVersion::NoStream => Some(0),
            ExpectedVersion::Exact(version) => Some(version),
        };
        let conflict = |actual| AppendError::Conflict {
            bounded_context: first.bounded_context.clone(),
            aggregate_type: first.aggregate_type.clone(),
            aggregate_id: first.aggregate_id.clone(),
            expected,
            actual,
        };
        let rows = insert(first, exact, events, |params| run(client, params))
            .map_err(|error| if is_version_taken(&error) { conflict(None) } else { AppendError::Database(error) })?;
        let (Some(first_row), Some(last_row)) = (rows.first(), rows.last()) else {
            return Err(conflict(Some(self.version(client, first).map_err(AppendError::Database)?)));
        };
        Ok(AppendResult {
            versions: first_row.get(1)..=last_row.get(1),
            positions: rows.iter().map(|row| row.get(0)).collect(),
        })
    }

    /// Tells the workers that something was appended, so that they look at once. Best effort: errors are logged, and nothing is lost
    /// without it. Call it after the commit, never within the transaction: notifications serialise commits.
    pub fn hint(&self, client: &mut Client) {
        let payload = session::events_payload(&self.names);
        let params: [(&(dyn postgres::types::ToSql + Sync), Type); 2] =
            [(&session::EVENTS_CHANNEL, Type::TEXT), (&payload, Type::TEXT)];
        if let Err(error) = client.query_typed("SELECT pg_notify($1, $2)", &params) {
            log::debug!("no hint sent: error={}", describe(&error));
        }
    }

    /// Reads the events of one aggregate, ascending by version. Both bounds are included and may be left open.
    pub fn read_stream(
        &self,
        client: &mut impl GenericClient,
        bounded_context: &str,
        aggregate_type: &str,
        aggregate_id: &str,
        from_version: Option<i64>,
        to_version: Option<i64>,
    ) -> Result<Vec<Event>, Error> {
        let aggregate = (bounded_context, aggregate_type, aggregate_id);
        let (from, to) = (from_version.unwrap_or(i64::MIN), to_version.unwrap_or(i64::MAX));
        events::read_stream(client, &self.names, aggregate, from, to).map_err(Error::database("reading the stream"))
    }

    fn version(&self, client: &mut impl GenericClient, aggregate: &NewEvent) -> Result<i64, postgres::Error> {
        let sql = format!("SELECT version FROM {} AS seen", seen_version(&self.names));
        let row = client.query_typed(
            &sql,
            &[
                (&aggregate.bounded_context, Type::TEXT),
                (&aggregate.aggregate_type, Type::TEXT),
                (&aggregate.aggregate_id, Type::TEXT),
            ],
        )?;
        Ok(row.first().map_or(0, |row| row.get(0)))
    }
}

/// An append that the server has parsed and planned on one connection. See [`EventStore::prepare`].
#[derive(Clone)]
pub struct PreparedAppend {
    store: EventStore,
    statement: Statement,
}

impl PreparedAppend {
    /// Appends events as [`EventStore::append`] does. The client, or the transaction, must be of the connection on which it was prepared.
    ///
    /// # Errors
    ///
    /// Those of [`EventStore::append`]; [`AppendError::Database`] on another connection.
    pub fn append(
        &self,
        client: &mut impl GenericClient,
        expected: ExpectedVersion,
        events: &[NewEvent],
    ) -> Result<AppendResult, AppendError> {
        self.store.append_by(client, expected, events, |client, params| {
            let values: Vec<&(dyn ToSql + Sync)> = params.iter().map(|(value, _)| *value).collect();
            client.query(&self.statement, &values)
        })
    }
}

impl fmt::Debug for PreparedAppend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PreparedAppend").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Whether the error is the unique constraint on the aggregate's versions, and not, say, that on event ids.
fn is_version_taken(error: &postgres::Error) -> bool {
    error.as_db_error().is_some_and(|error| {
        *error.code() == SqlState::UNIQUE_VIOLATION
            && error.detail().is_some_and(|detail| detail.contains("aggregate_version"))
    })
}

fn validate(expected: ExpectedVersion, events: &[NewEvent]) -> Result<&NewEvent, AppendError> {
    let invalid = |problem: String| Err(AppendError::Invalid { problem });
    let Some(first) = events.first() else { return invalid("there are none".into()) };
    if let ExpectedVersion::Exact(version @ ..0) = expected {
        return invalid(format!("the expected version {version} is negative"));
    }
    for (i, event) in events.iter().enumerate() {
        // Part by part: a separator between them may occur in any.
        let aggregate =
            |event: &NewEvent| [&event.bounded_context, &event.aggregate_type, &event.aggregate_id].map(Clone::clone);
        if aggregate(event) != aggregate(first) {
            return invalid(format!(
                "event {i} belongs to aggregate {}, event 0 to {}: append to one aggregate per call",
                aggregate(event).join("/"),
                aggregate(first).join("/")
            ));
        }
        for (field, value) in [
            ("bounded_context", &event.bounded_context),
            ("aggregate_type", &event.aggregate_type),
            ("aggregate_id", &event.aggregate_id),
            ("event_type", &event.event_type),
        ] {
            if value.is_empty() {
                return invalid(format!("event {i} has an empty {field}"));
            }
        }
        let texts = [
            ("bounded_context", Some(&event.bounded_context)),
            ("aggregate_type", Some(&event.aggregate_type)),
            ("aggregate_id", Some(&event.aggregate_id)),
            ("event_type", Some(&event.event_type)),
            ("trace_id", event.trace_id.as_ref()),
            ("correlation_id", event.correlation_id.as_ref()),
            ("causation_id", event.causation_id.as_ref()),
        ];
        if let Some((field, _)) = texts.into_iter().find(|(_, text)| text.is_some_and(|text| text.contains('\0'))) {
            return invalid(format!("event {i} has a NUL character in {field}, which PostgreSQL cannot store"));
        }
    }
    Ok(first)
}

/// The version of the aggregate `$1`, `$2`, `$3` as its events and its head show it, in SQL: the higher of the two. Writers that insert
/// with plain SQL may not keep the heads, and old events may have been archived.
fn seen_version(names: &Names) -> String {
    let aggregate = "bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3";
    format!(
        "(SELECT coalesce(max(known.version), 0) AS version FROM (
              SELECT max(aggregate_version) AS version FROM {} WHERE {aggregate}
              UNION ALL SELECT aggregate_version FROM {} WHERE {aggregate}) AS known)",
        names.events(),
        names.aggregate_heads()
    )
}

/// Inserts the events and moves the aggregate's head, in one statement. No row if the aggregate is not at the expected version.
///
/// The head's row lock comes before any position is handed out, so of two appends to one aggregate the one with the higher version
/// has the higher positions.
fn insert_sql(names: &Names) -> String {
    let (table, heads, seen) = (names.events(), names.aggregate_heads(), seen_version(names));
    format!(
        "WITH head AS (
             INSERT INTO {heads} AS h (bounded_context, aggregate_type, aggregate_id, aggregate_version)
             SELECT $1, $2, $3, seen.version + cardinality($5)
             FROM {seen} AS seen
             WHERE $4 IS NULL OR seen.version = $4
             ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE
             SET aggregate_version = greatest(h.aggregate_version + cardinality($5), excluded.aggregate_version),
                 updated_at = clock_timestamp()
             WHERE $4 IS NULL OR greatest(h.aggregate_version, excluded.aggregate_version - cardinality($5)) = $4
             RETURNING h.aggregate_version - cardinality($5) AS version
         )
         INSERT INTO {table} (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
                              event_version, payload, trace_id, correlation_id, causation_id, metadata)
         SELECT $1, $2, $3, head.version + e.n, e.event_id, e.event_type, e.event_version, e.payload, e.trace_id,
                e.correlation_id, e.causation_id, e.metadata
         FROM head, unnest($5, $6, $7, $8, $9, $10, $11, $12) WITH ORDINALITY AS
              e (event_id, event_type, event_version, payload, trace_id, correlation_id, causation_id, metadata, n)
         ORDER BY e.n
         RETURNING global_position, aggregate_version"
    )
}

/// A value and its type, as a statement that is not prepared is given them.
type Param<'a> = (&'a (dyn ToSql + Sync), Type);

const INSERT_TYPES: [Type; 12] = [
    Type::TEXT,
    Type::TEXT,
    Type::TEXT,
    Type::INT8,
    Type::UUID_ARRAY,
    Type::TEXT_ARRAY,
    Type::INT4_ARRAY,
    Type::BYTEA_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::TEXT_ARRAY,
    Type::JSONB_ARRAY,
];

fn insert(
    aggregate: &NewEvent,
    expected: Option<i64>,
    events: &[NewEvent],
    run: impl FnOnce(&[Param<'_>]) -> Result<Vec<Row>, postgres::Error>,
) -> Result<Vec<Row>, postgres::Error> {
    let ids: Vec<Uuid> = events.iter().map(|event| event.event_id).collect();
    let types: Vec<&str> = events.iter().map(|event| event.event_type.as_str()).collect();
    let versions: Vec<i32> = events.iter().map(|event| event.event_version).collect();
    let payloads: Vec<&[u8]> = events.iter().map(|event| event.payload.as_slice()).collect();
    let traces: Vec<Option<&str>> = events.iter().map(|event| event.trace_id.as_deref()).collect();
    let correlations: Vec<Option<&str>> = events.iter().map(|event| event.correlation_id.as_deref()).collect();
    let causations: Vec<Option<&str>> = events.iter().map(|event| event.causation_id.as_deref()).collect();
    let metadata: Vec<Option<&serde_json::Value>> = events.iter().map(|event| event.metadata.as_ref()).collect();
    let values: [&(dyn ToSql + Sync); 12] = [
        &aggregate.bounded_context,
        &aggregate.aggregate_type,
        &aggregate.aggregate_id,
        &expected,
        &ids,
        &types,
        &versions,
        &payloads,
        &traces,
        &correlations,
        &causations,
        &metadata,
    ];
    run(&values.into_iter().zip(INSERT_TYPES).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str) -> NewEvent {
        NewEvent::new("shop", "Order", id, "OrderPlaced", Vec::new())
    }

    #[test]
    fn what_cannot_be_appended_is_named() {
        let any = ExpectedVersion::Any;
        for (outcome, part) in [
            (validate(any, &[]), "there are none"),
            (validate(any, &[event("a"), event("b")]), "event 1 belongs to aggregate shop/Order/b"),
            (validate(any, &[event("")]), "event 0 has an empty aggregate_id"),
            (validate(any, &[event("a"), event("a").trace_id("x\0")]), "event 1 has a NUL character in trace_id"),
            (validate(ExpectedVersion::Exact(-1), &[event("a")]), "-1 is negative"),
        ] {
            let message = outcome.unwrap_err().to_string();
            assert!(message.contains(part), "{message:?} should contain {part:?}");
        }
        validate(any, &[event("a"), event("a")]).unwrap();
    }
}
