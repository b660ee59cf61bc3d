//! Projections that park the aggregate of a failing event, and replays of what is parked.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use postgres::Client;
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Builder, Event, Handle, OnFailure, Passing, Projection, ProjectionState, Retry, Tx,
};

use crate::support::cluster::assert_read_models_become_right;
use crate::support::handlers::{Meddled, meddled, prepared};
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::projection_metric;
use crate::support::parking::{accounts, assert_accounts, await_parked, discard, parked, replay};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(20);
const LONG: Duration = Duration::from_secs(3600);

fn parking(database: &TestDatabase, at_most: u32) -> Builder {
    let retry = Retry::default().attempts(2).first_delay(SHORT).longest_delay(SHORT).halted_interval(LONG);
    builder(database.url(), "set").retry(retry).on_failure(OnFailure::park(at_most))
}

/// Makes events fail until it is told otherwise.
#[derive(Clone)]
struct Fault(Arc<AtomicBool>);

impl Fault {
    fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    fn repair(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    fn strike(&self) -> Result<(), BoxError> {
        if self.0.load(Ordering::SeqCst) { Err("no such customer".into()) } else { Ok(()) }
    }
}

/// A ledger that fails at these positions as long as there is a fault.
fn failing(name: &'static str, positions: &'static [i64], fault: &Fault) -> Box<dyn Projection> {
    let fault = fault.clone();
    meddled(name, move |_, event| if positions.contains(&event.global_position()) { fault.strike() } else { Ok(()) })
}

#[track_caller]
fn await_handled(client: &mut Client, projection: &str, events: i64) {
    eventually("the events are handled", SOON, || (handled(client, projection) == events).then_some(()));
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
    eventually("nothing is parked", SOON, || parked(client, projection).is_empty().then_some(()));
    assert_exactly_once(client, projection);
    assert_accounts(client);
}

#[test]
fn a_failing_event_parks_its_aggregate_and_others_continue() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 30, 3);
    let fault = Fault::new();
    let worker = start(parking(&database, 10), vec![failing("p", &[5], &fault)]);
    let rows = await_parked(&mut client, "p", 1);
    let row = &rows[0];
    assert_eq!((row.aggregate.as_str(), row.position, row.attempts), ("thing-1", 5, 2));
    assert!(row.error.contains("no such customer") && row.error.contains("global position 5 "), "{row:?}");
    assert_eq!((row.errors.len(), row.is_requested), (1, false));
    await_handled(&mut client, "p", 21);
    // New events of the aggregate wait as well.
    append_plainly(&mut client, 3, 3);
    await_handled(&mut client, "p", 23);
    assert_accounts(&mut client);
    assert_eq!(accounts(&mut client).unwrap(), [("p".to_owned(), [23, 10, 0, 33])]);
    assert_eq!(worker.status().projections["p"].state, ProjectionState::Running);
    assert_eq!(projection_metric(&worker, "parked_events_total", "p"), Some(1.0));

    fault.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    assert_eq!(projection_metric(&worker, "replayed_events_total", "p"), Some(10.0));
    // The aggregate is like any other again.
    append_plainly(&mut client, 3, 3);
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
    assert_eq!(accounts(&mut client).unwrap(), [("p".to_owned(), [36, 0, 0, 36])]);
}

#[test]
fn what_is_parked_stays_parked_after_a_restart_and_a_deal() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 30, 3);
    let fault = Fault::new();
    let worker = start(parking(&database, 10), vec![failing("p", &[5], &fault)]);
    await_parked(&mut client, "p", 1);
    worker.shutdown(SOON).unwrap();
    append_plainly(&mut client, 3, 3);
    let workers = [(); 2].map(|()| start(parking(&database, 10), vec![failing("p", &[5], &fault)]));
    await_running(&[&workers[0], &workers[1]]);
    append_plainly(&mut client, 3, 3);
    await_handled(&mut client, "p", 25);
    assert_accounts(&mut client);
    fault.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    for worker in workers {
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn more_than_at_most_halt_and_a_replay_lets_it_continue() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 50, 5);
    let fault = Fault::new();
    let retry = Retry::default().attempts(1).first_delay(SHORT).halted_interval(LONG);
    let builder = parking(&database, 2).retry(retry);
    let worker = start(builder, vec![failing("p", &[11, 12, 13], &fault)]);
    let error = await_halted(&worker, "p");
    for part in ["no such customer", "global position 13 ", "2 aggregates", "worker replay p --all"] {
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }
    assert_eq!(parked(&mut client, "p").len(), 2);
    assert_eq!(handled(&mut client, "p"), 10);
    fault.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// Two workers fail at the same time, and only one more aggregate may be parked.
