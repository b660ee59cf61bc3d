//! Waiting until projections have processed appended events.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{
    AppendResult, EventStore, ExpectedVersion, Metrics, Names, Projection, Retry, Scope, WaitError,
};
use uuid::Uuid;

use crate::support::cluster::positions;
use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, happened, thing};
use crate::support::metrics::series::{text, values};
use crate::support::statements::statements;
use crate::support::worker_process::command;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, database, eventually};

const SOON: Duration = Duration::from_secs(20);
/// Long enough for a reason to be found, and too short for the others' timeouts.
const SHORT: Duration = Duration::from_millis(400);

fn append(client: &mut Client, id: &str) -> AppendResult {
    EventStore::default().append(client, &thing(id), ExpectedVersion::Any, &[happened(), happened()]).unwrap()
}

/// The first of the appended events alone.
fn first_of(appended: &AppendResult) -> AppendResult {
    let mut first = appended.clone();
    first.positions.truncate(1);
    first.event_ids.truncate(1);
    first
}

/// Whether the projection's ledger has all these events.
fn has_all(client: &mut Client, projection: &str, appended: &AppendResult) -> bool {
    let sql = "SELECT count(*) FROM ledger WHERE projection = $1 AND global_position = ANY ($2)";
    let found: i64 = client.query_one(sql, &[&projection, &appended.positions]).unwrap().get(0);
    found == i64::try_from(appended.positions.len()).unwrap()
}

fn wait(client: &mut Client, projection: &str, appended: &AppendResult) -> Result<(), WaitError> {
    EventStore::default().wait_for(client, &[projection], appended, SHORT)
}

/// Waits until the reason is found, because the state from which it follows takes a moment.
#[track_caller]
fn await_reason(client: &mut Client, appended: &AppendResult, is_it: impl Fn(&WaitError) -> bool) -> WaitError {
    eventually("the reason is given", SOON, || wait(client, "p", appended).err().filter(&is_it))
}

/// A projection `p` whose handler waits for a permission before each event.
fn held() -> (Sender<()>, Box<dyn Projection>) {
    let (permit, permits) = unbounded::<()>();
    // When the sender is dropped, everything is permitted.
    (
        permit,
        meddled("p", move |_, _| {
            _ = permits.recv();
            Ok(())
        }),
    )
}

/// Lets time pass in which nothing is to happen.
fn pass(time: Duration) {
    crossbeam_channel::never::<()>().recv_timeout(time).unwrap_err();
}

fn update(client: &mut Client, sql: &str) {
    assert!(client.execute(sql, &[]).unwrap() > 0, "{sql}");
}

#[test]
fn read_models_have_the_events_when_the_wait_is_over() {
    let database = database();
    prepared(&database);
    let workers = [1, 3, 2].map(|lanes| {
        let names: [&'static str; 2] = ["p", "q"];
        start(builder(database.url(), "set").lanes(lanes), names.map(|name| Box::new(Ledger::named(name)) as _).into())
    });
    await_running(&workers.each_ref());
    let store = EventStore::default();
    thread::scope(|scope| {
        for writer in 0..6 {
            let (store, database) = (store.clone(), &database);
            scope.spawn(move || {
                let mut client = database.client();
                for round in 0..40 {
                    let id = format!("{writer}-{}", round % 10);
                    let appended = store
                        .append(&mut client, &thing(&id), ExpectedVersion::Any, &[happened(), happened()])
                        .unwrap();
                    if round % 2 == 0 {
                        store.hint(&mut client);
                    }
                    store.wait_for(&mut client, &["p", "q"], &appended, SOON).unwrap();
                    for projection in ["p", "q"] {
                        assert!(has_all(&mut client, projection, &appended), "{projection}: {appended:?}");
                    }
                }
            });
        }
    });
}

#[test]
fn a_projection_without_its_first_row_is_unknown_and_not_done() {
    let database = database();
    let mut client = prepared(&database);
    let appended = append(&mut client, "a");
    let elsewhere = EventStore::new(Names::default().prefix("other_")).unwrap();
    let error = elsewhere.wait_for(&mut client, &["p"], &appended, SHORT).unwrap_err();
    let (schema, said) = (matches!(error, WaitError::Schema { .. }), error.to_string());
    assert!(schema && said.contains("other_") && said.contains("migrate"), "{said}");
    let error = wait(&mut client, "p", &appended).unwrap_err();
    assert!(matches!(&error, WaitError::Unknown { projection, .. } if projection == "p"), "{error}");
    let (permit, projection) = held();
    let worker = start(builder(database.url(), "set"), vec![projection]);
    await_running(&[&worker]);
    let error = wait(&mut client, "p", &appended).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { position: Some(0), target: Some(2), .. }), "{error}");
    drop(permit);
    EventStore::default().wait_for(&mut client, &["p"], &appended, SOON).unwrap();
    assert!(has_all(&mut client, "p", &appended));
    // A projection that has its row, but no checkpoint, is not done either.
    drop(worker);
    update(&mut client, "DELETE FROM orchestrator_checkpoints");
    let error = wait(&mut client, "p", &appended).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { position: None, target: Some(2), .. }), "{error}");
}

