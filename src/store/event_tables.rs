//! Whether the tables of events, whoever made them, are of a form the library can work with. Asked at the migration and at every start.

use postgres::types::Type;
use postgres::{GenericClient, Transaction};

use super::names::Names;
use crate::error::Error;

/// A column and the types the library can work with.
type Column = (&'static str, &'static [&'static str]);

/// The columns the library reads or writes.
const EVENT_COLUMNS: &[Column] = &[
    ("global_position", &["bigint"]),
    ("bounded_context", TEXT),
    ("aggregate_type", TEXT),
    ("aggregate_id", TEXT),
    ("aggregate_version", &["bigint"]),
    ("event_id", &["uuid"]),
    ("event_type", TEXT),
    ("event_version", &["integer"]),
    ("payload", &["bytea"]),
    ("trace_id", TEXT),
    ("correlation_id", TEXT),
    ("causation_id", TEXT),
    ("metadata", &["jsonb", "json"]),
    ("created_at", &["timestamp with time zone"]),
];

const HEAD_COLUMNS: &[Column] = &[
    ("bounded_context", TEXT),
    ("aggregate_type", TEXT),
    ("aggregate_id", TEXT),
    ("aggregate_version", &["bigint"]),
    ("updated_at", &["timestamp with time zone"]),
];

const TEXT: &[&str] = &["text", "character varying"];

/// Refuses tables the library cannot work with. They are there.
pub(super) fn usable(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    columns(tx, names)?;
    sequence(tx, names)
}

/// Refuses events or aggregate heads of a form the library cannot read, naming column and type.
fn columns(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    let tables = [
        (names.events().to_string(), names.events_name(), EVENT_COLUMNS),
        (names.aggregate_heads().to_string(), names.aggregate_heads_name(), HEAD_COLUMNS),
    ];
    for (qualified, table, expected) in tables {
        let rows = tx
            .query_typed(
                "SELECT attname, format_type(atttypid, NULL) FROM pg_attribute
                 WHERE attrelid = to_regclass($1) AND attnum > 0 AND NOT attisdropped",
                &[(&qualified, Type::TEXT)],
            )
            .map_err(Error::database("reading the columns"))?;
        if rows.is_empty() {
            return Err(Error::Schema {
                problem: format!(
                    "there is no table {qualified}, which is created together with the orchestrator's tables only: create it, or \
                     give both a schema or a prefix of their own"
                ),
            });
        }
        for (column, types) in expected {
            let found = rows.iter().find(|row| row.get::<_, &str>(0) == *column).map(|row| row.get::<_, &str>(1));
            let problem = match found {
                Some(found) if types.contains(&found) => continue,
                Some(found) => {
                    format!("column {column} of {table} has type {found}, and {} is needed", types.join(" or "))
                }
                None => format!("table {table} has no column {column} (of type {})", types.join(" or ")),
            };
            return Err(Error::Schema { problem });
        }
    }
    Ok(())
}

/// The sequences `s` that hand out positions, in SQL; `$1` is the table: the one the column owns, and the one its default asks, which need
/// not be the same.
const SEQUENCES: &str = "FROM pg_sequence s
     WHERE s.seqrelid = pg_get_serial_sequence($1, 'global_position')::regclass OR s.seqrelid IN (
         SELECT d.refobjid FROM pg_attribute c JOIN pg_attrdef v ON v.adrelid = c.attrelid AND v.adnum = c.attnum
         JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = v.oid AND d.refclassid = 'pg_class'::regclass
         WHERE c.attrelid = to_regclass($1) AND c.attname = 'global_position')";

/// A sequence that hands out blocks of positions to sessions breaks the order in which positions are handed out, on which the safe
/// head relies.
fn sequence(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    let row = tx
        .query_typed_opt(
            &format!(
                "SELECT s.seqrelid::regclass::text, s.seqcache, s.seqincrement {SEQUENCES}
                 ORDER BY s.seqcache DESC, s.seqincrement LIMIT 1"
            ),
            &[(&names.events().to_string(), Type::TEXT)],
        )
        .map_err(Error::database("reading the sequence of the positions"))?;
    let Some(row) = row else { return Ok(()) };
    let (name, cache, increment): (String, i64, i64) = (row.get(0), row.get(1), row.get(2));
    if cache > 1 {
        return Err(Error::UnsupportedServer {
            problem: format!(
                "sequence {name} has CACHE {cache}, so positions are not handed out in order and events could be missed: \
                 ALTER SEQUENCE {name} CACHE 1"
            ),
        });
    }
    if increment < 1 {
        return Err(Error::UnsupportedServer {
            problem: format!("sequence {name} counts down (INCREMENT {increment})"),
        });
    }
    Ok(())
}

/// The last position ever handed out, or a lower bound of what was since. None if that cannot be told: positions that are of no
/// sequence, or of one that the user may not look at. What follows the events is to be read before, never after.
pub(super) fn last_position(client: &mut impl GenericClient, names: &Names) -> Result<Option<i64>, postgres::Error> {
    let sql = format!(
        "SELECT CASE WHEN bool_and(readable) THEN greatest(max(last), (SELECT max(global_position) FROM {})) END
         FROM (SELECT readable, CASE WHEN readable THEN coalesce(pg_sequence_last_value(seqrelid), 0) END AS last
               FROM (SELECT seqrelid, has_sequence_privilege(seqrelid, 'USAGE, SELECT') AS readable {SEQUENCES}) AS s) AS s",
        names.events()
    );
    Ok(client.query_typed_one(&sql, &[(&names.events().to_string(), Type::TEXT)])?.get(0))
}

/// Refuses events that do not reach a position up to which they were processed: the positions below it are handed out again, and the
/// events that get them would be skipped.
pub(crate) fn reach(client: &mut impl GenericClient, names: &Names, position: i64, what: &str) -> Result<(), Error> {
    let last = last_position(client, names).map_err(Error::database("reading the last position"))?;
    let Some(last) = last.filter(|last| *last < position) else { return Ok(()) };
    Err(Error::Schema {
        problem: format!(
            "{what} is at position {position}, and the last position of {} is {last}: events were removed together with their \
             positions, or restored without the orchestrator's tables. Restore both, or rebuild the projections from the events \
             there are, or move the sequence of the positions on to {position}",
            names.events()
        ),
    })
}
