//! Events whose handlers end more than a batch: a connection, a process or the server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{BoxError, Handle, Passing, ProjectionState, ProjectionStatus, Retry, Tx};
use uuid::Uuid;

use crate::support::cluster::assert_read_models_become_right;
use crate::support::handlers::{meddled, prepared};
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::projection_metric;
use crate::support::proxies::Switch;
use crate::support::statements::{start_logging_server, statements};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, database, eventually};

const SOON: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);
/// So long that no test reaches it.
const LONG: Duration = Duration::from_secs(3600);

/// Three attempts, with short delays.
fn impatient() -> Retry {
    Retry::default().attempts(3).first_delay(SHORT).longest_delay(SHORT).halted_interval(LONG)
}

fn status(worker: &Handle, projection: &str) -> ProjectionStatus {
    worker.status().projections[projection].clone()
}

#[track_caller]
fn await_halted(worker: &Handle, projection: &str) -> String {
    eventually("the projection halts", SOON, || {
        let status = status(worker, projection);
        (status.state == ProjectionState::Halted).then_some(status.error.unwrap_or_default())
    })
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

/// State, error, attempts and recorded attempt of the projection's only checkpoint.
fn reported(client: &mut Client, projection: &str) -> (String, Option<String>, i32, Option<i64>) {
    let sql = "SELECT state, error, attempts, attempt_position FROM orchestrator_checkpoints WHERE projection = $1";
    let row = client.query_one(sql, &[&projection]).unwrap();
    (row.get(0), row.get(1), row.get(2), row.get(3))
}

/// The same, after the checkpoint says that the projection has halted.
#[track_caller]
fn reported_halt(client: &mut Client, projection: &str) -> (String, Option<String>, i32, Option<i64>) {
    eventually("the halt is reported", SOON, || {
        Some(reported(client, projection)).filter(|(state, ..)| state == "halted")
    })
}

fn nothing() -> (String, Option<String>, i32, Option<i64>) {
    ("running".into(), None, 0, None)
}

/// Runs two workers, and starts each again whenever it ends, until one logs that the projection has
/// halted. Returns how many workers the event has ended, and that line.
fn supervised(url: &str, options: &[(&str, &str)]) -> (usize, String) {
    let worker = || WorkerProcess::start_program("chaos_worker", url, options);
    let mut workers = [worker(), worker()];
    let mut crashes = 0;
    let line = eventually("the projection halts", SOON, || {
        for process in &mut workers {
            if process.ended().is_some() {
                crashes += 1;
                *process = worker();
            }
        }
        workers
            .iter_mut()
            .find_map(|process| process.log().iter().find(|line| line.contains("projection halted")).cloned())
    });
    (crashes, line)
}

#[test]
fn an_event_that_aborts_every_process_halts_its_projection() {
    let database = database();
    let mut client = database.client();
    client.batch_execute(&pupsourcing_orchestrator::Names::default().schema_sql()).unwrap();
    append_plainly(&mut client, 50, 10);
    let columns = [("aggregate_id", "'poison-1'"), ("event_type", "'Poison'"), ("aggregate_version", "1")];
    let poison: Uuid = client
        .query_one(&format!("{} RETURNING event_id", insert("generate_series(1, 1)", &columns)), &[])
        .unwrap()
        .get(0);
    append_plainly(&mut client, 50, 10);
    let short = [
        ("ABORT_ON", "Poison"),
        ("SESSION_LOSS_GRACE", "200ms"),
        ("POLL_INTERVAL", "100ms"),
        ("RETRY_ATTEMPTS", "4"),
        ("RETRY_FIRST_DELAY", "20ms"),
    ];
    let (crashes, line) = supervised(database.url(), &short);
    assert_eq!(crashes, 4, "as often as it may be tried");
    for part in [
        "projection=event_type_counts attempts=4",
        "Poison of test/",
        "/poison-1 at global position 51 ",
        &poison.to_string(),
    ] {
        assert!(line.contains(part), "{line:?} should contain {part:?}");
    }
    let sql = "SELECT attempts, error FROM orchestrator_checkpoints WHERE attempt_event_id = $1 AND state = 'halted'";
    let reported = eventually("the halt is reported", SOON, || client.query_opt(sql, &[&poison]).unwrap());
    assert_eq!(reported.get::<_, i32>(0), 4);
    assert!(reported.get::<_, String>(1).contains("poison-1"));

    // Restarts do not retry the event, and the other projection is not affected.
    let mut again = WorkerProcess::start_program("chaos_worker", database.url(), &short);
    again.await_line(&["projection halted", "projection=event_type_counts attempts=4"]);
    let sql = "SELECT coalesce(sum(events), 0) = (SELECT count(*) FROM events) FROM aggregate_activity";
    eventually("the other projection has all events", SOON, || {
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert!(again.ended().is_none());
    drop(again);

    // Now a handler that can handle the event.
    let fixed = [("RETRY_ATTEMPTS", "4"), ("RETRY_HALTED_INTERVAL", "300ms"), ("SESSION_LOSS_GRACE", "200ms")];
    let _worker = WorkerProcess::start_program("chaos_worker", database.url(), &fixed);
    assert_read_models_become_right(&mut client);
    let cleared = "SELECT count(*) FROM orchestrator_checkpoints WHERE state <> 'running' OR attempts > 0";
    eventually("nothing is reported any more", SOON, || {
        (client.query_one(cleared, &[]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
}

#[test]
fn an_event_that_crashes_the_server_halts_its_projection_alone() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("crashes").unwrap();
    let connect = || eventually("the server is back", SOON, || Client::connect(&url, NoTls).ok());
    let mut client = connect();
    client.batch_execute(&pupsourcing_orchestrator::Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    append_plainly(&mut client, 10, 2);
    let kills = Arc::new(AtomicUsize::new(0));
    let counted = kills.clone();
    let murderous = meddled("murderous", move |tx, event| {
        if event.global_position() == 5 {
            counted.fetch_add(1, Ordering::Relaxed);
            kill_backend(&tx.query_one("SELECT pg_backend_pid()", &[])?)?;
            tx.execute("SELECT pg_sleep(10)", &[])?;
        }
        Ok(())
    });
    // This projection is in the middle of a transaction whenever the server crashes.
    let innocent = Box::new(Ledger { takes: Duration::from_millis(100), ..Ledger::named("innocent") });
    let worker = start(builder(&url, "set").retry(impatient()), vec![murderous, innocent]);
    let error = await_halted(&worker, "murderous");
    for part in ["3 attempts", "Happened of test/Thing/thing-0 at global position 5 "] {
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }
    assert_eq!(kills.load(Ordering::Relaxed), 3);
    let mut client = connect();
    await_complete(&mut client, "innocent");
    assert_eq!(handled(&mut client, "murderous"), 4, "what comes before it, and nothing else");
    let (_, error, attempts, position) = reported_halt(&mut client, "murderous");
    assert_eq!((attempts, position), (3, Some(5)));
    assert!(error.unwrap().contains("global position 5 "));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_session_ended_by_the_crash_of_another_does_not_count() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("crash").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&pupsourcing_orchestrator::Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    append_plainly(&mut client, 10, 2);
    let attempts = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let noted = attempts.clone();
    let waiting = meddled("p", move |tx, event| {
        if event.global_position() == 5 {
            let recorded = tx.query_one("SELECT attempts FROM orchestrator_checkpoints", &[])?;
            let is_first = noted.lock().is_empty();
            noted.lock().push(recorded.get::<_, i32>(0));
            if is_first {
                tx.execute("SELECT pg_sleep(60)", &[])?;
            }
        }
        Ok(())
    });
    let worker = start(builder(&url, "set").retry(impatient()), vec![waiting]);
    let sleeps = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    eventually("the handler's statement runs", SOON, || client.query_opt(sleeps, &[]).unwrap());
    let mut witness = Client::connect(&url, NoTls).unwrap();
    kill_backend(&client.query_one("SELECT pg_backend_pid()", &[]).unwrap()).unwrap();
    eventually("the other sessions are ended", SOON, || witness.batch_execute("").err());
    let mut client = eventually("the server is back", SOON, || Client::connect(&url, NoTls).ok());
    await_complete(&mut client, "p");
    assert_eq!(*attempts.lock(), [1, 1], "the second attempt is recorded as the first was");
    worker.shutdown(SOON).unwrap();
}

/// Makes the fifth of ten events lose its connection by calling `lose`, which is given the switch
/// through which all connections lead. Returns the error with which the projection halts.
fn halts_by_loss(lose: impl Fn(&Switch, &mut Tx<'_>) -> Result<(), BoxError> + Send + Sync + 'static) -> String {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let port: i32 = client.query_one("SELECT current_setting('port')::int", &[]).unwrap().get(0);
    let switch = Switch::start(port.try_into().unwrap());
    let calls = Arc::new(AtomicUsize::new(0));
    let (noted, cutter) = (calls.clone(), switch.clone());
    let bad = meddled("bad", move |tx, event| {
        if event.global_position() == 5 {
            noted.fetch_add(1, Ordering::Relaxed);
            lose(&cutter, tx)?;
        }
        Ok(())
    });
    let url = format!("postgres://postgres@127.0.0.1:{}/{}", switch.port, database.name());
    let worker = start(builder(&url, "set").retry(impatient()), vec![bad]);
    let error = await_halted(&worker, "bad");
    for part in ["3 attempts", "Happened of test/Thing/thing-0 at global position 5 "] {
        assert!(error.contains(part), "{error:?} should contain {part:?}");
    }
    assert_eq!((calls.load(Ordering::Relaxed), handled(&mut client, "bad")), (3, 4));
    let (_, reported, attempts, position) = reported_halt(&mut client, "bad");
    assert_eq!((attempts, position), (3, Some(5)));
    assert_eq!(reported, Some(error.clone()));
    worker.shutdown(SOON).unwrap();
    error
}

#[test]
fn an_event_that_loses_its_connection_halts_its_projection() {
    // The connection ends without a message from the server.
    halts_by_loss(|switch, tx| {
        switch.cut_one(tx.query_one("SELECT inet_client_port()", &[])?.get(0));
        Ok(tx.batch_execute("SELECT")?)
    });
    // The server ends the session because of what the handler does in it (25P03).
    halts_by_loss(|_, tx| {
        tx.batch_execute("SET LOCAL idle_in_transaction_session_timeout = '50ms'")?;
        let lost = eventually("the session ends", SOON, || {
            crossbeam_channel::never::<()>().recv_timeout(Duration::from_millis(100)).unwrap_err();
            tx.batch_execute("SELECT").err()
        });
        Err(lost.into())
    });
}

/// This is the only loss that does not count, because the server cannot tell who ordered it.
#[test]
fn an_event_whose_session_is_terminated_by_order_is_retried() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let calls = Arc::new(AtomicUsize::new(0));
    let noted = calls.clone();
    let suicidal = meddled("p", move |tx, event| {
        // More often than attempts are allowed.
        if event.global_position() == 5 && noted.fetch_add(1, Ordering::Relaxed) < 6 {
            tx.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())")?;
        }
        Ok(())
    });
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![suicidal]);
    await_complete(&mut client, "p");
    assert_eq!(calls.load(Ordering::Relaxed), 7);
    assert_eq!(projection_metric(&worker, "projection_errors_total", "p"), Some(0.0));
    worker.shutdown(SOON).unwrap();
}

/// Kills the server process with this id. The whole server ends with it and starts again.
fn kill_backend(pid: &postgres::Row) -> Result<(), BoxError> {
    let pid = rustix::process::Pid::from_raw(pid.get(0)).ok_or("no process")?;
    Ok(rustix::process::kill_process(pid, rustix::process::Signal::KILL)?)
}

/// Records attempts that have not ended, like an owner that has died.
fn leave_attempts(client: &mut Client, attempts: i32, position: i64) {
    let sql = "INSERT INTO orchestrator_replica_sets (name) VALUES ('set') ON CONFLICT DO NOTHING";
    client.batch_execute(sql).unwrap();
    client.execute("INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set')", &[]).unwrap();
    let sql = "INSERT INTO orchestrator_checkpoints (projection, keys, position, attempts, attempt_position, attempt_event_id)
               SELECT 'p', '{[0,65536)}', 0, $1, global_position, event_id FROM events WHERE global_position = $2";
    assert_eq!(client.execute(sql, &[&attempts, &position]).unwrap(), 1);
}

#[test]
fn a_new_owner_halts_at_an_event_that_ended_too_many_attempts() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    leave_attempts(&mut client, 3, 5);
    let calls = Arc::new(AtomicUsize::new(0));
    let noted = calls.clone();
    let counting = meddled("p", move |_, event| {
        noted.fetch_add(usize::from(event.global_position() == 5), Ordering::Relaxed);
        Ok(())
    });
    let halted_interval = Duration::from_secs(2);
    let retry = impatient().halted_interval(halted_interval);
    let worker = start(builder(database.url(), "set").retry(retry), vec![counting]);
    let error = await_halted(&worker, "p");
    assert!(error.contains("3 attempts") && error.contains("global position 5 "), "{error}");
    assert_eq!((calls.load(Ordering::Relaxed), handled(&mut client, "p")), (0, 4), "those before it are handled");
    await_complete(&mut client, "p");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    eventually("it runs", SOON, || (status(&worker, "p").state == ProjectionState::Running).then_some(()));
    assert_eq!(reported(&mut client, "p"), nothing());
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_batch_that_ended_two_attempts_is_handled_event_by_event() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    leave_attempts(&mut client, 2, 1);
    let seen = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let noted = seen.clone();
    let watching = meddled("p", move |tx, event| {
        let sql = "SELECT attempts, attempt_position FROM orchestrator_checkpoints";
        let row = tx.query_one(sql, &[])?;
        noted.lock().push((event.global_position(), row.get::<_, i32>(0), row.get::<_, Option<i64>>(1)));
        Ok(())
    });
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![watching]);
    await_complete(&mut client, "p");
    append_plainly(&mut client, 1, 1);
    await_complete(&mut client, "p");
    let alone = (1..=10).map(|position| (position, 3, Some(position)));
    assert_eq!(*seen.lock(), alone.chain([(11, 0, None)]).collect::<Vec<_>>());
    worker.shutdown(SOON).unwrap();
}

/// Makes the fifth of ten events fail in this way. Returns the error with which the projection
/// halts.
fn halts(poison: impl Fn(&mut Tx<'_>) -> Result<(), BoxError> + Send + Sync + 'static) -> String {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let bad = meddled("bad", move |tx, event| if event.global_position() == 5 { poison(tx) } else { Ok(()) });
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![bad]);
    let error = await_halted(&worker, "bad");
    assert!(error.contains("Happened of test/Thing/thing-0 at global position 5 "), "{error:?}");
    assert_eq!(handled(&mut client, "bad"), 4);
    assert_eq!(projection_metric(&worker, "projection_errors_total", "bad"), Some(3.0));
    let (_, reported, attempts, recorded) = reported_halt(&mut client, "bad");
    assert_eq!((attempts, recorded), (3, None), "it has ended by itself");
    assert_eq!(reported, Some(error.clone()));
    worker.shutdown(SOON).unwrap();
    error
}

#[test]
fn a_transaction_made_read_only_by_its_handler_halts() {
    let error = halts(|tx| Ok(tx.batch_execute("SET TRANSACTION READ ONLY")?));
    assert!(error.contains("(25006)"), "{error}");
}

#[test]
fn rows_that_cannot_be_decoded_halt() {
    halts(|tx| {
        let row = tx.query_one("SELECT 'seven'", &[])?;
        row.try_get::<_, i32>(0)?;
        Ok(())
    });
    halts(|tx| Ok(tx.batch_execute("SELECT '\0'")?));
}

#[test]
fn the_loss_of_a_handlers_own_connection_counts() {
    let elsewhere = database();
    let url = elsewhere.url().to_owned();
    halts(move |_| {
        let mut own = Client::connect(&url, NoTls)?;
        own.batch_execute("SELECT pg_terminate_backend(pg_backend_pid())")?;
        Ok(())
    });
}

#[test]
fn a_halted_projection_retries_and_continues_by_itself() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let (calls, is_well) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (noted, recovers) = (calls.clone(), is_well.clone());
    let ill = meddled("ill", move |_, event| {
        if event.global_position() == 5 {
            noted.fetch_add(1, Ordering::Relaxed);
            if !recovers.load(Ordering::Relaxed) {
                return Err("not well".into());
            }
        }
        Ok(())
    });
    let retry = impatient().halted_interval(Duration::from_millis(100));
    let worker = start(builder(database.url(), "set").retry(retry), vec![ill]);
    await_halted(&worker, "ill");
    reported_halt(&mut client, "ill");
    let before = calls.load(Ordering::Relaxed);
    eventually("it tries again", SOON, || {
        assert_eq!(status(&worker, "ill").state, ProjectionState::Halted, "meanwhile it stays halted");
        assert_eq!(reported(&mut client, "ill").0, "halted");
        (calls.load(Ordering::Relaxed) >= before + 3).then_some(())
    });
    is_well.store(true, Ordering::Relaxed);
    await_complete(&mut client, "ill");
    let now = eventually("it runs", SOON, || {
        let status = status(&worker, "ill");
        (status.state == ProjectionState::Running).then_some(status)
    });
    assert_eq!(now.error, None);
    assert_eq!(projection_metric(&worker, "projection_halted", "ill"), Some(0.0));
    assert_eq!(reported(&mut client, "ill"), nothing());
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_passing_failure_is_retried_without_counting() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let calls = Arc::new(AtomicUsize::new(0));
    let noted = calls.clone();
    let (away, seen) = crossbeam_channel::bounded(0);
    let waiting = meddled("waiting", move |_, event| {
        if event.global_position() == 5 {
            let call = noted.fetch_add(1, Ordering::Relaxed);
            if call < 8 {
                return Err(Passing::new("the mail server is away").into());
            }
            if call == 8 {
                // Wait until the test has looked.
                away.send_timeout((), SOON)?;
                return Err(Passing::new("the mail server is away").into());
            }
        }
        Ok(())
    });
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![waiting]);
    eventually("it is called more often than attempts are allowed", SOON, || {
        (calls.load(Ordering::Relaxed) == 9).then_some(())
    });
    let error = status(&worker, "waiting");
    assert_eq!(error.state, ProjectionState::Retrying);
    assert!(error.error.is_some_and(|error| error.contains("mail server") && error.contains("global position 5 ")));
    let (state, error, attempts, _) = reported(&mut client, "waiting");
    assert_eq!((state.as_str(), attempts), ("retrying", 0));
    assert!(error.is_some_and(|error| error.contains("mail server")));
    seen.recv_timeout(SOON).unwrap();
    await_complete(&mut client, "waiting");
    assert_eq!(projection_metric(&worker, "projection_errors_total", "waiting"), Some(0.0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn attempts_are_recorded_once_and_steady_batches_cost_nothing() {
    let server = start_logging_server();
    let url = server.create_database("steady").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&pupsourcing_orchestrator::Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    append_plainly(&mut client, 10, 2);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    await_complete(&mut client, "p");
    for _ in 0..10 {
        append_plainly(&mut client, 1, 1);
        await_complete(&mut client, "p");
    }
    worker.shutdown(SOON).unwrap();
    let executed = statements(&server);
    let count = |part: &str| executed.iter().filter(|statement| statement.text.contains(part)).count();
    assert_eq!(count("SET attempts = $5"), 1, "the first attempt of an owner");
    assert!(count("last_event_position = $6") >= 11, "and each batch moves the checkpoint");
    let batch: Vec<&str> = {
        let last = executed.iter().rposition(|statement| statement.text.contains("last_event_position = $6")).unwrap();
        let backend = executed[last].backend;
        let of_backend: Vec<&str> =
            executed[..last].iter().filter(|s| s.backend == backend).map(|s| &*s.text).collect();
        let begin = of_backend.iter().rposition(|text| text.contains("START TRANSACTION")).unwrap();
        of_backend[begin..].to_vec()
    };
    assert_eq!(batch.len(), 3, "begin, mark, the handler's own; then the checkpoint: {batch:#?}");
}

/// Only attempts that did not end by themselves count for the next owner.
#[test]
fn attempt_that_ends_by_itself_is_not_kept() {
    let database = database();
    let mut client = prepared(&database);
    let in_the_way = meddled("p", |tx, _| {
        Ok(tx.batch_execute("DO $$ BEGIN RAISE 'another was in the way' USING ERRCODE = '40001'; END $$")?)
    });
    let worker = start(builder(database.url(), "set"), vec![in_the_way]);
    await_running(&[&worker]);
    append_plainly(&mut client, 3, 1);
    eventually("it retries", SOON, || (status(&worker, "p").state == ProjectionState::Retrying).then_some(()));
    eventually("nothing is recorded between two attempts", SOON, || {
        let sql = "SELECT attempts, attempt_position FROM orchestrator_checkpoints WHERE projection = 'p'";
        let row = client.query_one(sql, &[]).unwrap();
        ((row.get(0), row.get(1)) == (0_i32, None::<i64>)).then_some(())
    });
}
