//! Commands for operators: what the SQL function refuses, and what `Operator` says of each outcome.

use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use postgres::Client;
use pupsourcing_orchestrator::operator::{Command, Operator, OperatorError, Replay, RewindTo};
use pupsourcing_orchestrator::{Handle, Names, StreamId};
use uuid::Uuid;

use crate::support::handlers::prepared;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The schema, and the projection `p` of the replica set `set`.
fn with_projection(database: &TestDatabase) -> Client {
    let mut client = prepared(database);
    client
        .batch_execute(
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('set');
             INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set')",
        )
        .unwrap();
    client
}

fn operator() -> Operator {
    Operator::new(Names::default()).unwrap()
}

fn commands(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM orchestrator_commands", &[]).unwrap().get(0)
}

/// Executes SQL that must fail. Returns the message and the hint.
#[track_caller]
fn refusal(client: &mut Client, sql: &str) -> String {
    let error = client.query(sql, &[]).expect_err(sql);
    let error = error.as_db_error().unwrap();
    format!("{} / {}", error.message(), error.hint().unwrap_or_default())
}

#[test]
fn the_sql_function_refuses_what_is_not_valid() {
    let database = database();
    let mut client = with_projection(&database);
    for (arguments, parts) in [
        ("'p', 'paus'", &["there is no command 'paus'", "pause, resume, rewind"][..]),
        ("'p', ''", &["there is no command ''"]),
        ("'p', NULL", &["there is no command NULL"]),
        ("'q', 'pause'", &["no worker has ever registered a projection 'q'", "\"orchestrator_projections\""]),
        ("NULL, 'pause'", &["no worker has ever registered a projection NULL"]),
        (r#"'p', 'pause', '{"to_position": 7}'"#, &["pause cannot have the arguments", "no arguments"]),
        (r#"'p', 'resume', '{"all": true}'"#, &["resume cannot have"]),
        (r#"'p', 'remove', '{"all": true}'"#, &["remove cannot have"]),
        ("'p', 'pause', '[]'", &["pause cannot have the arguments []"]),
        ("'p', 'pause', '7'", &["pause cannot have the arguments 7"]),
        ("'p', 'rewind'", &["rewind cannot have the arguments {}", "to_beginning"]),
        ("'p', 'rewind', NULL", &["rewind cannot have the arguments"]),
        (r#"'p', 'rewind', '{"to_beginning": false}'"#, &["rewind cannot have"]),
        (r#"'p', 'rewind', '{"to_position": -1}'"#, &["rewind cannot have"]),
        (r#"'p', 'rewind', '{"to_position": null}'"#, &["rewind cannot have"]),
        (r#"'p', 'rewind', '{"to_position": "x"}'"#, &["invalid input syntax for type bigint"]),
        (r#"'p', 'rewind', '{"to_position": 7.5}'"#, &["invalid input syntax for type bigint"]),
        (r#"'p', 'rewind', '{"to_position": 9223372036854775808}'"#, &["out of range"]),
        (r#"'p', 'rewind', '{"to_time": "soon"}'"#, &["invalid input syntax for type timestamp"]),
        (r#"'p', 'rewind', '{"to_time": "infinity"}'"#, &["rewind cannot have"]),
        (r#"'p', 'rewind', '{"to_time": null}'"#, &["rewind cannot have"]),
        (r#"'p', 'rewind', '{"to_position": 7, "to_beginning": true}'"#, &["rewind cannot have"]),
        (r#"'p', 'rewind', '{"to_end": true}'"#, &["rewind cannot have"]),
        ("'p', 'replay'", &["replay cannot have the arguments", "error_like"]),
        (r#"'p', 'replay', '{"all": "true"}'"#, &["replay cannot have"]),
        (r#"'p', 'replay', '{"aggregate": ["a", "b"]}'"#, &["replay cannot have"]),
        (r#"'p', 'replay', '{"aggregate": "a/b/c"}'"#, &["replay cannot have"]),
        (r#"'p', 'replay', '{"error_like": 7}'"#, &["replay cannot have"]),
        (r#"'p', 'replay', '{"error_like": "%", "all": true}'"#, &["replay cannot have"]),
        (r"'p', 'discard', '{}', 'kim', 'why'", &["discard cannot have", "the id of the event"]),
        (r#"'p', 'discard', '{"event": 7}', 'kim', 'why'"#, &["invalid input syntax for type uuid"]),
        (r#"'p', 'discard', '{"event": null}', 'kim', 'why'"#, &["discard cannot have"]),
        (
            r#"'p', 'discard', '{"event": "67e55044-10b1-426f-9247-bb680e5fe0c8"}'"#,
            &["discard needs a reason", "Say why"],
        ),
        (
            r#"'p', 'discard', '{"event": "67e55044-10b1-426f-9247-bb680e5fe0c8"}', 'kim', ' '"#,
            &["discard needs a reason"],
        ),
    ] {
        let said = refusal(&mut client, &format!("SELECT orchestrator_command({arguments})"));
        for part in parts {
            assert!(said.contains(part), "{arguments}: {said}");
        }
    }
    assert_eq!(commands(&mut client), 0);
}

#[test]
fn the_sql_function_records_who_why_and_what() {
    let database = database();
    let mut client = with_projection(&database);
    client.batch_execute("SELECT orchestrator_command('p', 'pause')").unwrap();
    client
        .batch_execute(
            r#"SELECT orchestrator_command('p', 'rewind', '{"to_time": "2026-01-31T12:00:00Z"}', 'kim', 'why')"#,
        )
        .unwrap();
    let found = operator().history(&mut client, Some("p"), 10).unwrap();
    let [rewind, pause] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!((pause.command.as_str(), &pause.reason), ("pause", &None));
    assert_eq!((pause.requested_by.as_str(), pause.requested_as.as_str()), ("postgres", "postgres"));
    assert_eq!((rewind.requested_by.as_str(), rewind.requested_as.as_str()), ("kim", "postgres"));
    assert_eq!(rewind.arguments["to_time"], "2026-01-31T12:00:00Z");
    assert_eq!((rewind.outcome.as_ref(), rewind.applied_at), (None, None));
    let age = SystemTime::now().duration_since(rewind.requested_at).unwrap_or_default();
    assert!(rewind.id > pause.id && age < Duration::from_secs(60), "{found:?}");
    assert_eq!(operator().history(&mut client, None, 1).unwrap().len(), 1);
}

#[test]
fn what_is_not_valid_is_refused_before_it_is_recorded() {
    let database = database();
    let mut client = with_projection(&database);
    client.execute("INSERT INTO orchestrator_replica_sets (name) VALUES ('theirs')", &[]).unwrap();
    client.execute("INSERT INTO orchestrator_projections (name, replica_set) VALUES ('q', 'theirs')", &[]).unwrap();
    let of_set = operator().replica_set("set");
    let discard = || Command::discard("p", Uuid::nil());
    for (operator, command, part) in [
        (operator(), Command::pause("o"), r#"there is no projection "o": there are "p", "q""#),
        (of_set.clone(), Command::pause("o"), r#"there is no projection "o": there are "p""#),
        (of_set.clone(), Command::pause("q"), r#"belongs to the replica set "theirs", not to "set""#),
        (operator(), discard(), "discard needs a reason. Say why"),
        (operator(), discard().reason(" "), "discard needs a reason"),
        (operator(), Command::rewind("p", RewindTo::Position(-1)), "rewind cannot have the arguments"),
        (operator(), Command::pause("p").reason("\0"), "not valid"),
        (operator(), Command::pause("p\0"), "there is no projection"),
        (operator(), Command::replay("p", Replay::ErrorLike("\0".into())), "not valid"),
    ] {
        let error = operator.execute(&mut client, &command, SOON).unwrap_err();
        assert!(error.to_string().contains(part), "{command:?}: {error:?}");
        assert!(error.id().is_none() && !error.is_pending(), "{error:?}");
    }
    assert_eq!(commands(&mut client), 0);
    let listed: Vec<_> = of_set.projections(&mut client).unwrap().into_iter().map(|record| record.name).collect();
    assert_eq!(listed, ["p"]);
}

#[test]
fn a_missing_schema_is_named_with_its_remedy() {
    let database = database();
    let mut client = database.client();
    for error in [
        operator().execute(&mut client, &Command::pause("p"), SOON).unwrap_err(),
        operator().projections(&mut client).unwrap_err(),
        operator().history(&mut client, None, 10).unwrap_err(),
        operator().parked(&mut client, None).unwrap_err(),
    ] {
        assert!(matches!(error, OperatorError::Schema { .. }), "{error:?}");
        assert!(error.to_string().contains("`migrate`"), "{error}");
    }
    assert!(Operator::new(Names::default().schema("pg_mine")).is_err());
}

#[test]
fn without_a_worker_a_command_stays_recorded_at_once() {
    let database = database();
    let mut client = with_projection(&database);
    let begun = Instant::now();
    let error = operator().execute(&mut client, &Command::pause("p"), Duration::from_secs(600)).unwrap_err();
    assert!(matches!(&error, OperatorError::NoWorker { replica_set, .. } if replica_set == "set"), "{error:?}");
    assert!(error.is_pending() && begun.elapsed() < SOON);
    // A worker that has died is still in the table, and its lock is gone.
    let dead = "INSERT INTO orchestrator_workers (id, replica_set, state, host, pid, version, projections, session_class, session_pid)
                VALUES (gen_random_uuid(), 'set', 'running', 'h', 1, '0', '{p}', 1, 1)";
    client.execute(dead, &[]).unwrap();
    let error = operator().execute(&mut client, &Command::resume("p"), Duration::from_secs(600)).unwrap_err();
    assert!(matches!(error, OperatorError::NoWorker { .. }), "{error:?}");
    assert!(begun.elapsed() < SOON);
    let listed = operator().history(&mut client, None, 10).unwrap();
    assert_eq!(listed.iter().map(|record| record.id).max(), error.id());
    assert_eq!(operator().projections(&mut client).unwrap()[0].pending_commands, 2);
}

/// A worker, as far as an operator can see, that records this outcome for the next command.
fn stand_in(database: &TestDatabase, outcome: &'static str) -> JoinHandle<()> {
    let mut client = database.client();
    // Behind a pooler a worker has no lock.
    let alive = "INSERT INTO orchestrator_workers (id, replica_set, state, host, pid, version, projections)
                 VALUES (gen_random_uuid(), 'set', 'running', 'h', 1, '0', '{p}')";
    client.execute(alive, &[]).unwrap();
    thread::spawn(move || {
        let sql = format!("UPDATE orchestrator_commands SET applied_at = now(), {outcome} WHERE applied_at IS NULL");
        eventually("a command is recorded", SOON, || (client.execute(&sql, &[]).unwrap() == 1).then_some(()));
    })
}

#[test]
fn each_outcome_is_told_apart() {
    let database = database();
    let mut client = with_projection(&database);
    let mut execute = |outcome: &'static str, command: &Command| {
        let worker = stand_in(&database, outcome);
        let result = operator().execute(&mut client, command, SOON);
        worker.join().unwrap();
        result
    };
    let applied = execute(r#"outcome = 'done', result = '{"position": 81234, "workers": 3}'"#, &Command::pause("p"));
    let applied = applied.unwrap();
    assert_eq!(applied.to_string(), "p is paused at position 81,234 on 3 workers");
    assert_eq!(applied.position(), Some(81_234));
    // A worker need not say anything.
    assert_eq!(execute("outcome = 'done'", &Command::resume("p")).unwrap().to_string(), "p is resumed");
    let refused = execute("outcome = 'refused', error = 'there is no hook'", &Command::remove("p")).unwrap_err();
    assert!(matches!(&refused, OperatorError::Refused { why, .. } if why == "there is no hook"), "{refused:?}");
    let failed = execute("outcome = 'failed'", &Command::remove("p")).unwrap_err();
    assert!(matches!(&failed, OperatorError::Failed { .. }) && !failed.is_pending(), "{failed:?}");
}

#[test]
fn a_command_that_is_not_applied_in_time_stays_recorded() {
    let database = database();
    let mut client = with_projection(&database);
    let clearing = stand_in(&database, "applied_at = NULL, step = 'executing'");
    drop(clearing);
    let rewind = Command::rewind("p", RewindTo::Beginning);
    let error = operator().execute(&mut client, &rewind, Duration::from_millis(500)).unwrap_err();
    assert!(matches!(error, OperatorError::TimedOut { .. }) && error.is_pending(), "{error:?}");
    assert_eq!(commands(&mut client), 1);
}

#[test]
fn operator_may_be_used_in_a_runtime_and_a_transaction() {
    let database = database();
    let mut client = with_projection(&database);
    let number = operator().submit(&mut client, &Command::pause("p").by("kim").reason("why")).unwrap();
    let mut tx = client.transaction().unwrap();
    let found = operator().history(&mut tx, None, 10).unwrap();
    assert_eq!((found[0].id, found[0].requested_by.as_str(), found[0].reason.as_deref()), (number, "kim", Some("why")));
    assert!(operator().parked(&mut tx, None).unwrap().is_empty());
    tx.commit().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { operator().submit(&mut client, &Command::resume("p")) }).unwrap();
    assert_eq!(commands(&mut client), 2);
}

#[test]
fn parked_aggregates_are_listed_with_their_errors() {
    let database = database();
    let mut client = with_projection(&database);
    client
        .batch_execute(
            "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id, event_type,
                                              attempts, error)
             VALUES ('p', 'shop', 'Order', 'a/b', 1, 8, '67e55044-10b1-426f-9247-bb680e5fe0c8', 'OrderPlaced', 3, 'it is bad')",
        )
        .unwrap();
    for (operator, projection, count) in [
        (operator(), None, 1),
        (operator(), Some("p"), 1),
        (operator().replica_set("set"), None, 1),
        (operator().replica_set("theirs"), None, 0),
    ] {
        assert_eq!(operator.parked(&mut client, projection).unwrap().len(), count, "{operator:?} {projection:?}");
    }
    let unknown = operator().parked(&mut client, Some("q")).unwrap_err();
    assert!(matches!(unknown, OperatorError::Unknown { .. }), "{unknown}");
    let parked = operator().parked(&mut client, None).unwrap().remove(0);
    assert_eq!(parked.aggregate, StreamId::new("shop", "Order", "a/b"));
    assert_eq!((parked.position, parked.attempts, parked.error.as_str()), (8, 3, "it is bad"));
    assert_eq!(operator().projections(&mut client).unwrap()[0].parked, 1);
}

#[test]
fn projections_are_listed_as_workers_process_them() {
    let database = database();
    let mut client = prepared(&database);
    let worker: Handle = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    append_plainly(&mut client, 50, 10);
    eventually("all are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    let record = eventually("the count is complete", SOON, || {
        let record = operator().projections(&mut client).unwrap().remove(0);
        (record.handled == handled(&mut client, "p")).then_some(record)
    });
    assert_eq!((record.name.as_str(), record.replica_set.as_str(), record.state.as_str()), ("p", "set", "running"));
    assert_eq!((record.position, record.lag_events, record.lag_seconds), (Some(50), Some(0), Some(0.0)));
    assert_eq!((record.workers, record.versions), (1, vec![env!("CARGO_PKG_VERSION").to_owned()]));
    assert_eq!((record.error, record.parked, record.pending_commands), (None, 0, 0));
    // A pause hides that it was halted.
    client.batch_execute("UPDATE orchestrator_checkpoints SET state = 'halted', error = 'it is bad'").unwrap();
    assert_eq!(operator().projections(&mut client).unwrap()[0].state, "halted");
    operator().execute(&mut client, &Command::pause("p"), SOON).unwrap();
    assert_eq!(operator().projections(&mut client).unwrap()[0].state, "paused");
    worker.shutdown(SOON).unwrap();
    assert_eq!(operator().projections(&mut client).unwrap()[0].state, "stopped");
}

/// The workers look by themselves only every ten seconds.
#[test]
fn workers_apply_commands_as_soon_as_they_are_notified() {
    let database = database();
    let mut client = prepared(&database);
    let patient = || {
        let rarely = Duration::from_secs(10);
        builder(database.url(), "set").poll_interval(rarely).heartbeat_interval(rarely).stale_worker_timeout(rarely * 3)
    };
    let workers = [(); 2].map(|()| start(patient(), vec![Box::new(Ledger::named("p"))]));
    await_running(&workers.each_ref());
    append_plainly(&mut client, 50, 10);
    eventually("all are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    let operator = operator().replica_set("set");
    let begun = Instant::now();
    let mut execute = |command: &Command| operator.execute(&mut client, command, SOON);
    let said = execute(&Command::pause("p").by("kim").reason("a test")).unwrap().to_string();
    assert!(said.starts_with("p is paused at position ") && said.ends_with(" on 2 workers"), "{said}");
    let refused = execute(&Command::pause("p")).unwrap_err().to_string();
    assert!(refused.contains("was refused: it is paused already") && refused.contains("by kim (a test)"), "{refused}");
    let said = execute(&Command::resume("p")).unwrap().to_string();
    assert!(said.starts_with("p is resumed at position ") && said.ends_with(" on 2 workers"), "{said}");
    let rewound = execute(&Command::rewind("p", RewindTo::Position(20))).unwrap();
    assert_eq!(rewound.position(), Some(20));
    assert!(rewound.to_string().starts_with("p is rewound from position 50 to position 20 in "), "{rewound}");
    let refused = execute(&Command::remove("p")).unwrap_err().to_string();
    assert!(refused.contains("workers that run know it"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());

    eventually("all are handled again", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    let record = operator.projections(&mut client).unwrap().remove(0);
    assert_eq!((record.desired_state.as_str(), record.pending_commands), ("running", 0));
    let outcomes: Vec<_> =
        operator.history(&mut client, Some("p"), 10).unwrap().into_iter().map(|r| r.outcome).collect();
    assert_eq!(outcomes, ["refused", "done", "done", "refused", "done"].map(|outcome| Some(outcome.to_owned())));
    for worker in workers {
        worker.shutdown(SOON).unwrap();
    }
}