#[test]
fn at_most_is_a_limit_for_all_workers_together() {
    let database = database();
    let mut client = prepared(&database);
    // So many that each lane has some, even if the three that are parked belong to the same one.
    append_plainly(&mut client, 200, 200);
    let lanes = || parking(&database, 3).lanes(4).retry(Retry::default().attempts(1).halted_interval(LONG));
    let all = || meddled("p", |_, _| Err("nothing works".into()));
    let workers = [(); 2].map(|()| start(lanes(), vec![all()]));
    for worker in &workers {
        await_halted(worker, "p");
    }
    let halted = "SELECT count(*) FROM orchestrator_checkpoints WHERE state <> 'halted'";
    eventually("all lanes halt", SOON, || (client.query_one(halted, &[]).unwrap().get::<_, i64>(0) == 0).then_some(()));
    assert_eq!(parked(&mut client, "p").len(), 3);
    assert_accounts(&mut client);
    for worker in workers {
        worker.shutdown(SOON).unwrap();
    }
}

#[track_caller]
fn await_halted(worker: &Handle, projection: &str) -> String {
    eventually("the projection halts", SOON, || {
        let status = worker.status().projections[projection].clone();
        (status.state == ProjectionState::Halted).then_some(status.error.unwrap_or_default())
    })
}

#[test]
fn a_replay_may_fail_again_at_a_later_event() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 40, 2);
    let (first, second) = (Fault::new(), Fault::new());
    let (one, two) = (first.clone(), second.clone());
    let p = meddled("p", move |_, event| match event.global_position() {
        5 => one.strike(),
        11 => two.strike(),
        _ => Ok(()),
    });
    let worker = start(parking(&database, 5), vec![p]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 22);
    first.repair();
    // They are counted at this event, from 1 on.
    for attempts in 1..=4 {
        replay(&mut client, "p");
        let row = eventually("the replay fails", SOON, || {
            parked(&mut client, "p").pop().filter(|row| row.attempts == attempts)
        });
        assert_eq!((row.position, row.is_requested), (11, false));
        assert!(row.error.contains("global position 11 "), "{row:?}");
        assert_eq!(row.errors.len(), usize::try_from(attempts + 1).unwrap().min(3), "{row:?}");
        assert_accounts(&mut client);
    }
    assert_eq!(handled(&mut client, "p"), 25, "the events before it are handled");
    second.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_discarded_event_is_skipped_and_the_rest_is_replayed() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let worker = start(parking(&database, 5), vec![failing("p", &[5], &fault)]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 12);
    discard(&mut client, "p", 5);
    await_handled(&mut client, "p", 19);
    eventually("nothing is parked", SOON, || parked(&mut client, "p").is_empty().then_some(()));
    assert_eq!(accounts(&mut client).unwrap(), [("p".to_owned(), [19, 0, 1, 20])]);
    assert_eq!(projection_metric(&worker, "discarded_events_total", "p"), Some(1.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_halted_projection_continues_after_a_discard() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let builder = parking(&database, 5).on_failure(OnFailure::Halt);
    let worker = start(builder, vec![failing("p", &[5], &fault)]);
    let error = await_halted(&worker, "p");
    let id: String =
        client.query_one("SELECT event_id::text FROM events WHERE global_position = 5", &[]).unwrap().get(0);
    let command = format!("worker discard p --event {id} --reason");
    assert!(error.contains(&command), "{error}");
    let reported = "SELECT error FROM orchestrator_checkpoints WHERE state = 'halted'";
    let reported: String =
        eventually("the halt is reported", SOON, || client.query_opt(reported, &[]).unwrap().map(|row| row.get(0)));
    assert!(reported.contains(&command), "{reported}");
    discard(&mut client, "p", 5);
    await_handled(&mut client, "p", 19);
    eventually("the projection runs", SOON, || {
        (worker.status().projections["p"].state == ProjectionState::Running).then_some(())
    });
    assert_eq!(accounts(&mut client).unwrap(), [("p".to_owned(), [19, 0, 1, 20])]);
    worker.shutdown(SOON).unwrap();
}

/// An event that no handler counted, and one that no handler handled: the accounts do not agree.
#[test]
fn a_skipped_event_makes_the_accounts_disagree() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let worker = start(parking(&database, 5), vec![Box::new(Ledger::named("p"))]);
    await_handled(&mut client, "p", 10);
    worker.shutdown(SOON).unwrap();
    assert_accounts(&mut client);
    append_plainly(&mut client, 2, 2);
    let skip = "UPDATE orchestrator_checkpoints SET position = (SELECT min(global_position) FROM events WHERE global_position > position)";
    client.batch_execute(skip).unwrap();
    let worker = start(parking(&database, 5), vec![Box::new(Ledger::named("p"))]);
    await_handled(&mut client, "p", 11);
    worker.shutdown(SOON).unwrap();
    assert_eq!(accounts(&mut client).unwrap(), [("p".to_owned(), [11, 0, 0, 12])]);
}

