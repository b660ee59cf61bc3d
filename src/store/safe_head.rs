//! What the safe head is told by: what is visible, and who is writing.

use std::time::Duration;

use postgres::types::Type;
use postgres::{Client, Statement};

use super::names::Names;
use super::session::{self, Census};
use crate::status::HeadBlocker;

/// What lies above a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Probe {
    /// The highest visible position.
    pub(crate) newest: i64,
    /// The last position of the unbroken run that begins right above the one asked about; that one itself if the next is missing.
    pub(crate) contiguous: i64,
}

/// How many positions a probe examines: enough for what is appended between two looks.
const PROBE_REACH: i64 = 2_000;

/// Prepares [`probe`] on a connection.
pub(crate) fn prepare_probe(client: &mut Client, names: &Names) -> Result<Statement, postgres::Error> {
    let sql = format!("SELECT newest, contiguous FROM {}", probe_sql(names));
    client.prepare_typed(&sql, &[Type::INT8, Type::INT8])
}

/// Prepares [`probe_with_census`] on a connection.
pub(crate) fn prepare_probe_with_census(client: &mut Client, names: &Names) -> Result<Statement, postgres::Error> {
    let sql = format!(
        "SELECT newest, contiguous, members, missing FROM {}, {}",
        probe_sql(names),
        session::census_sql(names, "$3")
    );
    client.prepare_typed(&sql, &[Type::INT8, Type::INT8, Type::TEXT])
}

/// What lies above the position `$1` and at or below `$2`. With both bounds the planner takes the index, however small the table was when
/// it planned.
fn probe_sql(names: &Names) -> String {
    let events = names.events();
    format!(
        "(SELECT coalesce((SELECT max(global_position) FROM {events}), 0) AS newest,
                 coalesce(max(global_position) FILTER (WHERE global_position = $1 + k), $1) AS contiguous
          FROM (SELECT global_position, row_number() OVER (ORDER BY global_position) AS k
                FROM {events} WHERE global_position > $1 AND global_position <= $2) AS above) AS probe"
    )
}

/// Looks at what lies above a position. One snapshot, no lock.
pub(crate) fn probe(client: &mut Client, statement: &Statement, after: i64) -> Result<Probe, postgres::Error> {
    let row = client.query_one(statement, &[&after, &after.saturating_add(PROBE_REACH)])?;
    Ok(Probe { newest: row.get(0), contiguous: row.get(1) })
}

/// The same, and how many workers the replica set has: one statement for everything a worker has to look at often.
pub(crate) fn probe_with_census(
    client: &mut Client,
    statement: &Statement,
    after: i64,
    replica_set: &str,
) -> Result<(Probe, Census), postgres::Error> {
    let row = client.query_one(statement, &[&after, &after.saturating_add(PROBE_REACH), &replica_set])?;
    let probe = Probe { newest: row.get(0), contiguous: row.get(1) };
    Ok((probe, Census { members: row.get(2), missing: row.get(3) }))
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