#[test]
fn the_target_is_an_event_and_not_the_value_of_a_sequence() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let appended = append(&mut client, "a");
    // Other writers take positions that never become visible.
    let mut tx = client.transaction().unwrap();
    let store = EventStore::default();
    let rolled_back = store.append(&mut tx, &thing("b"), ExpectedVersion::Any, &[happened(), happened()]).unwrap();
    tx.rollback().unwrap();
    client.batch_execute("SELECT nextval('events_global_position_seq') FROM generate_series(1, 100)").unwrap();
    store.wait_for(&mut client, &["p"], &appended, SOON).unwrap();

    let error = wait(&mut client, "p", &rolled_back).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { target: None, .. }), "{error}");
    assert!(error.to_string().contains("commit their transaction"), "{error}");
    // Another event at the position of one that was rolled back is not that event.
    let sql = "INSERT INTO events (global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id,
                                   event_type, payload)
               VALUES ($1, 'test', 'Thing', 'b', 1, gen_random_uuid(), 'Happened', '')";
    for position in &rolled_back.positions[..1] {
        client.execute(sql, &[position]).unwrap();
    }
    let error = wait(&mut client, "p", &rolled_back).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { target: None, .. }), "{error}");
}

#[test]
fn a_wait_that_begins_before_the_commit_ends_after_it() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let store = EventStore::default();
    let mut tx = client.transaction().unwrap();
    let appended = store.append(&mut tx, &thing("a"), ExpectedVersion::Any, &[happened()]).unwrap();
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let mut client = database.client();
            store.wait_for(&mut client, &["p"], &appended, SOON).unwrap();
            assert!(has_all(&mut client, "p", &appended));
        });
        assert!(wait(&mut database.client(), "p", &appended).unwrap_err().is_timeout());
        assert!(!waiting.is_finished());
        tx.commit().unwrap();
    });
}

#[test]
fn the_checkpoint_of_another_partition_says_nothing() {
    let database = database();
    let mut client = prepared(&database);
    let (permit, permits): (Sender<()>, _) = unbounded();
    let projection = meddled("p", move |_, event| {
        if event.aggregate_id() == "stuck" {
            _ = permits.recv();
        }
        Ok(())
    });
    let worker = start(builder(database.url(), "set").lanes(4), vec![projection]);
    await_running(&[&worker]);
    let stuck = append(&mut client, "stuck");
    // Aggregates of the other lanes are processed beside it.
    let others: Vec<AppendResult> = (0..40).map(|n| append(&mut client, &n.to_string())).collect();
    let done = |client: &mut Client| others.iter().filter(|appended| wait(client, "p", appended).is_ok()).count();
    eventually("the other lanes are done", SOON, || {
        (positions(&mut client, "p")[1] > stuck.positions[1]).then_some(())
    });
    assert!(done(&mut client) > 10, "events of other keys do not wait");
    for appended in others.iter().filter(|appended| wait(&mut client, "p", appended).is_ok()).collect::<Vec<_>>() {
        assert!(has_all(&mut client, "p", appended), "{appended:?}");
    }
    let error = wait(&mut client, "p", &stuck).unwrap_err();
    assert!(matches!(&error, WaitError::TimedOut { position: Some(p), .. } if *p < stuck.positions[0]), "{error}");
    drop(permit);
    EventStore::default().wait_for(&mut client, &["p"], &stuck, SOON).unwrap();
}