#[test]
fn failures_that_pass_never_park() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let calls = Arc::new(AtomicUsize::new(0));
    let noted = calls.clone();
    let p = meddled("p", move |tx, event| {
        if event.global_position() != 5 || noted.fetch_add(1, Ordering::SeqCst) >= 8 {
            return Ok(());
        }
        match noted.load(Ordering::SeqCst) % 4 {
            0 => Err(Passing::new("the service is away").into()),
            1 => Ok(tx.batch_execute("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '40001'; END $$")?),
            2 => Ok(tx.batch_execute("DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '53100'; END $$")?),
            _ => Ok(tx.batch_execute("SET LOCAL statement_timeout = 1; SELECT pg_sleep(1)")?),
        }
    });
    let worker = start(parking(&database, 5), vec![p]);
    await_complete(&mut client, "p");
    assert_eq!(projection_metric(&worker, "parked_events_total", "p"), Some(0.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_deferred_constraint_parks_only_its_event() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "CREATE TABLE seen (position bigint, UNIQUE (position) DEFERRABLE INITIALLY DEFERRED);
             INSERT INTO seen VALUES (13)",
        )
        .unwrap();
    append_plainly(&mut client, 40, 8);
    let p = meddled("p", |tx, event| {
        tx.execute("INSERT INTO seen VALUES ($1)", &[&event.global_position()])?;
        Ok(())
    });
    let worker = start(parking(&database, 5), vec![p]);
    let rows = await_parked(&mut client, "p", 1);
    assert_eq!((rows[0].position, rows[0].aggregate.as_str()), (13, "thing-4"));
    await_handled(&mut client, "p", 36);
    client.batch_execute("DELETE FROM seen WHERE position = 13").unwrap();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// Handles all given events with one statement, which fails if one of them is bad.
struct InBulk {
    fault: Fault,
    calls: Arc<AtomicUsize>,
}

impl BatchProjection for InBulk {
    fn name(&self) -> &str {
        "p"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        if events.iter().any(|event| [100, 103].contains(&event.global_position())) {
            self.fault.strike()?;
        }
        let positions: Vec<i64> = events.iter().map(Event::global_position).collect();
        tx.execute(
            "INSERT INTO ledger (projection, global_position, aggregate_id, aggregate_version)
             SELECT 'p', global_position, aggregate_id, aggregate_version FROM events
             WHERE global_position = ANY ($1) ORDER BY global_position",
            &[&positions],
        )?;
        Ok(events.len())
    }
}

#[test]
fn the_failing_event_of_a_slice_is_found_and_parked_alone() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 500, 10);
    let (fault, calls) = (Fault::new(), Arc::new(AtomicUsize::new(0)));
    let projection = InBulk { fault: fault.clone(), calls: calls.clone() };
    let worker = start(parking(&database, 5).batch_projection(projection), vec![]);
    let rows = await_parked(&mut client, "p", 2);
    let found: Vec<(i64, &str)> = rows.iter().map(|row| (row.position, row.aggregate.as_str())).collect();
    assert_eq!(found, [(103, "thing-2"), (100, "thing-9")]);
    assert!(rows[1].error.contains("global position 100 "), "{rows:?}");
    await_handled(&mut client, "p", 500 - 41 - 40);
    let tried = calls.load(Ordering::SeqCst);
    assert!(tried < 120, "{tried} calls");
    fault.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A ledger that waits at an event until the test lets it go on.
