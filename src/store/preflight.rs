//! What is verified before any thread starts: the server, the schema, the privileges.

use postgres::{Client, Transaction};

use super::names::Names;
use super::{event_tables, migrations, privileges};
use crate::error::Error;

/// Multiranges came with PostgreSQL 14.
const OLDEST_SERVER: i32 = 140_000;

/// Refuses a server that cannot run this library.
pub(crate) fn server(client: &mut Client) -> Result<(), Error> {
    let row = client
        .query_typed_one(
            "SELECT current_setting('server_version_num')::int, current_setting('server_version'), pg_is_in_recovery()",
            &[],
        )
        .map_err(Error::database("asking for the server's version"))?;
    usable(row.get(0), row.get(1), row.get(2))
}

fn usable(number: i32, version: &str, in_recovery: bool) -> Result<(), Error> {
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
    event_tables::usable(&mut tx, names)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_server_and_a_standby_are_refused() {
        let refused = |number, version, in_recovery| usable(number, version, in_recovery).unwrap_err().to_string();
        let old = refused(130_023, "13.23 (Debian 13.23-1)", false);
        assert!(old.contains("PostgreSQL 13.23") && old.contains("version 14 or later is needed"), "{old}");
        assert!(refused(140_000, "14.0", true).contains("in recovery"));
        usable(140_000, "14.0", false).unwrap();
        usable(180_001, "18.1", false).unwrap();
    }
}
