//! Higher and lower versions of a projection: rolling deployments, and their rollback.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{Handle, Names};
use serde_json::json;
use uuid::Uuid;

use crate::support::commands::{done, give, outcome};
use crate::support::ledger::append_plainly;
use crate::support::rebuilds::{Given, Load, Model, Reader, await_exact, await_version, faults, given, schemas};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

fn prepared(database: &TestDatabase) -> Client {
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    for name in ["orders", "invoices"] {
        Model::named(name).create_table(&mut client);
    }
    client
}

/// A worker with this version of `orders`, and version 1 of `invoices`.
fn worker(database: &TestDatabase, orders: Model) -> Handle {
    start(builder(database.url(), "set"), vec![orders.boxed(), Model::named("invoices").boxed()])
}

fn version(version: u32) -> Model {
    Model::named("orders").version(version)
}

/// The same, but a rebuild takes about 100 ms for each event while the switch is on.
fn slow(model: Model) -> (Model, Arc<AtomicBool>) {
    let is_slow = Arc::new(AtomicBool::new(true));
    let slow = is_slow.clone();
    let model = model.before(move |tx, _| {
        if slow.load(Ordering::Relaxed) {
            tx.batch_execute("SELECT pg_sleep(0.1)")?;
        }
        Ok(())
    });
    (model, is_slow)
}

/// Waits until the last command for a rebuild of `orders` has begun.
#[track_caller]
fn await_begun(client: &mut Client) -> Given {
    let has_begun = |last: &Given| matches!(last.step.as_deref(), Some("loading" | "finishing"));
    eventually("the rebuild has begun", SOON, || given(client, "orders").pop().filter(has_begun))
}

