//! Reading events, and what the safe head is told by.

use std::time::Duration;

use postgres::types::{ToSql, Type};
use postgres::{Client, GenericClient, Row, Statement};
use serde_json::value::RawValue;

use super::names::Names;
use super::session;
use crate::event::{Event, EventParts};
use crate::plan::KeySet;
use crate::projection::Scope;
use crate::status::HeadBlocker;

/// The columns of an event, in the order [`event_of`] expects them.
const COLUMNS: &str = "global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, \
     event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at, \
     (hashtextextended(aggregate_id, 0) & 65535)::int4 AS key";

const COLUMN_COUNT: usize = 15;

/// What counts against `batch_bytes`. Neither function reads the payload itself.
const WEIGHT: &str = "(octet_length(payload) + coalesce(pg_column_size(metadata), 0))";

fn event_of(row: &Row) -> Result<Event, postgres::Error> {
    Ok(Event::from(EventParts {
        global_position: row.try_get(0)?,
        bounded_context: row.try_get(1)?,
        aggregate_type: row.try_get(2)?,
        aggregate_id: row.try_get(3)?,
        aggregate_version: row.try_get(4)?,
        event_id: row.try_get(5)?,
        event_type: row.try_get(6)?,
        event_version: row.try_get(7)?,
        payload: row.try_get(8)?,
        trace_id: row.try_get(9)?,
        correlation_id: row.try_get(10)?,
        causation_id: row.try_get(11)?,
        metadata: row.try_get::<_, Option<postgres::types::Json<Box<RawValue>>>>(12)?.map(|json| json.0),
        created_at: row.try_get(13)?,
        key: row.try_get(14)?,
    }))
}

/// Which events to read: those of these keys and this scope, above one position and at or below another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) keys: KeySet,
    pub(crate) after: i64,
    pub(crate) upto: i64,
}

/// How much to read at once, at the most; but one event is always read, however large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) events: usize,
    pub(crate) bytes: usize,
}

/// Events in the order of their positions, and how far they reach.
#[derive(Debug, Clone, Default)]
pub(crate) struct Batch {
    pub(crate) events: Vec<Event>,
    /// Every matching event above the range's start and at or below this position is in the batch.
    pub(crate) end: i64,
}

/// Prepares [`read`] on a connection.
///
/// The `coalesce` changes nothing but the planner's estimate: it takes a bare `@>` to match next to nothing, and would rather scan and sort
/// all of the rest of the table than walk the index to the limit.
pub(crate) fn prepare_read(client: &mut Client, names: &Names) -> Result<Statement, postgres::Error> {
    let sql = format!(
        "SELECT {COLUMNS}, is_last FROM (
             SELECT *, sum({WEIGHT}) OVER (ORDER BY global_position ROWS UNBOUNDED PRECEDING) AS total,
                    lead(global_position) OVER (ORDER BY global_position) IS NULL AS is_last FROM (
                 SELECT * FROM {} WHERE global_position > $1 AND global_position <= $2
                 AND coalesce($3::int4multirange @> (hashtextextended(aggregate_id, 0) & 65535)::int4, false)
                 AND ($4::text[] IS NULL OR aggregate_type = ANY ($4)) AND ($5::text[] IS NULL OR bounded_context = ANY ($5))
                 ORDER BY global_position LIMIT $6) AS matching) AS weighed
         WHERE total <= $7 OR total = {WEIGHT} ORDER BY global_position",
        names.events()
    );
    client.prepare_typed(
        &sql,
        &[Type::INT8, Type::INT8, Type::INT4MULTI_RANGE, Type::TEXT_ARRAY, Type::TEXT_ARRAY, Type::INT8, Type::INT8],
    )
}

/// Reads the first events of a range, within the bounds.
pub(crate) fn read(
    client: &mut Client,
    statement: &Statement,
    range: &Range,
    scope: &Scope,
    bounds: Bounds,
) -> Result<Batch, postgres::Error> {
    let limit = i64::try_from(bounds.events).unwrap_or(i64::MAX);
    let bytes = i64::try_from(bounds.bytes).unwrap_or(i64::MAX);
    let params: [&(dyn ToSql + Sync); 7] =
        [&range.after, &range.upto, &range.keys, &scope.aggregate_types, &scope.bounded_contexts, &limit, &bytes];
    let rows = client.query(statement, &params)?;
    let events = rows.iter().map(event_of).collect::<Result<Vec<_>, _>>()?;
    // The server leaves out what exceeds the bytes. So fewer rows than asked for, the last of which nothing followed, mean that the
    // range is exhausted.
    let exhausted = match rows.last() {
        Some(last) => rows.len() < bounds.events && last.try_get(COLUMN_COUNT)?,
        None => true,
    };
    let end = match events.last() {
        Some(last) if !exhausted => last.global_position(),
        _ => range.upto,
    };
    Ok(Batch { events, end })
}

/// Reads the events of one aggregate, ascending by version, both bounds included.
pub(crate) fn read_stream(
    client: &mut impl GenericClient,
    names: &Names,
    (bounded_context, aggregate_type, aggregate_id): (&str, &str, &str),
    from_version: i64,
    to_version: i64,
) -> Result<Vec<Event>, postgres::Error> {
    let sql = format!(
        "SELECT {COLUMNS} FROM {} WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3
         AND aggregate_version BETWEEN $4 AND $5 ORDER BY aggregate_version",
        names.events()
    );
    let rows = client.query_typed(
        &sql,
        &[
            (&bounded_context, Type::TEXT),
            (&aggregate_type, Type::TEXT),
            (&aggregate_id, Type::TEXT),
            (&from_version, Type::INT8),
            (&to_version, Type::INT8),
        ],
    )?;
    rows.iter().map(event_of).collect()
}

