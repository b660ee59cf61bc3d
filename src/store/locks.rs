//! Session locks: how workers detect that another worker has died.
//!
//! A worker's coordination connection holds an advisory lock: when the process dies, the server
//! releases it at once. Each of its other connections holds a second lock, shared. If the process
//! is frozen and the worker is declared dead, other workers find its connections by this lock and
//! end them, because a frozen process must not keep row locks.

use postgres::Client;
use postgres::types::Type;

use super::names::Names;
use crate::plan::WorkerId;

/// The key of the lock that means "alive". It must be even: the next number is the key of the other
/// lock.
pub(crate) fn alive_key(worker: WorkerId) -> i64 {
    let (high, _) = worker.0.as_u64_pair();
    high.cast_signed() & !1
}

/// The key of the lock by which a worker's connections are found.
pub(crate) fn member_key(worker: WorkerId) -> i64 {
    alive_key(worker) | 1
}

/// An advisory lock's 64-bit key, computed from the columns of `pg_locks l`, in SQL.
pub(crate) const LOCK_KEY: &str = "((l.classid::bigint << 32) | l.objid::bigint)";

/// Which rows of `pg_locks l` are granted advisory locks with a 64-bit key in this database, in
/// SQL.
pub(crate) const IS_ADVISORY: &str = "l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// How many workers a replica set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) members: i64,
    /// How many of them do not hold their "alive" lock although no worker has recorded the loss.
    pub(crate) missing: i64,
}

/// The columns of a [`Census`], to select from in SQL.
pub(super) fn census_sql(names: &Names, replica_set: &str) -> String {
    names.sql_with(
        "(SELECT count(*) AS members, count(*) FILTER (WHERE w.session_lost_at IS NULL AND w.session_key NOT IN (
              SELECT {lock_key} FROM pg_locks l WHERE {is_advisory} AND l.mode = 'ExclusiveLock')) AS missing
          FROM {workers} w WHERE w.replica_set = {replica_set} AND w.state <> 'stopped') AS census",
        &[("lock_key", &LOCK_KEY), ("is_advisory", &IS_ADVISORY), ("replica_set", &replica_set)],
    )
}

/// Takes the "alive" lock, if it is free. If it is not, a lost session of this worker still holds
/// it.
pub(crate) fn try_hold_alive(client: &mut Client, worker: WorkerId) -> Result<bool, postgres::Error> {
    let row = client.query_typed_one("SELECT pg_try_advisory_lock($1)", &[(&alive_key(worker), Type::INT8)])?;
    Ok(row.get(0))
}

/// Ends the session that still holds this worker's "alive" lock: a former connection that broke.
pub(crate) fn end_former(client: &mut Client, worker: WorkerId) -> Result<(), postgres::Error> {
    let sql = format!(
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l
         WHERE {IS_ADVISORY} AND {LOCK_KEY} = $1 AND l.mode = 'ExclusiveLock' AND l.pid <> pg_backend_pid()"
    );
    client.query_typed(&sql, &[(&alive_key(worker), Type::INT8)])?;
    Ok(())
}
