//! Commands of operators, given with SQL alone and applied by real workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Event, Handle, Projection, ProjectionState, Retry, Tx};
use serde_json::json;

use crate::support::cluster::{assert_keys_are_covered, generation};
use crate::support::commands::{done, give, outcome, refused};
use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, await_progress, handled, is_complete};
use crate::support::metrics::projection_metric;
use crate::support::parking::accounts;
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(10);

fn ledgers(names: &[&'static str]) -> Vec<Box<dyn Projection>> {
    names.iter().map(|name| Box::new(Ledger::named(name)) as _).collect()
}

/// Two workers process `stops` and `stays`.
fn workers(database: &TestDatabase) -> [Handle; 2] {
    [1, 2].map(|lanes| start(builder(database.url(), "set").lanes(lanes), ledgers(&["stops", "stays"])))
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", Duration::from_secs(30), || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

#[test]
fn pause_lasts_across_restarts_until_it_is_resumed() {
    let database = database();
    let mut client = prepared(&database);
    let [one, two] = workers(&database);
    let number = await_running(&[&one, &two]);
    append_plainly(&mut client, 2_000, 50);
    await_progress(&mut client, "stops", 50);
    let result = done(&mut client, "stops", "pause", &json!({}));
    let at = handled(&mut client, "stops");
    assert_eq!(result["workers"], 2);
    let lowest: i64 = client
        .query_one("SELECT min(position) FROM orchestrator_checkpoints WHERE projection = 'stops'", &[])
        .unwrap()
        .get(0);
    assert_eq!(result["position"], lowest);
    append_plainly(&mut client, 100, 50);
    await_complete(&mut client, "stays");
    assert_eq!(handled(&mut client, "stops"), at, "nothing of it is processed any more");
    assert_eq!(generation(&mut client), number, "the others were not interrupted");
    let why = refused(&mut client, "stops", "pause", &json!({}));
    assert!(why.starts_with("it is paused already, since") && why.ends_with("by tester (a test)"), "{why}");

    one.shutdown(SOON).unwrap();
    two.shutdown(SOON).unwrap();
    let [one, two] = workers(&database);
    await_running(&[&one, &two]);
    append_plainly(&mut client, 100, 50);
    await_complete(&mut client, "stays");
    assert_eq!(handled(&mut client, "stops"), at, "also after a restart");
    let result = done(&mut client, "stops", "resume", &json!({}));
    assert_eq!(result["workers"], 2);
    await_complete(&mut client, "stops");
    let why = refused(&mut client, "stops", "resume", &json!({}));
    assert_eq!(why, "it is not paused");
    let sql = "SELECT command, outcome, requested_by, reason FROM orchestrator_commands ORDER BY id";
    let history: Vec<[String; 4]> =
        client.query(sql, &[]).unwrap().iter().map(|row| [row.get(0), row.get(1), row.get(2), row.get(3)]).collect();
    let commands = [("pause", "done"), ("pause", "refused"), ("resume", "done"), ("resume", "refused")];
    assert_eq!(history, commands.map(|(command, outcome)| [command, outcome, "tester", "a test"].map(String::from)));
}

#[test]
fn what_is_paused_while_no_worker_runs_is_not_processed() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), ledgers(&["p", "q"]));
    await_running(&[&worker]);
    worker.shutdown(SOON).unwrap();
    append_plainly(&mut client, 20, 5);
    let id = give(&mut client, "p", "pause", &json!({}));
    let worker = start(builder(database.url(), "set"), ledgers(&["p", "q"]));
    assert_eq!(outcome(&mut client, id).0, "done");
    await_complete(&mut client, "q");
    assert_eq!(handled(&mut client, "p"), 0);
    drop(worker);
}

