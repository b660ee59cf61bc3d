//! Reactions that fail, in every possible way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{
    BoxError, Builder, Handle, OnFailure, Options, Passing, ProjectionState, ProjectionStatus, Retry,
};

use crate::support::cluster::positions;
use crate::support::handlers::prepared;
use crate::support::ledger::append_plainly;
use crate::support::metrics::projection_metric;
use crate::support::parking::{assert_accounts, await_parked, discard, parked, replay};
use crate::support::reactions::{Effects, Reacting, start_reaction};
use crate::support::workers::builder;
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);

fn impatient(database: &TestDatabase) -> Builder {
    let retry = Retry::default().attempts(3).first_delay(SHORT).longest_delay(SHORT).halted_interval(SOON * 100);
    builder(database.url(), "set").retry(retry)
}

fn status(worker: &Handle) -> ProjectionStatus {
    worker.status().projections["p"].clone()
}

#[track_caller]
fn await_halted(worker: &Handle) -> String {
    eventually("the reaction halts", SOON, || {
        let status = status(worker);
        (status.state == ProjectionState::Halted).then_some(status.error.unwrap_or_default())
    })
}

#[track_caller]
fn await_position(client: &mut Client, position: i64) {
    eventually("the checkpoint moves", SOON, || (positions(client, "p") == [position]).then_some(()));
}

/// Makes the fifth of ten events fail until it is repaired.
fn the_fifth_event_fails(in_flight: usize, fail: fn() -> Result<usize, BoxError>, message: &str) {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 5);
    let (effects, calls) = (Effects::default(), Arc::new(AtomicUsize::new(0)));
    let counted = calls.clone();
    let bad = Reacting::named("p", &effects, move |_, events| {
        let before = events.iter().position(|event| event.global_position() == 5);
        match before {
            Some(0) => {
                counted.fetch_add(1, Ordering::Relaxed);
                fail()
            }
            Some(before) => Ok(before),
            None => Ok(events.len()),
        }
    });
    let worker = start_reaction(impatient(&database), bad.options(Options::default().in_flight(in_flight)));
    let error = await_halted(&worker);
    let id: String =
        client.query_one("SELECT event_id::text FROM events WHERE global_position = 5", &[]).unwrap().get(0);
    for part in ["global position 5 ", &id, message] {
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }
    await_position(&mut client, 4);
    assert_eq!(calls.load(Ordering::Relaxed), 3, "it is tried three times");
    assert_eq!(projection_metric(&worker, "projection_errors_total", "p"), Some(3.0));
    if in_flight == 1 {
        assert_eq!(effects.positions(), [1, 2, 3, 4]);
    }
    worker.shutdown(SOON).unwrap();
    // The repaired code continues with the event. With several in flight, what was done behind it
    // is repeated, because another worker does not know of it.
    let repaired = start_reaction(impatient(&database), Reacting::simple("p", &effects));
    await_position(&mut client, 10);
    if in_flight == 1 {
        effects.assert_once_each(&mut client);
    }
    effects.assert_in_order();
    repaired.shutdown(SOON).unwrap();
    assert_accounts(&mut client);
}

#[test]
fn an_error_of_a_reaction_is_retried_and_halts() {
    for in_flight in [1, 4] {
        the_fifth_event_fails(in_flight, || Err("no such address".into()), "no such address");
    }
}

#[test]
fn a_panic_of_a_reaction_is_an_error() {
    for in_flight in [1, 4] {
        let message = "the handler panicked: index out of thin air";
        the_fifth_event_fails(in_flight, || panic!("index out of thin air"), message);
    }
}

#[test]
fn an_impossible_count_of_a_reaction_is_an_error() {
    for in_flight in [1, 4] {
        the_fifth_event_fails(in_flight, || Ok(0), "the handler says that it has handled 0 of ");
        the_fifth_event_fails(in_flight, || Ok(99), "the handler says that it has handled 99 of ");
    }
}

#[test]
fn a_receiver_that_is_away_is_waited_for_without_counting() {
    for in_flight in [1, 4] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 10, 5);
        let (effects, calls) = (Effects::default(), Arc::new(AtomicUsize::new(0)));
        let counted = calls.clone();
        let patient = Reacting::named("p", &effects, move |_, events| {
            if events[0].global_position() == 1 && counted.fetch_add(1, Ordering::Relaxed) < 9 {
                return Err(Passing::new("the receiver is away").into());
            }
            Ok(events.len())
        });
        let worker = start_reaction(impatient(&database), patient.options(Options::default().in_flight(in_flight)));
        effects.await_count(10);
        await_position(&mut client, 10);
        effects.assert_once_each(&mut client);
        assert_eq!(calls.load(Ordering::Relaxed), 10);
        assert_eq!(projection_metric(&worker, "projection_errors_total", "p"), Some(0.0));
        assert!(projection_metric(&worker, "retries_total", "p").is_some_and(|retries| retries >= 8.0));
        eventually("it runs", SOON, || (status(&worker).state == ProjectionState::Running).then_some(()));
        worker.shutdown(SOON).unwrap();
    }
}

