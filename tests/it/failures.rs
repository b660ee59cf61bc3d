//! Handlers that fail, in every possible way.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use postgres::Client;
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Builder, Event, Handle, Projection, ProjectionState, ProjectionStatus, Retry, Tx,
};

use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::{metric, projection_metric};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);
const FIRST_DELAY: Duration = Duration::from_millis(40);

/// A worker whose projections are tried three times.
fn start_impatient(database: &TestDatabase, projections: Vec<Box<dyn Projection>>) -> Handle {
    start(impatient(database), projections)
}

fn impatient(database: &TestDatabase) -> Builder {
    let retry = Retry::default().attempts(3).first_delay(FIRST_DELAY);
    builder(database.url(), "set").retry(retry)
}

/// Counts the calls for one event, and records their times.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<Instant>>>);

impl Calls {
    fn note(&self) -> usize {
        let mut calls = self.0.lock();
        calls.push(Instant::now());
        calls.len()
    }

    fn count(&self) -> usize {
        self.0.lock().len()
    }
}

#[track_caller]
fn await_halted(worker: &Handle, projection: &str) -> ProjectionStatus {
    let status = eventually("the projection halts", SOON, || {
        let status = worker.status().projections[projection].clone();
        (status.state == ProjectionState::Halted).then_some(status)
    });
    assert_eq!(projection_metric(worker, "projection_halted", projection), Some(1.0));
    assert_eq!(projection_metric(worker, "projection_errors_total", projection), Some(3.0));
    status
}