/// The fence ensures it: a handler that is in the middle of a batch does not delay the command.
#[test]
fn batch_in_progress_cannot_commit_after_the_pause() {
    let database = database();
    let mut client = prepared(&database);
    let (calls, called) = bounded(10);
    let (release, released) = bounded::<()>(10);
    let waits = meddled("p", move |_, _| {
        calls.send(())?;
        Ok(released.recv()?)
    });
    let worker = start(builder(database.url(), "set"), vec![waits]);
    await_running(&[&worker]);
    append_plainly(&mut client, 1, 1);
    called.recv_timeout(SOON).unwrap();
    done(&mut client, "p", "pause", &json!({}));
    release.send(()).unwrap();
    eventually("the batch is rolled back", SOON, || {
        (projection_metric(&worker, "fenced_batches_total", "p") == Some(1.0)).then_some(())
    });
    assert_eq!(handled(&mut client, "p"), 0);
    release.send(()).unwrap();
    done(&mut client, "p", "resume", &json!({}));
    await_complete(&mut client, "p");
}

#[test]
fn rewound_projection_handles_the_events_again() {
    let database = database();
    let mut client = prepared(&database);
    let replays = Arc::new(AtomicI64::new(0));
    let counted = replays.clone();
    let counts = meddled("p", move |tx, _| {
        counted.fetch_add(i64::from(tx.is_replay()), Ordering::Relaxed);
        Ok(())
    });
    let worker = start(builder(database.url(), "set"), vec![counts, Box::new(Ledger::named("q"))]);
    let other = start(builder(database.url(), "set"), ledgers(&["p", "q"]));
    await_running(&[&worker, &other]);
    append_plainly(&mut client, 300, 20);
    await_complete(&mut client, "p");
    other.shutdown(SOON).unwrap();
    await_running(&[&worker]);
    assert_eq!(replays.load(Ordering::Relaxed), 0);
    let middle: i64 = client
        .query_one("SELECT global_position FROM events ORDER BY global_position OFFSET 149 LIMIT 1", &[])
        .unwrap()
        .get(0);
    client
        .execute(
            "UPDATE events SET created_at = created_at - interval '1 hour' WHERE global_position <= $1",
            &[&middle],
        )
        .unwrap();
    let ago: String = client
        .query_one(
            "SELECT to_char(now() AT TIME ZONE 'UTC' - interval '30 min', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')",
            &[],
        )
        .unwrap()
        .get(0);
    let highest: i64 = client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0);
    let targets = [
        (json!({"to_beginning": true}), 0, 300),
        (json!({"to_position": middle}), middle, 150),
        (json!({"to_time": ago}), middle, 150),
    ];
    for (arguments, to, again) in targets {
        let seq: i64 = client.query_one("SELECT max(seq) FROM ledger", &[]).unwrap().get(0);
        let before = replays.load(Ordering::Relaxed);
        let result = done(&mut client, "p", "rewind", &arguments);
        assert_eq!((&result["position"], &result["from"]), (&json!(to), &json!(highest)), "{arguments}");
        await_complete(&mut client, "p");
        let repeated: i64 = client
            .query_one("SELECT count(*) FROM ledger WHERE projection = 'p' AND seq > $1", &[&seq])
            .unwrap()
            .get(0);
        assert_eq!(repeated, again, "{arguments}");
        assert_eq!(replays.load(Ordering::Relaxed) - before, again, "{arguments}");
    }
    append_plainly(&mut client, 10, 5);
    await_complete(&mut client, "p");
    await_complete(&mut client, "q");
    assert_eq!(replays.load(Ordering::Relaxed), 600, "new events are no replay");
    let row = client
        .query_one(
            "SELECT sum(handled)::int8, max(p.counted_from) FROM orchestrator_checkpoints c
             JOIN orchestrator_projections p ON p.name = c.projection WHERE c.projection = 'p'",
            &[],
        )
        .unwrap();
    assert_eq!((row.get(0), row.get(1)), (Some(160_i64), Some(middle)), "the count begins where it was rewound to");

    for (arguments, part) in [
        (json!({"to_position": highest + 100}), "nothing above"),
        (json!({"to_time": "2999-01-01T00:00:00Z"}), "nothing above"),
    ] {
        let why = refused(&mut client, "p", "rewind", &arguments);
        assert!(why.contains(part), "{why}");
    }
    assert_keys_are_covered(&mut client);
}