#[test]
fn a_halted_projection_is_no_success() {
    let database = database();
    let mut client = prepared(&database);
    let retry = || Retry::default().attempts(2).first_delay(Duration::from_millis(10));
    let fails =
        meddled("p", |_, event| if event.global_position() == 2 { Err("no such customer".into()) } else { Ok(()) });
    let worker = start(builder(database.url(), "set").retry(retry()), vec![fails]);
    await_running(&[&worker]);
    let bad = append(&mut client, "a");
    let begun = Instant::now();
    let error = EventStore::default().wait_for(&mut client, &["p"], &bad, SOON).unwrap_err();
    assert!(matches!(&error, WaitError::Halted { error, .. } if error.contains("no such customer")), "{error}");
    assert!(begun.elapsed() < SOON / 2, "at once");
    // What was processed before it is done; what comes after it is not.
    let first = first_of(&bad);
    wait(&mut client, "p", &first).unwrap();
    let later = append(&mut client, "a");
    assert!(matches!(wait(&mut client, "p", &later), Err(WaitError::Halted { .. })));
    // A worker with a corrected handler continues.
    worker.shutdown(SOON).unwrap();
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    eventually("the event is processed", SOON, || wait(&mut client, "p", &later).ok());
    assert!(has_all(&mut client, "p", &bad) && has_all(&mut client, "p", &later));
}

#[test]
fn a_paused_or_withdrawn_projection_ends_the_wait() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let before = append(&mut client, "a");
    EventStore::default().wait_for(&mut client, &["p"], &before, SOON).unwrap();
    update(
        &mut client,
        "UPDATE orchestrator_projections SET desired_state = 'paused', desired_by = 'ann', desired_reason = 'a deploy'",
    );
    eventually("it is paused", SOON, || {
        let sql = "SELECT dealt_state = 'paused' FROM orchestrator_projections";
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    let after = append(&mut client, "a");
    let error = wait(&mut client, "p", &after).unwrap_err();
    assert_eq!(error.to_string(), "projection \"p\" is paused by ann (a deploy): resume it");
    wait(&mut client, "p", &before).unwrap();
    update(&mut client, "UPDATE orchestrator_projections SET desired_state = 'running'");
    EventStore::default().wait_for(&mut client, &["p"], &after, SOON).unwrap();

    update(&mut client, "UPDATE orchestrator_checkpoints SET keys = '{[0,100)}'");
    let torn = append(&mut client, "a");
    let error = await_reason(&mut client, &torn, |error| matches!(error, WaitError::Broken { .. }));
    assert!(error.to_string().contains("until an operator repairs"), "{error}");
}

#[test]
fn a_parked_aggregate_ends_only_its_own_waits() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let (parked, other) = (append(&mut client, "a"), append(&mut client, "b"));
    let park = "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                                 event_type, attempts, error)
                VALUES ('p', 'test', 'Thing', 'a', 0, $1, $2, 'Happened', 3, 'no such customer')";
    client.execute(park, &[&parked.positions[1], &parked.event_ids[1]]).unwrap();
    EventStore::default().wait_for(&mut client, &["p"], &other, SOON).unwrap();
    let later = append(&mut client, "a");
    for appended in [&parked, &later] {
        let error = wait(&mut client, "p", appended).unwrap_err();
        let WaitError::Parked { projection, aggregate, error, .. } = &error else { panic!("{error}") };
        assert_eq!((projection.as_str(), aggregate, error.as_str()), ("p", &thing("a"), "no such customer"));
    }
    // An earlier event of the aggregate was handled.
    EventStore::default().wait_for(&mut client, &["p"], &first_of(&parked), SOON).unwrap();
    // The event is discarded, and nothing else of the aggregate is parked.
    client
        .execute(
            "INSERT INTO orchestrator_discarded (projection, event_id, bounded_context, aggregate_type, aggregate_id, key, position,
                                                 event_type, discarded_by, reason, command_id)
             SELECT projection, event_id, bounded_context, aggregate_type, aggregate_id, key, position, event_type, 'ann', 'why', 1
             FROM orchestrator_parked",
            &[],
        )
        .unwrap();
    update(&mut client, "DELETE FROM orchestrator_parked");
    for appended in [&parked, &later] {
        EventStore::default().wait_for(&mut client, &["p"], appended, SOON).unwrap();
    }
}

