//! Reactions: what moves the checkpoint, what is held during a call, and what delays what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{BoxError, Builder, Call, Event, Options, ProjectionState, Reaction};
use serde_json::json;

use crate::support::cluster::{newest, positions};
use crate::support::commands::{done, refused};
use crate::support::handlers::prepared;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::metrics::{metric, projection_metric};
use crate::support::parking::assert_accounts;
use crate::support::reactions::{Effects, Reacting, gate, pass_time, start_reaction};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, StopMode, database, eventually};

const SOON: Duration = Duration::from_secs(30);

#[track_caller]
fn await_position(client: &mut Client, projection: &str, position: i64) {
    eventually("the checkpoint moves", SOON, || {
        positions(client, projection).iter().all(|found| *found == position).then_some(())
    });
}

#[test]
fn a_new_reaction_starts_at_the_end_unless_told_otherwise() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 5, 5);
    let (new, all) = (Effects::default(), Effects::default());
    // An `Arc` says what the reaction in it says.
    let builder = builder(database.url(), "set")
        .reaction(Reacting::simple("new", &new).start_at(Arc::new(Usual).start_at()))
        .reaction(Reacting::simple("all", &all));
    let worker = start(builder, vec![]);
    await_running(&[&worker]);
    all.await_count(5);
    append_plainly(&mut client, 3, 3);
    new.await_count(3);
    all.await_count(8);
    all.assert_once_each(&mut client);
    assert_eq!(new.positions(), [6, 7, 8]);
    // What it has not handled before its start is no part of the account.
    await_position(&mut client, "new", 8);
    await_position(&mut client, "all", 8);
    assert_accounts(&mut client);
    worker.shutdown(SOON).unwrap();
}

/// A reaction that says nothing about where it starts.
struct Usual;

impl Reaction for Usual {
    fn name(&self) -> &str {
        "usual"
    }

    fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        Ok(events.len())
    }
}

#[test]
fn part_of_a_call_moves_the_checkpoint_at_once() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 5);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let worker = start_reaction(
        builder(database.url(), "set"),
        Reacting::named("p", &effects, move |call, events| {
            if events[0].global_position() == 1 {
                assert_eq!((call.projection(), call.is_replay(), events.len()), ("p", false, 10));
                return Ok(4);
            }
            gate.pass()?;
            Ok(events.len())
        }),
    );
    keeper.await_call();
    assert_eq!((positions(&mut client, "p"), effects.positions()), (vec![4], vec![1, 2, 3, 4]));
    keeper.release();
    await_position(&mut client, "p", 10);
    effects.assert_once_each(&mut client);
    assert_eq!(projection_metric(&worker, "events_processed_total", "p"), Some(10.0));
    worker.shutdown(SOON).unwrap();
    assert_accounts(&mut client);
}

/// How many sessions of the worker are in a transaction.
fn transactions(client: &mut Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name = 'pupsourcing-orchestrator set' AND (state LIKE 'idle in transaction%' OR xact_start < now() - interval '200 ms')";
    client.query_one(sql, &[]).unwrap().get(0)
}