#[test]
fn paused_projection_is_rewound_and_stays_paused() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), ledgers(&["p"]));
    await_running(&[&worker]);
    append_plainly(&mut client, 20, 5);
    await_complete(&mut client, "p");
    done(&mut client, "p", "pause", &json!({}));
    done(&mut client, "p", "rewind", &json!({"to_beginning": true}));
    assert_eq!(handled(&mut client, "p"), 0);
    assert_eq!(worker.status().projections["p"].state, ProjectionState::Paused);
    done(&mut client, "p", "resume", &json!({}));
    await_complete(&mut client, "p");
}

/// A projection whose `reset` waits until the test lets it go on.
struct Slow {
    ledger: Ledger,
    begun: Sender<()>,
    go_on: Receiver<bool>,
}

impl Projection for Slow {
    fn name(&self) -> &str {
        self.ledger.name
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.ledger.handle(tx, event)
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        self.ledger.reset(tx, to)?;
        _ = self.begun.send(());
        if self.go_on.recv()? { Ok(()) } else { Err("the read model is in use".into()) }
    }
}

/// What a test uses to control [`Slow`].
struct Control {
    begun: Receiver<()>,
    go_on: Sender<bool>,
    slow: Box<dyn Fn() -> Box<dyn Projection>>,
}

fn slow() -> Control {
    let (begins, begun) = bounded(10);
    let (go_on, goes_on) = bounded(10);
    let slow = move || {
        let (begun, go_on) = (begins.clone(), goes_on.clone());
        Box::new(Slow { ledger: Ledger::named("p"), begun, go_on }) as Box<dyn Projection>
    };
    Control { begun, go_on, slow: Box::new(slow) }
}

#[test]
fn a_long_reset_delays_nothing_else() {
    let database = database();
    let mut client = prepared(&database);
    let Control { begun, go_on, slow } = slow();
    let begin = || start(builder(database.url(), "set"), vec![slow(), Box::new(Ledger::named("q"))]);
    let one = begin();
    await_running(&[&one]);
    append_plainly(&mut client, 100, 20);
    await_complete(&mut client, "p");
    let id = give(&mut client, "p", "rewind", &json!({"to_beginning": true}));
    begun.recv_timeout(SOON).unwrap();

    // Its transaction has deleted the rows, and stays open. Workers join and leave meanwhile, and
    // events of the other projection are handled. Nobody is evicted.
    let since = Instant::now();
    let two = begin();
    await_running(&[&one, &two]);
    two.shutdown(SOON).unwrap();
    await_running(&[&one]);
    while since.elapsed() < Duration::from_secs(3) {
        append_plainly(&mut client, 10, 5);
        let appended = Instant::now();
        await_complete(&mut client, "q");
        assert!(appended.elapsed() < Duration::from_secs(2));
    }
    assert_eq!(handled(&mut client, "p"), 100, "readers see the old rows until it is done");
    let pending: bool =
        client.query_one("SELECT applied_at IS NULL FROM orchestrator_commands WHERE id = $1", &[&id]).unwrap().get(0);
    assert!(pending);
    let evicted: i64 =
        client.query_one("SELECT count(*) FROM orchestrator_workers WHERE stop_reason <> 'left'", &[]).unwrap().get(0);
    assert_eq!(evicted, 0);
    go_on.send(true).unwrap();
    assert_eq!(outcome(&mut client, id).0, "done");
    await_complete(&mut client, "p");
}

