//! A real server for tests of private code. `tests/it` tests the public interface.

use postgres::{Client, NoTls};

use super::names::Names;

/// A connection to a fresh database on the server that these tests share.
pub(crate) fn connect() -> Client {
    Client::connect(&database(), NoTls).unwrap()
}

/// The URL of a fresh database.
pub(crate) fn database() -> String {
    crate::testing::database().unwrap().url().to_owned()
}

/// A connection to a fresh database that has the schema, and the projection `p` of the replica set
/// `set`.
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
