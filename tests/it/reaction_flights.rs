//! Reactions with several events in flight, and with a rate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// The calls in progress: how many of each aggregate, and the most at once.
#[derive(Clone, Default)]
struct Air(Arc<Mutex<(BTreeMap<String, usize>, usize)>>);

impl Air {
    /// Lets a call take so long. Fails if two of one aggregate are in progress.
    fn fly(&self, events: &[Event], time: Duration) -> Result<usize, BoxError> {
        let [event] = events else { return Err("each call has one event".into()) };
        let aggregate = event.aggregate_id();
        let alone = {
            let (calls, most) = &mut *self.0.lock();
            *calls.entry(aggregate.to_owned()).or_default() += 1;
            *most = (*most).max(calls.values().sum());
            calls[aggregate] == 1
        };
        pass_time(time);
        if let Some(calls) = self.0.lock().0.get_mut(aggregate) {
            *calls -= 1;
        }
        if alone { Ok(1) } else { Err(format!("two events of {aggregate} are in flight").into()) }
    }

    fn most(&self) -> usize {
        self.0.lock().1
    }
}

fn in_flight(events: usize) -> Options {
    Options::default().in_flight(events)
}

#[test]
fn events_of_different_aggregates_are_in_flight_at_once() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 600, 20);
    let (effects, air) = (Effects::default(), Air::default());
    let flying = air.clone();
    let reaction = Reacting::named("p", &effects, move |_, events| flying.fly(events, Duration::from_millis(3)))
        .options(in_flight(8));
    let begun = Instant::now();
    let worker = start_reaction(builder(database.url(), "set").batch_size(50), reaction);
    effects.await_count(600);
    assert!(begun.elapsed() < Duration::from_millis(600 * 3), "they were handled one after the other");
    // The live tail as well.
    append_plainly(&mut client, 200, 20);
    effects.await_count(800);
    effects.assert_once_each(&mut client);
    assert_eq!(air.most(), 8);
    worker.shutdown(SOON).unwrap();
    assert_eq!(positions(&mut client, "p"), [800]);
    assert_accounts(&mut client);
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