#[test]
fn another_worker_clears_when_the_first_one_is_gone() {
    let database = database();
    let mut client = prepared(&database);
    let Control { begun, go_on, slow } = slow();
    let begin = || start(builder(database.url(), "set").leave_timeout(Duration::from_secs(1)), vec![slow()]);
    let [one, two] = [begin(), begin()];
    await_running(&[&one, &two]);
    append_plainly(&mut client, 100, 20);
    await_complete(&mut client, "p");
    let id = give(&mut client, "p", "rewind", &json!({"to_beginning": true}));
    begun.recv_timeout(SOON).unwrap();
    // The second command waits for the first.
    let pause = give(&mut client, "p", "pause", &json!({}));
    let sql = "SELECT executor FROM orchestrator_commands WHERE id = $1";
    let executor: uuid::Uuid = client.query_one(sql, &[&id]).unwrap().get(0);
    let (leaves, stays) = if one.worker_id().0 == executor { (one, two) } else { (two, one) };
    let leaving = std::thread::scope(|scope| {
        let leaving = scope.spawn(|| leaves.shutdown(SOON));
        eventually("the other worker starts again", SOON, || {
            let sql = "SELECT attempt = 2 AND executor <> $2 FROM orchestrator_commands WHERE id = $1";
            client.query_one(sql, &[&id, &executor]).unwrap().get::<_, bool>(0).then_some(())
        });
        // The first one must not commit any more, although it has cleared the read model. Until it
        // ends, the other one waits for the rows that it has deleted.
        go_on.send(true).unwrap();
        begun.recv_timeout(SOON).unwrap();
        assert_eq!(handled(&mut client, "p"), 100);
        go_on.send(true).unwrap();
        leaving.join().unwrap()
    });
    leaving.unwrap();
    assert_eq!(outcome(&mut client, id).0, "done");
    assert_eq!(outcome(&mut client, pause).0, "done");
    done(&mut client, "p", "resume", &json!({}));
    await_running(&[&stays]);
    await_complete(&mut client, "p");
}

#[test]
fn failed_reset_leaves_the_projection_as_it_was() {
    let database = database();
    let mut client = prepared(&database);
    let Control { begun, go_on, slow } = slow();
    let worker = start(builder(database.url(), "set"), vec![slow()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 20);
    await_complete(&mut client, "p");
    for _ in 0..3 {
        go_on.send(false).unwrap();
    }
    let id = give(&mut client, "p", "rewind", &json!({"to_beginning": true}));
    let (name, _, error) = outcome(&mut client, id);
    assert_eq!(
        (name.as_str(), error.as_deref()),
        ("failed", Some("its read model could not be cleared: the read model is in use"))
    );
    assert_eq!(begun.try_iter().count(), 3, "so often it was tried");
    append_plainly(&mut client, 10, 5);
    await_complete(&mut client, "p");
    assert_eq!(handled(&mut client, "p"), 110);
}

#[test]
fn a_reset_survives_the_loss_of_its_connection() {
    let database = database();
    let mut client = prepared(&database);
    let Control { begun, go_on, slow } = slow();
    let worker = start(builder(database.url(), "set"), vec![slow()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 20);
    await_complete(&mut client, "p");
    let id = give(&mut client, "p", "rewind", &json!({"to_beginning": true}));
    begun.recv_timeout(SOON).unwrap();
    let ended = client
        .execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND state = 'idle in transaction' AND query LIKE '%DELETE FROM ledger%'",
            &[],
        )
        .unwrap();
    assert_eq!(ended, 1);
    for _ in 0..2 {
        go_on.send(true).unwrap();
    }
    assert_eq!(outcome(&mut client, id).0, "done");
    await_complete(&mut client, "p");
}

/// Handles events, and cannot be rewound.
struct Plain;

impl Projection for Plain {
    fn name(&self) -> &str {
        "plain"
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        Ok(())
    }
}

#[test]
fn projection_without_a_reset_is_not_rewound() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Plain), Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    append_plainly(&mut client, 10, 5);
    await_complete(&mut client, "p");
    let processed = || projection_metric(&worker, "events_processed_total", "plain");
    eventually("it is processed, too", SOON, || (processed() == Some(10.0)).then_some(()));
    let why = refused(&mut client, "plain", "rewind", &json!({"to_beginning": true}));
    assert!(why.contains("it has no reset()"), "{why}");
    append_plainly(&mut client, 1, 1);
    eventually("it goes on", SOON, || (processed() == Some(11.0)).then_some(()));
}