fn gated(name: &'static str, at: i64, fault: &Fault) -> (Box<dyn Projection>, Receiver<()>, Sender<()>) {
    let (arrived, arrivals) = bounded(100);
    let (open, gate) = bounded::<()>(0);
    let fault = fault.clone();
    let projection = meddled(name, move |_, event| {
        if event.global_position() == 5 {
            fault.strike()?;
        }
        if event.global_position() == at {
            _ = arrived.try_send(());
            _ = gate.recv_timeout(SOON);
        }
        Ok(())
    });
    (projection, arrivals, open)
}

/// The checkpoint gets a new token in the middle of a portion, as by any deal.
#[test]
fn a_portion_is_fenced_by_the_token_of_its_checkpoint() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let (projection, arrivals, open) = gated("p", 11, &fault);
    let worker = start(parking(&database, 5), vec![projection]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 12);
    fault.repair();
    replay(&mut client, "p");
    arrivals.recv_timeout(SOON).unwrap();
    client.batch_execute("UPDATE orchestrator_checkpoints SET token = DEFAULT").unwrap();
    drop(open);
    await_complete(&mut client, "p");
    assert_eq!(projection_metric(&worker, "fenced_batches_total", "p"), Some(1.0));
    worker.shutdown(SOON).unwrap();
}

/// The row of the parked aggregate moves in the middle of a portion, as if a commit whose outcome
/// was unknown had succeeded.
#[test]
fn a_portion_is_fenced_by_the_position_of_its_aggregate() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let (projection, arrivals, open) = gated("p", 11, &fault);
    let worker = start(parking(&database, 5), vec![projection]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 12);
    fault.repair();
    replay(&mut client, "p");
    arrivals.recv_timeout(SOON).unwrap();
    // Events 5 and 7.
    client
        .batch_execute(
            "BEGIN; INSERT INTO ledger (projection, global_position, aggregate_id, aggregate_version)
                 SELECT 'p', global_position, aggregate_id, aggregate_version FROM events WHERE global_position IN (5, 7)
                 ORDER BY 2;
             UPDATE orchestrator_checkpoints SET handled = handled + 2;
             UPDATE orchestrator_parked SET position = 9, event_id = (SELECT event_id FROM events WHERE global_position = 9);
             COMMIT",
        )
        .unwrap();
    drop(open);
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A batch that skipped the aggregate begins before its replay ends, and commits afterwards.
#[test]
fn the_end_of_a_replay_gives_the_checkpoint_a_new_token() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let worker = start(parking(&database, 5), vec![failing("p", &[5], &fault)]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 12);
    let token = "SELECT token FROM orchestrator_checkpoints";
    let passed = "SELECT FROM orchestrator_checkpoints WHERE position = 20";
    eventually("the checkpoint has passed all", SOON, || client.query_opt(passed, &[]).unwrap());
    let before: i64 = client.query_one(token, &[]).unwrap().get(0);
    fault.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    assert_ne!(client.query_one(token, &[]).unwrap().get::<_, i64>(0), before);
    worker.shutdown(SOON).unwrap();
}

/// A ledger that takes this long for each event, and fails at position 5 as long as there is a
/// fault.
fn slow(name: &'static str, takes: Duration, fault: &Fault) -> Box<dyn Projection> {
    let fault = fault.clone();
    let before = move |_: &mut Tx<'_>, event: &Event| {
        if event.global_position() == 5 { fault.strike() } else { Ok(()) }
    };
    Box::new(Meddled { ledger: Ledger { takes, ..Ledger::named(name) }, before: Box::new(before) })
}

/// Events of the parked aggregate that arrive while it is being replayed are handled after the
/// others, and none is lost.
#[test]
fn a_replay_runs_beside_new_events_and_keeps_the_order() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 300, 3);
    let fault = Fault::new();
    let projection = slow("p", Duration::from_millis(1), &fault);
    let worker = start(parking(&database, 5).batch_size(10), vec![projection]);
    await_parked(&mut client, "p", 1);
    fault.repair();
    replay(&mut client, "p");
    for _ in 0..100 {
        append_plainly(&mut client, 6, 3);
    }
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A transaction handles one event, so the runner has read more than it has handled when the replay
/// ends: events of the aggregate, which it has left out, come next.
#[test]
fn what_was_read_before_a_replay_ended_is_read_again() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 900, 3);
    let fault = Fault::new();
    let projection = slow("p", Duration::from_millis(2), &fault);
    let worker = start(parking(&database, 5).batch_time(Duration::from_millis(1)), vec![projection]);
    await_parked(&mut client, "p", 1);
    fault.repair();
    replay(&mut client, "p");
    eventually("the replay ends", SOON, || parked(&mut client, "p").is_empty().then_some(()));
    assert!(handled(&mut client, "p") < 900, "the replay should end before all events are handled");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// All events belong to the parked aggregate, so the checkpoint moves past new ones without
