//! A rebuild, as the table of rebuilds has it.

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row};

use super::reading::parked_only_sql;
use crate::plan::{Errand, WorkerId};
use crate::store::names::Names;
use crate::store::read_model::{Copy, Table};

/// A rebuild that has this many positions to go, or fewer, has caught up: it needs no rate limit
/// any more.
const CAUGHT_UP: i64 = 1_000;

/// How far a rebuild has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Its handlers fill the copies, at the rate that was asked for.
    Loading,
    /// They do so without a limit.
    CatchingUp,
    /// The live checkpoints go no further than those of the rebuild.
    Following,
    /// It is finished, and the former tables are kept.
    Old,
}

impl State {
    const ALL: [Self; 4] = [Self::Loading, Self::CatchingUp, Self::Following, Self::Old];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::CatchingUp => "catching_up",
            Self::Following => "following",
            Self::Old => "old",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// A rebuild that is not finished, or whose former tables are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rebuild {
    /// The number of the command.
    pub(crate) id: i64,
    pub(crate) state: State,
    /// The live tables with their copies; afterwards, with the former tables.
    pub(crate) copies: Vec<Copy>,
    /// The schema of the copies, or of the former tables.
    pub(crate) schema: String,
    /// How many events are handled per second, by all workers together.
    pub(crate) rate: Option<i32>,
    pub(crate) keep_old: bool,
    /// Whether the content of the live tables is replaced, instead of the tables.
    pub(crate) copies_content: bool,
}

impl Rebuild {
    /// The oids of the copies.
    pub(crate) fn copy_oids(&self) -> Vec<u32> {
        self.copies.iter().map(|copy| copy.oid).collect()
    }

    /// The oids of the live tables.
    pub(crate) fn live_oids(&self) -> Vec<u32> {
        self.copies.iter().map(|copy| copy.table.oid).collect()
    }
}

/// Returns the rebuild of a projection that is not finished. Runners execute it under the settings
/// of the application.
pub(crate) fn current(
    client: &mut impl GenericClient,
    names: &Names,
    base: &str,
) -> Result<Option<Rebuild>, postgres::Error> {
    one(client, names, base, "OPERATOR(pg_catalog.<>)")
}

/// Returns the rebuild of a projection whose former tables are kept.
pub(crate) fn kept(
    client: &mut impl GenericClient,
    names: &Names,
    base: &str,
) -> Result<Option<Rebuild>, postgres::Error> {
    one(client, names, base, "OPERATOR(pg_catalog.=)")
}

fn one(
    client: &mut impl GenericClient,
    names: &Names,
    base: &str,
    is_old: &str,
) -> Result<Option<Rebuild>, postgres::Error> {
    let sql = names.sql_with(
        "SELECT rebuild.id, rebuild.state, rebuild.live_oids, rebuild.copy_oids, rebuild.table_schemas, rebuild.tables,
                rebuild.copies_schema, rebuild.rate, rebuild.keep_old,
                rebuild.copies_content
         FROM {rebuilds} AS rebuild WHERE rebuild.projection OPERATOR(pg_catalog.=) $1 AND rebuild.state {is_old} 'old'",
        &[("is_old", &is_old)],
    );
    Ok(client.query_typed_opt(&sql, &[(&base, Type::TEXT)])?.as_ref().map(rebuild_of))
}

fn rebuild_of(row: &Row) -> Rebuild {
    let (live, copies): (Vec<u32>, Vec<u32>) = (row.get(2), row.get(3));
    let (schemas, tables): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
    let tables = live.into_iter().zip(schemas.into_iter().zip(tables));
    let copies =
        tables.zip(copies).map(|((oid, (schema, name)), copy)| Copy { table: Table { oid, schema, name }, oid: copy });
    Rebuild {
        id: row.get(0),
        state: State::parse(row.get(1)).unwrap_or(State::Loading),
        copies: copies.collect(),
        schema: row.get(6),
        rate: row.get(7),
        keep_old: row.get(8),
        copies_content: row.get(9),
    }
}

/// Whether this is still the worker and the attempt that finishes the rebuild.
pub(crate) fn is_executed_by(
    client: &mut impl GenericClient,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
) -> Result<bool, postgres::Error> {
    let sql = names.sql(
        "SELECT EXISTS (SELECT FROM {commands} WHERE id = $1 AND executor = $2 AND attempt = $3 AND step = 'finishing'
                        AND applied_at IS NULL)",
    );
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&errand.command, Type::INT8), (&worker.0, Type::UUID), (&errand.attempt, Type::INT4)];
    Ok(client.query_typed_one(&sql, &values)?.get(0))
}

/// Whether the switch of the rebuild of command `k` may be tried, in SQL: it has caught up, was not
/// put off for longer, and has parked nothing that the live projection has handled.
pub(crate) fn is_due_sql(names: &Names) -> String {
    names.sql_with(
        "EXISTS (SELECT FROM {rebuilds} r WHERE r.id = k.id AND coalesce(r.retry_at <= clock_timestamp(), true)
                 AND (SELECT min(position) + {caught_up} FROM {checkpoints} WHERE projection = k.projection || '@rebuild')
                     >= (SELECT min(position) FROM {checkpoints} WHERE projection = k.projection)
                 AND NOT EXISTS ({parked_only}))",
        &[("caught_up", &CAUGHT_UP), ("parked_only", &parked_only_sql(names, "k.projection"))],
    )
}
