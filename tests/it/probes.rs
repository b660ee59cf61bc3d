//! What `/livez` and `/readyz` say: a worker is alive if a restart would not help it, and ready if
//! it can process events.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{EventStore, Handle, Metrics, MetricsServer, ProjectionState, Retry};
use serde_json::Value;

use crate::support::cluster::{
    assert_read_models_become_right, backends_of, generation, state_of, terminate, worker_of,
};
use crate::support::frozen::Frozen;
use crate::support::handlers::{meddled, prepared};
use crate::support::http::get;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::metrics::{metric, projection_metric, series, total};
use crate::support::worker_process::{self, WorkerProcess};
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{Postgres, StopMode, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The workers' `stale_worker_timeout`, as `workers::builder` sets it.
const STALE: Duration = Duration::from_secs(2);
/// How much later than its limit a state may be seen on a busy machine.
const SLACK: Duration = Duration::from_secs(2);

/// A server that answers for one worker, and its address.
pub(crate) fn probed(worker: &Handle) -> (MetricsServer, String) {
    let server = MetricsServer::builder(Metrics::disabled().unwrap()).bind("127.0.0.1:0").unwrap();
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

/// Sends hints at this interval until `stop` is disconnected. Returns their number.
pub(crate) fn send_hints(mut client: Client, apart: Duration, stop: &Receiver<()>) -> u64 {
    let (store, mut sent) = (EventStore::default(), 0);
    while stop.recv_timeout(apart) == Err(RecvTimeoutError::Timeout) {
        store.hint(&mut client);
        sent += 1;
    }
    sent
}

#[test]
fn a_flood_of_notifications_delays_nothing() {
    let database = database();
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    let (_server, address) = probed(&worker);
    let (stop, stopped) = bounded(0);
    let client = database.client();
    let flood = thread::spawn(move || send_hints(client, Duration::ZERO, &stopped));
    eventually("the overview is loaded", SOON, || overview_age(&address));
    // Longer than a lag is shown without a new measurement.
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
pub(crate) fn gauge(address: &str, name: &str) -> Option<f64> {
    series::values(&get(address, "/metrics").1, name, &[]).first().copied()
}

/// Waits until these gauges of a worker process have these values. `None` is for a gauge without a
/// series.
#[track_caller]
fn await_gauges(address: &str, expected: [(&str, Option<f64>); 3]) {
    eventually("the gauges say so", SOON, || {
        expected.iter().all(|(name, value)| gauge(address, name) == *value).then_some(())
    });
}

const ALL_WELL: [(&str, Option<f64>); 3] =
    [("ready", Some(1.0)), ("database_up", Some(1.0)), ("lag_events", Some(0.0))];
const OUT_OF_REACH: [(&str, Option<f64>); 3] = [("ready", Some(0.0)), ("database_up", Some(0.0)), ("lag_events", None)];

/// A worker process that is ready, and the address of its probes.
fn process(url: &str) -> (WorkerProcess, String) {
    let options = [("HEARTBEAT_INTERVAL", "200ms"), ("STALE_WORKER_TIMEOUT", "2s"), ("POLL_INTERVAL", "100ms")];
    let mut worker = WorkerProcess::start(url, &options);
    worker.await_processing(1);
    let address = worker.await_ready();
    await_gauges(&address, ALL_WELL);
    assert!(!worker.log().iter().any(|line| line.contains("not ready")), "a start in order is no trouble");
    (worker, address)
}

/// Checks that its log says that each of its connections was lost, for this reason.
#[track_caller]
fn assert_lost(worker: &mut WorkerProcess, reason: &str) {
    for connection in ["coordinator", "listener", "tailer"] {
        let connection = format!(" connection={connection} error=");
        worker.await_logged(&["WARN", "connection lost: replica_set=main-projections worker=", &connection, reason]);
    }
}

#[test]
fn a_stopped_server_makes_a_worker_unready_but_not_dead() {
    let mut server = Postgres::start().unwrap();
    let url = server.create_database("stopped").unwrap();
    let (mut worker, address) = process(&url);
    server.stop(StopMode::Fast).unwrap();
    let reason = await_unready(&address, "no heartbeat was answered for");
    assert!(reason.contains("cannot connect to") || reason.contains("terminating connection"), "{reason}");
    await_unready(&address, "cannot connect to");
    await_gauges(&address, OUT_OF_REACH);
    assert_lost(&mut worker, "");
    let reason = "reason=\"no heartbeat was answered";
    worker.await_logged(&["WARN", "not ready: replica_set=main-projections worker=", reason]);
    assert_alive(&address);

    server.start_again().unwrap();
    await_ready(&address);
    worker.await_logged(&["INFO", "ready again: replica_set=main-projections worker=", "after="]);
    await_gauges(&address, ALL_WELL);
    let mut client = Client::connect(&url, NoTls).unwrap();
    append_plainly(&mut client, 20, 4);
    assert_read_models_become_right(&mut client);
}

#[test]
fn a_frozen_server_makes_a_worker_unready_but_not_dead() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("frozen").unwrap();
    let (mut worker, address) = process(&url);

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
    await_gauges(&address, OUT_OF_REACH);
    assert_alive(&address);

    drop(frozen);
    await_ready(&address);
    worker.await_line(&["INFO", "ready again: replica_set=main-projections worker=", "after="]);
    await_gauges(&address, ALL_WELL);
    worker.signal(worker_process::Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0));
    let unready = worker.log().iter().filter(|line| line.contains("not ready")).count();
    assert_eq!(unready, 1, "a stop in order is no trouble either");
}

#[test]
fn a_lock_on_the_events_does_not_affect_coordination() {
    let database = database();
    let mut client = prepared(&database);
    let workers = [start_ledger(&database, "p"), start_ledger(&database, "p")];
    let before = await_running(&[&workers[0], &workers[1]]);
    let probes = workers.each_ref().map(probed);
    // A process of another replica set, because its log can be read.
    let (mut process, process_address) = process(database.url());
    append_plainly(&mut client, 20, 4);
    eventually("they work", SOON, || is_complete(&mut client, "p").then_some(()));

    let mut other = database.client();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE").unwrap();
    for (_, address) in &probes {
        await_unready(address, "the events could not be read for");
        let reason = await_unready(address, "lock timeout");
        assert!(reason.contains("the events could not be read for"), "{reason}");
    }
    await_unready(&process_address, "the events could not be read for");
    let log = [
        ("events are locked, will retry:", "lock timeout"),
        ("measuring failed, will retry:", "lock timeout"),
        ("not ready:", "reason=\"the events could not be read for"),
    ];
    for (line, error) in log {
        process.await_logged(&["WARN", line, " replica_set=main-projections worker=", error]);
    }
    let heartbeats = |worker: &Handle| total(worker, "heartbeat_latency_seconds_count");
    let sent = workers.each_ref().map(heartbeats);
    // Longer than an eviction takes, and while the overview is requested.
    eventually("heartbeats continue", SOON, || {
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
    await_gauges(&process_address, [("ready", Some(0.0)), ("database_up", Some(1.0)), ("lag_events", None)]);
    assert_alive(&process_address);

    lock.rollback().unwrap();
    for address in probes.iter().map(|(_, address)| address).chain([&process_address]) {
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
fn a_version_that_panics_is_ready_only_if_allowed() {
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
            eventually("the other projection continues", SOON, || is_complete(&mut client, "p").then_some(()));
        }
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn an_evicted_worker_is_not_ready_until_it_is_back() {
    let database = database();
    let mut client = database.client();
    let busy = tempfile::NamedTempFile::new().unwrap();
    let options = [("HEARTBEAT_INTERVAL", "200ms"), ("STALE_WORKER_TIMEOUT", "2s"), ("COORDINATION_TIMEOUT", "1s")];
    let start = |more: &[_]| WorkerProcess::start_program("chaos_worker", database.url(), &[&options, more].concat());
    let mut evicted = start(&[("BUSY_WHILE", busy.path().to_str().unwrap())]);
    evicted.await_processing(1);
    let address = evicted.await_ready();
    append_plainly(&mut client, 10, 5);
    let worker = worker_of(&mut client, evicted.pid());
    eventually("a handler is busy", SOON, || {
        let backends = backends_of(&mut client, worker, false);
        let sql = "SELECT FROM pg_stat_activity WHERE state = 'idle in transaction' AND pid = ANY ($1) LIMIT 1";
        client.query_opt(sql, &[&backends]).unwrap()
    });
    assert_eq!(get(&address, "/readyz").0, 200, "a handler may take any time");
    let mut other = start(&[]);
    await_unready(&address, "the other workers have evicted this one");
    eventually("the gauge says so", SOON, || (gauge(&address, "ready") == Some(0.0)).then_some(()));
    assert_eq!(gauge(&address, "database_up"), Some(1.0));
    let reason = "reason=\"the other workers have evicted this one";
    evicted.await_logged(&["WARN", "not ready: replica_set=chaos worker=", reason]);
    assert_alive(&address);
    assert!(!evicted.log().iter().any(|line| line.contains("registering again")), "its handler is busy");

    busy.close().unwrap();
    evicted.await_logged(&["WARN", "registering again: replica_set=chaos worker="]);
    evicted.await_logged(&["INFO", "ready again: replica_set=chaos worker="]);
    evicted.await_logged(&["processing:", " of=2 "]);
    other.await_processing(2);
    await_ready(&address);
    assert_read_models_become_right(&mut client);
}

#[test]
fn a_worker_that_cannot_coordinate_is_not_ready() {
    let database = database();
    let mut client = database.client();
    // Half of the timeout is longer than a statement waits for a lock, so heartbeats continue.
    let options = [("HEARTBEAT_INTERVAL", "200ms"), ("STALE_WORKER_TIMEOUT", "9s"), ("POLL_INTERVAL", "100ms")];
    let mut worker = WorkerProcess::start(database.url(), &options);
    worker.await_processing(1);
    let address = worker.await_ready();
    let mut other = database.client();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("LOCK TABLE orchestrator_generations IN ACCESS EXCLUSIVE MODE").unwrap();
    let reason = await_unready(&address, "the replica set could not be coordinated for ");
    assert!(reason.contains("lock timeout"), "{reason}");
    eventually("the gauge says so", SOON, || (gauge(&address, "ready") == Some(0.0)).then_some(()));
    assert_eq!(gauge(&address, "database_up"), Some(1.0), "heartbeats are answered");
    assert_alive(&address);
    let failed = "coordination failed, will retry: replica_set=main-projections worker=";
    worker.await_logged(&["ERROR", failed, "lock timeout"]);
    let reason = "reason=\"the replica set could not be coordinated for ";
    worker.await_logged(&["WARN", "not ready: replica_set=main-projections worker=", reason]);

    lock.rollback().unwrap();
    await_ready(&address);
    worker.await_logged(&["INFO", "ready again:"]);
    append_plainly(&mut client, 20, 4);
    assert_read_models_become_right(&mut client);
}

#[test]
fn locked_checkpoints_are_logged_at_most_every_30_s() {
    let database = database();
    let (mut client, mut locker) = (database.client(), database.client());
    let mut worker = WorkerProcess::start(database.url(), &[]);
    worker.await_processing(1);
    locker.batch_execute("BEGIN; LOCK TABLE orchestrator_checkpoints IN ACCESS EXCLUSIVE MODE").unwrap();
    let id = worker_of(&mut client, worker.pid());
    let lost = backends_of(&mut client, id, false);
    terminate(&mut client, &lost);
    worker.await_line(&["WARN", "events are locked, will retry:", "lock timeout"]);
    // The tailer begins again and again, each time on another connection.
    let mut sessions = BTreeSet::from_iter(backends_of(&mut client, id, false));
    let enough = sessions.len() + 3;
    eventually("several looks have failed", 2 * SOON, || {
        sessions.extend(backends_of(&mut client, id, false));
        (sessions.len() >= enough).then_some(())
    });
    let lines = worker.log().iter().filter(|line| line.contains("events are locked")).count();
    assert_eq!(lines, 1, "{:#?}", worker.log());
}

#[test]
fn a_worker_with_a_failed_thread_is_not_alive() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    await_running(&[&worker]);
    let (_server, address) = probed(&worker);
    let (mut process, _) = process(database.url());
    append_plainly(&mut client, 20, 4);
    eventually("all is handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_read_models_become_right(&mut client);
    // Now other events are at the same positions.
    client.batch_execute("TRUNCATE events RESTART IDENTITY").unwrap();
    append_plainly(&mut client, 1, 1);
    eventually("it is not alive", SOON, || {
        let (status, reason) = get(&address, "/livez");
        (status == 503 && reason.contains("thread pup-tail is stuck or has failed")).then_some(())
    });
    assert!(worker.join().is_err());
    assert_eq!(process.exit_code(), Some(1));
    process.await_logged(&["ERROR", "thread ended, worker stops: thread=pup-tail error="]);
}

#[test]
fn a_recreated_database_without_its_schema_is_not_ready() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("again").unwrap();
    let (mut worker, address) = process(&url);
    let mut admin = Client::connect(&server.url("postgres"), NoTls).unwrap();
    admin.batch_execute("DROP DATABASE again WITH (FORCE)").unwrap();
    let reason = await_unready(&address, "no heartbeat was answered for");
    assert!(reason.contains("database \"again\" does not exist"), "{reason}");
    await_gauges(&address, OUT_OF_REACH);
    assert_lost(&mut worker, "");
    assert_alive(&address);
    server.create_database("again").unwrap();
    await_unready(&address, "orchestrator_workers\" does not exist");
    await_gauges(&address, OUT_OF_REACH);
    assert_alive(&address);
}