/// What lies above a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The highest visible position.
    pub(crate) newest: i64,
    /// The last position of the unbroken run that begins right above the one asked about; that one itself if the next is missing.
    pub(crate) contiguous: i64,
}

/// How many positions a probe examines: enough for what is appended between two looks.
const PROBE_LIMIT: i64 = 2_000;

/// Prepares [`probe`] on a connection.
pub(crate) fn prepare_probe(client: &mut Client, names: &Names) -> Result<Statement, postgres::Error> {
    client.prepare_typed(&probe_sql(names, "NULL::bigint"), &[Type::INT8])
}

/// Prepares [`probe_and_count`] on a connection.
pub(crate) fn prepare_probe_and_count(client: &mut Client, names: &Names) -> Result<Statement, postgres::Error> {
    client.prepare_typed(&probe_sql(names, &session::living(names, "$2")), &[Type::INT8, Type::TEXT])
}

fn probe_sql(names: &Names, living: &str) -> String {
    let events = names.events();
    format!(
        "SELECT coalesce((SELECT max(global_position) FROM {events}), 0),
                coalesce(max(global_position) FILTER (WHERE global_position = $1 + k), $1), {living}
         FROM (SELECT global_position, row_number() OVER (ORDER BY global_position) AS k
               FROM {events} WHERE global_position > $1 ORDER BY global_position LIMIT {PROBE_LIMIT}) AS above"
    )
}

/// Looks at what lies above a position. One snapshot, no lock.
pub(crate) fn probe(client: &mut Client, statement: &Statement, after: i64) -> Result<Probe, postgres::Error> {
    let row = client.query_one(statement, &[&after])?;
    Ok(Probe { newest: row.get(0), contiguous: row.get(1) })
}

/// The same, and how many workers of the replica set are alive: one statement for everything a worker has to look at often.
pub(crate) fn probe_and_count(
    client: &mut Client,
    statement: &Statement,
    after: i64,
    replica_set: &str,
) -> Result<(Probe, i64), postgres::Error> {
    let row = client.query_one(statement, &[&after, &replica_set])?;
    Ok((Probe { newest: row.get(0), contiguous: row.get(1) }, row.get(2)))
}

/// A transaction that holds the lock every writer of events holds: unique among all transactions that are open at one time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Holder {
    /// Its virtual transaction id, which it keeps when it is prepared; after a restart of the server, a prepared transaction has `-1/`
    /// and its transaction id.
    pub(crate) transaction: String,
    /// None for a prepared transaction.
    pub(crate) pid: Option<i32>,
}

/// Which rows of `pg_locks l` are writers' locks on the events table or one of its partitions, in SQL; `$1` is the table.
///
/// Stronger locks do not matter: who inserts holds this mode beside them. Locks are seen at once, not through a snapshot.
const WRITERS: &str = "FROM pg_locks l WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock' AND l.granted
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND l.relation IN (SELECT $1::text::regclass UNION ALL SELECT relid FROM pg_partition_tree($1::text::regclass))";

/// Prepares [`holders`] on a connection.
pub(crate) fn prepare_holders(client: &mut Client) -> Result<Statement, postgres::Error> {
    client.prepare_typed(&format!("SELECT DISTINCT l.virtualtransaction, l.pid {WRITERS}"), &[Type::TEXT])
}

/// The transactions that may have events in flight at this moment.
pub(crate) fn holders(
    client: &mut Client,
    statement: &Statement,
    names: &Names,
) -> Result<Vec<Holder>, postgres::Error> {
    let rows = client.query(statement, &[&names.events().to_string()])?;
    Ok(rows.iter().map(|row| Holder { transaction: row.get(0), pid: row.get(1) }).collect())
}

/// What is known of some holders, for the operator.
pub(crate) fn describe_holders(client: &mut Client, holders: &[Holder]) -> Result<Vec<HeadBlocker>, postgres::Error> {
    // Of another role's backend the server may show neither its state nor since when its transaction is open.
    let sql =
        "SELECT a.pid, a.application_name, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8
               FROM pg_stat_activity a WHERE a.pid = ANY ($1) AND (a.xact_start IS NOT NULL OR a.state IS NULL)
               UNION ALL
               SELECT NULL, p.gid, extract(epoch FROM clock_timestamp() - p.prepared)::float8
               FROM pg_prepared_xacts p JOIN pg_locks l
               ON l.locktype = 'transactionid' AND l.transactionid = p.transaction AND l.mode = 'ExclusiveLock'
               WHERE l.virtualtransaction = ANY ($2)
               ORDER BY 3 DESC";
    let pids: Vec<i32> = holders.iter().filter_map(|holder| holder.pid).collect();
    let prepared: Vec<&str> =
        holders.iter().filter(|holder| holder.pid.is_none()).map(|holder| holder.transaction.as_str()).collect();
    let rows = client.query_typed(sql, &[(&pids, Type::INT4_ARRAY), (&prepared, Type::TEXT_ARRAY)])?;
    Ok(rows
        .iter()
        .map(|row| HeadBlocker {
            pid: row.get(0),
            name: row.get::<_, Option<String>>(1).unwrap_or_default(),
            age: Duration::try_from_secs_f64(row.get(2)).unwrap_or_default(),
        })
        .collect())
}
