//! The roles under which everything runs: those of `examples/postgres/roles.sql`, with exactly its
//! grants.

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::Names;

use crate::folds::Sums;

#[allow(dead_code, reason = "only its tables are needed")]
#[path = "../../examples/worker.rs"]
mod worker;

pub(crate) const WORKER: &str = "shop_worker";
pub(crate) const OPERATOR: &str = "shop_operator";
pub(crate) const APPENDER: &str = "shop_appender";
const MIGRATOR: &str = "shop_migrator";
/// Owns the tables of the read models, so it rebuilds them.
pub(crate) const OWNER: &str = MIGRATOR;

const ROLES: &str = include_str!("../../examples/postgres/roles.sql");
/// The line of `ROLES` below which the tables must exist.
const MIGRATION: &str = "-- After the migration:";

/// The projections of the workers that have a read model.
pub(crate) const PROJECTIONS: [&str; 4] = ["event_type_counts", "aggregate_activity", "aggregate_sums", "shared_sums"];

/// The grants that the file leaves to the application.
const READ_MODELS: &str = "
    GRANT SELECT, INSERT, UPDATE, DELETE ON event_type_counts, aggregate_activity, aggregate_sums, shared_sums TO shop_worker;
    DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO shop_migrator', current_database()); END $$;
    CREATE TABLE mended (event_id uuid PRIMARY KEY);
    GRANT SELECT ON mended TO shop_worker;
    GRANT SELECT, INSERT ON mended TO shop_operator";

/// Creates roles and tables. A worker that migrates afterwards finds everything there, and is not
/// allowed to create anything.
pub(crate) fn create(superuser: &str) {
    let (before, after) = ROLES.split_once(MIGRATION).unwrap();
    let mut client = Client::connect(superuser, NoTls).unwrap();
    client.batch_execute(before).unwrap();
    let migrator = url_of(superuser, MIGRATOR);
    let mut migrating = Client::connect(&migrator, NoTls).unwrap();
    migrating.batch_execute(&Names::default().schema_sql()).unwrap();
    migrating.batch_execute(worker::TABLES).unwrap();
    migrating.batch_execute(&Sums::tables_sql().unwrap()).unwrap();
    client.batch_execute(after).unwrap();
    client.batch_execute(READ_MODELS).unwrap();
}

/// The URL of the same database for another role.
pub(crate) fn url_of(superuser: &str, role: &str) -> String {
    superuser.replacen("//postgres@", &format!("//{role}@"), 1)
}
