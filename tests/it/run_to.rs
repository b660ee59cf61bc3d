//! Workers that run until they have processed the events that existed when they began.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never};
use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Builder, Error, Progress, Projection, Retry, Scope};

use crate::support::cluster::assert_keys_are_covered;
use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::statements::{start_logging_server, statements};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

fn once() -> Retry {
    Retry::default().attempts(1)
}

fn with(database: &TestDatabase, projection: Box<dyn Projection>) -> Builder {
    builder(database.url(), "set").projection(projection).retry(once())
}

fn run_to(builder: Builder, position: Option<i64>) -> Result<Progress, Error> {
    builder.build().unwrap().run_to(position, &never(), |_| {})
}

fn newest(client: &mut Client) -> i64 {
    client.query_one("SELECT coalesce(max(global_position), 0) FROM events", &[]).unwrap().get(0)
}

fn living(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM orchestrator_workers WHERE state <> 'stopped'", &[]).unwrap().get(0)
}

#[test]
fn run_to_ends_when_all_existing_events_are_processed() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 5_000, 100);
    let mut seen: Vec<Progress> = Vec::new();
    let worker = with(&database, Box::new(Ledger::named("p"))).projection(Ledger::named("q")).build().unwrap();
    let end = worker.run_to(None, &never(), |progress| seen.push(*progress)).unwrap();
    assert!(end.is_complete());
    assert_eq!((end.position, end.target, end.left), (Some(5_000), Some(5_000), 0));
    assert_eq!(seen.last(), Some(&end));
    assert!(seen.iter().rev().skip(1).all(|progress| !progress.is_complete() && progress.target == Some(5_000)));
    for projection in ["p", "q"] {
        assert!(is_complete(&mut client, projection));
        assert_exactly_once(&mut client, projection);
    }
    assert_eq!(living(&mut client), 0, "it has left");
    assert_keys_are_covered(&mut client);
}

/// Neither an interval nor the wait for joins delays a worker that is alone, and a position that
/// moves without events is written at once. Each of these would take a second.
#[test]
fn run_to_waits_for_no_interval() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 1);
    let second = Duration::from_secs(1);
    let takes = |name| {
        let ledger = Ledger { scope: Scope::all().aggregate_types(["Another"]), ..Ledger::named(name) };
        let worker = with(&database, Box::new(ledger)).stale_worker_timeout(10 * second);
        let worker = worker.heartbeat_interval(second).poll_interval(second).registration_wait(second).build().unwrap();
        let begun = Instant::now();
        assert!(worker.run_to(None, &never(), |_| {}).unwrap().is_complete());
        begun.elapsed()
    };
    // The best of several runs, because other tests use the processor too.
    let times = ["a", "b", "c", "d", "e", "f"].map(takes);
    assert!(times.iter().min().unwrap() < &(second / 2), "{times:?}");
}

/// The worker's own listener hears the notification, so the worker need not wait for the end of the
/// listener's turn.
#[test]
fn worker_that_is_alone_notifies_when_it_leaves() {
    let server = start_logging_server();
    let url = server.create_database("alone").unwrap();
    let worker = builder(&url, "set").projection(Ledger::named("p")).build().unwrap();
    worker.migrate().unwrap();
    let worker = worker.start().unwrap();
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
    let statements = statements(&server);
    let left = statements.iter().rposition(|statement| statement.text.contains("state = 'stopped', partition_key"));
    let notified = statements.iter().rposition(|statement| statement.text.contains("pg_notify"));
    assert!(left.is_some() && notified > left, "left {left:?}, notified {notified:?}");
}

#[test]
fn run_to_a_position_leaves_the_rest() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let run = |position| run_to(with(&database, Box::new(Ledger::named("p"))).batch_size(10), Some(position)).unwrap();
    let end = run(40);
    assert!(end.is_complete() && end.target == Some(40) && (40..100).contains(&end.position.unwrap()), "{end:?}");
    // There are no events above that.
    let end = run(i64::MAX);
    assert_eq!((end.position, end.target), (Some(100), Some(100)));
    assert_exactly_once(&mut client, "p");
    let refused = run_to(with(&database, Box::new(Ledger::named("p"))), Some(-1)).unwrap_err().to_string();
    assert!(refused.starts_with("position is -1: positions begin with 1"), "{refused}");
}

#[test]
fn run_to_does_not_wait_for_later_events() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let url = database.url().to_owned();
    let is_first = AtomicBool::new(true);
    let appends = meddled("p", move |_, _| {
        if is_first.swap(false, Ordering::Relaxed) {
            append_plainly(&mut Client::connect(&url, postgres::NoTls)?, 50, 5);
        }
        Ok(())
    });
    let end = run_to(with(&database, appends).batch_size(10), None).unwrap();
    assert_eq!(end.target, Some(100));
    assert_eq!(newest(&mut client), 150);
    assert!(handled(&mut client, "p") >= 100);
}

#[test]
fn run_to_survives_the_loss_of_every_connection() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let (let_go, go_on) = bounded::<()>(0);
    let worker = with(&database, gated(&go_on)).build().unwrap();
    let runs = thread::spawn(move || worker.run_to(None, &never(), |_| {}));
    let_one_go(&let_go);
    let ends = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    assert!(client.query(ends, &[]).unwrap().len() > 3);
    drop(let_go);
    eventually("it returns", SOON, || runs.is_finished().then_some(()));
    assert!(runs.join().unwrap().unwrap().is_complete());
    assert_exactly_once(&mut client, "p");
}

