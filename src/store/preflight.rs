//! What is verified before any thread starts: the server, the schema, the privileges.

use postgres::types::Type;
use postgres::{Client, Transaction};

use super::names::Names;
use super::{migrations, privileges};
use crate::error::Error;

/// Multiranges came with PostgreSQL 14.
const OLDEST_SERVER: i32 = 140_000;

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

/// Refuses a server that cannot run this library.
pub(crate) fn server(client: &mut Client) -> Result<(), Error> {
    let row = client
        .query_typed_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()",
            &[],
        )
        .map_err(Error::database("asking for the server's version"))?;
    let (number, version, in_recovery): (i32, String, bool) = (row.get(0), row.get(1), row.get(2));
    if number < OLDEST_SERVER {
        return Err(Error::UnsupportedServer {
            problem: format!("it is PostgreSQL {version}, and version 14 or later is needed"),
        });
    }
    if in_recovery {
        return Err(Error::UnsupportedServer {
            problem:
                "it is in recovery (a standby): connect to the primary, where the events are written; with several \
                      hosts in the URL, target_session_attrs=read-write finds it"
                    .into(),
        });
    }
    Ok(())
}

/// Refuses a schema this library cannot work with, and a user who may not.
pub(crate) fn schema(client: &mut Client, names: &Names) -> Result<(), Error> {
    let mut tx = client.transaction().map_err(Error::database("verifying the schema"))?;
    match migrations::applied(&mut tx, names)? {
        None => {
            return Err(Error::Schema {
                problem: format!(
                    "there is no table {}: create it with Orchestrator::migrate(), or apply Names::schema_sql()",
                    names.migrations()
                ),
            });
        }
        Some(version) if version > migrations::VERSION => return Err(migrations::newer_than_library(version)),
        Some(version) if version < migrations::VERSION => {
            return Err(Error::Schema {
                problem: format!(
                    "it has version {version}, this library needs {}: call Orchestrator::migrate(), or apply \
                     Names::schema_sql()",
                    migrations::VERSION
                ),
            });
        }
        Some(_) => {}
    }
    privileges::to_work(&mut tx, names)?;
    hash_probe(&mut tx, names)?;
    columns(&mut tx, names)?;
    sequence(&mut tx, names)
}

fn hash_probe(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    let sql = format!("SELECT count(*) FROM {} WHERE hash_probe <> ({})", names.migrations(), migrations::HASH_PROBE);
    let different: i64 =
        tx.query_one(&sql, &[]).map_err(Error::database("comparing the server's hash function"))?.get(0);
    if different == 0 {
        return Ok(());
    }
    Err(Error::UnsupportedServer {
        problem: "its hashtextextended() gives other values than when the schema was created, so the checkpoints' keys no \
                  longer mean the same events: run on a server of the same byte order and hash function, or rebuild the \
                  projections in a new schema"
            .into(),
    })
}

/// Refuses events or aggregate heads of a form the library cannot read, naming column and type.
pub(crate) fn columns(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
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
            return Err(Error::Schema { problem: format!("there is no table {qualified}") });
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

/// A sequence that hands out blocks of positions to sessions breaks the order in which positions are handed out, on which the safe
/// head relies.
fn sequence(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    let row = tx
        .query_typed_opt(
            "SELECT s.seqrelid::regclass::text, s.seqcache, s.seqincrement FROM pg_sequence s
             WHERE s.seqrelid = pg_get_serial_sequence($1, 'global_position')::regclass",
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