/// handling any, at first only in memory.
#[test]
fn events_that_were_only_passed_in_memory_are_replayed() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 200, 1);
    let fault = Fault::new();
    let projection = slow("p", Duration::from_millis(3), &fault);
    let worker = start(parking(&database, 5).batch_size(20), vec![projection]);
    await_parked(&mut client, "p", 1);
    fault.repair();
    replay(&mut client, "p");
    eventually("the replay ends", SOON, || {
        append_plainly(&mut client, 1, 1);
        parked(&mut client, "p").is_empty().then_some(())
    });
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn parking_and_replays_survive_deals() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 2_000, 40);
    let fault = Fault::new();
    let bad = |fault: &Fault| failing("p", &[50, 51, 52, 500, 501, 502], fault);
    let at_work = || parking(&database, 50).batch_size(50);
    let first = start(at_work(), vec![bad(&fault)]);
    eventually("one is parked", SOON, || (!parked(&mut client, "p").is_empty()).then_some(()));
    let second = start(at_work().lanes(2), vec![bad(&fault)]);
    await_parked(&mut client, "p", 6);
    fault.repair();
    replay(&mut client, "p");
    let third = start(at_work(), vec![bad(&fault)]);
    append_plainly(&mut client, 400, 40);
    first.shutdown(SOON).unwrap();
    replay(&mut client, "p");
    await_running(&[&second, &third]);
    append_plainly(&mut client, 400, 40);
    second.shutdown(SOON).unwrap();
    await_complete(&mut client, "p");
    third.shutdown(SOON).unwrap();
}

#[test]
fn what_is_parked_is_replayed_at_the_start_if_so_configured() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let worker = start(parking(&database, 5), vec![failing("p", &[5], &fault)]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 12);
    worker.shutdown(SOON).unwrap();
    fault.repair();
    let builder = parking(&database, 5).on_failure(OnFailure::park(5).replay_at_start());
    let worker = start(builder, vec![failing("p", &[5], &fault)]);
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A replay tells the handler that it is one only for events that were handled before a rewind.
#[test]
fn a_parked_event_is_no_replay_unless_a_rewind_came_before() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let fault = Fault::new();
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (struck, noted) = (fault.clone(), seen.clone());
    let p = meddled("p", move |tx, event| {
        if event.global_position() == 5 {
            struck.strike()?;
        }
        if event.aggregate_version() % 2 == 1 {
            noted.lock().push((event.global_position(), tx.is_replay()));
        }
        Ok(())
    });
    let worker = start(parking(&database, 5), vec![p]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 12);
    fault.repair();
    client.batch_execute("UPDATE orchestrator_parked SET highest = 10").unwrap();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    let mut seen: Vec<(i64, bool)> = seen.lock().iter().copied().filter(|(position, _)| position % 2 == 1).collect();
    seen.dedup();
    assert_eq!(seen, [(1, false), (5, true), (9, true), (13, false), (17, false)]);
    worker.shutdown(SOON).unwrap();
}

/// Appends this many events of the aggregate `poison-1`.
fn append_poison(client: &mut Client, events: i64) {
    let columns = [("aggregate_id", "'poison-1'"), ("event_type", "'Poison'"), ("aggregate_version", "i")];
    client.execute(&insert("generate_series(1, $1::bigint) AS i", &columns), &[&events]).unwrap();
}

#[track_caller]
fn await_read_models(client: &mut Client) {
    assert_read_models_become_right(client);
    assert_accounts(client);
}

const SHORT_WAITS: [(&str, &str); 5] = [
    ("SESSION_LOSS_GRACE", "200ms"),
    ("POLL_INTERVAL", "100ms"),
    ("RETRY_FIRST_DELAY", "20ms"),
    ("RETRY_ATTEMPTS", "3"),
    ("ON_FAILURE", "park:5"),
];

fn worker_with(url: &str, more: &[(&str, &str)]) -> WorkerProcess {
    WorkerProcess::start_program("chaos_worker", url, &[&SHORT_WAITS, more].concat())
}

