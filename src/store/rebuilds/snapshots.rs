//! The snapshots with which other sessions read, and who holds a lock.

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row};

/// A snapshot that another session of this database holds.
///
/// A snapshot has no name. But while it is held, its session stays in the same transaction, and the
/// oldest transaction that it regards as running stays the same. So when either differs, it is
/// gone. The reverse is not true, so a wait for it may take longer than necessary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub(crate) pid: i32,
    transaction: String,
    xmin: String,
    /// The session, for operators.
    pub(crate) whose: String,
}

impl Snapshot {
    fn of(row: &Row) -> Self {
        Self { pid: row.get(0), transaction: row.get(1), xmin: row.get(2), whose: row.get(3) }
    }

    fn is(&self, other: &Self) -> bool {
        (self.pid, &self.transaction, &self.xmin) == (other.pid, &other.transaction, &other.xmin)
    }
}

/// Returns the snapshots that sessions hold now. An autovacuum worker, which is the session of no
/// user, reads no rows for anybody. Its type is not asked for, because the server shows the type of
/// a session only to its own user.
pub(crate) fn held(client: &mut impl GenericClient) -> Result<Vec<Snapshot>, postgres::Error> {
    let sql = format!(
        "SELECT a.pid, l.virtualxid, a.backend_xmin::text, {WHOSE}
         FROM pg_stat_activity a JOIN pg_locks l ON l.pid = a.pid AND l.locktype = 'virtualxid' AND l.mode = 'ExclusiveLock' AND l.granted
         WHERE a.datname = current_database() AND a.backend_xmin IS NOT NULL AND a.pid <> pg_backend_pid() AND a.usesysid IS NOT NULL"
    );
    Ok(client.query_typed(&sql, &[])?.iter().map(Snapshot::of).collect())
}

/// Keeps those of these snapshots that are still held.
pub(crate) fn still_held(
    client: &mut impl GenericClient,
    mut snapshots: Vec<Snapshot>,
) -> Result<Vec<Snapshot>, postgres::Error> {
    let now = held(client)?;
    snapshots.retain(|snapshot| now.iter().any(|held| held.is(snapshot)));
    Ok(snapshots)
}

/// Returns the sessions that hold a lock on one of these relations, for operators.
pub(crate) fn lock_holders(client: &mut impl GenericClient, oids: &[u32]) -> Result<Vec<String>, postgres::Error> {
    let sql = format!(
        "SELECT DISTINCT concat({WHOSE}, ' has a lock on ', l.relation::regclass) FROM pg_locks l
         LEFT JOIN pg_stat_activity a ON a.pid = l.pid
         WHERE l.locktype = 'relation' AND l.relation = ANY ($1) AND l.granted AND l.pid IS DISTINCT FROM pg_backend_pid()
         AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    );
    let oids: [(&(dyn ToSql + Sync), Type); 1] = [(&oids, Type::OID_ARRAY)];
    Ok(client.query_typed(&sql, &oids)?.iter().map(|row| row.get(0)).collect())
}

/// A session of `pg_stat_activity a`, for people, in SQL. A prepared transaction has none.
const WHOSE: &str = "coalesce(concat_ws(' ', 'pid', a.pid::text, '(' || concat_ws(', ', 'user ' || a.usename, nullif(a.application_name, ''),
    a.backend_type, 'for ' || date_trunc('second', clock_timestamp() - a.xact_start)) || ')'), 'a prepared transaction')";
