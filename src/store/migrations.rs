//! Numbered migrations: applied under a lock, each once, or printed for those who apply them with another tool.

use postgres::types::Type;
use postgres::{Client, Transaction};

use super::names::{Names, Own};
use super::{event_tables, privileges};
use crate::error::Error;

/// What a number's migration is made of. A published one is never changed; a new one is added at the end.
const MIGRATIONS: [(&str, &str); 7] = [
    ("event store", include_str!("sql/0001_event_store.sql")),
    ("coordination", include_str!("sql/0002_coordination.sql")),
    ("checkpoints", include_str!("sql/0003_checkpoints.sql")),
    ("lanes", include_str!("sql/0004_lanes.sql")),
    ("owners", include_str!("sql/0005_owners.sql")),
    ("append, a first form", "-- The next has all of it.\n"),
    ("append", include_str!("sql/0007_append.sql")),
];

/// The schema version this library works with.
pub(crate) const VERSION: i32 = 7;

/// Kept when the schema is created and compared at every start: keys are hashes computed by the server, so a server that hashes
/// differently would deal events to other partitions than their checkpoints say.
pub(crate) const HASH_PROBE: &str = "SELECT hashtextextended('pupsourcing-orchestrator', 0)";

impl Names {
    /// The whole schema as one SQL script, for those who apply it with another tool. Applying it twice does no harm.
    ///
    /// ```
    /// let sql = pupsourcing_orchestrator::Names::default().schema_sql();
    /// assert!(sql.contains("CREATE TABLE IF NOT EXISTS"));
    /// ```
    pub fn schema_sql(&self) -> String {
        let migrations = (1..).zip(MIGRATIONS).map(|(number, (title, sql))| {
            format!("\n-- {number}: {title}\n{}{}", fill(self, sql), record(self, number))
        });
        std::iter::once(preamble(self)).chain(migrations).collect()
    }
}

/// Brings the schema up to date. Safe when any number of processes do it at once: they take turns.
pub(crate) fn migrate(client: &mut Client, names: &Names) -> Result<(), Error> {
    let mut tx = client.transaction().map_err(Error::database("beginning the migration"))?;
    // The lock's key is derived from the table's name, so that schemas do not wait for one another.
    tx.execute_typed(
        "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
        &[(&names.migrations().to_string(), Type::TEXT)],
    )
    .map_err(Error::database("waiting for the migration lock"))?;
    let applied = applied(&mut tx, names)?;
    if applied == Some(VERSION) {
        return event_tables::usable(&mut tx, names);
    }
    if let Some(newer) = applied.filter(|version| *version > VERSION) {
        return Err(newer_than_library(newer));
    }
    privileges::to_create(&mut tx, names)?;
    tx.batch_execute(&preamble(names)).map_err(Error::database("creating the schema"))?;
    for (number, (_, sql)) in (1..).zip(MIGRATIONS).skip(usize::try_from(applied.unwrap_or(0)).unwrap_or(0)) {
        tx.batch_execute(&(fill(names, sql) + &record(names, number)))
            .map_err(Error::database("applying a migration"))?;
    }
    // Those that were there before are left as they are, so they may be of no use.
    event_tables::usable(&mut tx, names)?;
    tx.commit().map_err(Error::database("committing the migration"))?;
    log::info!("migrated: schema={} from={} to={VERSION}", names.schema_name(), applied.unwrap_or(0));
    Ok(())
}

/// The version of the schema that is there, if there is one.
pub(crate) fn applied(tx: &mut Transaction<'_>, names: &Names) -> Result<Option<i32>, Error> {
    if !privileges::to_read(tx, names)? {
        return Ok(None);
    }
    let row = tx
        .query_one(&format!("SELECT max(number) FROM {}", names.migrations()), &[])
        .map_err(Error::database("reading the schema's version"))?;
    Ok(row.get(0))
}

pub(crate) fn newer_than_library(version: i32) -> Error {
    Error::Schema {
        problem: format!(
            "it has version {version}, this library knows versions up to {VERSION}: upgrade the library of this program"
        ),
    }
}

fn preamble(names: &Names) -> String {
    // Looked up first: CREATE SCHEMA IF NOT EXISTS asks for the privilege even where there is nothing to create.
    let [own, events] = [names.schema_name(), names.events_schema_name()].map(|schema| {
        format!(
            "DO $$ BEGIN IF to_regnamespace('\"{schema}\"') IS NULL THEN CREATE SCHEMA \"{schema}\"; END IF; END $$;"
        )
    });
    format!(
        "{own}\n{events}\nCREATE TABLE IF NOT EXISTS {} (\n    number INT PRIMARY KEY,\n    hash_probe BIGINT NOT NULL,\n    \
         applied_at TIMESTAMPTZ NOT NULL DEFAULT now()\n);\n",
        names.migrations()
    )
}

fn record(names: &Names, number: i32) -> String {
    format!(
        "INSERT INTO {} (number, hash_probe) VALUES ({number}, ({HASH_PROBE})) ON CONFLICT DO NOTHING;\n",
        names.migrations()
    )
}

fn fill(names: &Names, sql: &str) -> String {
    let mut sql = sql
        .replace("{events}", &names.events().to_string())
        .replace("{aggregate_heads}", &names.aggregate_heads().to_string())
        .replace("{append}", &names.append().to_string());
    for own in Own::ALL {
        sql = sql.replace(&format!("{{{}}}", own.suffix()), &names.own(own).to_string());
    }
    // An index lives in its table's schema and is named without it.
    for index in ["workers_by_replica_set", "checkpoints_by_projection", "checkpoints_by_owner"] {
        sql = sql.replace(&format!("{{{index}}}"), &names.index(index));
    }
    sql.replace("{schema}", names.schema_name())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_number_of_migrations() {
        assert_eq!(usize::try_from(VERSION).unwrap(), MIGRATIONS.len());
    }

    #[test]
    fn every_placeholder_is_filled() {
        let sql = Names::default().schema("s").schema_sql();
        let left = sql.match_indices('{').find(|(at, _)| !sql[*at..].starts_with("{[0,65536)}"));
        assert_eq!(left.map(|(at, _)| &sql[at..at + 20]), None);
    }
}
