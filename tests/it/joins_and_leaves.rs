//! Workers that join and leave while events are appended.

use std::thread;
use std::time::{Duration, Instant};

use pupsourcing_orchestrator::{Builder, Handle};

use crate::support::cluster::{assert_keys_are_covered, assert_read_models_become_right, state_of};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{TestDatabase, database, eventually};

#[test]
fn one_two_three_two_one_workers_handle_every_event_once() {
    let database = database();
    let mut client = database.client();
    let first = start_ledger(&database, "p");
    append_plainly(&mut client, 1_000, 100);
    await_running(&[&first]);
    let second = start_ledger(&database, "p");
    append_plainly(&mut client, 1_000, 100);
    await_running(&[&first, &second]);
    let third = start_ledger(&database, "p");
    append_plainly(&mut client, 1_000, 100);
    await_running(&[&first, &second, &third]);
    first.shutdown(Duration::from_secs(5)).unwrap();
    append_plainly(&mut client, 1_000, 100);
    await_running(&[&second, &third]);
    third.shutdown(Duration::from_secs(5)).unwrap();
    append_plainly(&mut client, 1_000, 100);
    await_running(&[&second]);
    eventually("all events are handled", Duration::from_secs(20), || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    second.shutdown(Duration::from_secs(5)).unwrap();
}

/// The longest time until the others process, after a message has told them of a change. The limit
/// is the one for a killed worker, whose end no message announces.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Intervals so long that no worker detects a change by polling or waiting. So only a message can
/// cause a quick reaction.
fn patient(database: &TestDatabase) -> Builder {
    builder(database.url(), "set")
        .heartbeat_interval(Duration::from_secs(20))
        .stale_worker_timeout(Duration::from_secs(60))
        .session_loss_grace(Duration::from_secs(60))
        .coordination_timeout(Duration::from_secs(60))
        .poll_interval(Duration::from_secs(60))
}

#[test]
fn a_graceful_leave_hands_over_at_once() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let worker = || start(patient(&database), vec![Box::new(Ledger::named("p"))]);
    let (first, second, third) = (worker(), worker(), worker());
    let generation = await_running(&[&first, &second, &third]);
    append_plainly(&mut client, 500, 50);

    let leaver = second.worker_id();
    let begun = Instant::now();
    second.shutdown(Duration::from_secs(10)).unwrap();
    assert_eq!(state_of(&mut client, leaver), ("stopped".into(), Some("left".into())));
    assert_eq!(await_running(&[&first, &third]), generation + 1, "one new generation");
    let took = begun.elapsed();
    println!("leave to resumed: {took:?}");
    assert!(took < AT_ONCE, "{took:?}");
    assert_keys_are_covered(&mut client);
    append_plainly(&mut client, 500, 50);
    eventually("all events are handled", Duration::from_secs(10), || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
}

#[test]
fn a_change_delayed_by_a_foreign_lock_is_made_soon_after() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let worker = || start(patient(&database), vec![Box::new(Ledger::named("p"))]);
    let first = worker();
    await_running(&[&first]);
    let second = worker();
    let mut other = database.client();
    let mut lock = other.transaction().unwrap();
    lock.execute("SELECT FROM orchestrator_replica_sets WHERE name = 'set' FOR UPDATE", &[]).unwrap();
    eventually("the second worker is due to be let in", Duration::from_secs(10), || {
        let sql =
            "SELECT FROM orchestrator_workers WHERE clock_timestamp() > started_at + interval '0.5 s' AND id = $1";
        client.query_opt(sql, &[&second.worker_id().0]).unwrap()
    });
    let sql = "SELECT count(*) FROM orchestrator_generations";
    assert_eq!(client.query_one(sql, &[]).unwrap().get::<_, i64>(0), 1, "no worker changes anything without the lock");
    lock.rollback().unwrap();
    let begun = Instant::now();
    await_running(&[&first, &second]);
    assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
}

#[test]
fn a_process_that_is_told_to_stop_hands_over_and_exits() {
    let database = database();
    let mut client = database.client();
    // A worker that ends without a message is detected after half a minute.
    let patient = [("SESSION_LOSS_GRACE", "30s"), ("POLL_INTERVAL", "30s"), ("HEARTBEAT_INTERVAL", "10s")];
    let mut first = WorkerProcess::start(database.url(), &patient);
    first.await_processing(1);
    let mut second = WorkerProcess::start(database.url(), &patient);
    let (_, line) = first.await_line(&["processing:", " of=2 "]);
    println!("join: {}", line.split(" pause=").nth(1).unwrap());
    second.await_processing(2);
    append_plainly(&mut client, 1_000, 50);

    let begun = Instant::now();
    second.signal(Signal::TERM);
    assert_eq!(second.exit_code(), Some(0));
    let (resumed, line) = first.await_line(&["processing:", " of=1 "]);
    let took = resumed - begun;
    println!("SIGTERM to resumed: {took:?}, paused for {}", line.split(" pause=").nth(1).unwrap());
    assert!(took < AT_ONCE, "{took:?}");
    append_plainly(&mut client, 1_000, 50);
    assert_read_models_become_right(&mut client);
}

#[test]
fn joins_within_the_registration_wait_cost_one_generation() {
    const WAIT: Duration = Duration::from_millis(1_500);
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let worker = || start(builder(database.url(), "set").registration_wait(WAIT), vec![Box::new(Ledger::named("p"))]);
    let first = worker();
    assert_eq!(await_running(&[&first]), 1);
    let joined: Vec<Handle> = thread::scope(|scope| {
        let joining: Vec<_> = (0..3).map(|_| scope.spawn(worker)).collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(first.assignment().unwrap().generation, 1, "it continues while joins are gathered");
    assert_eq!(await_running(&[&first, &joined[0], &joined[1], &joined[2]]), 2);
    let gathered: f64 = client
        .query_one(
            "SELECT extract(epoch FROM g.created_at - (SELECT min(started_at) FROM orchestrator_workers WHERE id <> $1))::float8
             FROM orchestrator_generations g WHERE number = 2",
            &[&first.worker_id().0],
        )
        .unwrap()
        .get(0);
    assert!(gathered >= WAIT.as_secs_f64(), "{gathered} s");
    assert_keys_are_covered(&mut client);
}

#[test]
fn the_very_first_start_is_not_delayed() {
    let database = database();
    Ledger::create_table(&mut database.client());
    let begun = Instant::now();
    let builder = builder(database.url(), "set").registration_wait(Duration::from_secs(20));
    let first = start(builder, vec![Box::new(Ledger::named("p"))]);
    await_running(&[&first]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}