#[test]
fn without_a_worker_the_wait_ends_but_not_during_a_deploy() {
    let database = database();
    let mut client = prepared(&database);
    let begin = || start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    let worker = begin();
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
    let appended = append(&mut client, "a");
    // The next worker may start at any moment.
    assert!(wait(&mut client, "p", &appended).unwrap_err().is_timeout());
    thread::scope(|scope| {
        let waiting = scope.spawn(|| EventStore::default().wait_for(&mut database.client(), &["p"], &appended, SOON));
        let worker = begin();
        waiting.join().unwrap().unwrap();
        worker.shutdown(SOON).unwrap();
    });
    let appended = append(&mut client, "a");
    update(&mut client, "UPDATE orchestrator_workers SET stopped_at = stopped_at - interval '10 s'");
    let error = wait(&mut client, "p", &appended).unwrap_err();
    assert!(matches!(&error, WaitError::NoWorker { projection, .. } if projection == "p"), "{error}");
    // A worker that does not know the projection does not help.
    let _other = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("q"))]);
    assert!(matches!(wait(&mut client, "p", &appended), Err(WaitError::NoWorker { .. })));
}

#[test]
fn events_outside_the_scope_are_done_at_once() {
    let database = database();
    let mut client = prepared(&database);
    let ledger = |name, scope| Box::new(Ledger { scope, ..Ledger::named(name) }) as _;
    let scopes = vec![
        ledger("p", Scope::all().event_types(["Never"])),
        ledger("q", Scope::all().aggregate_types(["Thing"]).metadata("tenant", "a")),
    ];
    let worker = start(builder(database.url(), "set"), scopes);
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
    update(&mut client, "UPDATE orchestrator_workers SET stopped_at = stopped_at - interval '1 h'");
    // No worker runs, and these are done nevertheless.
    let appended = append(&mut client, "a");
    EventStore::default().wait_for(&mut client, &["p", "q"], &appended, Duration::ZERO).unwrap();
    let event = happened().metadata(serde_json::json!({"tenant": "a"}));
    let event = EventStore::default().append(&mut client, &thing("a"), ExpectedVersion::Any, &[event]).unwrap();
    assert!(matches!(wait(&mut client, "q", &event), Err(WaitError::NoWorker { .. })));
}

