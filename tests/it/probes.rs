//! What `/livez` and `/readyz` say: alive is a worker that a restart would not help, ready is one
//! that can process events.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{EventStore, Handle, Metrics, MetricsServer, ProjectionState, Retry};
use serde_json::Value;

use crate::support::cluster::{generation, state_of};
use crate::support::frozen::Frozen;
use crate::support::handlers::{meddled, prepared};
use crate::support::http::get;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::metrics::{metric, projection_metric, series, total};
use crate::support::worker_process::{self, WorkerProcess};
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{Postgres, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The workers' `stale_worker_timeout`, as `workers::builder` sets it.
const STALE: Duration = Duration::from_secs(2);
/// How much later than its bound a state may be seen, on a machine that is busy.
const SLACK: Duration = Duration::from_secs(2);

/// A server that answers for one worker, and its address.
pub(crate) fn probed(worker: &Handle) -> (MetricsServer, String) {
    let server = MetricsServer::bind("127.0.0.1:0", Metrics::disabled().unwrap()).unwrap();
    server.watch(worker.health());
    let address = server.address().to_string();
    (server, address)
}

#[track_caller]
pub(crate) fn await_unready(address: &str, reason: &str) -> String {
    eventually(reason, SOON, || {
        let (status, body) = get(address, "/readyz");
        (status == 503 && body.contains(reason)).then_some(body)
    })
}

#[track_caller]
fn await_ready(address: &str) {
    eventually("it is ready again", SOON, || (get(address, "/readyz").0 == 200).then_some(()));
}

#[track_caller]
pub(crate) fn assert_alive(address: &str) {
    assert_eq!(get(address, "/livez"), (200, "ok\n".into()));
}

fn overview_age(address: &str) -> Option<f64> {
    let status: Value = serde_json::from_str(&get(address, "/status").1).unwrap();
    status["workers"][0]["overview"]["age_seconds"].as_f64()
}

/// Sends hints without a pause until `stop` is disconnected.
fn send_hints(mut client: Client, stop: &Receiver<()>) -> u64 {
    let (store, mut sent) = (EventStore::default(), 0);
    while stop.try_recv() == Err(TryRecvError::Empty) {
        store.hint(&mut client);
        sent += 1;
    }
    sent
}

#[test]
fn a_flood_of_notifications_keeps_nothing_from_being_done() {
    let database = database();
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    let (_server, address) = probed(&worker);
    let (stop, stopped) = bounded(0);
    let client = database.client();
    let flood = thread::spawn(move || send_hints(client, &stopped));
    eventually("the overview is loaded", SOON, || overview_age(&address));
    // For longer than a lag is shown that is not measured.
    let begun = Instant::now();
    while begun.elapsed() < 2 * STALE {
        let age = overview_age(&address).unwrap();
        assert!(age < 1.0 + SLACK.as_secs_f64(), "the overview is {age} s old");
    }
    assert_eq!(projection_metric(&worker, "lag_events", "p"), Some(0.0), "the lag is measured");
    assert_alive(&address);
    assert_eq!(get(&address, "/readyz").0, 200);
    drop(stop);
    let sent = flood.join().unwrap();
    println!("{sent} hints");
    assert!(sent > 30 * 2 * STALE.as_secs(), "only {sent} hints");
    worker.shutdown(SOON).unwrap();
}

/// The value of a gauge that a worker process shows; none if it has no such series.
fn gauge(address: &str, name: &str) -> Option<f64> {
    series::values(&get(address, "/metrics").1, name, &[]).first().copied()
}

#[test]
fn a_frozen_server_makes_a_worker_unready_and_not_dead() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("frozen").unwrap();
    let options = [("HEARTBEAT_INTERVAL", "200ms"), ("STALE_WORKER_TIMEOUT", "2s"), ("POLL_INTERVAL", "100ms")];
    let mut worker = WorkerProcess::start(&url, &options);
    worker.await_processing(1);
    let address = worker.await_ready();
    eventually("all of it is shown", SOON, || {
        let shown = ["ready", "database_up", "lag_events"].map(|name| gauge(&address, name));
        (shown == [Some(1.0), Some(1.0), Some(0.0)]).then_some(())
    });
    assert!(!worker.log().iter().any(|line| line.contains("not ready")), "a start in order is no trouble");

    let begun = Instant::now();
    let frozen = Frozen::freeze(&server);
    let reason = await_unready(&address, "no heartbeat was answered for");
    let after = begun.elapsed();
    assert!(reason.contains("the server does not answer"), "{reason}");
    assert!(after > STALE / 4 && after < STALE / 2 + SLACK, "after {after:?}");
    worker.await_line(&[
        "WARN",
        "not ready: replica_set=main-projections worker=",
        "reason=\"no heartbeat was answered",
    ]);
    eventually("all of it is shown", SOON, || {
        let shown = ["ready", "database_up", "lag_events"].map(|name| gauge(&address, name));
        (shown == [Some(0.0), Some(0.0), None]).then_some(())
    });
    assert_alive(&address);

    drop(frozen);
    await_ready(&address);
    worker.await_line(&["INFO", "ready again: replica_set=main-projections worker=", "after="]);
    eventually("all of it is shown", SOON, || {
        let shown = ["ready", "database_up", "lag_events"].map(|name| gauge(&address, name));
        (shown == [Some(1.0), Some(1.0), Some(0.0)]).then_some(())
    });
    worker.signal(worker_process::Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0));
    let unready = worker.log().iter().filter(|line| line.contains("not ready")).count();
    assert_eq!(unready, 1, "a stop in order is no trouble either");
}