/// Starts workers again whenever they end, until this is true. Returns how often they have ended.
#[track_caller]
fn supervised(url: &str, options: &[(&str, &str)], mut is_over: impl FnMut() -> bool) -> usize {
    let mut workers = [(); 2].map(|()| worker_with(url, options));
    let mut crashes = 0;
    eventually("the workers come to an end", 2 * SOON, || {
        for process in &mut workers {
            if process.ended().is_some() {
                crashes += 1;
                *process = worker_with(url, options);
            }
        }
        is_over().then_some(())
    });
    crashes
}

#[test]
fn an_event_that_ends_every_process_is_parked_and_given_up() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 50, 10);
    append_poison(&mut client, 3);
    append_plainly(&mut client, 50, 10);
    let mut observer = database.client();
    let aborts = [("ABORT_ON", "Poison")];
    let crashes = supervised(database.url(), &aborts, || parked(&mut observer, "event_type_counts").len() == 1);
    assert_eq!(crashes, 3, "as often as it may be tried");
    let row = parked(&mut client, "event_type_counts").remove(0);
    assert_eq!((row.aggregate.as_str(), row.position, row.attempts), ("poison-1", 51, 3));
    assert!(row.error.contains("were interrupted") && row.error.contains("global position 51 "), "{row:?}");

    // Its replay does not end the workers without end.
    replay(&mut client, "event_type_counts");
    let is_given_up = || {
        let row = parked(&mut observer, "event_type_counts").remove(0);
        row.attempts == 4 && !row.is_requested
    };
    let crashes = supervised(database.url(), &aborts, is_given_up);
    assert_eq!(crashes, 3);
    let row = parked(&mut client, "event_type_counts").remove(0);
    assert!(row.error.contains("3 attempts") && row.error.contains("global position 51 "), "{row:?}");
    assert_eq!((row.position, row.errors.len()), (51, 2));

    let _fixed = worker_with(database.url(), &[("ON_FAILURE", "park:5:replay-at-start")]);
    await_read_models(&mut client);
    assert!(parked(&mut client, "event_type_counts").is_empty());
}

#[test]
fn a_replay_whose_process_is_killed_is_continued_by_another() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let small = [("BATCH_SIZE", "10")];
    let mut first = worker_with(database.url(), &small);
    first.await_processing(1);
    await_read_models(&mut client);
    client
        .batch_execute("ALTER TABLE aggregate_activity ADD CONSTRAINT wrong CHECK (aggregate_id <> 'poison-1')")
        .unwrap();
    append_poison(&mut client, 200);
    append_plainly(&mut client, 20, 2);
    let row = await_parked(&mut client, "aggregate_activity", 1).remove(0);
    assert!(row.error.contains("wrong"), "{row:?}");
    client
        .batch_execute(
            "ALTER TABLE aggregate_activity DROP CONSTRAINT wrong;
             CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN IF new.aggregate_id = 'poison-1' THEN PERFORM pg_sleep(0.05); END IF; RETURN new; END $$;
             CREATE TRIGGER slow BEFORE INSERT OR UPDATE ON aggregate_activity FOR EACH ROW EXECUTE FUNCTION slow()",
        )
        .unwrap();
    replay(&mut client, "aggregate_activity");
    let mut position = row.position;
    for _ in 0..3 {
        let next = worker_with(database.url(), &small);
        position = eventually("the replay makes progress", SOON, || {
            parked(&mut client, "aggregate_activity").first().map(|row| row.position).filter(|at| *at > position + 20)
        });
        first.signal(Signal::KILL);
        first.await_end();
        assert_accounts(&mut client);
        first = next;
    }
    await_read_models(&mut client);
    eventually("nothing is parked", SOON, || parked(&mut client, "aggregate_activity").is_empty().then_some(()));
    await_read_models(&mut client);
}