fn positions(client: &mut Client, projection: &str) -> Vec<i64> {
    let rows =
        client.query("SELECT global_position FROM ledger WHERE projection = $1 ORDER BY seq", &[&projection]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

fn event_id(client: &mut Client, position: i64) -> String {
    client.query_one("SELECT event_id::text FROM events WHERE global_position = $1", &[&position]).unwrap().get(0)
}

/// Makes the fifth of ten events fail, and checks the result.
fn the_fifth_event_fails(fail: impl Fn() -> Result<(), BoxError> + Send + Sync + 'static, message: &str) {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let calls = Calls::default();
    let bad = {
        let calls = calls.clone();
        meddled("bad", move |_, event| {
            if event.global_position() != 5 {
                return Ok(());
            }
            calls.note();
            fail()
        })
    };
    let worker = start_impatient(&database, vec![bad, Box::new(Ledger::named("good"))]);
    let status = await_halted(&worker, "bad");
    let error = status.error.unwrap();
    for part in ["global position 5 ", &event_id(&mut client, 5), message] {
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }
    assert_eq!(positions(&mut client, "bad"), [1, 2, 3, 4], "what came before is committed, and nothing else");
    assert_eq!((status.position, status.events), (Some(4), 4));
    assert_eq!(projection_metric(&worker, "events_processed_total", "bad"), Some(4.0));
    let attempts: Vec<Duration> = calls.0.lock().windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The first call was in the middle of a batch. The events before it are committed before the
    // attempts begin.
    let delays = &attempts[attempts.len() - 2..];
    assert!(delays[0] >= FIRST_DELAY / 2 && delays[1] >= FIRST_DELAY, "{delays:?}");

    append_plainly(&mut client, 10, 2);
    eventually("the other projection goes on", SOON, || is_complete(&mut client, "good").then_some(()));
    assert_exactly_once(&mut client, "good");
    assert_eq!(projection_metric(&worker, "projection_errors_total", "good"), Some(0.0));
    assert_eq!(projection_metric(&worker, "projection_halted", "good"), Some(0.0));
    assert_eq!(positions(&mut client, "bad").len(), 4);
    assert_eq!(calls.count(), attempts.len() + 1, "it stands still");
    worker.shutdown(SOON).unwrap();
    // A worker whose handler succeeds continues where the other worker stopped.
    let worker = start_impatient(&database, vec![Box::new(Ledger::named("bad"))]);
    eventually("the rest is handled", SOON, || is_complete(&mut client, "bad").then_some(()));
    assert_exactly_once(&mut client, "bad");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn an_error_halts_its_projection_alone() {
    the_fifth_event_fails(|| Err("no such customer".into()), "no such customer");
}

#[test]
fn a_panic_is_an_error() {
    the_fifth_event_fails(|| panic!("index out of thin air"), "the handler panicked: index out of thin air");
}

#[test]
fn a_handler_that_recovers_continues_and_clears_its_error() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let (retrying, seen) = bounded(0);
    let calls = Calls::default();
    let moody = meddled("moody", move |_, event| {
        if event.global_position() == 1 {
            match calls.note() {
                1 => return Err("not yet".into()),
                // Wait until the test has seen the first failure.
                2 => {
                    retrying.send_timeout((), SOON)?;
                    return Err("not yet either".into());
                }
                _ => {}
            }
        }
        Ok(())
    });
    let worker = start_impatient(&database, vec![moody]);
    let status = eventually("it retries", SOON, || {
        let status = worker.status().projections["moody"].clone();
        (status.state == ProjectionState::Retrying).then_some(status)
    });
    assert!(status.error.is_some_and(|error| error.contains("not yet")));
    seen.recv_timeout(SOON).unwrap();
    eventually("all events are handled", SOON, || is_complete(&mut client, "moody").then_some(()));
    assert_exactly_once(&mut client, "moody");
    let status = eventually("it runs", SOON, || {
        let status = worker.status().projections["moody"].clone();
        (status.state == ProjectionState::Running).then_some(status)
    });
    assert_eq!((status.error, status.events), (None, 10));
    assert_eq!(projection_metric(&worker, "projection_errors_total", "moody"), Some(2.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn transient_errors_are_retried_without_counting() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let calls = Calls::default();
    let noted = calls.clone();
    let unlucky = meddled("unlucky", move |tx, event| {
        if event.global_position() == 5 {
            let state = match noted.note() {
                1..=4 => "40001",
                5..=8 => "40P01",
                _ => return Ok(()),
            };
            tx.batch_execute(&format!("DO $$ BEGIN RAISE EXCEPTION 'unlucky' USING ERRCODE = '{state}'; END $$"))?;
        }
        Ok(())
    });
    let worker = start_impatient(&database, vec![unlucky]);
    eventually("all events are handled", SOON, || is_complete(&mut client, "unlucky").then_some(()));
    assert_exactly_once(&mut client, "unlucky");
    assert_eq!(calls.count(), 9);
    assert_eq!(projection_metric(&worker, "projection_errors_total", "unlucky"), Some(0.0));
    assert!(projection_metric(&worker, "retries_total", "unlucky").is_some_and(|retries| retries >= 8.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_lost_connection_is_replaced_and_nothing_is_handled_twice() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 30, 2);
    let calls = Calls::default();
    let noted = calls.clone();
    let suicidal = meddled("suicidal", move |tx, event| {
        if event.global_position() % 10 == 5 && noted.note() <= 5 {
            // The session ends during the statement, and not at any later one.
            tx.execute("SELECT pg_terminate_backend(pg_backend_pid()), pg_sleep(10)", &[])?;
        }
        Ok(())
    });
    let worker = start_impatient(&database, vec![suicidal]);
    eventually("all events are handled", SOON, || is_complete(&mut client, "suicidal").then_some(()));
    assert_exactly_once(&mut client, "suicidal");
    assert!(calls.count() >= 6);
    assert_eq!(projection_metric(&worker, "projection_errors_total", "suicidal"), Some(0.0));
    worker.shutdown(SOON).unwrap();
}

/// With the fifth event, the transaction can no longer be committed, but the handler reports no
/// error.
fn the_commit_is_refused(poison: &'static str, message: &str) {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute("CREATE TABLE deferred (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)").unwrap();
    append_plainly(&mut client, 10, 2);
    let calls = Calls::default();
    let noted = calls.clone();
    let sly = meddled("sly", move |tx, event| {
        if event.global_position() == 5 {
            noted.note();
            _ = tx.batch_execute(poison);
        }
        Ok(())
    });
    let worker = start_impatient(&database, vec![sly, Box::new(Ledger::named("good"))]);
    let error = await_halted(&worker, "sly").error.unwrap();
    assert!(error.contains("global position 5 ") && error.contains(message), "{error:?}");
    assert_eq!(handled(&mut client, "sly"), 4, "what comes before the poisoned event, and nothing from it on");
    assert!(calls.count() < 20, "not tried over and over: {}", calls.count());
    eventually("the other projection goes on", SOON, || is_complete(&mut client, "good").then_some(()));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_swallowed_error_is_not_committed() {
    the_commit_is_refused("SELECT 1 / 0", "current transaction is aborted");
}

#[test]
fn an_error_at_the_commit_halts_as_well() {
    the_commit_is_refused("INSERT INTO deferred VALUES (1), (1)", "deferred_n_key");
}

/// Reports a number of handled events that is wrong.
struct Miscounts(fn(usize) -> usize);

impl BatchProjection for Miscounts {
    fn name(&self) -> &str {
        "miscounts"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        tx.execute("INSERT INTO ledger (projection, global_position, aggregate_id, aggregate_version) VALUES ('miscounts', 0, '', 0)", &[])?;
        Ok(self.0(events.len()))
    }
}

#[test]
fn an_impossible_count_is_refused_by_name() {
    for (count, message) in [
        ((|_| 0) as fn(usize) -> usize, "the handler says that it has handled 0 of 1 events"),
        (|len| len + 1, "the handler says that it has handled 2 of 1 events"),
    ] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 10, 2);
        let worker = start(impatient(&database).batch_projection(Miscounts(count)), vec![]);
        let error = await_halted(&worker, "miscounts").error.unwrap();
        assert!(error.contains(message), "{error}");
        assert_eq!(handled(&mut client, "miscounts"), 0);
        worker.shutdown(SOON).unwrap();
    }
}

/// A projection that reports when it is within a batch, and waits there until the test releases it.
fn gated() -> (Box<dyn Projection>, Receiver<()>, Sender<()>) {
    let (enter, entered) = bounded(0);
    let (release, released) = bounded::<()>(0);
    let first = AtomicUsize::new(0);
    let projection = meddled("gated", move |_, event| {
        if event.global_position() == 5 && first.fetch_add(1, Ordering::Relaxed) == 0 {
            enter.send_timeout((), SOON)?;
            released.recv_timeout(SOON)?;
        }
        Ok(())
    });
    (projection, entered, release)
}

/// Takes the checkpoint away from a handler in the middle of a batch. `repaired` says whether the
/// coordinators can give it back.
fn fenced_by(sql: &str, repaired: bool) {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let (gated, entered, release) = gated();
    let worker = start_impatient(&database, vec![gated, Box::new(Ledger::named("other"))]);
    entered.recv_timeout(SOON).unwrap();
    assert_eq!(client.execute(sql, &[]).unwrap(), 1);
    release.send_timeout((), SOON).unwrap();
    let fenced = || projection_metric(&worker, "fenced_batches_total", "gated");
    eventually("the batch is fenced", SOON, || (fenced() == Some(1.0)).then_some(()));
    if repaired {
        eventually("it is given back", SOON, || is_complete(&mut client, "gated").then_some(()));
        assert_exactly_once(&mut client, "gated");
        assert_eq!(fenced(), Some(1.0));
        worker.shutdown(SOON).unwrap();
        return;
    }
    // For some looks of its coordinator, the worker continues with its own projection and does not
    // touch the other one.
    for _ in 0..3 {
        append_plainly(&mut client, 10, 2);
        eventually("the other projection goes on", SOON, || is_complete(&mut client, "other").then_some(()));
        let heartbeats = || metric(&worker, "heartbeat_latency_seconds_count", &[]);
        let before = heartbeats();
        eventually("the coordinator lives", SOON, || (heartbeats() > before).then_some(()));
    }
    assert_eq!((handled(&mut client, "gated"), fenced()), (0, Some(1.0)));
    assert_eq!(projection_metric(&worker, "projection_errors_total", "gated"), Some(0.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_batch_whose_checkpoint_has_a_new_generation_is_fenced() {
    fenced_by("UPDATE orchestrator_checkpoints SET generation = generation + 1 WHERE projection = 'gated'", true);
}

#[test]
fn a_batch_whose_checkpoint_has_another_worker_commits_nothing() {
    fenced_by("UPDATE orchestrator_checkpoints SET worker_id = gen_random_uuid() WHERE projection = 'gated'", true);
}

#[test]
fn a_batch_whose_checkpoint_is_gone_commits_nothing() {
    fenced_by("DELETE FROM orchestrator_checkpoints WHERE projection = 'gated'", false);
}

#[test]
fn a_batch_whose_checkpoint_has_moved_is_fenced() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let (gated, entered, release) = gated();
    let worker = start_impatient(&database, vec![gated]);
    entered.recv_timeout(SOON).unwrap();
    client.execute("UPDATE orchestrator_checkpoints SET position = 7 WHERE projection = 'gated'", &[]).unwrap();
    release.send_timeout((), SOON).unwrap();
    eventually("the rest is handled", SOON, || (positions(&mut client, "gated") == [8, 9, 10]).then_some(()));
    assert_eq!(projection_metric(&worker, "fenced_batches_total", "gated"), Some(1.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_batch_that_is_retried_is_read_again() {
    for (change, left) in [
        ("UPDATE events SET payload = 'good' WHERE global_position = 7", 20),
        ("DELETE FROM events WHERE global_position = 7", 19),
    ] {
        // First read ahead, and then live.
        for is_live in [false, true] {
            let database = database();
            let mut client = prepared(&database);
            let failed = Arc::new(AtomicUsize::new(0));
            let failures = failed.clone();
            let picky = meddled("p", move |_, event| {
                if event.global_position() == 7 && event.payload() != b"good" {
                    failures.fetch_add(1, Ordering::Relaxed);
                    return Err("not good".into());
                }
                Ok(())
            });
            if !is_live {
                append_plainly(&mut client, 20, 4);
            }
            let retry = Retry::default().attempts(1_000).first_delay(FIRST_DELAY).longest_delay(FIRST_DELAY);
            let worker = start(builder(database.url(), "set").retry(retry), vec![picky]);
            if is_live {
                await_running(&[&worker]);
                append_plainly(&mut client, 20, 4);
            }
            eventually("it is tried again", SOON, || (failed.load(Ordering::Relaxed) > 2).then_some(()));
            client.batch_execute(change).unwrap();
            eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
            assert_exactly_once(&mut client, "p");
            assert_eq!(handled(&mut client, "p"), left, "{change}");
            worker.shutdown(SOON).unwrap();
        }
    }
}
