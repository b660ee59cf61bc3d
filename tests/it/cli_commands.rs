//! The commands of the worker program for operators, in processes of their own. Workers of this
//! process apply them.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{Handle, Projection, Retry};
use serde_json::Value;

use crate::cli::{fails, run, stderr, stdout, succeeds};
use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);
const NOWHERE: &str = "postgres://user:hidden@127.0.0.1:1/none";

/// The arguments, for the replica set of the workers in these tests.
fn in_set<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--replica-set", "set"]].concat()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn worker(database: &TestDatabase, projection: Box<dyn Projection>) -> Handle {
    let worker = start(builder(database.url(), "set").retry(Retry::default().attempts(1)), vec![projection]);
    await_running(&[&worker]);
    worker
}

#[track_caller]
fn await_complete(client: &mut Client) {
    eventually("all events are handled", SOON, || is_complete(client, "p").then_some(()));
}

/// The schema, and the projection `p` of the replica set `set`, which no worker processes.
fn without_worker(database: &TestDatabase) -> Client {
    let mut client = prepared(database);
    client
        .batch_execute(
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('set');
             INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set')",
        )
        .unwrap();
    client
}

#[test]
fn commands_are_applied_and_say_what_they_did() {
    let database = database();
    let (url, mut client) = (database.url(), prepared(&database));
    let handle = worker(&database, Box::new(Ledger::named("p")));
    append_plainly(&mut client, 1_500, 10);
    await_complete(&mut client);
    // The position of an idle projection is written once a second.
    let said = succeeds(url, &in_set(&["pause", "p", "--reason", "the disk is full"]));
    assert!(said.starts_with("p is paused at position 1,") && said.ends_with(" on 1 worker\n"), "{said}");
    append_plainly(&mut client, 10, 10);
    let (out, err) = fails(3, url, &in_set(&["pause", "p", "--reason", "again"]));
    assert!(out.is_empty() && err.contains("was refused: it is paused already"), "{out}{err}");

    let said = succeeds(url, &in_set(&["projections", "--no-rate"]));
    let row = said.lines().find(|line| line.starts_with("p ")).unwrap();
    assert!(row.contains("paused") && row.contains(env!("CARGO_PKG_VERSION")), "{said}");
    for part in ["p is paused since 2", "the disk is full", "continue it with: worker resume p"] {
        assert!(said.contains(part), "{part} in: {said}");
    }
    assert_eq!(handled(&mut client, "p"), 1_500);

    let done = json(&succeeds(url, &in_set(&["resume", "p", "--json", "--by", "kim"])));
    assert_eq!((&done["outcome"], &done["result"]["workers"]), (&"done".into(), &1.into()));
    await_complete(&mut client);
    let said = succeeds(url, &in_set(&["rewind", "p", "--to-position", "1000", "--reason", "wrong totals"]));
    assert!(said.starts_with("p is rewound from position 1,510 to position 1,000 in "), "{said}");
    await_complete(&mut client);
    let (_, err) =
        fails(3, url, &in_set(&["rewind", "p", "--to-time", "2999-01-01T00:00:00Z", "--reason", "typing error"]));
    assert!(err.contains("nothing above 1510 to rewind"), "{err}");
    let said = succeeds(url, &in_set(&["rewind", "p", "--to-time", "2020-01-01T00:00:00Z", "--reason", "all of it"]));
    assert!(said.contains(" to position 0 in "), "{said}");
    await_complete(&mut client);
    let said = succeeds(url, &in_set(&["rewind", "p", "--to-beginning", "--reason", "all of it"]));
    assert!(said.contains(" to position 0 in "), "{said}");
    await_complete(&mut client);
    assert_exactly_once(&mut client, "p");

    let (out, err) = fails(3, url, &in_set(&["remove", "p", "--json"]));
    assert_eq!(json(&out)["outcome"], "refused");
    assert!(json(&out)["error"].as_str().unwrap().contains("workers that run know it"), "{out}{err}");
    let (_, err) = fails(3, url, &in_set(&["replay", "p", "--all"]));
    assert!(err.contains("no parked aggregate matches"), "{err}");
    let event = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let (_, err) = fails(3, url, &in_set(&["discard", "p", "--event", event, "--reason", "a duplicate"]));
    assert!(err.contains("there is no event with this id"), "{err}");
    handle.shutdown(SOON).unwrap();

    let said = succeeds(url, &in_set(&["history"]));
    for parts in [
        &["pause", "postgres@", "done", "the disk is full", "position=1"][..],
        &["pause", "refused", "again", "it is paused already"],
        &["resume", "kim", "postgres", "done"],
        &["rewind to_position=1000", "done", "wrong totals", "from=1510"],
        &["remove", "refused"],
        &[&format!("discard event={event}"), "refused", "a duplicate"],
    ] {
        let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
        assert!(said.lines().any(|line| has_all(&line)), "{parts:?} in: {said}");
    }
    let latest = json(&succeeds(url, &in_set(&["history", "p", "--last", "1", "--json"])));
    assert_eq!((latest.as_array().unwrap().len(), &latest[0]["command"]), (1, &"discard".into()));
    assert!(latest[0]["applied_at"].as_str().unwrap().ends_with('Z'), "{latest}");
    assert_eq!(succeeds(url, &in_set(&["history", "q"])), "no command was given\n");
}

