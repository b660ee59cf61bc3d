//! Workers that know different projections, and replica sets that want the same one.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{Error, Handle};
use uuid::Uuid;

use crate::support::cluster::{assert_keys_are_covered, newest, positions};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(10);

fn worker(database: &TestDatabase, replica_set: &str, projections: &[&'static str]) -> Handle {
    Ledger::create_table(&mut database.client());
    start(
        builder(database.url(), replica_set),
        projections.iter().map(|name| Box::new(Ledger::named(name)) as Box<_>).collect(),
    )
}

/// The owners of a projection's checkpoints, each owner once.
fn owners(client: &mut Client, projection: &str) -> Vec<Option<Uuid>> {
    let sql = "SELECT DISTINCT worker_id FROM orchestrator_checkpoints WHERE projection = $1";
    client.query(sql, &[&projection]).unwrap().iter().map(|row| row.get(0)).collect()
}

fn await_complete(client: &mut Client, projections: &[&str]) {
    for projection in projections {
        eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
        assert_exactly_once(client, projection);
    }
}

#[test]
fn a_new_projection_is_run_by_the_workers_that_know_it() {
    let database = database();
    let mut client = database.client();
    let old = worker(&database, "set", &["p"]);
    await_running(&[&old]);
    append_plainly(&mut client, 300, 30);
    let new = worker(&database, "set", &["p", "q"]);
    await_running(&[&old, &new]);
    assert_eq!(owners(&mut client, "p").len(), 2);
    assert_eq!(owners(&mut client, "q"), [Some(new.worker_id().0)]);
    assert_keys_are_covered(&mut client);
    await_complete(&mut client, &["p", "q"]);

    let head = newest(&mut client);
    eventually("its checkpoint is at the head", SOON, || (positions(&mut client, "q") == [head]).then_some(()));
    new.shutdown(SOON).unwrap();
    await_running(&[&old]);
    append_plainly(&mut client, 300, 30);
    await_complete(&mut client, &["p"]);
    assert_eq!(owners(&mut client, "q"), [None], "no worker knows it");
    assert_eq!(positions(&mut client, "q"), [head], "its position is kept");
    assert_keys_are_covered(&mut client);

    let new = worker(&database, "set", &["q", "p"]);
    await_running(&[&old, &new]);
    assert_eq!(owners(&mut client, "q"), [Some(new.worker_id().0)]);
    await_complete(&mut client, &["p", "q"]);
    assert_keys_are_covered(&mut client);
}

#[test]
fn a_projection_belongs_to_one_living_replica_set() {
    let database = database();
    let mut client = database.client();
    let first = worker(&database, "first", &["p"]);
    await_running(&[&first]);
    append_plainly(&mut client, 300, 30);
    await_complete(&mut client, &["p"]);

    let second = builder(database.url(), "second").projection(Ledger::named("q")).projection(Ledger::named("p"));
    let refused = second.build().unwrap().start().unwrap_err();
    let Error::ProjectionClaimed { projection, owner, claimant, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!([projection.as_str(), owner, claimant], ["p", "first", "second"]);
    for left in [
        "SELECT FROM orchestrator_workers WHERE replica_set = 'second'",
        "SELECT FROM orchestrator_replica_sets WHERE name = 'second'",
    ] {
        assert_eq!(client.execute(left, &[]).unwrap(), 0, "{left}");
    }
    assert_eq!(owners(&mut client, "p"), [Some(first.worker_id().0)]);
    assert_eq!(positions(&mut client, "q"), [] as [i64; 0], "half of it was applied");

    let head = newest(&mut client);
    eventually("the checkpoint is at the head", SOON, || (positions(&mut client, "p") == [head]).then_some(()));
    first.shutdown(SOON).unwrap();
    append_plainly(&mut client, 300, 30);
    let second = worker(&database, "second", &["p"]);
    await_running(&[&second]);
    assert_eq!(owners(&mut client, "p"), [Some(second.worker_id().0)]);
    await_complete(&mut client, &["p"]);
    assert_keys_are_covered(&mut client);
}

#[test]
fn a_projection_is_taken_over_when_its_owner_is_gone() {
    let database = database();
    let mut client = database.client();
    let first = worker(&database, "first", &["p"]);
    await_running(&[&first]);
    first.shutdown(SOON).unwrap();
    // As after the last worker of a replica set was killed: no worker is left to record it.
    let killed = "UPDATE orchestrator_workers SET state = 'running', last_heartbeat = now() - interval '1 h'";
    assert_eq!(client.execute(killed, &[]).unwrap(), 1);
    let second = worker(&database, "second", &["p"]);
    await_running(&[&second]);
    assert_eq!(owners(&mut client, "p"), [Some(second.worker_id().0)]);

    second.shutdown(SOON).unwrap();
    let second = worker(&database, "second", &["q"]);
    await_running(&[&second]);
    let third = worker(&database, "third", &["p"]);
    await_running(&[&third]);
    assert_eq!(owners(&mut client, "p"), [Some(third.worker_id().0)]);
    append_plainly(&mut client, 30, 3);
    await_complete(&mut client, &["p", "q"]);
}
