//! What a runner has to know of a rebuild: into which copies it writes, and how far a live
//! checkpoint may go.
//!
//! These statements are executed beside a handler, under the settings of the application. So each
//! function, operator and type in them is qualified.

use postgres::GenericClient;
use postgres::types::{ToSql, Type};

use super::{State, current};
use crate::plan::{KeySet, Kind};
use crate::store::names::Names;
use crate::store::read_model;

/// The copies into which the handlers of a rebuild write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copies {
    /// The schema that comes first in the search path of a handler.
    pub(crate) schema: String,
    /// How many events are handled per second, by all workers together; `None` is without a limit.
    pub(crate) rate: Option<i32>,
    oids: Vec<u32>,
    /// What a transaction that writes into the copies may lock: with their indexes and sequences.
    writable: Vec<u32>,
}

/// Returns the copies of the rebuild of a projection that is not finished.
pub(crate) fn copies(
    client: &mut impl GenericClient,
    names: &Names,
    base: &str,
) -> Result<Option<Copies>, postgres::Error> {
    let Some(rebuild) = current(client, names, base)? else { return Ok(None) };
    let oids = rebuild.copy_oids();
    let writable = read_model::related(client, &oids)?;
    let rate = rebuild.rate.filter(|_| rebuild.state == State::Loading);
    Ok(Some(Copies { schema: rebuild.schema, rate, oids, writable }))
}

/// Returns how far a live checkpoint with these keys may go: not beyond a committed position of the
/// rebuild for one of them. `None` if there is no rebuild any more.
pub(crate) fn ceiling(
    client: &mut impl GenericClient,
    names: &Names,
    base: &str,
    keys: &KeySet,
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql(
        "SELECT pg_catalog.min(checkpoint.position) FROM {checkpoints} AS checkpoint
         WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1 AND checkpoint.keys OPERATOR(pg_catalog.&&) $2",
    );
    let values: [(&(dyn ToSql + Sync), Type); 2] =
        [(&Kind::Rebuild.name(base), Type::TEXT), (&keys, Type::INT4MULTI_RANGE)];
    Ok(client.query_typed_one(&sql, &values)?.get(0))
}

impl Copies {
    /// Returns what a transaction has done that a rebuild must not do, if anything: the *guard*. It
    /// is executed in the transaction, after the handler and before anything of the library.
    ///
    /// Whatever a transaction writes to, it locks until it ends: with a qualified name, through a
    /// view or a function, by TRUNCATE or DDL. So its own locks tell, and what was rolled back to a
    /// savepoint is not blamed. Only the copies may be there, and temporary tables. And every copy
    /// has to exist, because a handler's unqualified name falls through to the live table once the
    /// copy is gone.
    pub(crate) fn trespass(&self, client: &mut impl GenericClient) -> Result<Option<String>, postgres::Error> {
        let sql = "SELECT pg_catalog.format('%s (%s)', coalesce(lock.relation::pg_catalog.regclass::pg_catalog.text, 'a table that it dropped'),
                                            pg_catalog.string_agg(lock.mode, ', '))
             FROM pg_catalog.pg_locks AS lock LEFT JOIN pg_catalog.pg_class AS class ON class.oid OPERATOR(pg_catalog.=) lock.relation
             WHERE lock.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND lock.locktype OPERATOR(pg_catalog.=) 'relation'
             AND lock.granted AND lock.mode OPERATOR(pg_catalog.<>) ALL (ARRAY['AccessShareLock', 'RowShareLock'])
             AND lock.relation OPERATOR(pg_catalog.<>) ALL ($1) AND class.relpersistence IS DISTINCT FROM 't'
             GROUP BY lock.relation
             UNION ALL
             SELECT 'a copy that does not exist any more' WHERE (
                 SELECT pg_catalog.count(*) FROM pg_catalog.pg_class AS class WHERE class.oid OPERATOR(pg_catalog.=) ANY ($2))
                 OPERATOR(pg_catalog.<>) pg_catalog.cardinality($2)";
        let values: [(&(dyn ToSql + Sync), Type); 2] =
            [(&self.writable, Type::OID_ARRAY), (&self.oids, Type::OID_ARRAY)];
        let found: Vec<String> = client.query_typed(sql, &values)?.iter().map(|row| row.get(0)).collect();
        Ok((!found.is_empty()).then(|| found.join(", ")))
    }
}

/// Asks for the rebuild of a projection to be cancelled, unless that was asked for already.
pub(crate) fn ask_to_cancel(
    client: &mut impl GenericClient,
    names: &Names,
    base: &str,
    worker: &str,
    why: &str,
    schema: Option<&str>,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "INSERT INTO {commands} (projection, command, requested_by, reason)
         SELECT $1, 'cancel', $2, $3 WHERE NOT EXISTS (
             SELECT FROM {commands} AS command WHERE command.projection OPERATOR(pg_catalog.=) $1
             AND command.command OPERATOR(pg_catalog.=) 'cancel' AND command.applied_at IS NULL)
         AND EXISTS (SELECT FROM {rebuilds} AS rebuild WHERE rebuild.projection OPERATOR(pg_catalog.=) $1
                     AND rebuild.copies_schema OPERATOR(pg_catalog.=) $4)",
    );
    client.execute_typed(
        &sql,
        &[(&base, Type::TEXT), (&worker, Type::TEXT), (&why, Type::TEXT), (&schema, Type::TEXT)],
    )?;
    Ok(())
}