#[test]
fn a_rewind_undoes_nothing_that_was_seen_and_the_rest_waits_on() {
    let database = database();
    let mut client = prepared(&database);
    let projections = ["p", "q"].map(|name| Box::new(Ledger::named(name)) as Box<dyn Projection>);
    let worker = start(builder(database.url(), "set"), projections.into());
    await_running(&[&worker]);
    // The test moves the checkpoints itself. The next worker might start at any moment.
    worker.shutdown(SOON).unwrap();
    let appended = append(&mut client, "a");
    let mut place = |projection: &str, position: i64| {
        let sql = "UPDATE orchestrator_checkpoints SET position = $2 WHERE projection = $1";
        assert_eq!(client.execute(sql, &[&projection, &position]).unwrap(), 1);
        pass(SHORT);
    };
    thread::scope(|scope| {
        let waiting =
            scope.spawn(|| EventStore::default().wait_for(&mut database.client(), &["q", "p"], &appended, SOON));
        place("q", appended.positions[1]);
        // `q` was seen to have the events, and is rewound.
        place("q", 0);
        // `p` is rewound before it has them.
        place("p", appended.positions[0]);
        place("p", 0);
        assert!(!waiting.is_finished());
        place("p", appended.positions[1]);
        waiting.join().unwrap().unwrap();
    });
}

/// The statements of callers that wait, by the server's process.
fn asked(server: &Postgres) -> Vec<i32> {
    let all = statements(server).into_iter();
    all.filter(|statement| statement.text.contains("WITH served")).map(|statement| statement.backend).collect()
}

#[test]
fn a_thousand_callers_share_one_poll() {
    const CALLERS: usize = 1_000;
    let server = Postgres::options()
        .setting("max_connections", (CALLERS + 100).to_string())
        .setting("log_statement", "all")
        .setting("log_line_prefix", "%p ")
        .start()
        .unwrap();
    let url = server.url("postgres");
    let connect = || Client::connect(&url, NoTls).unwrap();
    let mut client = connect();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    let (permit, projection) = held();
    let worker = start(builder(&url, "set"), vec![projection]);
    await_running(&[&worker]);
    let store = EventStore::default();
    let mut callers: Vec<(Client, AppendResult)> =
        (0..CALLERS).map(|n| (connect(), append(&mut client, &n.to_string()))).collect();
    let together = Barrier::new(CALLERS);
    thread::scope(|scope| {
        let waiting: Vec<_> = callers
            .iter_mut()
            .map(|(client, appended)| {
                let (store, together) = (store.clone(), &together);
                scope.spawn(move || {
                    together.wait();
                    store.wait_for(client, &["p"], appended, 3 * SOON).unwrap();
                    assert!(has_all(client, "p", appended));
                })
            })
            .collect();
        let askers = || asked(&server).into_iter().collect::<BTreeSet<i32>>().len();
        eventually("all have asked", SOON, || (askers() == CALLERS).then_some(()));
        let before = asked(&server).len();
        pass(Duration::from_secs(3));
        let polls = asked(&server).split_off(before);
        assert!((3..100).contains(&polls.len()), "{} statements in three seconds", polls.len());
        let pollers: BTreeSet<i32> = polls.into_iter().collect();
        assert!(pollers.len() <= 3, "the others only wait: {pollers:?}");
        assert!(waiting.iter().all(|thread| !thread.is_finished()));
        drop(permit);
    });
}

#[test]
fn a_caller_that_fails_does_not_fail_the_others() {
    let database = database();
    let mut client = prepared(&database);
    let (permit, projection) = held();
    let worker = start(builder(database.url(), "set"), vec![projection]);
    await_running(&[&worker]);
    let appended = append(&mut client, "a");
    let store = EventStore::default();
    let mut clients: Vec<Client> = (0..5).map(|_| database.client()).collect();
    let pids: Vec<i32> =
        clients.iter_mut().map(|client| client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)).collect();
    thread::scope(|scope| {
        let waiting: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                let (store, appended) = (store.clone(), &appended);
                scope.spawn(move || store.wait_for(client, &["p"], appended, SOON))
            })
            .collect();
        // One after the other polls, and loses its connection. The last one gets what it waits for.
        for left in (1..5).rev() {
            pass(Duration::from_millis(50));
            let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = ANY ($1)
                       ORDER BY query_start DESC LIMIT 1";
            client.query_one(sql, &[&pids]).unwrap();
            eventually("it has failed", SOON, || {
                (waiting.iter().filter(|thread| !thread.is_finished()).count() == left).then_some(())
            });
        }
        drop(permit);
        let outcomes: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        let failed = outcomes.into_iter().filter_map(Result::err);
        assert!(failed.into_iter().all(|error| error.is_transient() && !error.is_timeout()));
    });
}

