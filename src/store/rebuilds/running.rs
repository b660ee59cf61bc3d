//! What a runner has to know of a rebuild: into which copies it writes, and how far a live
//! checkpoint may go.
//!
//! These statements are executed beside a handler, under the settings of the application. So each
//! function, operator and type in them is qualified.

use postgres::GenericClient;
use postgres::types::{ToSql, Type};

use super::record::{State, current};
use crate::plan::{KeySet, Kind};
use crate::store::names::Names;
use crate::store::read_model;

/// The copies into which the handlers of a rebuild write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copies {
    /// The number of the command that rebuilds.
    id: i64,
    /// The schema that comes first in the search path of a handler.
    pub(crate) schema: String,
    /// How many events are handled per second, by all workers together; `None` is without a limit.
    pub(crate) rate: Option<i32>,
    /// Whether the live projection, or the switch, waits for it.
    pub(crate) is_awaited: bool,
    oids: Vec<u32>,
    /// The names of the copies, in the same order.
    tables: Vec<String>,
    /// The live tables.
    live: Vec<u32>,
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
    let is_awaited = rebuild.state != State::Loading;
    let rate = rebuild.rate.filter(|_| !is_awaited);
    let tables = rebuild.copies.iter().map(|copy| copy.table.name.clone()).collect();
    let live = rebuild.live_oids();
    Ok(Some(Copies { id: rebuild.id, schema: rebuild.schema, rate, is_awaited, oids, tables, live, writable }))
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
    /// savepoint is not blamed. Only the copies may be there, and temporary tables; other tables
    /// may be read, except for the live ones: what a copy takes from them is not built anew. A
    /// large object is locked as an object when it is removed, and its table when it is used. And
    /// every copy has to exist, because a handler's unqualified name falls through to the live
    /// table once the copy is gone.
    pub(crate) fn trespass(&self, client: &mut impl GenericClient) -> Result<Option<String>, postgres::Error> {
        let sql = "SELECT pg_catalog.concat(
                 CASE WHEN pg_catalog.bool_or(lock.mode OPERATOR(pg_catalog.<>) ALL (ARRAY['AccessShareLock', 'RowShareLock'])) THEN 'has changed '
                      ELSE 'has read the live table ' END,
                 CASE WHEN class.relname IS NOT NULL THEN pg_catalog.format('%I.%I', namespace.nspname, class.relname)
                      WHEN lock.objid IS NOT NULL THEN pg_catalog.concat('large object ', lock.objid)
                      ELSE 'a table that it has dropped (a temporary one is better created with ON COMMIT DROP)' END,
                 ' (', pg_catalog.string_agg(lock.mode, ', '), ')')
             FROM pg_catalog.pg_locks AS lock LEFT JOIN pg_catalog.pg_class AS class ON class.oid OPERATOR(pg_catalog.=) lock.relation
             LEFT JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid OPERATOR(pg_catalog.=) class.relnamespace
             WHERE lock.pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid() AND lock.granted AND (
                 lock.locktype OPERATOR(pg_catalog.=) 'relation' AND (
                     lock.relation OPERATOR(pg_catalog.=) ANY ($3)
                     OR lock.mode OPERATOR(pg_catalog.<>) ALL (ARRAY['AccessShareLock', 'RowShareLock'])
                     AND lock.relation OPERATOR(pg_catalog.<>) ALL ($1) AND class.relpersistence IS DISTINCT FROM 't')
                 OR lock.locktype OPERATOR(pg_catalog.=) 'object' AND lock.mode OPERATOR(pg_catalog.=) 'AccessExclusiveLock'
                     AND lock.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_largeobject'::pg_catalog.regclass)
             GROUP BY lock.relation, lock.objid, namespace.nspname, class.relname
             UNION ALL
             SELECT pg_catalog.concat('went on although the copy of table ', copy.name, ' does not exist any more')
             FROM ROWS FROM (pg_catalog.unnest($2), pg_catalog.unnest($4)) AS copy (oid, name)
             WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_class AS class WHERE class.oid OPERATOR(pg_catalog.=) copy.oid)";
        let values: [(&(dyn ToSql + Sync), Type); 4] = [
            (&self.writable, Type::OID_ARRAY),
            (&self.oids, Type::OID_ARRAY),
            (&self.live, Type::OID_ARRAY),
            (&self.tables, Type::TEXT_ARRAY),
        ];
        let found: Vec<String> = client.query_typed(sql, &values)?.iter().map(|row| row.get(0)).collect();
        Ok((!found.is_empty()).then(|| found.join(", ")))
    }

    /// Asks for this rebuild of a projection to be cancelled, unless that was asked for already, or
    /// another rebuild has taken its place.
    pub(crate) fn ask_to_cancel(
        &self,
        client: &mut impl GenericClient,
        names: &Names,
        base: &str,
        worker: &str,
        why: &str,
    ) -> Result<(), postgres::Error> {
        let sql = names.sql(
            "INSERT INTO {commands} (projection, command, requested_by, reason)
             SELECT $1, 'cancel', $2, $3 WHERE NOT EXISTS (
                 SELECT FROM {commands} AS command WHERE command.projection OPERATOR(pg_catalog.=) $1
                 AND command.command OPERATOR(pg_catalog.=) 'cancel' AND command.applied_at IS NULL)
             AND EXISTS (
                 SELECT FROM {rebuilds} AS rebuild WHERE rebuild.id OPERATOR(pg_catalog.=) $4 AND rebuild.state OPERATOR(pg_catalog.<>) 'old')",
        );
        let values: [(&(dyn ToSql + Sync), Type); 4] =
            [(&base, Type::TEXT), (&worker, Type::TEXT), (&why, Type::TEXT), (&self.id, Type::INT8)];
        client.execute_typed(&sql, &values)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use postgres::{Client, NoTls};

    use super::*;
    use crate::store::testing;

    /// The guard reads the locks of the whole server.
    #[test]
    fn guard_is_cheap_among_many_tables_and_connections() {
        let url = testing::database();
        let connect = || Client::connect(&url, NoTls).unwrap();
        let mut client = connect();
        client
            .batch_execute(
                "DO $$ BEGIN FOR i IN 1..3000 LOOP EXECUTE format('CREATE TABLE many_%s (a int)', i); END LOOP; END $$",
            )
            .unwrap();
        // Each holds more locks than fit into its own slots of the server.
        let others: Vec<Client> = (0..100)
            .map(|number| {
                let mut other = connect();
                let tables: Vec<String> = (1..=20).map(|i| format!("many_{}", number * 20 + i)).collect();
                other.batch_execute(&format!("BEGIN; LOCK TABLE {} IN ROW EXCLUSIVE MODE", tables.join(", "))).unwrap();
                other
            })
            .collect();
        let oid = |client: &mut Client, name: &str| -> u32 {
            client.query_one("SELECT $1::text::regclass::oid", &[&name]).unwrap().get(0)
        };
        let [copy, live] = ["many_3000", "many_2999"].map(|name| oid(&mut client, name));
        let (oids, tables) = (vec![copy], vec!["many_3000".to_owned()]);
        let copies = Copies {
            id: 1,
            schema: "public".to_owned(),
            rate: None,
            is_awaited: false,
            writable: oids.clone(),
            oids,
            tables,
            live: vec![live],
        };
        let mut tx = client.transaction().unwrap();
        tx.batch_execute("INSERT INTO many_3000 VALUES (1); SELECT FROM many_1").unwrap();
        let mut took: Vec<Duration> = (0..200)
            .map(|_| {
                let begun = Instant::now();
                assert_eq!(copies.trespass(&mut tx).unwrap(), None);
                begun.elapsed()
            })
            .collect();
        took.sort_unstable();
        // This machine is busy with other tests. Alone, and with optimisation, it takes 1 ms.
        assert!(took[100] < Duration::from_millis(20), "median {:?}, most {:?}", took[100], took[199]);
        tx.batch_execute("SELECT FROM many_2999").unwrap();
        assert!(copies.trespass(&mut tx).unwrap().unwrap().contains("has read the live table public.many_2999"));
        drop(others);
    }
}
