//! Appending events: one statement that moves the aggregate's head and inserts the events.
//!
//! *Invariant:* the head's row lock comes before any position is handed out, so of two appends to one aggregate the one with the higher
//! version has the higher positions.

use postgres::Row;
use postgres::types::{ToSql, Type};
use uuid::Uuid;

use super::names::Names;
use crate::event::NewEvent;

/// How the head is moved. The first two are for what appends nearly always are, and take the server half the time of the third. They do
/// the same or, where anything is not as it usually is, nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The aggregate has neither events nor a head.
    Begin,
    /// Its head is at the expected version, and no event is above.
    GoOn,
    /// Whatever is there: writers that insert with plain SQL may not keep the heads, and old events may have been archived.
    FindOut,
}

/// A value and its type, as a statement that is not prepared is given them.
pub(crate) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The parameters of [`sql`]: the aggregate, its expected version if any, and the events column by column.
pub(crate) const TYPES: [Type; 12] = [
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

const AGGREGATE: &str = "bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3";

/// Appends the events. Returns position and version of each; nothing if the aggregate is not at the expected version.
pub(crate) fn append(
    aggregate: &NewEvent,
    expected: Option<i64>,
    events: &[NewEvent],
    mut run: impl FnMut(Way, &[Param<'_>]) -> Result<Vec<Row>, postgres::Error>,
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
    let params: Vec<Param<'_>> = values.into_iter().zip(TYPES).collect();
    let usual = match expected {
        None => None,
        Some(0) => Some(Way::Begin),
        Some(_) => Some(Way::GoOn),
    };
    let rows = usual.map_or(Ok(Vec::new()), |way| run(way, &params))?;
    if rows.is_empty() { run(Way::FindOut, &params) } else { Ok(rows) }
}

/// Moves the aggregate's head this way and inserts the events behind it. No row if the aggregate is not at the expected version.
pub(crate) fn sql(names: &Names, way: Way) -> String {
    let (events, heads) = (names.events(), names.aggregate_heads());
    let head = match way {
        Way::Begin => format!(
            "INSERT INTO {heads} (bounded_context, aggregate_type, aggregate_id, aggregate_version)
             SELECT $1, $2, $3, cardinality($5) WHERE NOT EXISTS (SELECT FROM {events} WHERE {AGGREGATE})
             ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO NOTHING
             RETURNING 0::bigint AS version"
        ),
        Way::GoOn => format!(
            "UPDATE {heads} SET aggregate_version = aggregate_version + cardinality($5), updated_at = clock_timestamp()
             WHERE {AGGREGATE} AND aggregate_version = $4
             AND NOT EXISTS (SELECT FROM {events} WHERE {AGGREGATE} AND aggregate_version > $4)
             RETURNING $4 AS version"
        ),
        Way::FindOut => format!(
            "INSERT INTO {heads} AS h (bounded_context, aggregate_type, aggregate_id, aggregate_version)
             SELECT $1, $2, $3, seen.version + cardinality($5) FROM ({seen}) AS seen
             WHERE $4 IS NULL OR seen.version = $4
             ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE
             SET aggregate_version = greatest(h.aggregate_version + cardinality($5), excluded.aggregate_version),
                 updated_at = clock_timestamp()
             WHERE $4 IS NULL OR greatest(h.aggregate_version, excluded.aggregate_version - cardinality($5)) = $4
             RETURNING h.aggregate_version - cardinality($5) AS version",
            seen = version_sql(names)
        ),
    };
    format!(
        "WITH head AS ({head})
         INSERT INTO {events} (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
                               event_version, payload, trace_id, correlation_id, causation_id, metadata)
         SELECT $1, $2, $3, head.version + e.n, e.event_id, e.event_type, e.event_version, e.payload, e.trace_id,
                e.correlation_id, e.causation_id, e.metadata
         FROM head, unnest($5, $6, $7, $8, $9, $10, $11, $12) WITH ORDINALITY AS
              e (event_id, event_type, event_version, payload, trace_id, correlation_id, causation_id, metadata, n)
         ORDER BY e.n
         RETURNING global_position, aggregate_version"
    )
}

/// The version of the aggregate `$1`, `$2`, `$3` as its events and its head show it: the higher of the two, 0 if there is neither.
pub(crate) fn version_sql(names: &Names) -> String {
    format!(
        "SELECT coalesce(max(known.version), 0) AS version FROM (
             SELECT max(aggregate_version) AS version FROM {} WHERE {AGGREGATE}
             UNION ALL SELECT aggregate_version FROM {} WHERE {AGGREGATE}) AS known",
        names.events(),
        names.aggregate_heads()
    )
}
