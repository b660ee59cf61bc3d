//! How many events one transaction handles, and how far it moves the checkpoint.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded, never, unbounded};
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Event, EventStore, ExpectedVersion, NewEvent, Scope, StreamId, Tx,
};

use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::projection_metric;
use crate::support::workers::{builder, start};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(30);

#[test]
fn quick_events_are_committed_together() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    let transactions: i64 = client.query_one("SELECT count(DISTINCT xmin::text) FROM ledger", &[]).unwrap().get(0);
    assert!(transactions < 50, "{transactions} transactions");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_slow_handlers_batch_is_committed_in_parts() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let (open, gate) = bounded::<()>(0);
    let slow = meddled("slow", move |_, event| {
        match event.global_position() {
            // Longer than a transaction may take.
            4 => _ = never::<()>().recv_timeout(Duration::from_millis(300)),
            7 => _ = gate.recv_timeout(SOON),
            _ => {}
        }
        Ok(())
    });
    let worker = start(builder(database.url(), "set"), vec![slow]);
    let done = eventually("some events are committed", SOON / 2, || {
        Some(handled(&mut client, "slow")).filter(|events| *events >= 4)
    });
    assert!(done < 7, "the gate is closed, but {done} events are handled");
    drop(open);
    eventually("all events are handled", SOON, || is_complete(&mut client, "slow").then_some(()));
    assert_exactly_once(&mut client, "slow");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn batch_time_limits_the_duration_of_a_transaction() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let slow = meddled("slow", |_, _| {
        _ = never::<()>().recv_timeout(Duration::from_millis(2));
        Ok(())
    });
    let worker = start(builder(database.url(), "set").batch_time(Duration::from_millis(1)), vec![slow]);
    eventually("all events are handled", SOON, || is_complete(&mut client, "slow").then_some(()));
    let transactions: i64 = client.query_one("SELECT count(DISTINCT xmin::text) FROM ledger", &[]).unwrap().get(0);
    assert_eq!(transactions, 10, "each event takes longer than a transaction may");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_commit_covers_events_that_do_not_concern_the_projection() {
    let database = database();
    let mut client = prepared(&database);
    for kind in ["Order", "Order", "Refund", "Refund"] {
        let stream = StreamId::new("shop", kind, kind);
        EventStore::default()
            .append(&mut client, &stream, ExpectedVersion::Any, &[NewEvent::new("Happened", [])])
            .unwrap();
    }
    let orders = Ledger { scope: Scope::all().aggregate_types(["Order"]), ..Ledger::named("orders") };
    let worker = start(builder(database.url(), "set"), vec![Box::new(orders)]);
    // In one snapshot: the checkpoint after the transaction that handled the last order.
    let sql = "SELECT position FROM orchestrator_checkpoints WHERE (SELECT count(*) FROM ledger) = 2";
    let position: i64 =
        eventually("the orders are handled", SOON, || client.query_opt(sql, &[]).unwrap().map(|row| row.get(0)));
    assert_eq!(position, 4);
    worker.shutdown(SOON).unwrap();
}

/// Handles all given events at once, and sends how long that took.
struct InBulk {
    took: Sender<Duration>,
}

impl BatchProjection for InBulk {
    fn name(&self) -> &str {
        "in_bulk"
    }

    fn handle_batch(&self, _: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let begun = Instant::now();
        _ = never::<()>().recv_timeout(Duration::from_millis(100));
        self.took.send(begun.elapsed())?;
        Ok(events.len())
    }
}

#[test]
fn events_handled_in_bulk_are_measured_by_their_mean() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 10);
    let (took, calls) = unbounded();
    let worker = start(builder(database.url(), "set").batch_projection(InBulk { took }), vec![]);
    eventually("all events are handled", SOON, || {
        (projection_metric(&worker, "events_processed_total", "in_bulk") == Some(100.0)).then_some(())
    });
    let took: Duration = calls.try_iter().sum();
    let mean = projection_metric(&worker, "event_processing_duration_seconds_sum", "in_bulk").unwrap();
    assert!(mean > 0.0 && mean < took.as_secs_f64(), "{mean} s per event of {took:?}");
    worker.shutdown(SOON).unwrap();
}
