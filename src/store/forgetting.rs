//! What a worker executes when it rebuilds the rows of one aggregate.
//!
//! From [`begin`] to [`release`], the aggregate has a row in the table of parked aggregates that
//! names the command. So the events of the aggregate that follow wait, on whatever worker owns the
//! key. Those before the position of that row have been handled. In one transaction, the worker
//! deletes what they have led to, and handles them again.
//!
//! *Invariants.* At each moment, these events count as handled, because their former effects stay
//! until the new ones are committed (I9). `begin` and `release` give the checkpoint of the key a
//! new token: a batch that was begun before may have handled an event that is to wait now, or may
//! have skipped one that does not wait any more.
//!
//! [`release`] runs beside code of the application, under its settings. So each function, operator
//! and type in it is qualified, as in [`fence`](super::fence).

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row, Transaction};
use uuid::Uuid;

use super::fence::EventMark;
use super::names::Names;
use super::parked::{self, Waiting};
use super::registration::Known;
use crate::event::StreamId;
use crate::plan::Errand;

/// The most events of an aggregate that are handled again. They are handled in one transaction, and
/// the later events of the aggregate wait meanwhile.
const MOST: usize = 100_000;

/// What the row says of an aggregate that is not parked for another reason.
const ERROR: &str = "its rows are being rebuilt: its later events wait until that is done";

/// The aggregate that is rebuilt.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) stream: StreamId,
    /// The events that are to be handled again.
    pub(crate) events: Vec<Waiting>,
    /// They are those up to this position.
    pub(crate) upto: i64,
}

/// What has become of the beginning.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The later events wait.
    Ready(Work),
    /// It is not possible, for this reason.
    Refused(String),
}

/// Lets the later events of the aggregate wait, and finds those that are to be handled again: they
/// are above the position at which the projection starts, and were not discarded. An attempt that
/// follows another one of the same command finds the same. The caller has locked the projection,
/// and then the command.
pub(crate) fn begin(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    known: &Known,
    start: i64,
) -> Result<Begun, postgres::Error> {
    let projection = &*errand.projection;
    let Some(stream) = aggregate_of(tx, names, errand.command)? else {
        return Ok(Begun::Refused("it names no aggregate".to_owned()));
    };
    let Some(covering) = lock_checkpoint(tx, names, projection, &stream.aggregate_id)? else {
        return Ok(Begun::Refused("its checkpoints overlap or leave keys out: they were changed by hand".to_owned()));
    };
    let held = held(tx, names, projection, &stream)?;
    let upto = held.as_ref().map_or(covering.position, |held| held.position - 1);
    // A rewind may have gone to a position before the start.
    let counted = "SELECT counted_from FROM {projections} WHERE name = $1";
    let counted: Option<i64> = tx.query_typed_one(&names.sql(counted), &[(&projection, Type::TEXT)])?.get(0);
    let first = EventMark { position: counted.map_or(start, |counted| counted.min(start)) + 1, id: Uuid::nil() };
    let events =
        parked::waiting(tx, names, projection, &known.scope, &stream, (first, upto), MOST.saturating_add(1))?.events;
    if events.len() > MOST {
        return Ok(Begun::Refused(format!(
            "the projection has handled more than {MOST} events of the aggregate, too many for one transaction: rebuild the whole read \
             model, or rewind the projection"
        )));
    }
    if events.is_empty() && held.is_none() {
        return Ok(Begun::Refused("the projection has handled no event of the aggregate".to_owned()));
    }
    if held.as_ref().and_then(|held| held.command) != Some(errand.command) {
        match held {
            Some(_) => mark(tx, names, projection, &stream, errand.command)?,
            None => insert(tx, names, projection, &stream, &covering, errand.command)?,
        }
        renew(tx, names, projection, covering.token)?;
    }
    Ok(Begun::Ready(Work { stream, events, upto }))
}

