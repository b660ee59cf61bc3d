//! The events of a parked aggregate that wait.

use postgres::types::{ToSql, Type};
use postgres::{Row, Transaction};
use uuid::Uuid;

use crate::event::{Event, EventBuffer, StreamId};
use crate::scope::Scope;
use crate::store::events::columns;
use crate::store::fence::EventMark;
use crate::store::names::Names;

/// An event that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waiting {
    pub(crate) event: EventMark,
    pub(crate) event_type: String,
    /// Its bytes, as they count towards `batch_bytes`.
    pub(crate) weight: usize,
}

/// What was found of a parked aggregate.
#[derive(Debug)]
pub(crate) struct Found {
    /// The first events that wait.
    pub(crate) events: Vec<Waiting>,
    /// Whether the event at which it is parked is neither there nor discarded: it was deleted.
    pub(crate) is_missing: bool,
}

/// Finds the first events of a parked aggregate that wait, from the one at which it is parked up to
/// a position, and at most this many. Discarded events do not wait.
pub(crate) fn waiting(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    scope: &Scope,
    stream: &StreamId,
    (from, upto): (EventMark, i64),
    limit: usize,
) -> Result<Found, postgres::Error> {
    // One statement, so that an event that is deleted or restored meanwhile is either found or
    // missing. There is always a row; if no event waits, its columns are NULL.
    //
    // The positions are looked up by the aggregate first. Otherwise the server may walk all events
    // between the positions.
    let sql = names.sql_with(
        "WITH stream AS MATERIALIZED (
             SELECT global_position FROM {events} WHERE bounded_context = $2 AND aggregate_type = $3 AND aggregate_id = $4
         ), waiting AS (
         SELECT event.global_position, event.event_id, event.event_type, {weight} AS weight
         FROM (SELECT global_position FROM stream WHERE global_position >= $5 AND global_position <= $6) AS stream
         JOIN {events} event USING (global_position)
         WHERE ($7::text[] IS NULL OR aggregate_type = ANY ($7)) AND ($8::text[] IS NULL OR bounded_context = ANY ($8))
           AND ($9::text[] IS NULL OR event_type = ANY ($9)) AND ($10::text IS NULL OR coalesce(metadata::jsonb @> $10::jsonb, false))
           AND NOT EXISTS (SELECT FROM {discarded} d WHERE d.projection = $1 AND d.event_id = event.event_id)
         ORDER BY global_position LIMIT $11
         )
         SELECT NOT (EXISTS (SELECT FROM {events} WHERE global_position = $5 AND event_id = $12)
                     OR EXISTS (SELECT FROM {discarded} WHERE projection = $1 AND event_id = $12)),
                global_position, event_id, event_type, weight
         FROM (SELECT) AS always LEFT JOIN waiting ON true ORDER BY global_position",
        &[("weight", &columns::weight_sql())],
    );
    let metadata = scope.metadata_object().map(|object| object.to_string());
    let rows = tx.query_typed(
        &sql,
        &[
            (&projection, Type::TEXT),
            (&stream.bounded_context, Type::TEXT),
            (&stream.aggregate_type, Type::TEXT),
            (&stream.aggregate_id, Type::TEXT),
            (&from.position, Type::INT8),
            (&upto, Type::INT8),
            (&scope.aggregate_types, Type::TEXT_ARRAY),
            (&scope.bounded_contexts, Type::TEXT_ARRAY),
            (&scope.event_types, Type::TEXT_ARRAY),
            (&metadata, Type::TEXT),
            (&i64::try_from(limit).unwrap_or(i64::MAX), Type::INT8),
            (&from.id, Type::UUID),
        ],
    )?;
    let waiting = |row: &Row| {
        Some(Waiting {
            event: EventMark { position: row.get::<_, Option<i64>>(1)?, id: row.get(2) },
            event_type: row.get(3),
            weight: usize::try_from(row.get::<_, i64>(4)).unwrap_or(usize::MAX),
        })
    };
    Ok(Found {
        events: rows.iter().filter_map(waiting).collect(),
        is_missing: rows.first().is_some_and(|row| row.get(0)),
    })
}

/// Reads some of the events that wait. They are in the order of their positions.
pub(crate) fn read(tx: &mut Transaction<'_>, names: &Names, events: &[Waiting]) -> Result<Vec<Event>, postgres::Error> {
    let sql = names.sql_with(
        "SELECT {columns} FROM {events} WHERE global_position = ANY ($1) AND event_id = ANY ($2) ORDER BY global_position",
        &[("columns", &columns::all())],
    );
    let positions: Vec<i64> = events.iter().map(|waiting| waiting.event.position).collect();
    let ids: Vec<Uuid> = events.iter().map(|waiting| waiting.event.id).collect();
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&positions, Type::INT8_ARRAY), (&ids, Type::UUID_ARRAY)];
    let mut buffer = EventBuffer::default();
    tx.query_typed(&sql, &values)?.iter().try_for_each(|row| columns::push(&mut buffer, row))?;
    Ok(Event::all(buffer))
}