/// A reaction that fails at these positions as long as there is a fault.
fn failing(effects: &Effects, bad: &'static [i64], fault: &Arc<AtomicBool>) -> Reacting {
    let fault = fault.clone();
    Reacting::named("p", effects, move |_, events| {
        let is_bad = |position| fault.load(Ordering::SeqCst) && bad.contains(&position);
        match events.iter().position(|event| is_bad(event.global_position())) {
            Some(0) => Err("no such address".into()),
            Some(before) => Ok(before),
            None => Ok(events.len()),
        }
    })
}

#[test]
fn a_parked_aggregate_of_a_reaction_is_replayed_once() {
    for in_flight in [1, 4] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 30, 3);
        let (effects, fault) = (Effects::default(), Arc::new(AtomicBool::new(true)));
        let options = Options::default().in_flight(in_flight).on_failure(OnFailure::park(5));
        let worker = start_reaction(impatient(&database), failing(&effects, &[5, 17], &fault).options(options));
        let rows = await_parked(&mut client, "p", 1);
        assert_eq!((rows[0].aggregate.as_str(), rows[0].position, rows[0].attempts), ("thing-1", 5, 3));
        assert!(rows[0].error.contains("no such address"), "{rows:?}");
        effects.await_count(21);
        // New events of the aggregate wait as well.
        append_plainly(&mut client, 3, 3);
        effects.await_count(23);
        await_position(&mut client, 33);
        assert_eq!(effects.count(), 23);
        effects.assert_in_order();
        assert_accounts(&mut client);
        assert_eq!(status(&worker).state, ProjectionState::Running);

        // The replay fails again, at its first event, and changes nothing.
        replay(&mut client, "p");
        eventually("the replay has failed", SOON, || {
            parked(&mut client, "p").first().is_some_and(|row| !row.is_requested && row.errors.len() > 1).then_some(())
        });
        assert_eq!((effects.count(), parked(&mut client, "p")[0].position), (23, 5));
        fault.store(false, Ordering::SeqCst);
        replay(&mut client, "p");
        eventually("nothing is parked", SOON, || parked(&mut client, "p").is_empty().then_some(()));
        effects.await_count(33);
        effects.assert_once_each(&mut client);
        assert_accounts(&mut client);
        // The aggregate is like any other again.
        append_plainly(&mut client, 3, 3);
        effects.await_count(36);
        await_position(&mut client, 36);
        effects.assert_once_each(&mut client);
        worker.shutdown(SOON).unwrap();
        assert_accounts(&mut client);
    }
}

#[test]
fn a_replay_of_a_reaction_stops_at_a_later_failing_event() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let (effects, first, second) =
        (Effects::default(), Arc::new(AtomicBool::new(true)), Arc::new(AtomicBool::new(true)));
    let (one, two) = (first.clone(), second.clone());
    let reaction = Reacting::named("p", &effects, move |_, events| {
        let is_bad = |position| match position {
            5 => one.load(Ordering::SeqCst),
            11 => two.load(Ordering::SeqCst),
            _ => false,
        };
        match events.iter().position(|event| is_bad(event.global_position())) {
            Some(0) => Err("no such address".into()),
            Some(before) => Ok(before),
            None => Ok(events.len()),
        }
    });
    let options = Options::default().on_failure(OnFailure::park(5));
    let worker = start_reaction(impatient(&database), reaction.options(options));
    await_parked(&mut client, "p", 1);
    effects.await_count(12);
    first.store(false, Ordering::SeqCst);
    replay(&mut client, "p");
    eventually("the replay stops there", SOON, || {
        parked(&mut client, "p").first().is_some_and(|row| row.position == 11 && !row.is_requested).then_some(())
    });
    assert_eq!(effects.positions().split_off(12), [5, 7, 9]);
    // Without that event, the rest is replayed.
    discard(&mut client, "p", 11);
    eventually("nothing is parked", SOON, || parked(&mut client, "p").is_empty().then_some(()));
    assert_eq!(effects.positions().split_off(12), [5, 7, 9, 13, 15, 17, 19]);
    assert_accounts(&mut client);
    worker.shutdown(SOON).unwrap();
}