#[test]
fn only_a_projection_that_no_worker_knows_is_removed() {
    let database = database();
    let mut client = prepared(&database);
    let both = start(builder(database.url(), "set"), ledgers(&["old", "new"]));
    await_running(&[&both]);
    append_plainly(&mut client, 10, 5);
    await_complete(&mut client, "old");
    let why = refused(&mut client, "old", "remove", &json!({}));
    assert!(why.contains("workers that run know it") && why.contains(&format!("pid {}", std::process::id())), "{why}");
    both.shutdown(SOON).unwrap();
    let worker = start(builder(database.url(), "set"), ledgers(&["new"]));
    await_running(&[&worker]);
    let why = refused(&mut client, "old", "rewind", &json!({"to_beginning": true}));
    assert!(why.contains("no running worker has its code"), "{why}");
    done(&mut client, "old", "remove", &json!({}));
    let left: i64 = client
        .query_one(
            "SELECT (SELECT count(*) FROM orchestrator_projections WHERE name = 'old')
                  + (SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'old')",
            &[],
        )
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
    let error = client.query_one("SELECT orchestrator_command('old', 'pause')", &[]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("'old'"), "{error}");
}

#[test]
fn discarded_event_lets_a_halted_projection_go_on() {
    let database = database();
    let mut client = prepared(&database);
    let fails = meddled("p", |_, event| if event.global_position() == 7 { Err("it is bad".into()) } else { Ok(()) });
    let retry = Retry::default().attempts(1);
    let worker = start(builder(database.url(), "set").retry(retry), vec![fails]);
    await_running(&[&worker]);
    append_plainly(&mut client, 20, 5);
    let state = || worker.status().projections["p"].state;
    eventually("it halts", SOON, || (state() == ProjectionState::Halted).then_some(()));
    let id = |client: &mut Client, position: i64| -> String {
        let sql = "SELECT event_id::text FROM events WHERE global_position = $1";
        client.query_one(sql, &[&position]).unwrap().get(0)
    };
    let (bad, before) = (id(&mut client, 7), id(&mut client, 1));
    for (event, part) in [(before, "handled already"), (uuid::Uuid::from_u128(9).to_string(), "no event with this id")]
    {
        let why = refused(&mut client, "p", "discard", &json!({"event": event}));
        assert!(why.contains(part), "{why}");
    }
    let result = done(&mut client, "p", "discard", &json!({"event": bad}));
    assert_eq!(result, json!({"position": 7, "aggregate": ["test", "Thing", "thing-1"]}));
    let why = refused(&mut client, "p", "discard", &json!({"event": bad}));
    assert!(why.contains("discarded already"), "{why}");
    let sql = "SELECT event_id::text, discarded_by, reason, error FROM orchestrator_discarded WHERE projection = 'p'";
    let row = client.query_one(sql, &[]).unwrap();
    assert!(row.get::<_, &str>(3).contains("it is bad"));
    assert_eq!([0, 1, 2].map(|at| row.get::<_, String>(at)), [&bad, "tester", "a test"]);
    let why = refused(&mut client, "p", "replay", &json!({"all": true}));
    assert!(why.contains("parked"), "{why}");
    eventually("the others are handled", SOON, || (handled(&mut client, "p") == 19).then_some(()));
}