/// Lets the later events of the aggregate of a command be handled again, in the transaction that
/// has rebuilt its rows, or that records that they stay as they were. If the aggregate was parked
/// before, it is to be replayed once its rows are rebuilt. Returns false if no events wait because
/// of the command.
pub(crate) fn release(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    command: i64,
    is_rebuilt: bool,
) -> Result<bool, postgres::Error> {
    if !lock_projection(tx, names, projection)? {
        return Ok(false);
    }
    let of_command = names.sql(
        "SELECT parked.bounded_context, parked.aggregate_type, parked.aggregate_id FROM {parked} AS parked
         WHERE parked.projection OPERATOR(pg_catalog.=) $1 AND parked.rebuild_id OPERATOR(pg_catalog.=) $2",
    );
    let found = tx.query_typed_opt(&of_command, &[(&projection, Type::TEXT), (&command, Type::INT8)])?;
    let Some(stream) = found.as_ref().and_then(stream_of) else { return Ok(false) };
    let Some(covering) = lock_checkpoint(tx, names, projection, &stream.aggregate_id)? else { return Ok(false) };
    let Some(held) = held(tx, names, projection, &stream)? else { return Ok(false) };
    if held.was_parked {
        let unmark = "UPDATE {parked} SET rebuild_id = NULL, replays_begun = 0,
                replay_requested_at = CASE WHEN $5 THEN coalesce(replay_requested_at, pg_catalog.clock_timestamp()) ELSE replay_requested_at END
             WHERE {of_stream}";
        change(tx, names, unmark, projection, &stream, &[(&is_rebuilt, Type::BOOL)])?;
    } else {
        match next(tx, names, &stream, held.position, covering.position)? {
            Some((event, event_type)) => {
                let point = "UPDATE {parked} SET rebuild_id = NULL, position = $5, event_id = $6, event_type = $7 WHERE {of_stream}";
                let values: [(&(dyn ToSql + Sync), Type); 3] =
                    [(&event.position, Type::INT8), (&event.id, Type::UUID), (&event_type, Type::TEXT)];
                change(tx, names, point, projection, &stream, &values)?;
            }
            None => change(tx, names, "DELETE FROM {parked} WHERE {of_stream}", projection, &stream, &[])?,
        }
    }
    renew(tx, names, projection, covering.token)?;
    Ok(true)
}

/// The row of an aggregate in the table of parked ones.
struct Held {
    position: i64,
    /// Whether one of its events has failed. Otherwise it is there only because of the command.
    was_parked: bool,
    command: Option<i64>,
}

/// The checkpoint of the aggregate's key.
struct Covering {
    token: i64,
    position: i64,
    highest: i64,
    key: i32,
}

/// Locks a projection until the transaction ends. Returns false if it is gone.
pub(crate) fn lock_projection(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
) -> Result<bool, postgres::Error> {
    let sql =
        names.sql("SELECT FROM {projections} AS projection WHERE projection.name OPERATOR(pg_catalog.=) $1 FOR UPDATE");
    Ok(tx.query_typed_opt(&sql, &[(&projection, Type::TEXT)])?.is_some())
}

fn aggregate_of(
    client: &mut impl GenericClient,
    names: &Names,
    command: i64,
) -> Result<Option<StreamId>, postgres::Error> {
    let sql = names.sql(
        "SELECT arguments -> 'aggregate' ->> 0, arguments -> 'aggregate' ->> 1, arguments -> 'aggregate' ->> 2
         FROM {commands} WHERE id = $1",
    );
    Ok(client.query_typed_opt(&sql, &[(&command, Type::INT8)])?.as_ref().and_then(stream_of))
}

fn stream_of(row: &Row) -> Option<StreamId> {
    let [context, kind, id] = [0, 1, 2].map(|column| row.get::<_, Option<String>>(column));
    Some(StreamId { bounded_context: context?, aggregate_type: kind?, aggregate_id: id? })
}

/// Locks the checkpoints of a projection, in the order of a deal: a merge that is committing must
/// not hide one. Returns the one that has the key of the aggregate; `None` if not exactly one has.
fn lock_checkpoint(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    aggregate_id: &str,
) -> Result<Option<Covering>, postgres::Error> {
    let lock = names.sql(
        "SELECT FROM {checkpoints} AS checkpoint WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1
         ORDER BY checkpoint.token FOR UPDATE",
    );
    tx.query_typed(&lock, &[(&projection, Type::TEXT)])?;
    let covering = names.sql(
        "SELECT checkpoint.token, checkpoint.position, checkpoint.highest, stream.key
         FROM {checkpoints} AS checkpoint, (SELECT {event_key} AS key FROM (SELECT $2::pg_catalog.text AS aggregate_id) AS event) AS stream
         WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1 AND checkpoint.keys OPERATOR(pg_catalog.@>) stream.key",
    );
    let rows = tx.query_typed(&covering, &[(&projection, Type::TEXT), (&aggregate_id, Type::TEXT)])?;
    let [row] = rows.as_slice() else { return Ok(None) };
    Ok(Some(Covering { token: row.get(0), position: row.get(1), highest: row.get(2), key: row.get(3) }))
}

/// Locks the row of an aggregate in the table of parked ones.
fn held(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    stream: &StreamId,
) -> Result<Option<Held>, postgres::Error> {
    let sql = of_stream(
        names,
        "SELECT position, event_id OPERATOR(pg_catalog.<>) $5, rebuild_id FROM {parked} WHERE {of_stream} FOR UPDATE",
    );
    let nil: [(&(dyn ToSql + Sync), Type); 1] = [(&Uuid::nil(), Type::UUID)];
    let row = tx.query_typed_opt(&sql, &parameters(&projection, stream, &nil))?;
    Ok(row.map(|row| Held { position: row.get(0), was_parked: row.get(1), command: row.get(2) }))
}

