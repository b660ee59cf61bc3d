//! Which worker owns which keys of a projection: when it is dealt alone within a generation, and
//! when not every worker knows it.

use std::collections::BTreeSet;
use std::time::Duration;

use crossbeam_channel::bounded;
use postgres::Client;
use pupsourcing_orchestrator::{Handle, ProjectionState, Retry};

use crate::support::cluster::{assert_keys_are_covered, generation};
use crate::support::handlers::{meddled, prepared};
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, await_progress, handled, is_complete};
use crate::support::metrics::{metric, projection_metric};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(10);

/// Two workers process `stops` and `stays`, in one and in two lanes.
fn workers(database: &TestDatabase) -> [Handle; 2] {
    let ledger = |name| Ledger { takes: Duration::from_micros(200), ..Ledger::named(name) };
    [1, 2].map(|lanes| {
        start(builder(database.url(), "set").lanes(lanes), vec![Box::new(ledger("stops")), Box::new(ledger("stays"))])
    })
}

/// Sets the desired state of the projection, and waits until its keys are dealt accordingly.
#[track_caller]
fn await_state(client: &mut Client, projection: &str, state: &str) {
    let sql = "UPDATE orchestrator_projections SET desired_state = $2 WHERE name = $1";
    assert_eq!(client.execute(sql, &[&projection, &state]).unwrap(), 1);
    eventually(state, SOON, || {
        let sql = "SELECT dealt_state = $2 FROM orchestrator_projections WHERE name = $1";
        client.query_one(sql, &[&projection, &state]).unwrap().get::<_, bool>(0).then_some(())
    });
}

/// The tokens of the projection's checkpoints, and how many of these have an owner.
fn tokens(client: &mut Client, projection: &str) -> (BTreeSet<i64>, usize) {
    let sql = "SELECT token, worker_id IS NOT NULL FROM orchestrator_checkpoints WHERE projection = $1";
    let rows = client.query(sql, &[&projection]).unwrap();
    (rows.iter().map(|row| row.get(0)).collect(), rows.iter().filter(|row| row.get(1)).count())
}

#[test]
fn projection_is_paused_and_resumed_alone() {
    let database = database();
    let mut client = prepared(&database);
    let [one, two] = workers(&database);
    let number = await_running(&[&one, &two]);
    append_plainly(&mut client, 6_000, 100);
    await_progress(&mut client, "stops", 50);
    let mut others_before = None;
    for round in 0..5 {
        await_state(&mut client, "stops", "paused");
        let at = handled(&mut client, "stops");
        let (paused, owned) = tokens(&mut client, "stops");
        assert_eq!(owned, 0, "round {round}");
        assert_keys_are_covered(&mut client);
        // The other projection continues, and its rows are only merged.
        await_progress(&mut client, "stays", 100);
        let (others, _) = tokens(&mut client, "stays");
        let before = others_before.get_or_insert(others.clone());
        assert!(others.is_subset(before), "round {round}: {others:?} of {before:?}");
        assert_eq!(handled(&mut client, "stops"), at, "round {round}: nothing of it is processed");

        await_state(&mut client, "stops", "running");
        assert!(tokens(&mut client, "stops").0.is_disjoint(&paused), "round {round}");
        await_progress(&mut client, "stops", 50);
        append_plainly(&mut client, 200, 100);
    }
    for projection in ["stops", "stays"] {
        eventually(projection, Duration::from_secs(30), || is_complete(&mut client, projection).then_some(()));
        assert_exactly_once(&mut client, projection);
    }
    assert_eq!(generation(&mut client), number, "no generation was created");
    for worker in [&one, &two] {
        assert_eq!(projection_metric(worker, "fenced_batches_total", "stays"), Some(0.0));
    }
    // The desired state also applies in later generations.
    await_state(&mut client, "stops", "paused");
    one.shutdown(SOON).unwrap();
    assert!(await_running(&[&two]) > number);
    append_plainly(&mut client, 100, 100);
    eventually("the other one goes on", SOON, || is_complete(&mut client, "stays").then_some(()));
    assert_eq!(tokens(&mut client, "stops").1, 0);
    await_state(&mut client, "stops", "running");
    eventually("it catches up", SOON, || is_complete(&mut client, "stops").then_some(()));
    assert_exactly_once(&mut client, "stops");
}