#[test]
fn each_kind_of_failure_has_its_exit_code() {
    let database = database();
    let url = database.url();
    let (_, err) = fails(1, url, &["pause", "p", "--reason", "r"]);
    assert!(err.contains("error: the schema cannot be used") && err.contains("`migrate`"), "{err}");
    let mut client = without_worker(&database);

    for arguments in [
        &["pause", "p"][..],
        &["pause", "p", "--reason", "r", "--timeout", "5"],
        &["discard", "p", "--event", "7", "--reason", "r"],
        &["discard", "p", "--event", "67e55044-10b1-426f-9247-bb680e5fe0c8", "--reason", " ", "--replica-set", "set"],
    ] {
        fails(2, url, arguments);
    }
    let (_, err) = fails(3, url, &in_set(&["pause", "orders", "--reason", "r"]));
    assert!(err.contains(r#"there is no projection "orders": there are "p""#), "{err}");
    let (_, err) = fails(3, url, &["pause", "p", "--reason", "r"]);
    assert!(err.contains(r#"belongs to the replica set "set", not to "main-projections""#), "{err}");
    let count = "SELECT count(*) FROM orchestrator_commands";
    assert_eq!(client.query_one(count, &[]).unwrap().get::<_, i64>(0), 0, "nothing was recorded");

    let (out, err) = fails(4, url, &in_set(&["pause", "p", "--reason", "r"]));
    assert!(out.is_empty() && err.contains("no worker of the replica set \"set\" is running"), "{out}{err}");
    let (out, _) = fails(4, url, &in_set(&["resume", "p", "--json"]));
    assert_eq!(json(&out)["outcome"], "pending");
    assert!(succeeds(url, &in_set(&["pause", "p", "--reason", "r", "--no-wait"])).starts_with("pause is recorded as "));
    assert!(json(&succeeds(url, &in_set(&["resume", "p", "--no-wait", "--json"])))["id"].is_i64());
    let said = succeeds(url, &in_set(&["projections"]));
    assert!(said.contains("4 commands wait for p: worker history p"), "{said}");
    // One that cannot be told from a living one, because it has no lock.
    client
        .batch_execute(
            "INSERT INTO orchestrator_workers (id, replica_set, state, host, pid, version, projections)
             VALUES (gen_random_uuid(), 'set', 'running', 'h', 1, '0', '{p}')",
        )
        .unwrap();
    let (_, err) = fails(4, url, &in_set(&["resume", "p", "--timeout", "300ms"]));
    assert!(err.contains("was not applied within 300ms: it stays recorded"), "{err}");

    client.batch_execute("CREATE ROLE may_not_command LOGIN").unwrap();
    let (_, err) = fails(1, &url.replace("postgres@", "may_not_command@"), &in_set(&["resume", "p"]));
    assert!(err.contains("permission denied") && err.contains("roles.sql"), "{err}");
    for arguments in [&["projections"][..], &["history"], &["parked"], &["resume", "p"]] {
        let (out, err) = fails(1, NOWHERE, arguments);
        assert!(out.is_empty() && err.contains("error: cannot connect to 127.0.0.1:1/none as user"), "{out}{err}");
    }
}

#[test]
fn a_halted_projection_says_how_to_go_on() {
    let database = database();
    let (url, mut client) = (database.url(), prepared(&database));
    append_plainly(&mut client, 10, 10);
    let refuses =
        meddled("p", |_, event| if event.global_position() == 7 { Err("it is bad\x1b[2J".into()) } else { Ok(()) });
    let handle = worker(&database, refuses);
    let shown = eventually("it halts", SOON, || {
        let shown = succeeds(url, &in_set(&["projections", "--no-rate"]));
        shown.contains("halted").then_some(shown)
    });
    let event: String =
        client.query_one("SELECT event_id::text FROM events WHERE global_position = 7", &[]).unwrap().get(0);
    for part in [
        "p is halted",
        "it is bad",
        &event,
        "correct the cause, then it goes on by itself",
        "never to handle the event: worker discard p --event ",
    ] {
        assert!(shown.contains(part), "{part} in: {shown}");
    }
    assert!(!shown.contains('\x1b'), "{shown:?}");
    handle.shutdown(SOON).unwrap();
}

#[test]
fn values_of_others_do_not_reach_the_terminal_as_they_are() {
    let database = database();
    let (url, mut client) = (database.url(), without_worker(&database));
    client
        .batch_execute(
            "UPDATE orchestrator_projections SET desired_state = 'paused', desired_by = E'\\x1b[2J', desired_reason = E'\\x1b]0;x\\x07',
                                                 fault = E'\\x1b[31m';
             INSERT INTO orchestrator_projections (name, replica_set) VALUES (E'q\\x1b[2J', 'set');
             INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                              event_type, attempts, error)
             VALUES ('p', E'\\x1b', E'\\x1b', E'\\x1b', 1, 8, gen_random_uuid(), E'\\x1b', 3, E'\\x1b[31m');
             SELECT orchestrator_command('p', 'replay', '{\"error_like\": \"\\u001b\"}', E'\\x1b', E'\\x1b');
             UPDATE orchestrator_commands SET applied_at = now(), outcome = 'refused', error = E'\\x1b'",
        )
        .unwrap();
    for arguments in [&["projections", "--no-rate"][..], &["history"], &["parked"], &["parked", "p", "--json"]] {
        let said = succeeds(url, &in_set(arguments));
        assert!(said.lines().count() > 0 && !said.contains(['\x1b', '\x07']), "{arguments:?}: {said:?}");
    }
    let output = run(url, &in_set(&["pause", "no\x1b[2J", "--reason", "r"]));
    let said = format!("{}{}", stdout(&output), stderr(&output));
    assert!(said.contains("there is no projection") && !said.contains('\x1b'), "{said:?}");
}

#[test]
fn events_per_second_are_measured_between_two_looks() {
    let database = database();
    let (url, mut client) = (database.url(), prepared(&database));
    let handle = worker(&database, Box::new(Ledger { takes: Duration::from_millis(2), ..Ledger::named("p") }));
    append_plainly(&mut client, 10_000, 10);
    let rate = eventually("it is measured", SOON, || {
        let said = json(&succeeds(url, &in_set(&["projections", "--json"])));
        said[0]["events_per_second"].as_f64().filter(|rate| *rate > 0.0)
    });
    // One event takes two milliseconds.
    assert!(rate < 1_000.0, "{rate}");
    let said = json(&succeeds(url, &in_set(&["projections", "--json", "--no-rate"])));
    assert_eq!((&said[0]["name"], &said[0]["events_per_second"]), (&"p".into(), &Value::Null));
    let said = succeeds(url, &in_set(&["projections"]));
    assert!(said.contains("EVENTS/S") && said.lines().nth(1).is_some_and(|row| !row.contains("n/a")), "{said}");
    assert!(succeeds(url, &["projections"]).contains("no worker of this replica set has ever registered"));
    handle.shutdown(SOON).unwrap();
}
