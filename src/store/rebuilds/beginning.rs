//! The beginning of a rebuild: its rows in the library's tables.

use postgres::Transaction;
use postgres::types::{ToSql, Type};

use crate::error::Error;
use crate::plan::{Errand, KeySet, Kind, WorkerId};
use crate::store::names::Names;
use crate::store::read_model::{Copy, lock_time_of_copy};
use crate::store::{Known, execution, locks};

const DOING: &str = "beginning a rebuild";

/// How many events are handled per second, by all workers together, unless another rate is asked
/// for: most handlers can do more, so that live work goes on beside it.
const DEFAULT_RATE: i32 = 5_000;

/// What a command to rebuild asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// `None` is without a limit.
    pub(crate) rate: Option<i32>,
    pub(crate) keep_old: bool,
    pub(crate) copies_content: bool,
}

/// Reads what a command to rebuild asks for.
pub(crate) fn asked(tx: &mut Transaction<'_>, names: &Names, command: i64) -> Result<Option<Asked>, postgres::Error> {
    let sql = names.sql(
        "SELECT CASE WHEN arguments ? 'rate' THEN (arguments ->> 'rate')::int4 ELSE $2 END,
                coalesce((arguments ->> 'keep_old')::boolean, false), coalesce((arguments ->> 'copy')::boolean, false)
         FROM {commands} WHERE id = $1",
    );
    let row = tx.query_typed_opt(&sql, &[(&command, Type::INT8), (&DEFAULT_RATE, Type::INT4)])?;
    Ok(row.map(|row| Asked { rate: row.get(0), keep_old: row.get(1), copies_content: row.get(2) }))
}

/// Records a rebuild for which the copies have been created in the same transaction: it begins at
/// this position. Returns false if another worker has taken over.
#[expect(clippy::too_many_arguments, reason = "each is used once")]
pub(crate) fn begin(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    known: &Known,
    build: Option<&str>,
    asked: Asked,
    copies: &[Copy],
    (schema, bytes, position): (&str, i64, i64),
) -> Result<bool, Error> {
    let database = Error::database(DOING);
    if !locks::hold_of_projection(tx, names, &errand.projection).map_err(Error::database(DOING))?
        || !execution::hold(tx, names, errand, worker).map_err(Error::database(DOING))?
    {
        return Ok(false);
    }
    let base = &*errand.projection;
    let rebuild = Kind::Rebuild.name(base);
    let shown: Vec<String> = copies.iter().map(|copy| copy.table.to_string()).collect();
    let schemas: Vec<&str> = copies.iter().map(|copy| copy.table.schema.as_str()).collect();
    let tables: Vec<&str> = copies.iter().map(|copy| copy.table.name.as_str()).collect();
    let live: Vec<u32> = copies.iter().map(|copy| copy.table.oid).collect();
    let oids: Vec<u32> = copies.iter().map(|copy| copy.oid).collect();
    let scope = known.scope.to_json();
    let own_tables = &known.tables;
    // How long writers of the live tables wait for the switch; readers do not.
    let lock_seconds = asked.copies_content.then(|| lock_time_of_copy(u64::try_from(bytes).unwrap_or(0)).as_secs_f64());
    // Everybody deals it, because it is not dealt as desired.
    let projection = names.sql(
        "INSERT INTO {projections} (name, replica_set, version, build_id, scope, tables, dealt_state, counted_from)
         SELECT $2, replica_set, $3, $4, $5::jsonb, $6, 'paused', $7 FROM {projections} WHERE name = $1",
    );
    // What was handled before is handled again.
    let checkpoint = names.sql(
        "INSERT INTO {checkpoints} (projection, keys, position, highest, last_event_position, last_event_id)
         SELECT $2, $3, $4, greatest($4, (SELECT max(highest) FROM {checkpoints} WHERE projection = $1)),
                event.global_position, event.event_id
         FROM (SELECT) AS always LEFT JOIN {events} AS event ON event.global_position = $4",
    );
    let discarded = names.sql(
        "INSERT INTO {discarded} (projection, event_id, bounded_context, aggregate_type, aggregate_id, key, position, event_type, error,
                                  discarded_by, reason, command_id, discarded_at)
         SELECT $2, event_id, bounded_context, aggregate_type, aggregate_id, key, position, event_type, error, discarded_by, reason,
                command_id, discarded_at
         FROM {discarded} WHERE projection = $1",
    );
    let record = names.sql(
        "INSERT INTO {rebuilds} (id, projection, tables, live_oids, copy_oids, copies_schema, rate, keep_old, copies_content, bytes,
                                 table_schemas)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
    );
    let step = names.sql(
        "UPDATE {commands} SET step = 'loading', executor = NULL, result = jsonb_build_object('tables', $2, 'bytes', $3, 'lock_seconds', $4, 'build', $5) WHERE id = $1",
    );
    let of_both: [(&(dyn ToSql + Sync), Type); 2] = [(&base, Type::TEXT), (&rebuild, Type::TEXT)];
    let [live_name, rebuild_name] = &of_both;
    let at = (&position as &(dyn ToSql + Sync), Type::INT8);
    tx.execute_typed(
        &projection,
        &[
            live_name.clone(),
            rebuild_name.clone(),
            (&known.version, Type::INT4),
            (&build, Type::TEXT),
            (&scope, Type::TEXT),
            (own_tables, Type::TEXT_ARRAY),
            at.clone(),
        ],
    )
    .and_then(|_| {
        let keys = (&KeySet::all() as &(dyn ToSql + Sync), Type::INT4MULTI_RANGE);
        tx.execute_typed(&checkpoint, &[live_name.clone(), rebuild_name.clone(), keys, at.clone()])
    })
    .and_then(|_| tx.execute_typed(&discarded, &of_both))
    .and_then(|_| {
        tx.execute_typed(
            &record,
            &[
                (&errand.command, Type::INT8),
                live_name.clone(),
                (&tables, Type::TEXT_ARRAY),
                (&live, Type::OID_ARRAY),
                (&oids, Type::OID_ARRAY),
                (&schema, Type::TEXT),
                (&asked.rate, Type::INT4),
                (&asked.keep_old, Type::BOOL),
                (&asked.copies_content, Type::BOOL),
                (&bytes, Type::INT8),
                (&schemas, Type::TEXT_ARRAY),
            ],
        )
    })
    .and_then(|_| {
        tx.execute_typed(
            &step,
            &[
                (&errand.command, Type::INT8),
                (&shown, Type::TEXT_ARRAY),
                (&bytes, Type::INT8),
                (&lock_seconds, Type::FLOAT8),
                (&build, Type::TEXT),
            ],
        )
    })
    .map_err(database)?;
    Ok(true)
}

/// Why these tables cannot be rebuilt for one projection alone: another one names them, too.
pub(crate) fn shared_tables(
    tx: &mut Transaction<'_>,
    names: &Names,
    base: &str,
    tables: &[String],
) -> Result<Option<String>, postgres::Error> {
    let sql = names.sql(
        "SELECT string_agg(concat('projection ', quote_literal(other.name), ' names table ', shared.name, ', too'), '; ')
         FROM {projections} other, unnest(other.tables) AS shared (name)
         WHERE other.kind = 'live' AND other.name <> $1 AND shared.name = ANY ($2)",
    );
    Ok(tx.query_typed_one(&sql, &[(&base, Type::TEXT), (&tables, Type::TEXT_ARRAY)])?.get(0))
}