/// A replay that stops because the keys are redistributed has ended by itself, however often.
#[test]
fn clean_ends_of_a_replay_do_not_count() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let (fault, away) = (Fault::new(), Fault::new());
    let calls = Arc::new(AtomicUsize::new(0));
    let (struck, gone, noted) = (fault.clone(), away.clone(), calls.clone());
    let p = meddled("p", move |_, event| {
        if event.global_position() == 5 {
            struck.strike()?;
            noted.fetch_add(1, Ordering::SeqCst);
            gone.strike().map_err(Passing::new)?;
        }
        Ok(())
    });
    let worker = start(parking(&database, 5), vec![p]);
    await_parked(&mut client, "p", 1);
    fault.repair();
    replay(&mut client, "p");
    for _ in 0..5 {
        let before = calls.load(Ordering::SeqCst);
        // More often than within one poll, so that the runner has loaded its rows again.
        eventually("the event is tried", SOON, || (calls.load(Ordering::SeqCst) > before + 20).then_some(()));
        client.batch_execute("UPDATE orchestrator_projections SET deal = DEFAULT").unwrap();
    }
    assert_eq!(parked(&mut client, "p")[0].attempts, 2);
    away.repair();
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A rewind begins below some of what is parked, and above the rest.
#[test]
fn a_rewind_keeps_what_is_parked_below_it() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 40, 4);
    let fault = Fault::new();
    let worker = start(parking(&database, 5), vec![Box::new(Rewound(failing("p", &[5, 22], &fault)))]);
    await_parked(&mut client, "p", 2);
    await_handled(&mut client, "p", 26);
    let rewind = r#"SELECT orchestrator_command('p', 'rewind', '{"to_position": 12}')"#;
    client.batch_execute(rewind).unwrap();
    eventually("the projection is rewound", SOON, || {
        let sql = "SELECT FROM orchestrator_commands WHERE outcome = 'done'";
        client.query_opt(sql, &[]).unwrap()
    });
    let rows = await_parked(&mut client, "p", 2);
    assert_eq!(rows.iter().map(|row| row.position).collect::<Vec<_>>(), [5, 22], "the second has failed again");
    await_handled(&mut client, "p", 26);
    assert_accounts(&mut client);
    fault.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A projection whose read model can be cleared.
struct Rewound(Box<dyn Projection>);

impl Projection for Rewound {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.0.handle(tx, event)
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        tx.execute("DELETE FROM ledger WHERE projection = $1 AND global_position > $2", &[&self.name(), &to])?;
        Ok(())
    }
}

/// The projection halts again while its only parked aggregate is being replayed. It does not wait
/// for its next attempt when that has made room.
#[test]
fn a_replay_that_makes_room_ends_a_halt_at_once() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 100, 2);
    let (first, second) = (Fault::new(), Fault::new());
    let (one, two) = (first.clone(), second.clone());
    let p = meddled("p", move |_, event| match event.global_position() {
        5 => one.strike(),
        96 => two.strike(),
        _ => Ok(()),
    });
    let retry = Retry::default().attempts(1).halted_interval(LONG);
    let worker = start(parking(&database, 1).retry(retry).batch_size(5), vec![p]);
    await_halted(&worker, "p");
    first.repair();
    replay(&mut client, "p");
    eventually("the other aggregate is parked", SOON, || {
        let rows = parked(&mut client, "p");
        (rows.len() == 1 && rows[0].position == 96).then_some(())
    });
    second.repair();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// What the page on the event store gives to find up to where events may be deleted.
fn removable(client: &mut Client) -> i64 {
    let guide = include_str!("../../src/guide/event_store.md");
    let (_, after) = guide.split_once("<!-- removable -->\n```sql\n").expect("the guide has the query");
    let (sql, _) = after.split_once("```").unwrap();
    client.query_one(sql.trim().trim_end_matches(';'), &[]).unwrap().get(0)
}

#[test]
fn events_that_wait_are_not_among_those_to_delete() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 30, 3);
    let fault = Fault::new();
    let worker = start(parking(&database, 10), vec![failing("p", &[5], &fault)]);
    await_parked(&mut client, "p", 1);
    await_handled(&mut client, "p", 21);
    let upto = removable(&mut client);
    assert_eq!(upto, 4, "the next one waits");
    client.execute("DELETE FROM events WHERE global_position <= $1", &[&upto]).unwrap();
    fault.repair();
    replay(&mut client, "p");
    await_handled(&mut client, "p", 30);
    eventually("the checkpoint has passed all", SOON, || (removable(&mut client) == 30).then_some(()));
    worker.shutdown(SOON).unwrap();
}

/// Parks an aggregate at position 5, deletes the events up to its checkpoint, and replays it.
fn with_missing_event(database: &TestDatabase, client: &mut Client) -> Handle {
    append_plainly(client, 30, 3);
    let fault = Fault::new();
    let projection = Rewound(failing("p", &[5], &fault));
    let worker = start(parking(database, 10), vec![Box::new(projection)]);
    await_parked(client, "p", 1);
    await_handled(client, "p", 21);
    append_plainly(client, 3, 3);
    await_handled(client, "p", 23);
    let delete = "CREATE TABLE kept AS SELECT * FROM events WHERE global_position <= 30; DELETE FROM events WHERE global_position <= 30";
    client.batch_execute(delete).unwrap();
    fault.repair();
    for attempts in 3..=4 {
        replay(client, "p");
        let row = eventually("the replay fails", SOON, || {
            parked(client, "p").pop().filter(|row| !row.is_requested && row.attempts == attempts)
        });
        assert_eq!(row.position, 5);
        for part in ["global position 5 ", "is missing", "insert it again", "rewind the projection to position 4"] {
            assert!(row.error.contains(part), "{row:?} should contain {part:?}");
        }
    }
    worker
}