/// Generation, worker and position are the same again: only the token differs.
#[test]
fn batch_begun_before_a_deal_cannot_commit_after_it() {
    let database = database();
    let mut client = prepared(&database);
    let (calls, called) = bounded(10);
    let (release, released) = bounded::<()>(10);
    let waits = meddled("p", move |_, _| {
        calls.send(())?;
        Ok(released.recv()?)
    });
    let worker = start(builder(database.url(), "set"), vec![waits]);
    await_running(&[&worker]);
    append_plainly(&mut client, 1, 1);
    called.recv_timeout(SOON).unwrap();
    let fenced = || projection_metric(&worker, "fenced_batches_total", "p");
    for state in ["paused", "running"] {
        await_state(&mut client, "p", state);
    }
    assert_eq!(fenced(), Some(0.0), "its batch is still open");
    release.send(()).unwrap();
    eventually("the batch is rolled back", SOON, || (fenced() == Some(1.0)).then_some(()));
    assert_eq!(handled(&mut client, "p"), 0);
    release.send(()).unwrap();
    eventually("its event is handled once more", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
}

/// The worker's keys of that projection are not those of its partition.
#[test]
fn tail_serves_a_projection_that_only_one_worker_knows() {
    let database = database();
    let mut client = prepared(&database);
    let known = |names: &[&'static str]| names.iter().map(|name| Box::new(Ledger::named(name)) as _).collect();
    let both = start(builder(database.url(), "set"), known(&["everywhere", "here"]));
    let other = start(builder(database.url(), "set"), known(&["everywhere"]));
    await_running(&[&both, &other]);
    let mut append_and_await = || {
        append_plainly(&mut client, 8, 8);
        for name in ["everywhere", "here"] {
            eventually(name, SOON, || is_complete(&mut client, name).then_some(()));
        }
    };
    // Each runner holds a connection. A reader takes another one as soon as a runner does not find
    // its events in the tail, and returns it after 5 s without a request. The metric is as old as
    // the last heartbeat.
    let beats = || metric(&both, "heartbeat_latency_seconds_count", &[]).unwrap();
    let after = beats() + 5.0;
    eventually("no runner's reader is needed", Duration::from_secs(20), || {
        append_and_await();
        let in_use = metric(&both, "pool_connections", &[("state", "in_use")]);
        (beats() > after && in_use == Some(2.0)).then_some(())
    });
    for name in ["everywhere", "here"] {
        assert_exactly_once(&mut client, name);
    }
}

#[test]
fn event_repaired_during_a_pause_is_read_again() {
    let database = database();
    let mut client = prepared(&database);
    let refuses = meddled("p", |_, event| if event.payload() == b"bad" { Err("it is bad".into()) } else { Ok(()) });
    let retry = Retry::default().attempts(1);
    let worker = start(builder(database.url(), "set").retry(retry), vec![refuses, Box::new(Ledger::named("q"))]);
    await_running(&[&worker]);
    // From now on, events are read from memory.
    append_plainly(&mut client, 2, 1);
    eventually("the first ones are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    client.execute(&insert("generate_series(3, 3) n", &[("payload", "'bad'")]), &[]).unwrap();
    let state = || worker.status().projections["p"].state;
    eventually("it halts", SOON, || (state() == ProjectionState::Halted).then_some(()));
    client.execute("UPDATE events SET payload = 'good' WHERE payload = 'bad'", &[]).unwrap();
    for state in ["paused", "running"] {
        await_state(&mut client, "p", state);
    }
    eventually("the repaired one is handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
}
