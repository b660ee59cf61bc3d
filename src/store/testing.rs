//! A real server for tests of private code. `tests/it` tests the public interface.

#[path = "../../examples/support/private_postgres.rs"]
mod private_postgres;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::{Client, NoTls};

use private_postgres::{Options, PrivatePostgres};

use super::names::Names;

/// A connection to a fresh database on the server that these tests share.
pub(crate) fn connect() -> Client {
    Client::connect(&database(), NoTls).unwrap()
}

/// The URL of a fresh database.
pub(crate) fn database() -> String {
    static SERVER: OnceLock<PrivatePostgres> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(|| PrivatePostgres::start(Options::default()).unwrap());
    server.create_database(&format!("unit_{}", DATABASES.fetch_add(1, Ordering::Relaxed))).unwrap()
}

/// A connection to a fresh database that has the schema, and the projection `p` of the replica set `set`.
pub(crate) fn connect_with_projection() -> Client {
    let mut client = connect();
    begin(&mut client);
    client
}

/// Creates the schema, and the projection `p` of the replica set `set`, which has no checkpoint.
pub(crate) fn begin(client: &mut Client) {
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    client
        .batch_execute(
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('set');
             INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set')",
        )
        .unwrap();
}