#[test]
fn a_call_holds_no_transaction_and_needs_no_connection() {
    for in_flight in [1, 4] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 10, 5);
        let (effects, (gate, keeper)) = (Effects::default(), gate());
        let first = AtomicBool::new(true);
        let reaction = Reacting::named("p", &effects, move |_, events| {
            if events[0].global_position() == 1 && first.swap(false, Ordering::Relaxed) {
                gate.pass()?;
            }
            Ok(events.len())
        });
        let builder = builder(database.url(), "set").pool_size(2);
        let worker = start_reaction(builder, reaction.options(Options::default().in_flight(in_flight)));
        keeper.await_call();
        eventually("the reading transaction has ended", SOON, || (transactions(&mut client) == 0).then_some(()));
        for _ in 0..30 {
            assert_eq!(transactions(&mut client), 0);
            pass_time(Duration::from_millis(10));
        }
        // The call needs none of the connections. The worker stays alive by its own session.
        let sql = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity a
                   WHERE a.datname = current_database() AND a.application_name = 'pupsourcing-orchestrator set'
                     AND NOT EXISTS (SELECT FROM orchestrator_workers w WHERE w.session_pid = a.pid)";
        let ended: i64 = client.query_one(sql, &[]).unwrap().get(0);
        assert!(ended >= 3, "the tailer, the listener and one of the pool, but only {ended}");
        keeper.release();
        await_position(&mut client, "p", 10);
        effects.assert_once_each(&mut client);
        assert_eq!(projection_metric(&worker, "projection_errors_total", "p"), Some(0.0));
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn a_slow_call_delays_neither_heartbeats_nor_other_projections() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 5);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let reaction = Reacting::named("slow", &effects, move |_, events| {
        if events[0].global_position() == 1 {
            gate.pass()?;
        }
        Ok(events.len())
    });
    // A worker that sent no heartbeat would be dead to the others.
    let builder = builder(database.url(), "set").reaction(reaction);
    let worker = start(builder, vec![Box::new(Ledger::named("other"))]);
    keeper.await_call();
    let heartbeats = || metric(&worker, "heartbeat_latency_seconds_count", &[]).unwrap();
    let (begun, before) = (Instant::now(), heartbeats());
    while begun.elapsed() < Duration::from_millis(2_500) {
        append_plainly(&mut client, 10, 5);
        eventually("the other projection goes on", SOON, || is_complete(&mut client, "other").then_some(()));
        pass_time(Duration::from_millis(50));
    }
    // One is due every 200 ms.
    assert!(heartbeats() - before >= 6.0, "{} heartbeats", heartbeats() - before);
    assert_exactly_once(&mut client, "other");
    assert_eq!(worker.status().projections["slow"].state, ProjectionState::Running);
    assert_eq!(metric(&worker, "stale_workers_cleaned_total", &[]), Some(0.0));
    keeper.release();
    effects.await_count(newest(&mut client).try_into().unwrap());
    effects.assert_once_each(&mut client);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn calls_know_their_deadline_and_that_a_pause_is_requested() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 40, 20);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let limit = Duration::from_secs(7);
    let worker = || builder(database.url(), "set").coordination_timeout(limit);
    let deadlines = Arc::new(Mutex::new(Vec::new()));
    let (noted, asked) = (deadlines.clone(), Arc::new(AtomicUsize::new(0)));
    let answers = asked.clone();
    let first = start_reaction(
        worker(),
        Reacting::named("p", &effects, move |call, events| {
            noted.lock().push(call.deadline().saturating_duration_since(Instant::now()));
            if events[0].global_position() == 1 {
                assert!(!call.is_pause_requested());
                gate.pass()?;
                eventually("a pause is requested", SOON, || call.is_pause_requested().then_some(()));
                answers.fetch_add(1, Ordering::Relaxed);
                return Ok(3);
            }
            Ok(events.len())
        }),
    );
    keeper.await_call();
    keeper.release();
    // The call returns early because this worker joins, so that it need not wait for the rest.
    let second = start_reaction(worker(), Reacting::simple("p", &effects));
    await_running(&[&first, &second]);
    effects.await_count(40);
    effects.assert_once_each(&mut client);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let deadlines = deadlines.lock().clone();
    assert!(deadlines.iter().all(|left| *left <= limit && *left * 2 > limit), "{deadlines:?}");
    first.shutdown(SOON).unwrap();
    second.shutdown(SOON).unwrap();
    assert_accounts(&mut client);
}

/// Longer than a runner waits for a connection.
const OUTAGE: Duration = Duration::from_millis(2_500);

/// The server is stopped and started again during a call.
fn server_restarts_during_a_call(mode: StopMode, in_flight: usize) {
    let mut server = Postgres::start().unwrap();
    let url = server.create_database("reactions").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&pupsourcing_orchestrator::Names::default().schema_sql()).unwrap();
    append_plainly(&mut client, 6, 3);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let reaction = Reacting::named("p", &effects, move |_, events| {
        if events[0].global_position() == 1 {
            gate.pass()?;
        }
        Ok(events.len())
    });
    let worker = start_reaction(builder(&url, "set"), reaction.options(Options::default().in_flight(in_flight)));
    keeper.await_call();
    drop(client);
    server.stop(mode).unwrap();
    // The call ends while the server is away, so nothing can be recorded.
    keeper.release();
    effects.await_count(1);
    // Some attempts to record it fail meanwhile.
    pass_time(OUTAGE);
    server.start_again().unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    await_position(&mut client, "p", 6);
    assert!(!keeper.has_another());
    effects.assert_once_each(&mut client);
    append_plainly(&mut client, 6, 3);
    let newest = newest(&mut client);
    await_position(&mut client, "p", newest);
    effects.assert_once_each(&mut client);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_restart_of_the_server_during_a_call_repeats_nothing() {
    server_restarts_during_a_call(StopMode::Fast, 1);
    server_restarts_during_a_call(StopMode::Immediate, 1);
}

