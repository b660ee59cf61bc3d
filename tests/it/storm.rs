//! Many writers whose transactions commit out of order.

use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::{EventStore, ExpectedVersion};

use crate::support::handlers::prepared;
use crate::support::ledger::{assert_exactly_once, handled, happened, is_complete, thing};
use crate::support::workers::{await_running, start_ledger};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);
const WRITERS: u64 = 8;
const LASTS: Duration = Duration::from_millis(2_500);

fn write(mut client: Client, rng: &mut fastrand::Rng) {
    let pause = |rng: &mut fastrand::Rng| {
        let millis = if rng.u8(..10) == 0 { 0..30 } else { 0..4 };
        crossbeam_channel::never::<()>().recv_timeout(Duration::from_millis(rng.u64(millis))).unwrap_err();
    };
    let store = EventStore::default();
    let begun = Instant::now();
    while begun.elapsed() < LASTS {
        let id = format!("thing-{}", rng.u8(..40));
        let events = vec![happened(); rng.usize(1..4)];
        // Each event gets an id of its own.
        let events: Vec<_> =
            events.into_iter().map(|event| event.event_id(uuid::Uuid::from_u128(rng.u128(..)))).collect();
        let mut tx = client.transaction().unwrap();
        store.append(&mut tx, &thing(&id), ExpectedVersion::Any, &events).unwrap();
        pause(rng);
        if rng.u8(..20) == 0 { tx.rollback() } else { tx.commit() }.unwrap();
        pause(rng);
    }
}

/// Runs the writers while one or more workers process. `STORM_SEED` repeats the choices of a
/// previous run, but not its timing.
fn storm(database: &TestDatabase, workers: usize) {
    let seed = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("STORM_SEED={seed}");
    let mut client = prepared(database);
    let handles: Vec<_> = (0..workers).map(|_| start_ledger(database, "p")).collect();
    await_running(&handles.iter().collect::<Vec<_>>());
    // What a reader that trusts the newest position would see, at every look.
    let mut looks: Vec<(i64, i64)> = Vec::new();
    thread::scope(|scope| {
        for number in 0..WRITERS {
            scope.spawn(move || write(database.client(), &mut fastrand::Rng::with_seed(seed ^ number)));
        }
        let begun = Instant::now();
        eventually("the storm is over", SOON, || {
            let row = client.query_one("SELECT coalesce(max(global_position), 0), count(*) FROM events", &[]).unwrap();
            looks.push((row.get(0), row.get(1)));
            (begun.elapsed() > LASTS).then_some(())
        });
    });
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    let gaps: i64 = client.query_one("SELECT max(global_position) - count(*) FROM events", &[]).unwrap().get(0);
    let late: i64 = looks
        .iter()
        .map(|(newest, seen)| {
            let sql = "SELECT count(*) - $2 FROM events WHERE global_position <= $1";
            client.query_one(sql, &[newest, seen]).unwrap().get::<_, i64>(0)
        })
        .sum();
    println!("{} events, {gaps} gaps, {late} late", handled(&mut client, "p"));
    assert!(gaps > 0 && late > 0, "this was no storm: {gaps} gaps, {late} late");
    for handle in handles {
        handle.shutdown(Duration::from_secs(5)).unwrap();
    }
}

#[test]
fn one_worker_misses_and_repeats_nothing() {
    storm(&database(), 1);
}

#[test]
fn two_workers_miss_and_repeat_nothing() {
    storm(&database(), 2);
}
