//! Session locks, and connections that are lost one by one.

use std::time::Duration;

use crate::support::cluster::{assert_keys_are_covered, backends_of, generation, state_of, terminate, worker_of};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::total;
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_lost_coordination_session_is_replaced_within_the_grace() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let worker = || {
        let builder = builder(database.url(), "set").session_loss_grace(Duration::from_secs(2));
        start(builder, vec![Box::new(Ledger::named("p"))])
    };
    let (one, other) = (worker(), worker());
    let before = await_running(&[&one, &other]);
    let lost = backends_of(&mut client, one.worker_id(), true);
    assert_eq!(lost.len(), 1);
    terminate(&mut client, &lost);
    eventually("the lock is held by another session", SOON, || {
        let held = backends_of(&mut client, one.worker_id(), true);
        (held.len() == 1 && held != lost).then_some(())
    });
    // The other worker looks more often than it sends heartbeats. If it has recorded the loss, it
    // has removed that record after two more heartbeats.
    let looked = total(&other, "heartbeat_latency_seconds_count");
    eventually("the other one has looked again", SOON, || {
        (total(&other, "heartbeat_latency_seconds_count") >= looked + 2).then_some(())
    });
    let noted: bool = client
        .query_one("SELECT session_lost_at IS NOT NULL FROM orchestrator_workers WHERE id = $1", &[&one.worker_id().0])
        .unwrap()
        .get(0);
    assert!(!noted, "the loss is still recorded");
    assert_eq!(generation(&mut client), before, "no worker was evicted");
    assert_eq!(await_running(&[&one, &other]), before);
    assert_eq!(total(&one, "reconnects_total"), 1);
}

#[test]
fn a_worker_that_loses_every_connection_continues() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let builder = || {
        // With these intervals, only a notification can cause a quick reaction.
        builder(database.url(), "set")
            .heartbeat_interval(Duration::from_secs(20))
            .stale_worker_timeout(Duration::from_secs(60))
            .poll_interval(Duration::from_secs(60))
    };
    let slow = || Box::new(Ledger { takes: Duration::from_millis(1), ..Ledger::named("p") });
    let one = start(builder(), vec![slow()]);
    let before = await_running(&[&one]);
    append_plainly(&mut client, 500, 50);
    eventually("it is at work", SOON, || (handled(&mut client, "p") > 0).then_some(()));
    let lost = backends_of(&mut client, one.worker_id(), false);
    assert!(lost.len() >= 4, "coordinator, listener, tailer, runner: {lost:?}");
    terminate(&mut client, &lost);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    eventually("it listens and holds its lock again", SOON, || {
        let listening = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        let listens = client.query_opt(listening, &[]).unwrap().is_some();
        (listens && backends_of(&mut client, one.worker_id(), true).len() == 1).then_some(())
    });
    assert_eq!(state_of(&mut client, one.worker_id()).0, "running");
    assert_eq!(generation(&mut client), before);

    let joiner = start(builder(), vec![slow()]);
    let generation = await_running(&[&one, &joiner]);
    assert_eq!(generation, before + 1);
    append_plainly(&mut client, 100, 50);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
}

#[test]
fn a_projection_survives_the_loss_of_sessions() {
    let database = database();
    let mut client = database.client();
    let (one, other) = (start_ledger(&database, "p"), start_ledger(&database, "p"));
    await_running(&[&one, &other]);
    for round in 0..5 {
        append_plainly(&mut client, 300, 50);
        let victim = if round % 2 == 0 { &one } else { &other };
        eventually("it has begun", SOON, || (handled(&mut client, "p") > round * 300).then_some(()));
        let lost = backends_of(&mut client, victim.worker_id(), false);
        // A connection may end by itself meanwhile.
        _ = client.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", &[&lost]).unwrap();
    }
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    assert_keys_are_covered(&mut client);
}

#[test]
fn without_session_locks_heartbeats_reveal_a_dead_worker() {
    let database = database();
    let mut client = database.client();
    let options = [("SESSION_LOSS_GRACE", "off"), ("HEARTBEAT_INTERVAL", "200ms"), ("STALE_WORKER_TIMEOUT", "1s")];
    let mut survivor = WorkerProcess::start(database.url(), &options);
    survivor.await_processing(1);
    let mut victim = WorkerProcess::start(database.url(), &options);
    survivor.await_processing(2);
    victim.await_processing(2);
    append_plainly(&mut client, 100, 10);
    let locks = "SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                 WHERE l.locktype = 'advisory' AND d.datname = current_database()";
    assert_eq!(client.execute(locks, &[]).unwrap(), 0, "advisory locks are held");
    let victim_id = worker_of(&mut client, victim.pid());
    victim.signal(Signal::KILL);
    survivor.await_processing(1);
    assert_eq!(state_of(&mut client, victim_id), ("stopped".into(), Some("heartbeats stopped".into())));
    let silent: f64 = client
        .query_one(
            "SELECT extract(epoch FROM stopped_at - last_heartbeat)::float8 FROM orchestrator_workers WHERE id = $1",
            &[&victim_id.0],
        )
        .unwrap()
        .get(0);
    assert!(silent >= 1.0, "evicted after {silent} s");
}