#[test]
fn a_restart_of_the_server_repeats_nothing_in_flight() {
    server_restarts_during_a_call(StopMode::Fast, 4);
}

/// A worker that the others wait for only briefly.
fn with_timeout(url: &str) -> Builder {
    builder(url, "set").coordination_timeout(Duration::from_millis(600))
}

#[test]
fn a_worker_whose_call_takes_too_long_is_left_out() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 5);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let hangs = Reacting::named("p", &effects, move |_, events| {
        if events[0].global_position() == 1 {
            gate.pass()?;
        }
        Ok(events.len())
    });
    let slow = start_reaction(with_timeout(database.url()), hangs);
    keeper.await_call();
    let other = start_reaction(with_timeout(database.url()), Reacting::simple("p", &effects));
    // The other worker handles the events of the call, which still goes on.
    effects.await_count(10);
    await_position(&mut client, "p", 10);
    effects.assert_once_each(&mut client);
    keeper.release();
    // The slow call ends, too: each of its events had its effect twice, with the same id.
    effects.await_count(20);
    await_running(&[&slow, &other]);
    let mut ids: Vec<_> = effects.all().into_iter().map(|effect| (effect.position, effect.id)).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((effects.count(), ids.len()), (20, 10));
    assert_eq!(projection_metric(&slow, "fenced_batches_total", "p"), Some(1.0));
    append_plainly(&mut client, 10, 5);
    effects.await_count(30);
    await_position(&mut client, "p", 20);
    assert_eq!(effects.count(), 30, "nothing else is repeated");
    slow.shutdown(SOON).unwrap();
    other.shutdown(SOON).unwrap();
    assert_accounts(&mut client);
}

#[test]
fn what_concerns_read_models_is_refused() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 4, 2);
    let effects = Effects::default();
    let worker = start_reaction(builder(database.url(), "set"), Reacting::simple("p", &effects));
    effects.await_count(4);
    let aggregate = json!({"aggregate": ["test", "Thing", "thing-1"]});
    for (command, arguments) in [("rebuild", json!({})), ("rebuild_aggregate", aggregate)] {
        let why = refused(&mut client, "p", command, &arguments);
        assert!(why.contains("it is a reaction"), "{command}: {why}");
    }
    assert_eq!((effects.count(), worker.status().projections["p"].state), (4, ProjectionState::Running));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_rewind_repeats_effects_only_if_the_command_says_so() {
    for in_flight in [1, 4] {
        let database = database();
        let mut client = prepared(&database);
        append_plainly(&mut client, 6, 3);
        let effects = Effects::default();
        let reaction = Reacting::simple("p", &effects).options(Options::default().in_flight(in_flight));
        let worker = start_reaction(builder(database.url(), "set"), reaction);
        await_position(&mut client, "p", 6);
        let why = refused(&mut client, "p", "rewind", &json!({"to_position": 2}));
        assert!(why.contains("--repeat-effects"), "{why}");
        append_plainly(&mut client, 3, 3);
        await_position(&mut client, "p", 9);
        effects.assert_once_each(&mut client);

        done(&mut client, "p", "rewind", &json!({"to_position": 2, "repeat_effects": true}));
        effects.await_count(16);
        await_position(&mut client, "p", 9);
        append_plainly(&mut client, 3, 3);
        await_position(&mut client, "p", 12);
        let mut repeated: Vec<_> =
            effects.all().into_iter().filter(|effect| effect.is_replay).map(|effect| effect.position).collect();
        repeated.sort_unstable();
        assert_eq!(repeated, [3, 4, 5, 6, 7, 8, 9]);
        assert_eq!(effects.count(), 19);
        worker.shutdown(SOON).unwrap();
        assert_accounts(&mut client);
    }
}

#[test]
fn a_worker_that_leaves_waits_for_its_call() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 4, 2);
    let (effects, (gate, keeper)) = (Effects::default(), gate());
    let reaction = Reacting::named("p", &effects, move |_, _| {
        gate.pass()?;
        Ok(2)
    });
    let worker = start_reaction(builder(database.url(), "set"), reaction);
    keeper.await_call();
    worker.request_shutdown();
    pass_time(Duration::from_millis(300));
    keeper.release();
    worker.join().unwrap();
    assert_eq!((effects.positions(), positions(&mut client, "p")), (vec![1, 2], vec![2]));
    let worker = start_reaction(builder(database.url(), "set"), Reacting::simple("p", &effects));
    effects.await_count(4);
    effects.assert_once_each(&mut client);
    worker.shutdown(SOON).unwrap();
}
