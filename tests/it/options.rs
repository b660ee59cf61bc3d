//! Settings of single projections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postgres::Client;
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Builder, Event, Handle, OnFailure, Options, Projection, ProjectionState, Retry, Tx,
};

use crate::support::handlers::prepared;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::parking::await_parked;
use crate::support::workers::{await_running, builder, start};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(30);

/// A ledger that states options of its own.
struct Stating(Ledger, Options);

impl Stating {
    fn named(name: &'static str, options: Options) -> Self {
        Self(Ledger::named(name), options)
    }
}

impl Projection for Stating {
    fn name(&self) -> &str {
        self.0.name
    }

    fn options(&self) -> Options {
        self.1.clone()
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.0.handle(tx, event)
    }
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

/// The number of lanes that own keys of each projection, for each worker.
fn lanes(client: &mut Client) -> Vec<(String, i64)> {
    let sql = "SELECT projection, count(DISTINCT lane) FROM orchestrator_checkpoints
               GROUP BY projection, worker_id ORDER BY 1, 2";
    client.query(sql, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[test]
fn each_projection_may_have_other_lanes() {
    let database = database();
    let mut client = prepared(&database);
    let worker = |changed| {
        let builder = builder(database.url(), "set")
            .lanes(2)
            .projection(Stating::named("stated", Options::default().lanes(3)))
            .projection_with(Stating::named("changed", Options::default().lanes(3)), move |own| own.lanes(changed));
        start(builder, vec![Box::new(Ledger::named("usual"))])
    };
    let one = worker(4);
    await_running(&[&one]);
    let named = |lanes: &[(&str, i64)]| lanes.iter().map(|(name, lanes)| ((*name).to_owned(), *lanes)).collect();
    let expected: Vec<(String, i64)> = named(&[("changed", 4), ("stated", 3), ("usual", 2)]);
    assert_eq!(lanes(&mut client), expected);
    append_plainly(&mut client, 300, 30);
    // Each worker has lanes of its own, also for one projection.
    let other = worker(1);
    await_running(&[&one, &other]);
    let expected: Vec<(String, i64)> =
        named(&[("changed", 1), ("changed", 4), ("stated", 3), ("stated", 3), ("usual", 2), ("usual", 2)]);
    assert_eq!(lanes(&mut client), expected);
    for projection in ["stated", "changed", "usual"] {
        await_complete(&mut client, projection);
    }
    one.shutdown(SOON).unwrap();
    other.shutdown(SOON).unwrap();
}

/// Records how many events it is given at once.
#[derive(Clone)]
struct Sizes(&'static str, Options, Arc<Mutex<Vec<usize>>>);

impl Sizes {
    fn named(name: &'static str, options: Options) -> Self {
        Self(name, options, Arc::default())
    }

    fn total(&self) -> usize {
        self.2.lock().iter().sum()
    }

    fn largest(&self) -> usize {
        self.2.lock().iter().copied().max().unwrap_or_default()
    }
}

impl BatchProjection for Sizes {
    fn name(&self) -> &str {
        self.0
    }

    fn options(&self) -> Options {
        self.1.clone()
    }

    fn handle_batch(&self, _: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.2.lock().push(events.len());
        Ok(events.len())
    }
}

#[test]
fn batch_size_of_a_projection_bounds_its_batches() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let own = Sizes::named("own", Options::default().batch_size(7));
    let usual = Sizes::named("usual", Options::default());
    let builder =
        builder(database.url(), "set").batch_size(50).batch_projection(own.clone()).batch_projection(usual.clone());
    let worker = start(builder, vec![]);
    eventually("all events are handled", SOON, || (own.total() == 100 && usual.total() == 100).then_some(()));
    assert_eq!((own.largest(), usual.largest()), (7, 50));
    // The live tail keeps to it as well.
    append_plainly(&mut client, 100, 10);
    eventually("the new events are handled", SOON, || (own.total() == 200 && usual.total() == 200).then_some(()));
    assert_eq!((own.largest(), usual.largest()), (7, 50));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn rate_of_a_projection_is_shared_by_all_its_workers() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 200, 100);
    let worker = || {
        let slow = Stating::named("slow", Options::default().rate(50));
        start(builder(database.url(), "set").projection(slow), vec![Box::new(Ledger::named("usual"))])
    };
    let workers = [worker(), worker()];
    await_running(&[&workers[0], &workers[1]]);
    let (begun, before) = (Instant::now(), handled(&mut client, "slow"));
    await_complete(&mut client, "usual");
    eventually("some of the events are handled", SOON, || (handled(&mut client, "slow") >= before + 60).then_some(()));
    let (took, after) = (begun.elapsed().as_secs_f64(), handled(&mut client, "slow"));
    let rate = f64::from(i32::try_from(after - before).unwrap()) / took;
    // At the start, each runner handles one portion at once. A busy machine may be slower.
    assert!((15.0..=70.0).contains(&rate), "{rate:.0} events a second");
    for worker in workers {
        worker.shutdown(SOON).unwrap();
    }
}

/// A projection that fails at every event.
struct Stubborn(&'static str, Options, Arc<AtomicUsize>);

impl Stubborn {
    fn named(name: &'static str, options: Options) -> (Self, Arc<AtomicUsize>) {
        let calls = Arc::new(AtomicUsize::new(0));
        (Self(name, options, calls.clone()), calls)
    }
}

impl Projection for Stubborn {
    fn name(&self) -> &str {
        self.0
    }

    fn options(&self) -> Options {
        self.1.clone()
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        self.2.fetch_add(1, Ordering::Relaxed);
        Err("no".into())
    }
}

fn impatient(attempts: u32) -> Retry {
    let short = Duration::from_millis(20);
    Retry::default().attempts(attempts).first_delay(short).longest_delay(short).halted_interval(SOON * 100)
}

#[track_caller]
fn await_halted(worker: &Handle, projection: &str) {
    eventually("the projection halts", SOON, || {
        (worker.status().projections[projection].state == ProjectionState::Halted).then_some(())
    });
}

#[test]
fn a_projection_may_have_retry_settings_of_its_own() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 1, 1);
    let (own, own_calls) = Stubborn::named("own", Options::default().retry(impatient(5)));
    let (usual, usual_calls) = Stubborn::named("usual", Options::default());
    let (changed, changed_calls) = Stubborn::named("changed", Options::default().retry(impatient(5)));
    let builder = builder(database.url(), "set")
        .retry(impatient(3))
        .projection_with(changed, |options| options.retry(impatient(2)));
    let worker = start(builder, vec![Box::new(own), Box::new(usual)]);
    for (projection, calls, attempts) in
        [("own", own_calls, 5), ("usual", usual_calls, 3), ("changed", changed_calls, 2)]
    {
        await_halted(&worker, projection);
        assert_eq!(calls.load(Ordering::Relaxed), attempts, "{projection}");
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_may_have_a_failure_policy_of_its_own() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 2, 2);
    let (halts, _) = Stubborn::named("halts", Options::default());
    let (parks, _) = Stubborn::named("parks", Options::default().on_failure(OnFailure::park(5)));
    let builder = builder(database.url(), "set").retry(impatient(1)).on_failure(OnFailure::Halt);
    let worker = start(builder, vec![Box::new(halts), Box::new(parks)]);
    await_parked(&mut client, "parks", 2);
    await_halted(&worker, "halts");
    await_parked(&mut client, "halts", 0);
    assert_eq!(worker.status().projections["parks"].state, ProjectionState::Running);
    worker.shutdown(SOON).unwrap();
}

#[track_caller]
fn refused(change: impl FnOnce(Options) -> Options + Send + 'static) -> String {
    let builder: Builder = builder("postgres://u@h/d", "set").projection_with(Ledger::named("bills"), change);
    builder.build().unwrap_err().with_causes()
}

#[test]
fn options_out_of_bounds_are_refused_with_the_projection() {
    let refusals: BTreeMap<&str, String> = BTreeMap::from([
        ("batch_size of projection \"bills\" is 0", refused(|own| own.batch_size(0))),
        ("batch_time of projection \"bills\" is 0ns", refused(|own| own.batch_time(Duration::ZERO))),
        ("lanes of projection \"bills\" is 65", refused(|own| own.lanes(65))),
        ("rate of projection \"bills\" is 0", refused(|own| own.rate(0))),
        ("retry.attempts of projection \"bills\" is 0", refused(|own| own.retry(Retry::default().attempts(0)))),
        ("on_failure at_most of projection \"bills\" is 0", refused(|own| own.on_failure(OnFailure::park(0)))),
        ("in_flight of projection \"bills\" is 2", refused(|own| own.in_flight(2))),
    ]);
    for (part, error) in refusals {
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }
    let error = refused(|own| own.in_flight(1));
    assert!(error.contains("only a reaction can have it") && error.contains("lanes"), "{error}");
}

#[test]
fn the_pool_is_large_enough_for_the_lanes_of_all_projections() {
    let build = |size| {
        let builder = builder("postgres://u@h/d", "set").pool_size(size).projection(Ledger::named("usual"));
        builder.projection_with(Ledger::named("wide"), |own| own.lanes(5)).build()
    };
    assert!(build(12).is_ok());
    let error = build(11).unwrap_err().with_causes();
    assert!(error.contains("6 lanes") && error.contains("12 connections"), "{error}");
}
