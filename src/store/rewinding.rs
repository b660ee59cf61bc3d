//! What a worker executes when it clears the read model of a projection that is rewound.
//!
//! These statements run beside code of the application, under its settings. So each function,
//! operator and type in them is qualified, as in [`fence`](super::fence).

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row, Transaction};

use super::names::Names;
use super::{deal, execution};
use crate::error::Error;
use crate::plan::{Errand, WorkerId};

const CLEARING: &str = "clearing a read model";

/// What a command to rewind asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// All events up to this position stay handled.
    pub(crate) position: i64,
    /// Whether a reaction may react to the events again.
    pub(crate) repeats_effects: bool,
}

/// Returns what a command to rewind asks for. If that is a time, the position is the last one
/// before the first event of that time or later. Events without a time count as early.
pub(crate) fn asked(
    client: &mut impl GenericClient,
    names: &Names,
    command: i64,
) -> Result<Option<Asked>, postgres::Error> {
    // A command that was inserted without the function may have no position: NULL.
    let sql = names.sql(
        "SELECT CASE
             WHEN arguments OPERATOR(pg_catalog.?) 'to_beginning' THEN 0
             WHEN arguments OPERATOR(pg_catalog.?) 'to_position' THEN (arguments OPERATOR(pg_catalog.->>) 'to_position')::pg_catalog.int8
             ELSE coalesce(
                 (SELECT event.global_position OPERATOR(pg_catalog.-) 1 FROM {events} AS event
                  WHERE event.created_at OPERATOR(pg_catalog.>=) (arguments OPERATOR(pg_catalog.->>) 'to_time')::pg_catalog.timestamptz
                  ORDER BY event.global_position LIMIT 1),
                 (SELECT pg_catalog.max(event.global_position) FROM {events} AS event), 0)
         END, coalesce((arguments OPERATOR(pg_catalog.->>) 'repeat_effects')::pg_catalog.bool, false)
         FROM {commands} AS command WHERE command.id OPERATOR(pg_catalog.=) $1",
    );
    let row = client.query_typed_opt(&sql, &[(&command, Type::INT8)])?;
    let asked = |row: Row| row.get::<_, Option<i64>>(0).map(|position| Asked { position, repeats_effects: row.get(1) });
    Ok(row.and_then(asked))
}

/// Moves the checkpoints of the projection to a position, in the transaction in which its read
/// model was cleared. Each of them gets a new token. Checkpoints at or below that position stay.
/// Returns false if another worker has taken over.
pub(crate) fn rewind(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    to: i64,
    seconds: f64,
) -> Result<bool, Error> {
    let database = Error::database(CLEARING);
    if !execution::hold(tx, names, errand, worker).map_err(database)? {
        return Ok(false);
    }
    let of_projection: [(&(dyn ToSql + Sync), Type); 2] = [(&&*errand.projection, Type::TEXT), (&to, Type::INT8)];
    let [projection, _] = &of_projection;
    // The same order of locks as in a deal.
    let counted = names.sql(
        "UPDATE {projections} AS projection SET counted_from = $2, caught_up_at = NULL WHERE projection.name OPERATOR(pg_catalog.=) $1",
    );
    let lock = names.sql(
        "SELECT FROM {checkpoints} AS checkpoint WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1
         ORDER BY checkpoint.token FOR UPDATE",
    );
    let result = names.sql(
        "UPDATE {commands} AS command
         SET step = 'executed', result = pg_catalog.jsonb_build_object(
             'position', $2::pg_catalog.int8, 'seconds', $3::pg_catalog.float8, 'from', (
                 SELECT pg_catalog.max(checkpoint.position) FROM {checkpoints} AS checkpoint
                 WHERE checkpoint.projection OPERATOR(pg_catalog.=) command.projection))
         WHERE command.id OPERATOR(pg_catalog.=) $1",
    );
    // What a former owner reported concerns events that are handled again.
    let rewind = names.sql(
        "UPDATE {checkpoints} AS checkpoint
         SET token = DEFAULT, position = least(checkpoint.position, $2), handled = 0,
             last_event_position = CASE WHEN checkpoint.position OPERATOR(pg_catalog.<=) $2 THEN checkpoint.last_event_position
                                        ELSE event.global_position END,
             last_event_id = CASE WHEN checkpoint.position OPERATOR(pg_catalog.<=) $2 THEN checkpoint.last_event_id ELSE event.event_id END,
             state = 'running', error = NULL, attempts = 0, attempt_position = NULL, attempt_event_id = NULL, attempted_at = NULL,
             updated_at = pg_catalog.clock_timestamp()
         FROM (SELECT) AS always LEFT JOIN {events} AS event ON event.global_position OPERATOR(pg_catalog.=) $2
         WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1",
    );
    let unpark = names.sql(
        "DELETE FROM {parked} AS parked
         WHERE parked.projection OPERATOR(pg_catalog.=) $1 AND parked.position OPERATOR(pg_catalog.>) $2",
    );
    tx.execute_typed(&counted, &of_projection)
        .and_then(|_| tx.query_typed(&lock, std::slice::from_ref(projection)))
        .and_then(|_| {
            tx.execute_typed(&result, &[(&errand.command, Type::INT8), (&to, Type::INT8), (&seconds, Type::FLOAT8)])
        })
        .and_then(|_| tx.execute_typed(&rewind, &of_projection))
        .and_then(|_| tx.execute_typed(&unpark, &of_projection))
        .map_err(Error::database(CLEARING))?;
    deal::verify_cover(tx, names, &[&errand.projection])?;
    Ok(true)
}

/// The highest checkpoint of a projection.
pub(crate) fn highest(
    client: &mut impl GenericClient,
    names: &Names,
    projection: &str,
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql(
        "SELECT pg_catalog.max(checkpoint.position) FROM {checkpoints} AS checkpoint
         WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1",
    );
    Ok(client.query_typed_one(&sql, &[(&projection, Type::TEXT)])?.get(0))
}
