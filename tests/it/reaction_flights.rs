//! Reactions with several events in flight, and with a rate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pupsourcing_orchestrator::{BoxError, Event, Options};

use crate::support::cluster::positions;
use crate::support::handlers::prepared;
use crate::support::ledger::append_plainly;
use crate::support::parking::assert_accounts;
use crate::support::reactions::{Effects, Reacting, gate, pass_time, start_reaction};
use crate::support::workers::{await_running, builder};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(30);

/// The calls in progress.
#[derive(Clone, Default)]
struct Air(Arc<Mutex<Calls>>);

#[derive(Default)]
struct Calls {
    /// How many of each aggregate.
    now: BTreeMap<String, usize>,
    /// The most at once.
    most: usize,
    /// How many began while another one of their aggregate was in progress.
    collisions: usize,
}

impl Air {
    /// Lets a call take so long.
    fn fly(&self, events: &[Event], time: Duration) -> Result<usize, BoxError> {
        let [event] = events else { return Err("each call has one event".into()) };
        let aggregate = event.aggregate_id();
        {
            let Calls { now, most, collisions } = &mut *self.0.lock();
            let same = now.entry(aggregate.to_owned()).or_default();
            *same += 1;
            *collisions += usize::from(*same > 1);
            *most = (*most).max(now.values().sum());
        }
        pass_time(time);
        if let Some(same) = self.0.lock().now.get_mut(aggregate) {
            *same -= 1;
        }
        Ok(1)
    }

    /// The most calls at once, and how many had an aggregate in common.
    fn found(&self) -> (usize, usize) {
        let calls = self.0.lock();
        (calls.most, calls.collisions)
    }
}

fn in_flight(events: usize) -> Options {
    Options::default().in_flight(events)
}

#[test]
fn events_of_different_aggregates_are_in_flight_at_once() {
    for (aggregates, at_once) in [(20, 8), (3, 3)] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 300, aggregates);
        let (effects, air) = (Effects::default(), Air::default());
        let flying = air.clone();
        // The next event of an aggregate comes while a slow call is in progress.
        let takes = |event: &Event| Duration::from_millis(if event.global_position() % 7 == 0 { 20 } else { 2 });
        let reaction = Reacting::named("p", &effects, move |_, events| flying.fly(events, takes(&events[0])));
        let builder = builder(database.url(), "set").batch_size(50);
        let worker = start_reaction(builder, reaction.options(in_flight(8)));
        effects.await_count(300);
        // The live tail as well.
        append_plainly(&mut client, 100, aggregates);
        effects.await_count(400);
        effects.assert_once_each(&mut client);
        assert_eq!(air.found(), (at_once, 0), "the most at once, and those of one aggregate at once");
        worker.shutdown(SOON).unwrap();
        assert_eq!(positions(&mut client, "p"), [400]);
        assert_accounts(&mut client);
    }
}

#[test]
fn checkpoint_stays_below_the_lowest_event_in_flight() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 200, 50);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let reaction = Reacting::named("p", &effects, move |_, events| {
        if events[0].global_position() == 3 {
            gate.pass()?;
        }
        Ok(events.len())
    });
    let worker = start_reaction(builder(database.url(), "set"), reaction.options(in_flight(2)));
    keeper.await_call();
    // Others go on, but not without limit.
    effects.await_count(10);
    eventually("the checkpoint moves", SOON, || (positions(&mut client, "p") == [2]).then_some(()));
    pass_time(Duration::from_millis(300));
    assert_eq!(positions(&mut client, "p"), [2]);
    let ahead = effects.count();
    assert!(ahead < 50, "{ahead} events were handled, and the third is not");
    assert!(!effects.positions().contains(&3) && !effects.positions().contains(&53), "{:?}", effects.positions());
    keeper.release();
    effects.await_count(200);
    effects.assert_once_each(&mut client);
    eventually("the checkpoint moves", SOON, || (positions(&mut client, "p") == [200]).then_some(()));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn joins_and_leaves_while_events_are_in_flight_repeat_nothing() {
    let database = database();
    let mut client = prepared(&database);
    let effects = Effects::default();
    let worker = |lanes| {
        // Some calls take much longer than others, so that many events are done behind one that is
        // not.
        let uneven = Reacting::named("p", &effects, |_, events| {
            pass_time(Duration::from_millis(if events[0].global_position() % 37 == 0 { 60 } else { 2 }));
            Ok(1)
        });
        start_reaction(builder(database.url(), "set"), uneven.options(in_flight(8).lanes(lanes)))
    };
    // Each change comes while many events are in flight.
    let mut append = || {
        append_plainly(&mut client, 600, 40);
        effects.await_count(effects.count() + 20);
    };
    let first = worker(1);
    append();
    let second = worker(2);
    await_running(&[&first, &second]);
    append();
    let third = worker(1);
    await_running(&[&first, &second, &third]);
    append();
    first.shutdown(SOON).unwrap();
    await_running(&[&second, &third]);
    append();
    effects.await_count(2_400);
    effects.assert_once_each(&mut client);
    second.shutdown(SOON).unwrap();
    third.shutdown(SOON).unwrap();
    effects.assert_once_each(&mut client);
    assert_accounts(&mut client);
}

#[test]
fn a_failing_event_in_flight_is_retried_alone() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 60, 20);
    let effects = Effects::default();
    let failures = Mutex::new(0);
    let reaction = Reacting::named("p", &effects, move |_, events| {
        pass_time(Duration::from_millis(2));
        if events[0].global_position() == 30 {
            let failures = &mut *failures.lock();
            *failures += 1;
            if *failures < 4 {
                return Err("not yet".into());
            }
        }
        Ok(1)
    });
    let worker = start_reaction(builder(database.url(), "set"), reaction.options(in_flight(8)));
    effects.await_count(60);
    eventually("the checkpoint moves", SOON, || (positions(&mut client, "p") == [60]).then_some(()));
    // Those that were done behind it are not repeated.
    effects.assert_once_each(&mut client);
    worker.shutdown(SOON).unwrap();
    assert_accounts(&mut client);
}

/// Counts the effects of two seconds.
fn effects_at_a_rate(options: Options) -> usize {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 300, 100);
    let effects = Effects::default();
    let reaction = Reacting::simple("p", &effects).options(options.rate(20));
    let worker = start_reaction(builder(database.url(), "set"), reaction);
    effects.await_count(1);
    let before = effects.count();
    pass_time(Duration::from_secs(2));
    let count = effects.count() - before;
    worker.shutdown(SOON).unwrap();
    effects.assert_in_order();
    count
}

#[test]
fn a_reaction_keeps_to_its_rate() {
    for options in [Options::default(), in_flight(8)] {
        let count = effects_at_a_rate(options);
        assert!((25..=52).contains(&count), "{count} effects in two seconds, at 20 a second");
    }
}