/// Lets the events of an aggregate wait that lie above the checkpoint of its key.
fn insert(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    stream: &StreamId,
    covering: &Covering,
    command: i64,
) -> Result<(), postgres::Error> {
    // There may be no such event yet, so the row names none.
    let sql = names.sql(
        "INSERT INTO {parked} (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id, event_type,
                               attempts, error, highest, replay_requested_at, rebuild_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, '', 0, $8, $9, clock_timestamp(), $10)",
    );
    let values: [(&(dyn ToSql + Sync), Type); 6] = [
        (&covering.key, Type::INT4),
        (&(covering.position + 1), Type::INT8),
        (&Uuid::nil(), Type::UUID),
        (&ERROR, Type::TEXT),
        (&covering.highest, Type::INT8),
        (&command, Type::INT8),
    ];
    tx.execute_typed(&sql, &parameters(&projection, stream, &values))?;
    Ok(())
}

/// Records that the rows of a parked aggregate are being rebuilt.
fn mark(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    stream: &StreamId,
    command: i64,
) -> Result<(), postgres::Error> {
    let sql = "UPDATE {parked} SET rebuild_id = $5 WHERE {of_stream}";
    change(tx, names, sql, projection, stream, &[(&command, Type::INT8)])
}

/// Gives a checkpoint a new token, and lets the runners of the projection load again.
fn renew(tx: &mut Transaction<'_>, names: &Names, projection: &str, token: i64) -> Result<(), postgres::Error> {
    let renew = "UPDATE {checkpoints} SET token = DEFAULT WHERE token OPERATOR(pg_catalog.=) $1";
    tx.execute_typed(&names.sql(renew), &[(&token, Type::INT8)])?;
    let reload = "UPDATE {projections} SET deal = DEFAULT WHERE name OPERATOR(pg_catalog.=) $1";
    tx.execute_typed(&names.sql(reload), &[(&projection, Type::TEXT)])?;
    Ok(())
}

/// The first event of an aggregate between two positions, with its type.
fn next(
    tx: &mut Transaction<'_>,
    names: &Names,
    stream: &StreamId,
    from: i64,
    upto: i64,
) -> Result<Option<(EventMark, String)>, postgres::Error> {
    // The positions are looked up by the aggregate first, as in `parked::waiting`. The scope is not
    // asked: the worker that replays has one of its own.
    let sql = names.sql(
        "WITH stream AS MATERIALIZED (
             SELECT event.global_position, event.event_id, event.event_type FROM {events} AS event
             WHERE event.bounded_context OPERATOR(pg_catalog.=) $1 AND event.aggregate_type OPERATOR(pg_catalog.=) $2
               AND event.aggregate_id OPERATOR(pg_catalog.=) $3
         )
         SELECT stream.global_position, stream.event_id, stream.event_type FROM stream
         WHERE stream.global_position OPERATOR(pg_catalog.>=) $4 AND stream.global_position OPERATOR(pg_catalog.<=) $5
         ORDER BY stream.global_position LIMIT 1",
    );
    let values: [(&(dyn ToSql + Sync), Type); 5] = [
        (&stream.bounded_context, Type::TEXT),
        (&stream.aggregate_type, Type::TEXT),
        (&stream.aggregate_id, Type::TEXT),
        (&from, Type::INT8),
        (&upto, Type::INT8),
    ];
    let row = tx.query_typed_opt(&sql, &values)?;
    Ok(row.map(|row| (EventMark { position: row.get(0), id: row.get(1) }, row.get(2))))
}

/// Executes a statement on the row of an aggregate in the table of parked ones.
fn change(
    tx: &mut Transaction<'_>,
    names: &Names,
    sql: &str,
    projection: &str,
    stream: &StreamId,
    values: &[(&(dyn ToSql + Sync), Type)],
) -> Result<(), postgres::Error> {
    tx.execute_typed(&of_stream(names, sql), &parameters(&projection, stream, values))?;
    Ok(())
}

fn of_stream(names: &Names, sql: &str) -> String {
    let of_stream = "projection OPERATOR(pg_catalog.=) $1 AND bounded_context OPERATOR(pg_catalog.=) $2
        AND aggregate_type OPERATOR(pg_catalog.=) $3 AND aggregate_id OPERATOR(pg_catalog.=) $4";
    names.sql_with(sql, &[("of_stream", &of_stream)])
}

fn parameters<'a>(
    projection: &'a &str,
    stream: &'a StreamId,
    values: &[(&'a (dyn ToSql + Sync), Type)],
) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    let of: [(&(dyn ToSql + Sync), Type); 4] = [
        (projection, Type::TEXT),
        (&stream.bounded_context, Type::TEXT),
        (&stream.aggregate_type, Type::TEXT),
        (&stream.aggregate_id, Type::TEXT),
    ];
    of.into_iter().chain(values.iter().cloned()).collect()
}