/// A handler that waits until the test releases it.
fn gated(go_on: &Receiver<()>) -> Box<dyn Projection> {
    let go_on = go_on.clone();
    meddled("p", move |_, _| {
        _ = go_on.recv();
        Ok(())
    })
}

#[test]
fn run_to_waits_for_the_shares_of_other_workers() {
    let database = database();
    let mut client = prepared(&database);
    let (let_go, go_on) = bounded::<()>(0);
    let other = start(builder(database.url(), "set"), vec![gated(&go_on)]);
    await_running(&[&other]);
    let worker = with(&database, Box::new(Ledger::named("p"))).build().unwrap();
    append_plainly(&mut client, 200, 20);
    // Only a part of the events belongs to this worker. The other part waits in the handler of the
    // other worker.
    let (sender, ended) = bounded(1);
    let (reported, reports) = bounded(1_000);
    thread::spawn(move || {
        let end = worker.run_to(None, &never(), |progress| _ = reported.try_send(*progress));
        sender.send(end).unwrap();
    });
    // The other worker can pause only between two events.
    let_one_go(&let_go);
    eventually("the worker has done its share", SOON, || {
        let_go.try_send(()).ok();
        let sql = "SELECT count(*) = 2 AND bool_or(position >= 200) AND NOT bool_and(position >= 200)
                   FROM orchestrator_checkpoints WHERE worker_id IS NOT NULL";
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert!(reports.try_iter().all(|progress| !progress.is_complete()));
    assert!(ended.try_recv().is_err(), "the share of the other worker is not done");
    drop(let_go);
    assert!(ended.recv_timeout(SOON).unwrap().unwrap().is_complete());
    assert!(is_complete(&mut client, "p"));
    assert_exactly_once(&mut client, "p");
    await_running(&[&other]);
}

fn let_one_go(let_go: &crossbeam_channel::Sender<()>) {
    let_go.send_timeout((), SOON).unwrap();
}

fn fails() -> Box<dyn Projection> {
    meddled("p", |_, event| match event.global_position() {
        7 => Err(BoxError::from("seven is too much")),
        _ => Ok(()),
    })
}

#[track_caller]
fn assert_stopped(end: Result<Progress, Error>, projection: &str, (how, why): (&str, &str)) {
    let error = end.unwrap_err();
    assert!(matches!(&error, Error::ProjectionStopped { projection: named, .. } if named == projection), "{error:?}");
    let message = error.to_string();
    assert!(message.starts_with(&format!("projection {projection:?} {how}")) && message.contains(why), "{message}");
}

#[test]
fn run_to_ends_with_the_error_of_a_halted_projection() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 1);
    assert_stopped(run_to(with(&database, fails()), None), "p", ("has halted: ", "seven is too much"));
    assert_eq!((living(&mut client), handled(&mut client, "p")), (0, 6));
    // This position is below the event at which the projection halts.
    assert!(run_to(with(&database, fails()), Some(6)).unwrap().is_complete());
    // A reported halt does not count before the event was tried again.
    assert!(run_to(with(&database, Box::new(Ledger::named("p"))), None).unwrap().is_complete());
    assert_exactly_once(&mut client, "p");
}

#[test]
fn run_to_ends_when_a_projection_halts_on_another_worker() {
    let database = database();
    let mut client = prepared(&database);
    // All events are of one aggregate, so one of the two workers has all of them, in either order.
    append_plainly(&mut client, 10, 1);
    let other = start(builder(database.url(), "set").retry(once()), vec![fails()]);
    let is_halted = "SELECT bool_or(state = 'halted') FROM orchestrator_checkpoints";
    eventually("it has halted", SOON, || client.query_one(is_halted, &[]).unwrap().get::<_, bool>(0).then_some(()));
    // The wait for joins is longer than the run, so the other worker keeps all keys.
    let worker = with(&database, fails()).registration_wait(Duration::from_secs(1));
    assert_stopped(run_to(worker, None), "p", ("has halted: ", "seven is too much"));
    await_running(&[&other]);
}

#[test]
fn run_to_refuses_a_paused_projection_that_is_behind() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 1);
    let ledger = || Box::new(Ledger::named("p"));
    assert!(run_to(with(&database, ledger()), None).unwrap().is_complete());
    client.execute("UPDATE orchestrator_projections SET desired_state = 'paused'", &[]).unwrap();
    assert!(run_to(with(&database, ledger()), None).unwrap().is_complete(), "it is there already");
    append_plainly(&mut client, 10, 1);
    assert_stopped(run_to(with(&database, ledger()), None), "p", ("is paused", "let it run"));
}

#[test]
fn run_to_stops_on_a_shutdown() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let (entered, was_entered) = bounded(1);
    let slow = meddled("p", move |_, _| {
        _ = entered.try_send(());
        never::<()>().recv_timeout(Duration::from_millis(20)).unwrap_err();
        Ok(())
    });
    let worker = with(&database, slow).build().unwrap();
    let (stop, shutdown) = bounded(1);
    let runs = thread::spawn(move || worker.run_to(None, &shutdown, |_| {}));
    was_entered.recv_timeout(SOON).unwrap();
    stop.send(()).unwrap();
    eventually("it returns", SOON, || runs.is_finished().then_some(()));
    let end = runs.join().unwrap().unwrap();
    assert!(!end.is_complete(), "{end:?}");
    assert_eq!(living(&mut client), 0);

    // No server listens there.
    let worker = builder("postgres://u@127.0.0.1:1/d", "set").projection(Ledger::named("p")).build().unwrap();
    let (stop, shutdown) = bounded::<()>(0);
    drop(stop);
    let end = worker.run_to(None, &shutdown, |_| {}).unwrap();
    assert_eq!(end, Progress::default());
}
