//! Reads the stream of one aggregate.

use postgres::GenericClient;
use postgres::types::Type;

use crate::event::{Event, EventBuffer, StreamId};
use crate::store::events::columns;
use crate::store::names::Names;

/// Reads the events of one aggregate, ascending by version, both bounds included.
pub(crate) fn read_stream(
    client: &mut impl GenericClient,
    names: &Names,
    stream: &StreamId,
    from_version: i64,
    to_version: i64,
    limit: Option<i64>,
) -> Result<Vec<Event>, postgres::Error> {
    let sql = names.sql_with(
        "SELECT {columns} FROM {events} WHERE bounded_context OPERATOR(pg_catalog.=) $1
         AND aggregate_type OPERATOR(pg_catalog.=) $2 AND aggregate_id OPERATOR(pg_catalog.=) $3
         AND aggregate_version OPERATOR(pg_catalog.>=) $4 AND aggregate_version OPERATOR(pg_catalog.<=) $5
         ORDER BY aggregate_version LIMIT $6",
        &[("columns", &columns::all())],
    );
    let rows = client.query_typed(
        &sql,
        &[
            (&stream.bounded_context, Type::TEXT),
            (&stream.aggregate_type, Type::TEXT),
            (&stream.aggregate_id, Type::TEXT),
            (&from_version, Type::INT8),
            (&to_version, Type::INT8),
            (&limit, Type::INT8),
        ],
    )?;
    let mut buffer = EventBuffer::default();
    rows.iter().try_for_each(|row| columns::push(&mut buffer, row))?;
    Ok(Event::all(buffer))
}