/// The event is either handled or discarded, even if its handler is at work.
#[test]
fn batch_with_a_discarded_event_cannot_commit() {
    let database = database();
    let mut client = prepared(&database);
    let (calls, called) = bounded(10);
    let (release, released) = bounded::<()>(10);
    let waits = meddled("p", move |_, event| {
        if event.global_position() == 1 {
            calls.send(())?;
            released.recv()?;
        }
        Ok(())
    });
    let worker = start(builder(database.url(), "set"), vec![waits]);
    await_running(&[&worker]);
    append_plainly(&mut client, 2, 2);
    called.recv_timeout(SOON).unwrap();
    let id: String =
        client.query_one("SELECT event_id::text FROM events WHERE global_position = 1", &[]).unwrap().get(0);
    done(&mut client, "p", "discard", &json!({"event": id}));
    release.send(()).unwrap();
    eventually("the other event is handled", SOON, || (handled(&mut client, "p") == 1).then_some(()));
    let position: i64 = client.query_one("SELECT global_position FROM ledger", &[]).unwrap().get(0);
    assert_eq!(position, 2);
    assert_eq!(projection_metric(&worker, "fenced_batches_total", "p"), Some(1.0));
}

#[test]
fn the_count_restarts_after_old_events_are_deleted() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), ledgers(&["p"]));
    await_running(&[&worker]);
    append_plainly(&mut client, 30, 5);
    await_complete(&mut client, "p");
    let counts = |client: &mut Client| accounts(client).unwrap()[0].1;
    let holds = |[handled, waiting, discarded, passed]: [i64; 4]| handled + waiting + discarded == passed;
    assert!(holds(counts(&mut client)));
    client.execute("DELETE FROM events WHERE global_position <= 10", &[]).unwrap();
    assert!(!holds(counts(&mut client)));
    client.execute("UPDATE orchestrator_projections SET counted_from = NULL", &[]).unwrap();
    for command in ["pause", "resume"] {
        done(&mut client, "p", command, &json!({}));
    }
    assert_eq!(counts(&mut client), [0; 4]);
    append_plainly(&mut client, 10, 5);
    await_complete(&mut client, "p");
    assert_eq!(counts(&mut client), [10, 0, 0, 10]);
}

#[test]
fn a_rewind_that_cannot_succeed_fails_and_ends() {
    let database = database();
    let mut client = prepared(&database);
    // The application's search path comes first in the transaction of `reset`.
    client
        .batch_execute(
            "CREATE FUNCTION public.upper(int4range) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 0';
             INSERT INTO ledger (projection, global_position, aggregate_id, aggregate_version) VALUES ('ignores', 0, '', 0)",
        )
        .unwrap();
    let projections: Vec<Box<dyn Projection>> = vec![Box::new(Ignores), Box::new(Ledger::named("p"))];
    let worker = start(builder(database.url(), "set"), projections);
    await_running(&[&worker]);
    append_plainly(&mut client, 10, 5);
    await_complete(&mut client, "p");
    eventually("it is processed, too", SOON, || {
        (projection_metric(&worker, "events_processed_total", "ignores") == Some(10.0)).then_some(())
    });
    let id = give(&mut client, "ignores", "rewind", &json!({"to_beginning": true}));
    let (name, _, error) = outcome(&mut client, id);
    let expected = "its read model could not be cleared: reset() has ignored that one of its statements failed";
    assert_eq!((name.as_str(), error.as_deref()), ("failed", Some(expected)));
    // Inserted without the function, which would refuse them.
    for arguments in [r#"{"to_position": null}"#, r#"{"to_position": -5}"#, r#"{"to_time": "soon"}"#] {
        let sql = "INSERT INTO orchestrator_commands (projection, command, arguments) VALUES ('p', 'rewind', $1::text::jsonb) RETURNING id";
        let id = client.query_one(sql, &[&arguments]).unwrap().get(0);
        let (name, ..) = outcome(&mut client, id);
        assert!(name == "refused" || name == "failed", "{arguments}: {name}");
    }
    done(&mut client, "p", "rewind", &json!({"to_beginning": true}));
    await_complete(&mut client, "p");
}

/// Its `reset` ignores the error of a statement.
struct Ignores;

impl Projection for Ignores {
    fn name(&self) -> &str {
        "ignores"
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        Ok(())
    }

    fn reset(&self, tx: &mut Tx<'_>, _: i64) -> Result<(), BoxError> {
        _ = tx.batch_execute("DELETE FROM nothing");
        Ok(())
    }
}
