//! The lock of a replica set, and session locks: how workers detect that another worker has died,
//! and find its sessions.
//!
//! Each connection of a worker holds an advisory lock whose class identifies the worker. The server
//! releases it as soon as the connection ends. The worker's row names the session of its
//! coordinator: the worker is alive as long as that session holds its lock. If the process is
//! frozen and the worker is declared dead, other workers find all its sessions by the class and end
//! them, because a frozen process must not keep row locks.
//!
//! Every role can see these locks and take similar ones. So each connection's lock has a random
//! second number: no connection waits for the lock of another connection, or for a lock that
//! another role has taken. A lock means "alive" only in the session that the row names, so another
//! role cannot make a dead worker seem alive.

use postgres::Transaction;
use postgres::types::Type;

use super::names::Names;
use crate::plan::WorkerId;

/// The class of a worker's locks. It is random, because a worker's id is.
pub(crate) fn class(worker: WorkerId) -> i32 {
    worker.0.as_fields().0.cast_signed()
}

/// A lock of a worker's connection, as the arguments of a locking function, in SQL. They are
/// qualified, because the search path is unknown.
pub(crate) fn own(worker: WorkerId) -> String {
    format!("{}, pg_catalog.uuid_hash(pg_catalog.gen_random_uuid())", class(worker))
}

/// Which rows of `pg_locks l` are granted advisory locks with a class in this database, in SQL. A
/// prepared transaction may hold one, too, but it is not a session.
pub(crate) const IS_ADVISORY: &str = "l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.pid IS NOT NULL \
     AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Whether a lock `l` belongs to a session of the worker `w`, in SQL.
pub(crate) const IS_OF_WORKER: &str = "l.classid = w.session_class::oid";

/// How many workers a replica set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Census {
    pub(crate) members: i64,
    /// How many of them do not hold their lock although no worker has recorded the loss.
    pub(crate) missing: i64,
}

/// The columns of a [`Census`], to select from in SQL.
pub(super) fn census_sql(names: &Names, replica_set: &str) -> String {
    names.sql_with(
        "(SELECT count(*) AS members,
                 count(*) FILTER (WHERE w.session_lost_at IS NULL AND w.session_class IS NOT NULL
                     AND (w.session_class::oid, w.session_pid) NOT IN (
                     SELECT l.classid, l.pid FROM pg_locks l WHERE {is_advisory})) AS missing
          FROM {workers} w WHERE w.replica_set = {replica_set} AND w.state <> 'stopped') AS census",
        &[("is_advisory", &IS_ADVISORY), ("replica_set", &replica_set)],
    )
}

/// Locks the replica set to which a projection belongs. Returns false if there is none.
pub(super) fn hold_of_projection(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
) -> Result<bool, postgres::Error> {
    let sql = names.sql(
        "SELECT FROM {replica_sets} WHERE name = (SELECT replica_set FROM {projections} WHERE name = $1) FOR UPDATE",
    );
    Ok(!tx.query_typed(&sql, &[(&projection, Type::TEXT)])?.is_empty())
}
