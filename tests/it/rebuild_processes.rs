//! Rolling deployments of versions, with workers in processes of their own that are killed.

use std::process::{Command, Stdio};
use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::Names;

use crate::support::ledger::append_plainly;
use crate::support::rebuilds::{Load, Model, Reader, await_exact, await_version, given, schemas};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{builder, start};
use crate::support::{TestDatabase, database, eventually};

const URL: &str = "PUPSOURCING_TEST_VERSIONS_URL";
const VERSION: &str = "PUPSOURCING_TEST_VERSIONS_VERSION";

/// Not a test: what a process of the test below executes, until it is killed.
#[test]
#[ignore = "it is a worker, which another test starts"]
fn worker_of_a_version() {
    let Ok(url) = std::env::var(URL) else { return };
    let version = std::env::var(VERSION).unwrap().parse().unwrap();
    let models = [Model::named("orders").version(version), Model::named("invoices")].map(Model::boxed);
    let worker = start(builder(&url, "set"), models.into());
    worker.join().unwrap();
}

/// Starts a process with this version of `orders`, and version 1 of `invoices`.
fn process(database: &TestDatabase, version: u32) -> WorkerProcess {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["rebuild_processes::worker_of_a_version", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env(URL, database.url())
        .env(VERSION, version.to_string())
        .env("RUST_LOG", "pupsourcing_orchestrator=info")
        .stdout(Stdio::null());
    WorkerProcess::start_command(command)
}

fn kill(mut process: WorkerProcess) {
    process.signal(Signal::KILL);
    process.await_end();
}

fn await_owned(client: &mut Client, projection: &str, pid: i32) {
    let sql = "SELECT EXISTS (SELECT FROM orchestrator_checkpoints c JOIN orchestrator_workers w ON w.id = c.worker_id
                              WHERE c.projection = $1 AND w.pid = $2)";
    eventually("the process has its part", Duration::from_secs(30), || {
        client.query_one(sql, &[&projection, &pid]).unwrap().get::<_, bool>(0).then_some(())
    });
}

/// Waits until the read model has more events than now.
fn await_more(client: &mut Client, model: &str) {
    let sql = format!("SELECT count(*) FROM {model}");
    let mut rows = || client.query_one(&sql, &[]).unwrap().get::<_, i64>(0);
    let now = rows();
    eventually("the read model grows", Duration::from_secs(30), || (rows() > now + 10).then_some(()));
}

#[test]
fn versions_are_deployed_and_rolled_back_by_killed_processes() {
    let database = database();
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    for name in ["orders", "invoices"] {
        Model::named(name).create_table(&mut client);
    }
    append_plainly(&mut client, 300, 20);
    let mut old = process(&database, 1);
    await_exact(&mut client, "orders");
    let (load, reader) = (Load::start(database.client()), Reader::start(database.client(), "orders"));
    // The first new process is killed as soon as it works at the rebuild: a rollback.
    let new = process(&database, 2);
    await_owned(&mut client, "orders@rebuild", new.pid());
    kill(new);
    await_more(&mut client, "orders");
    await_more(&mut client, "invoices");
    let version: i32 =
        client.query_one("SELECT version FROM orchestrator_projections WHERE name = 'orders'", &[]).unwrap().get(0);
    assert_eq!(version, 1);
    // The next ones finish it. The old process ends with this projection, and goes on with others.
    let mut new = process(&database, 2);
    new.await_logged(&["code is newer than the read model", "version=2 live=1"]);
    await_version(&mut client, "orders", 2);
    old.await_logged(&["code is older than the read model", "projection=orders version=1 live=2"]);
    await_owned(&mut client, "invoices", old.pid());
    await_more(&mut client, "orders");
    await_more(&mut client, "invoices");
    kill(old);
    await_owned(&mut client, "orders", new.pid());
    // All are killed, and start again with a still higher version.
    kill(new);
    let last = process(&database, 3);
    await_version(&mut client, "orders", 3);
    load.stop();
    await_exact(&mut client, "orders");
    await_exact(&mut client, "invoices");
    assert_eq!(reader.versions(), [1, 2, 3]);
    assert_eq!(schemas(&mut client), [""; 0]);
    let versions: Vec<_> =
        given(&mut client, "orders").into_iter().map(|given| (given.version, given.outcome)).collect();
    assert_eq!(versions, [(Some(2), Some("done".to_owned())), (Some(3), Some("done".to_owned()))]);
    kill(last);
}