#[test]
fn callers_of_two_databases_do_not_answer_for_each_other() {
    let (done, behind) = (database(), database());
    let store = EventStore::default();
    let mut clients = [&done, &behind].map(prepared);
    let (permit, projection) = held();
    let workers = [
        start(builder(done.url(), "set"), vec![Box::new(Ledger::named("p"))]),
        start(builder(behind.url(), "set"), vec![projection]),
    ];
    for worker in &workers {
        await_running(&[worker]);
    }
    let id = Uuid::new_v4();
    // The same event is in both databases.
    let appended = clients.each_mut().map(|client| {
        let event = happened().event_id(id);
        store.append(client, &thing("a"), ExpectedVersion::Any, &[event]).unwrap()
    });
    assert_eq!(appended[0], appended[1]);
    thread::scope(|scope| {
        let store = &store;
        let appended = &appended[0];
        let waiting = scope.spawn(move || {
            let mut client = behind.client();
            let outcome = store.wait_for(&mut client, &["p"], appended, SOON);
            (outcome, has_all(&mut client, "p", appended))
        });
        for _ in 0..20 {
            store.wait_for(&mut clients[0], &["p"], appended, SOON).unwrap();
            pass(Duration::from_millis(5));
        }
        assert!(!waiting.is_finished());
        drop(permit);
        let (outcome, is_there) = waiting.join().unwrap();
        outcome.unwrap();
        assert!(is_there);
    });
}

#[test]
fn the_command_waits_for_all_keys() {
    let database = database();
    let mut client = prepared(&database);
    let (permit, projection) = held();
    let worker = start(builder(database.url(), "set").lanes(3), vec![projection, Box::new(Ledger::named("q"))]);
    await_running(&[&worker]);
    for id in ["a", "b", "c", "d"] {
        append(&mut client, id);
    }
    let run = |arguments: &[&str]| {
        let mut worker = command("worker");
        worker.env("DATABASE_URL", database.url()).arg("wait").args(arguments).stdout(Stdio::piped());
        let output = worker.output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8(said).unwrap());
        (output.status.code(), said.concat())
    };
    assert_eq!(run(&["q"]), (Some(0), "position 8 processed by q\n".into()));
    assert_eq!(run(&["q", "p", "--position", "0"]), (Some(0), "position 0 processed by q, p\n".into()));
    for (arguments, part) in [
        (&["q", "p", "--timeout", "300ms"][..], "projection \"p\" did not reach position 8 within 300ms: it is at 0"),
        (&["q", "--position", "99", "--timeout", "300ms"], "projection \"q\" did not reach position 99"),
        (&["nobody"], "no worker has ever registered a projection \"nobody\""),
    ] {
        let (code, said) = run(arguments);
        assert!(code == Some(1) && said.contains(part), "{arguments:?}: {code:?}: {said}");
    }
    drop(permit);
    assert_eq!(run(&["p", "q", "--position", "8"]).0, Some(0));
    let sql = "SELECT count(*) FROM ledger WHERE projection = 'p'";
    assert_eq!(client.query_one(sql, &[]).unwrap().get::<_, i64>(0), 8);
}

#[test]
fn the_time_of_a_wait_is_counted_by_outcome() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let appended = append(&mut client, "a");
    let metrics = Metrics::new().unwrap();
    let store = EventStore::default().metrics(&metrics);
    store.wait_for(&mut client, &["p"], &appended, SOON).unwrap();
    store.clone().wait_for(&mut client, &["p", "q"], &appended, SOON).unwrap_err();
    for outcome in ["done", "unknown"] {
        let count = values::<f64>(&text(&metrics), "wait_duration_seconds_count", &[("outcome", outcome)]);
        assert_eq!(count, [1.0], "{outcome}");
    }
}