/// The workers that own keys of a projection.
fn owners(client: &mut Client, projection: &str) -> Vec<Uuid> {
    let sql = "SELECT DISTINCT worker_id FROM orchestrator_checkpoints WHERE projection = $1 AND worker_id IS NOT NULL";
    client.query(sql, &[&projection]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn rows_of_version(client: &mut Client, version: i32) -> i64 {
    client.query_one("SELECT count(*) FROM orders WHERE version = $1", &[&version]).unwrap().get(0)
}

#[test]
fn rolling_deploy_under_load() {
    let database = database();
    let mut client = prepared(&database);
    let old = [(); 2].map(|()| worker(&database, version(1)));
    await_running(&old.each_ref());
    append_plainly(&mut client, 500, 20);
    await_exact(&mut client, "orders");
    let (load, reader) = (Load::start(database.client()), Reader::start(database.client(), "orders"));
    let new = worker(&database, version(2));
    await_version(&mut client, "orders", 2);
    // The old workers end with this projection, and go on with the other.
    await_running(&[&old[0], &old[1], &new]);
    assert_eq!(owners(&mut client, "orders"), [new.worker_id().0]);
    assert_eq!(owners(&mut client, "invoices").len(), 3);
    let [first, second] = old;
    first.shutdown(SOON).unwrap();
    let other = worker(&database, version(2));
    second.shutdown(SOON).unwrap();
    await_running(&[&new, &other]);
    load.stop();
    await_exact(&mut client, "orders");
    await_exact(&mut client, "invoices");
    assert_eq!(reader.versions(), [1, 2]);
    assert_eq!((rows_of_version(&mut client, 1), schemas(&mut client).len()), (0, 0));
    let [command] = given(&mut client, "orders").try_into().unwrap();
    assert_eq!((command.version, command.outcome.as_deref()), (Some(2), Some("done")));
    assert_eq!(command.by, format!("worker {}", new.worker_id()));
    assert_eq!(command.reason.as_deref(), Some("version 2 was deployed"));
}

#[test]
fn rollback_in_the_middle_leaves_the_live_model_going() {
    let database = database();
    let mut client = prepared(&database);
    let old = worker(&database, version(1));
    await_running(&[&old]);
    append_plainly(&mut client, 500, 20);
    await_exact(&mut client, "orders");
    let (model, _) = slow(version(2));
    let new = worker(&database, model.clone());
    let begun = await_begun(&mut client);
    new.shutdown(SOON).unwrap();
    append_plainly(&mut client, 500, 20);
    await_exact(&mut client, "orders");
    await_exact(&mut client, "invoices");
    assert_eq!(schemas(&mut client).len(), 1, "the rebuild stays");
    // It holds no command up.
    done(&mut client, "orders", "pause", &json!({}));
    done(&mut client, "orders", "resume", &json!({}));
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    let again = worker(&database, version(2));
    await_version(&mut client, "orders", 2);
    assert_eq!(given(&mut client, "orders").len(), 1, "it is continued");
    assert_eq!(outcome(&mut client, begun.id).0, "done");
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    drop((old, again));
}

/// While the live read model follows the rebuild, it must not wait for workers that have left.
#[test]
fn rollback_before_the_switch_leaves_the_live_model_going() {
    let database = database();
    let mut client = prepared(&database);
    let old = worker(&database, version(1));
    await_running(&[&old]);
    append_plainly(&mut client, 200, 20);
    await_exact(&mut client, "orders");
    let mut reading = database.client();
    let mut reader =
        reading.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    reader.query_one("SELECT count(*) FROM orders", &[]).unwrap();
    let new = worker(&database, version(2));
    eventually("the live read model follows", SOON, || {
        let sql = "SELECT FROM orchestrator_rebuilds WHERE state = 'following'";
        (client.query(sql, &[]).unwrap().len() == 1).then_some(())
    });
    new.shutdown(SOON).unwrap();
    append_plainly(&mut client, 200, 20);
    await_exact(&mut client, "orders");
    let blocked: String = client.query_one("SELECT blocked FROM orchestrator_rebuilds", &[]).unwrap().get(0);
    assert!(blocked.contains("no running worker has the code"), "{blocked}");
    assert_eq!(rows_of_version(&mut client, 2), 0);
    reader.rollback().unwrap();
    let again = worker(&database, version(2));
    await_version(&mut client, "orders", 2);
    await_exact(&mut client, "orders");
    drop((old, again));
}

#[test]
fn a_higher_version_takes_the_place_of_a_rebuild() {
    let database = database();
    let mut client = prepared(&database);
    let old = worker(&database, version(1));
    await_running(&[&old]);
    append_plainly(&mut client, 500, 20);
    await_exact(&mut client, "orders");
    let second = worker(&database, slow(version(2)).0);
    await_begun(&mut client);
    second.shutdown(SOON).unwrap();
    let third = worker(&database, version(3));
    await_version(&mut client, "orders", 3);
    let by = format!("worker {}", third.worker_id());
    let [of_2, cancel, of_3] = given(&mut client, "orders").try_into().unwrap();
    assert_eq!((of_2.version, of_2.outcome.as_deref()), (Some(2), Some("failed")));
    assert_eq!(of_2.error, Some(format!("it was cancelled by {by}: version 3 was deployed")));
    assert_eq!((cancel.command.as_str(), cancel.outcome.as_deref(), &cancel.by), ("cancel", Some("done"), &by));
    assert_eq!((of_3.version, of_3.outcome.as_deref(), &of_3.by), (Some(3), Some("done"), &by));
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    assert_eq!((rows_of_version(&mut client, 2), schemas(&mut client).len()), (0, 0));
    // A lower version does not come back.
    let second = worker(&database, version(2));
    await_running(&[&old, &second, &third]);
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    await_exact(&mut client, "invoices");
    assert_eq!(owners(&mut client, "orders"), [third.worker_id().0]);
    assert_eq!(given(&mut client, "orders").len(), 3);
}

#[test]
fn all_workers_are_replaced_at_once() {
    let database = database();
    let mut client = prepared(&database);
    let old = worker(&database, version(1));
    await_running(&[&old]);
    append_plainly(&mut client, 1_000, 20);
    await_exact(&mut client, "orders");
    old.shutdown(SOON).unwrap();
    append_plainly(&mut client, 1_000, 20);
    let reader = Reader::start(database.client(), "orders");
    let barrier = std::sync::Barrier::new(2);
    let new = std::thread::scope(|scope| {
        let start = || {
            barrier.wait();
            worker(&database, version(2))
        };
        [scope.spawn(start), scope.spawn(start)].map(|thread| thread.join().unwrap())
    });
    await_version(&mut client, "orders", 2);
    await_exact(&mut client, "orders");
    assert_eq!(given(&mut client, "orders").len(), 1, "one of the two has asked for it");
    assert_eq!(owners(&mut client, "orders").len(), 2);
    assert_eq!(reader.versions(), [1, 2]);
    drop(new);
}

/// A restart must not begin again what has failed, or what a person has ended.
#[test]
fn a_rebuild_that_was_ended_is_not_begun_again() {
    let database = database();
    let mut client = prepared(&database);
    let old = worker(&database, version(1));
    await_running(&[&old]);
    append_plainly(&mut client, 500, 20);
    await_exact(&mut client, "orders");
    let new = worker(&database, slow(version(2)).0);
    await_begun(&mut client);
    done(&mut client, "orders", "cancel", &json!({}));
    new.shutdown(SOON).unwrap();
    let (model, is_slow) = slow(version(2));
    let new = worker(&database, model);
    await_running(&[&old, &new]);
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    await_exact(&mut client, "invoices");
    assert_eq!(given(&mut client, "orders").len(), 2, "a rebuild and its end");
    assert_eq!(owners(&mut client, "orders"), [old.worker_id().0]);
    // An operator begins it again, and another start takes part in it.
    give(&mut client, "orders", "rebuild", &json!({"version": 2, "rate": null, "keep_old": true}));
    await_begun(&mut client);
    let other = worker(&database, version(2));
    is_slow.store(false, Ordering::Relaxed);
    await_version(&mut client, "orders", 2);
    await_exact(&mut client, "orders");
    assert_eq!(given(&mut client, "orders").len(), 3);
    // What an operator has reverted is not begun again either.
    done(&mut client, "orders", "revert", &json!({}));
    other.shutdown(SOON).unwrap();
    let other = worker(&database, version(2));
    await_running(&[&old, &new, &other]);
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    assert_eq!((given(&mut client, "orders").len(), rows_of_version(&mut client, 2)), (3, 0));
    assert_eq!(faults(&mut client, "orders").1, [0; 4]);
}