#[test]
fn a_deleted_event_stays_parked_until_it_is_restored() {
    let database = database();
    let mut client = prepared(&database);
    let worker = with_missing_event(&database, &mut client);
    client.batch_execute("INSERT INTO events SELECT * FROM kept").unwrap();
    replay(&mut client, "p");
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_rewind_gives_up_an_event_that_is_lost() {
    let database = database();
    let mut client = prepared(&database);
    let worker = with_missing_event(&database, &mut client);
    client.batch_execute(r#"SELECT orchestrator_command('p', 'rewind', '{"to_position": 4}')"#).unwrap();
    // Those below the position, and those that are left.
    await_handled(&mut client, "p", 4 + 3);
    assert!(parked(&mut client, "p").is_empty());
    worker.shutdown(SOON).unwrap();
}

/// Parks an aggregate at position 5 and halts at position 6. When the first fault is repaired, the
/// event at 5 fails this many times for a reason that passes.
fn halted_beside_a_delayed_replay(
    builder: Builder,
    passing: usize,
    halt: impl Fn(&mut Tx<'_>) -> Result<(), BoxError> + Send + Sync + 'static,
) -> (Handle, Fault) {
    let fault = Fault::new();
    let (struck, calls) = (fault.clone(), AtomicUsize::new(0));
    let p = meddled("p", move |tx, event| match event.global_position() {
        5 => {
            struck.strike()?;
            let is_away = calls.fetch_add(1, Ordering::SeqCst) < passing;
            if is_away { Err(Passing::new("the service is away").into()) } else { Ok(()) }
        }
        6 => halt(tx),
        _ => Ok(()),
    });
    let worker = start(builder, vec![p]);
    await_halted(&worker, "p");
    (worker, fault)
}

fn parking_one(database: &TestDatabase, interval: Option<Duration>) -> Builder {
    let retry = Retry::default().attempts(1).first_delay(SHORT).longest_delay(SHORT);
    let retry = match interval {
        Some(interval) => retry.halted_interval(interval),
        None => retry.stay_halted(),
    };
    parking(database, 1).retry(retry)
}

#[test]
fn a_delayed_replay_goes_on_while_its_projection_is_halted() {
    for interval in [Some(LONG), None] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 20, 2);
        let (worker, fault) =
            halted_beside_a_delayed_replay(parking_one(&database, interval), 3, |_| Err("nothing works".into()));
        fault.repair();
        replay(&mut client, "p");
        eventually("the replay ends", SOON, || {
            parked(&mut client, "p").iter().all(|row| row.position != 5).then_some(())
        });
        assert_accounts(&mut client);
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn a_delayed_replay_goes_on_after_a_halt_for_good() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let (worker, fault) = halted_beside_a_delayed_replay(parking_one(&database, Some(LONG)), 3, |tx| {
        Ok(tx.batch_execute("ROLLBACK; BEGIN")?)
    });
    fault.repair();
    replay(&mut client, "p");
    eventually("nothing is parked", SOON, || parked(&mut client, "p").is_empty().then_some(()));
    assert!(await_halted(&worker, "p").contains("has ended the transaction"));
    assert_accounts(&mut client);
    worker.shutdown(SOON).unwrap();
}

/// A replay that is delayed again and again does not keep a halted projection from trying.
#[test]
fn a_delayed_replay_does_not_prolong_a_halt() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let other = Fault::new();
    let struck = other.clone();
    let builder = parking_one(&database, Some(10 * SHORT));
    let (worker, fault) = halted_beside_a_delayed_replay(builder, usize::MAX, move |_| struck.strike());
    fault.repair();
    replay(&mut client, "p");
    eventually("the replay is delayed", SOON, || {
        projection_metric(&worker, "retries_total", "p").filter(|retries| *retries > 5.0)
    });
    await_halted(&worker, "p");
    other.repair();
    await_handled(&mut client, "p", 12);
    worker.shutdown(SOON).unwrap();
}