#[test]
fn a_lock_on_the_events_leaves_coordination_alone() {
    let database = database();
    let mut client = prepared(&database);
    let workers = [start_ledger(&database, "p"), start_ledger(&database, "p")];
    let before = await_running(&[&workers[0], &workers[1]]);
    let probes = workers.each_ref().map(probed);
    append_plainly(&mut client, 20, 4);
    eventually("they work", SOON, || is_complete(&mut client, "p").then_some(()));

    let mut other = database.client();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    for (_, address) in &probes {
        await_unready(address, "the events cannot be read since");
        let reason = await_unready(address, "lock timeout");
        assert!(reason.contains("the events cannot be read since"), "{reason}");
    }
    let heartbeats = |worker: &Handle| total(worker, "heartbeat_latency_seconds_count");
    let sent = workers.each_ref().map(heartbeats);
    // For longer than it takes to be evicted, and while somebody views the overview.
    eventually("heartbeats go on", SOON, || {
        for (_, address) in &probes {
            overview_age(address);
        }
        let now = workers.each_ref().map(heartbeats);
        now.iter().zip(sent).all(|(now, sent)| now - sent > 4 * 5).then_some(())
    });
    for (worker, (_, address)) in workers.iter().zip(&probes) {
        assert_alive(address);
        assert_eq!(get(address, "/readyz").0, 503);
        assert!(worker.status().database_reachable);
        assert_eq!((metric(worker, "database_up", &[]), metric(worker, "ready", &[])), (Some(1.0), Some(0.0)));
        for gauge in ["lag_events", "lag_seconds", "checkpoint_position"] {
            assert_eq!(projection_metric(worker, gauge, "p"), None, "{gauge} is outdated");
        }
        assert_eq!(state_of(&mut client, worker.worker_id()), ("running".into(), None));
        assert_eq!(total(worker, "stale_workers_cleaned_total"), 0);
    }
    assert_eq!(generation(&mut client), before);

    lock.rollback().unwrap();
    for (_, address) in &probes {
        await_ready(address);
    }
    append_plainly(&mut client, 20, 4);
    eventually("they work again", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    eventually("the lag is measured again", SOON, || {
        let lags = workers.each_ref().map(|worker| projection_metric(worker, "lag_events", "p"));
        (lags == [Some(0.0); 2]).then_some(())
    });
    assert_eq!(generation(&mut client), before);
}

#[test]
fn a_version_that_panics_is_ready_only_if_it_is_allowed_to() {
    let database = database();
    let mut client = prepared(&database);
    for allowed in [false, true] {
        let builder = builder(database.url(), if allowed { "allowed" } else { "set" })
            .ready_while_halted(allowed)
            .retry(Retry::default().attempts(2).first_delay(Duration::from_millis(10)));
        let name = if allowed { "panics too" } else { "panics" };
        let worker = start(
            builder,
            vec![
                meddled(name, |_, _| panic!("not implemented")),
                Box::new(Ledger::named(if allowed { "q" } else { "p" })),
            ],
        );
        await_running(&[&worker]);
        let (_server, address) = probed(&worker);
        if !allowed {
            assert_eq!(get(&address, "/readyz").0, 200, "nothing has failed yet");
            append_plainly(&mut client, 3, 1);
        }
        eventually("it halts", SOON, || {
            (worker.status().projections[name].state == ProjectionState::Halted).then_some(())
        });
        assert_alive(&address);
        if allowed {
            assert_eq!(get(&address, "/readyz").0, 200);
            assert_eq!(metric(&worker, "ready", &[]), Some(1.0));
        } else {
            let (status, reason) = get(&address, "/readyz");
            assert_eq!(status, 503);
            assert!(reason.contains("halted on this worker: panics\n"), "{reason}");
            eventually("the gauge says so", SOON, || (metric(&worker, "ready", &[]) == Some(0.0)).then_some(()));
            assert_eq!(metric(&worker, "database_up", &[]), Some(1.0));
            eventually("the other projection goes on", SOON, || is_complete(&mut client, "p").then_some(()));
        }
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn a_worker_that_was_evicted_is_not_ready_until_it_is_back() {
    let database = database();
    let mut client = prepared(&database);
    let builder = || builder(database.url(), "set").coordination_timeout(Duration::from_secs(1));
    let (entered, was_entered) = bounded(1);
    let (let_go, go_on) = bounded::<()>(0);
    let busy = meddled("p", move |_, _| {
        _ = entered.try_send(());
        // Its disconnection lets every event pass.
        _ = go_on.recv();
        Ok(())
    });
    let evicted = start(builder(), vec![busy]);
    let (_server, address) = probed(&evicted);
    append_plainly(&mut client, 10, 5);
    was_entered.recv_timeout(SOON).unwrap();
    assert_eq!(get(&address, "/readyz").0, 200, "a handler may take any time");
    let other = start(builder(), vec![Box::new(Ledger::named("p"))]);
    await_unready(&address, "the other workers have evicted this one");
    assert_alive(&address);
    drop(let_go);
    await_running(&[&evicted, &other]);
    await_ready(&address);
}

#[test]
fn a_database_that_was_made_again_is_not_out_of_reach() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("again").unwrap();
    Ledger::create_table(&mut Client::connect(&url, NoTls).unwrap());
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let (_server, address) = probed(&worker);
    let mut admin = Client::connect(&server.url("postgres"), NoTls).unwrap();
    admin.batch_execute("DROP DATABASE again WITH (FORCE)").unwrap();
    let reason = await_unready(&address, "no heartbeat was answered for");
    assert!(reason.contains("database \"again\" does not exist"), "{reason}");
    server.create_database("again").unwrap();
    await_unready(&address, "orchestrator_workers\" does not exist");
    assert_alive(&address);
}
