//! Appends events: calls the function that a migration creates.
//!
//! *Invariant:* an append locks the row of the aggregate's head before it takes a position. So of
//! two appends to one aggregate, the one with the higher version has the higher positions.

use std::ops::RangeInclusive;

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row};
use uuid::Uuid;

use crate::event::{NewEvent, StreamId};
use crate::store::names::Names;

/// The result of an append.
pub(crate) enum Appended {
    /// The positions and versions of the events, in their order.
    Stored { positions: Vec<i64>, versions: RangeInclusive<i64> },
    /// The aggregate is not at the expected version but at this one. Nothing was written.
    Conflict(i64),
}

/// Appends the events to an aggregate. There must be at least one.
pub(crate) fn append(
    client: &mut impl GenericClient,
    names: &Names,
    stream: &StreamId,
    expected: Option<i64>,
    events: &[NewEvent],
) -> Result<Appended, postgres::Error> {
    let ids: Vec<Uuid> = events.iter().map(|event| event.event_id).collect();
    let types: Vec<&str> = events.iter().map(|event| event.event_type.as_str()).collect();
    let versions: Vec<i32> = events.iter().map(|event| event.event_version).collect();
    let payloads: Vec<&[u8]> = events.iter().map(|event| event.payload.as_slice()).collect();
    let traces = if_any(events, |event| event.trace_id.as_deref());
    let correlations = if_any(events, |event| event.correlation_id.as_deref());
    let causations = if_any(events, |event| event.causation_id.as_deref());
    let metadata = if_any(events, |event| event.metadata.as_ref());
    let params: [(&(dyn ToSql + Sync), Type); 13] = [
        (&stream.bounded_context, Type::TEXT),
        (&stream.aggregate_type, Type::TEXT),
        (&stream.aggregate_id, Type::TEXT),
        (&expected, Type::INT8),
        (&ids, Type::UUID_ARRAY),
        (&types, Type::TEXT_ARRAY),
        (&versions, Type::INT4_ARRAY),
        (&payloads, Type::BYTEA_ARRAY),
        (&traces, Type::TEXT_ARRAY),
        (&correlations, Type::TEXT_ARRAY),
        (&causations, Type::TEXT_ARRAY),
        (&metadata, Type::JSONB_ARRAY),
        (&names.sql("{events} and {aggregate_heads}"), Type::TEXT),
    ];
    let sql = names.sql(
        "SELECT global_position, aggregate_version
         FROM {append}($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    );
    let rows = client.query_typed(&sql, &params)?;
    let conflict = rows.iter().find(|row| row.get::<_, Option<i64>>(0).is_none());
    if let Some(row) = conflict {
        return Ok(Appended::Conflict(row.get(1)));
    }
    let version = |row: Option<&Row>| row.map_or(0, |row| row.get(1));
    Ok(Appended::Stored {
        positions: rows.iter().map(|row| row.get(0)).collect(),
        versions: version(rows.first())..=version(rows.last()),
    })
}

/// Returns a column of the events; `None` if all its values are missing, so that no list of nulls
/// is sent. The server treats both in the same way.
fn if_any<'a, T>(events: &'a [NewEvent], column: impl Fn(&'a NewEvent) -> Option<T>) -> Option<Vec<Option<T>>> {
    let values: Vec<Option<T>> = events.iter().map(column).collect();
    values.iter().any(Option::is_some).then_some(values)
}
