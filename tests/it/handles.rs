//! How a handle ends its worker.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use pupsourcing_orchestrator::{BoxError, Error, Event, Projection, Tx};

use crate::support::cluster::{assert_keys_are_covered, state_of};
use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_dropped_handle_leaves_gracefully() {
    let database = database();
    let mut client = database.client();
    let (dropped, other) = (start_ledger(&database, "p"), start_ledger(&database, "p"));
    let generation = await_running(&[&dropped, &other]);
    append_plainly(&mut client, 500, 50);
    let worker = dropped.worker_id();
    drop(dropped);
    assert_eq!(state_of(&mut client, worker), ("stopped".into(), Some("left".into())));
    assert_eq!(await_running(&[&other]), generation + 1);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    assert_keys_are_covered(&mut client);
}

#[test]
fn run_until_stops_while_it_waits_for_the_database() {
    // No server listens there.
    let orchestrator = builder("postgres://u@127.0.0.1:1/d", "set").projection(Ledger::named("p")).build().unwrap();
    let (stop, shutdown) = bounded(1);
    let runs = std::thread::spawn(move || orchestrator.run(&shutdown));
    stop.send(()).unwrap();
    let begun = Instant::now();
    eventually("it returns", SOON, || runs.is_finished().then_some(()));
    runs.join().unwrap().unwrap();
    assert!(begun.elapsed() < SOON);
}

/// Waits in its first event until the test releases it.
struct Stuck(Sender<()>, Receiver<()>);

impl Projection for Stuck {
    fn name(&self) -> &str {
        "p"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        _ = self.0.try_send(());
        _ = self.1.recv();
        Ledger::named("p").handle(tx, event)
    }
}

#[test]
fn a_shutdown_that_takes_too_long_names_the_thread() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let (entered, was_entered) = bounded(1);
    let (let_go, go_on) = bounded(0);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Stuck(entered, go_on))]);
    append_plainly(&mut client, 100, 10);
    was_entered.recv_timeout(SOON).unwrap();

    let id = worker.worker_id();
    let begun = Instant::now();
    let error = worker.shutdown(Duration::from_millis(300)).unwrap_err();
    let took = begun.elapsed();
    let Error::ShutdownTimeout { waited, threads, .. } = &error else { panic!("{error:?}") };
    assert!(threads.split(", ").any(|thread| thread == "pup-run-00"), "{threads}");
    assert!(*waited >= Duration::from_millis(300) && took < Duration::from_secs(2), "waited {waited:?}, took {took:?}");
    assert_eq!(state_of(&mut client, id).0, "stopping", "it is still leaving");

    drop(let_go);
    eventually("it has left", SOON, || (state_of(&mut client, id).1.as_deref() == Some("left")).then_some(()));
    let successor = start_ledger(&database, "p");
    await_running(&[&successor]);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
}

/// An error of an application with a bug: it panics when it is printed.
#[derive(Debug)]
struct Unprintable;

impl std::fmt::Display for Unprintable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("the tests say so")
    }
}

impl std::error::Error for Unprintable {}

#[test]
fn worker_whose_runner_panics_leaves_and_reports_it() {
    let database = database();
    let mut client = prepared(&database);
    let panics = meddled("p", |_, _| Err(Box::new(Unprintable)));
    let worker = start(builder(database.url(), "set"), vec![panics, Box::new(Ledger::named("q"))]);
    await_running(&[&worker]);
    let id = worker.worker_id();
    append_plainly(&mut client, 1, 1);
    let ended = worker.join();
    assert!(matches!(&ended, Err(Error::ThreadPanicked { thread, .. }) if thread == "pup-run-00"), "{ended:?}");
    assert_eq!(state_of(&mut client, id), ("stopped".into(), Some("left".into())));
}
