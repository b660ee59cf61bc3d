//! `/status` and its page: what they show, and what their viewers cost the database.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use postgres::{Client, GenericClient, NoTls};
use pupsourcing_orchestrator::{
    BoxError, Builder, Handle, Metrics, MetricsServer, MetricsServerBuilder, Projection, Retry,
};
use serde_json::Value;

use crate::support::browser::{chromium, rendered};
use crate::support::handlers::{meddled, prepared};
use crate::support::http::get;
use crate::support::insert::{ONE, insert};
use crate::support::ledger::{Ledger, append_plainly, is_complete};
use crate::support::statements::{start_logging_server, statements};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, StopMode, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// Names may contain everything except control characters: markup, quotes, and right-to-left text.
const HOSTILE_SET: &str = r#"</script><img src=x onerror="document.title='owned'">"#;
const HOSTILE_PROJECTION: &str = "<b>\"'`&\\ \u{202e}שלום{$1}";

fn serve(watched: &[&Handle]) -> MetricsServer {
    serve_with(MetricsServer::builder(Metrics::new().unwrap()), watched)
}

fn serve_with(builder: MetricsServerBuilder, watched: &[&Handle]) -> MetricsServer {
    let builder = watched.iter().fold(builder, |builder, handle| builder.watch(handle.health()));
    builder.bind("127.0.0.1:0").unwrap()
}

#[track_caller]
fn status(server: &MetricsServer) -> Value {
    let (code, body) = get(&server.address().to_string(), "/status");
    assert_eq!(code, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

/// The overview of the first watched worker, once it is loaded and meets the condition.
#[track_caller]
fn await_overview(server: &MetricsServer, so: impl Fn(&Value) -> bool) -> Value {
    eventually("the overview is loaded", SOON, || {
        let overview = status(server)["workers"][0]["overview"]["replica_set"].take();
        (!overview.is_null() && so(&overview)).then_some(overview)
    })
}

fn halting(name: &'static str) -> Box<dyn Projection> {
    meddled(name, |_, event| match event.aggregate_id() {
        "thing-0" => Err("<i>no</i> thing-0\nis refused".into()),
        _ => Ok(()),
    })
}

fn hasty(builder: Builder) -> Builder {
    builder.retry(Retry::default().attempts(1))
}

/// Appends an event of an aggregate to which no other writer appends, so no writer waits for it.
fn append_elsewhere(client: &mut impl GenericClient) {
    client.execute(&insert(ONE, &[("aggregate_type", "'Other'")]), &[]).unwrap();
}

/// The paths of all values, as `status.md` writes them. Paths of null are left out.
fn paths(value: &Value, path: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Null => return,
        Value::Object(fields) => {
            for (name, value) in fields {
                let separator = if path.is_empty() { "" } else { "." };
                paths(value, &format!("{path}{separator}{name}"), found);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| paths(value, &format!("{path}[]"), found)),
        _ => {}
    }
    // An array is known by its elements.
    if !value.is_array() && !path.is_empty() {
        found.insert(path.to_owned());
    }
}

fn documented() -> BTreeSet<String> {
    let lines = include_str!("../../src/http/status.md").lines();
    lines.filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect()
}

/// The report of a checkpoint's owner.
const HALTED: &str =
    "UPDATE orchestrator_checkpoints SET state = 'halted', error = 'the <i>other</i> one failed', attempts = 8,
    attempt_position = 1, attempt_event_id = '00000000-0000-0000-0000-000000000009', attempted_at = now()";

/// Parked aggregates of a projection that no worker knows, so that no worker replays them.
const PARKED: &str = "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                   event_type, attempts, error, parked_at, replay_requested_at)
    SELECT 'lost', 'test', 'Thing', '<b>' || n, 1, n, '00000000-0000-0000-0000-000000000009', '<i>Happened', 8,
           repeat('<b>no', 1000), now() + n * interval '1 s' - interval '1 h', now()
    FROM generate_series(1, 101) AS n";

/// A command that is done, one that is refused, and one that is in progress.
const COMMANDS: &str = "INSERT INTO orchestrator_commands (projection, command, reason, requested_by, applied_at, outcome, result, error, step,
                                     executor, attempt)
    VALUES ('lost', 'pause', '<b>why', '<b>kim', now(), 'done', '{\"position\": 7}', NULL, NULL, NULL, 0),
           ('lost', 'pause', '<b>why', '<b>kim', now(), 'refused', NULL, '<b>no', NULL, NULL, 0),
           ('lost', 'rewind', '<b>why', '<b>kim', NULL, NULL, NULL, NULL, 'executing', gen_random_uuid(), 2)";

/// A rebuild whose handler fails, and former tables. Nothing processes them.
const REBUILT: &str = "INSERT INTO orchestrator_projections (name, replica_set, version, build_id, desired_state)
    SELECT 'lost' || suffix, replica_set, 2, 'a1', 'paused' FROM orchestrator_projections, unnest(ARRAY['@rebuild', '@old']) AS suffix
    WHERE name = 'lost';
    INSERT INTO orchestrator_checkpoints (projection, keys, position, state, error, attempt_event_id)
    VALUES ('lost@rebuild', '{[0,65536)}', 100, 'halted', '<b>no', gen_random_uuid());
    INSERT INTO orchestrator_rebuilds (id, projection, state, tables, table_schemas, live_oids, copy_oids, copies_schema, rate, bytes, blocked)
    SELECT n, 'lost', state, '{<b>t}', '{}', '{}', '{}', '<i>s', 20, 1, '<b>why' FROM unnest(ARRAY['loading', 'old']) WITH ORDINALITY AS kept (state, n)";

/// Every field that can be null has a value at some time here: there is a halted projection, a
/// blocked head, a worker that has left, and a projection that has lost its checkpoints.
#[test]
fn the_status_has_exactly_the_documented_fields() {
    let database = database();
    let mut client = prepared(&database);
    let worker = || start(hasty(builder(database.url(), HOSTILE_SET)), vec![halting(HOSTILE_PROJECTION)]);
    let (stays, leaves) = (worker(), worker());
    await_running(&[&stays, &leaves]);
    leaves.shutdown(SOON).unwrap();
    await_running(&[&stays]);
    append_plainly(&mut client, 10, 10);
    let mut writer = database.client();
    writer.execute("SET application_name = '</script>\"writer'", &[]).unwrap();
    let mut open = writer.transaction().unwrap();
    append_elsewhere(&mut open);
    append_plainly(&mut client, 1, 1);

    eventually("the projection is halted", SOON, || {
        stays.status().projections[HOSTILE_PROJECTION].error.as_ref().map(drop)
    });
    client.execute(HALTED, &[]).unwrap();
    let lost = "INSERT INTO orchestrator_projections (name, replica_set, desired_state, desired_by, desired_reason)
                VALUES ('lost', $1, 'paused', '<b>kim', '<i>because')";
    client.execute(lost, &[&HOSTILE_SET]).unwrap();
    client.batch_execute(PARKED).unwrap();
    client.batch_execute(REBUILT).unwrap();
    let found = "SELECT FROM orchestrator_projections WHERE name = 'lost' AND fault = 'missing'";
    eventually("the fault is found", SOON, || client.query_opt(found, &[]).unwrap());
    // No worker can apply a command meanwhile.
    let mut locker = database.client();
    let mut lock = locker.transaction().unwrap();
    lock.query("SELECT FROM orchestrator_replica_sets FOR UPDATE", &[]).unwrap();
    client.batch_execute(COMMANDS).unwrap();

    let server = serve(&[&stays]);
    let (mut seen, documented) = (BTreeSet::new(), documented());
    let deadline = Instant::now() + SOON;
    let all = eventually("every field has a value, or it is late", 2 * SOON, || {
        let status = status(&server);
        paths(&status, "", &mut seen);
        (seen.is_superset(&documented) || Instant::now() > deadline).then_some(status)
    });
    assert_eq!(seen, documented, "what is there (left) and what is documented (right)");

    let worker = &all["workers"][0];
    assert_eq!(worker["replica_set"], HOSTILE_SET);
    assert_eq!(worker["worker_id"], stays.worker_id().to_string());
    assert_eq!((&worker["state"], &worker["assignment"]["total_partitions"]), (&"running".into(), &1.into()));
    assert_eq!(worker["head_blocked"]["blockers"][0]["name"], "</script>\"writer");
    let own = &worker["projections"][0];
    assert_eq!((&own["name"], &own["state"]), (&HOSTILE_PROJECTION.into(), &"halted".into()));
    assert!(own["error"].as_str().unwrap().contains("<i>no</i> thing-0\nis refused"), "{own}");

    let overview = &worker["overview"]["replica_set"];
    let generations = overview["generations"].as_array().unwrap();
    assert_eq!((&generations[0]["state"], &generations[0]["cause"]), (&"active".into(), &"departed".into()));
    let pauses: f64 = generations.iter().filter_map(|generation| generation["pause_seconds"].as_f64()).sum();
    assert!(pauses > 0.0 && pauses < SOON.as_secs_f64(), "{generations:?}");
    let workers: Vec<_> =
        overview["workers"].as_array().unwrap().iter().map(|w| (&w["state"], &w["stop_reason"])).collect();
    assert_eq!(workers, [(&"running".into(), &Value::Null), (&"stopped".into(), &"left".into())]);
    let projection = &overview["projections"][0];
    assert_eq!(projection["name"], HOSTILE_PROJECTION);
    assert_eq!(projection["checkpoints"][0]["keys"], "{[0,65536)}");
    assert_eq!(projection["checkpoints"][0]["worker_id"], stays.worker_id().to_string());
    // The first event is refused. Eleven events were committed, and the open transaction holds a
    // position between them.
    assert_eq!((&projection["lag_events"], &overview["newest_position"]), (&12.into(), &12.into()));
    assert!(projection["lag_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!((&projection["state"], &projection["desired_state"]), (&"halted".into(), &"running".into()));
    let lost = &overview["projections"][1];
    assert_eq!(
        (&lost["name"], &lost["state"], &lost["fault"]),
        (&"lost".into(), &"orphaned".into(), &"missing".into())
    );
    assert_eq!((&lost["lag_events"], &lost["checkpoints"]), (&Value::Null, &Value::Array(vec![])));
    assert_eq!((&lost["desired_by"], &lost["desired_reason"]), (&"<b>kim".into(), &"<i>because".into()));
    assert_eq!((&lost["parked"], &lost["pending_commands"]), (&101.into(), &1.into()));
    let rewind = &lost["rewind"];
    assert_eq!(
        (&rewind["command_id"], &rewind["step"], &rewind["attempt"]),
        (&3.into(), &"executing".into(), &2.into())
    );
    let parked = overview["parked_aggregates"].as_array().unwrap();
    assert_eq!(parked.len(), 100, "the first ones");
    assert_eq!((&parked[0]["aggregate_id"], &parked[0]["event_type"]), (&"<b>1".into(), &"<i>Happened".into()));
    assert_eq!(parked[0]["error"].as_str().map(str::len), Some(1000), "a long one is shortened");
    let commands: Vec<_> = overview["commands"].as_array().unwrap().iter().map(|c| (&c["id"], &c["outcome"])).collect();
    assert_eq!(commands, [(&3.into(), &Value::Null), (&2.into(), &"refused".into()), (&1.into(), &"done".into())]);
    assert_eq!(overview["commands"][2]["result"], "{\"position\": 7}");
    lock.rollback().unwrap();
}

/// The worst state counts, no matter which worker reports it.
#[test]
fn each_projection_has_one_state() {
    let database = database();
    let mut client = prepared(&database);
    let names = ["p", "q"];
    let start = || start(builder(database.url(), "set"), names.map(|name| Box::new(Ledger::named(name)) as _).into());
    let (one, two) = (start(), start());
    await_running(&[&one, &two]);
    let server = serve(&[&one]);
    let theirs = format!("projection = 'p' AND worker_id = '{}'", two.worker_id());
    for (change, state, fault) in [
        ("SELECT".to_owned(), "running", Value::Null),
        (format!("UPDATE orchestrator_checkpoints SET state = 'retrying' WHERE {theirs}"), "retrying", Value::Null),
        (format!("UPDATE orchestrator_checkpoints SET state = 'halted' WHERE {theirs}"), "halted", Value::Null),
        ("UPDATE orchestrator_projections SET desired_state = 'paused' WHERE name = 'p'".into(), "paused", Value::Null),
        (
            // What was reported before the pause counts again, until an event is handled.
            "UPDATE orchestrator_checkpoints SET state = 'running' WHERE projection = 'p';
             UPDATE orchestrator_projections SET desired_state = 'running' WHERE name = 'p'"
                .into(),
            "running",
            Value::Null,
        ),
        ("UPDATE orchestrator_checkpoints SET keys = '{[7,9)}' WHERE projection = 'p'".into(), "broken", "torn".into()),
        ("DELETE FROM orchestrator_checkpoints WHERE projection = 'p'".into(), "broken", "missing".into()),
        ("DELETE FROM orchestrator_projections WHERE name = 'p'".into(), "running", Value::Null),
        (
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('another');
             UPDATE orchestrator_projections SET replica_set = 'another' WHERE name = 'p'"
                .into(),
            "broken",
            "belongs to another".into(),
        ),
    ] {
        client.batch_execute(&change).unwrap();
        let overview = await_overview(&server, |overview| {
            overview["projections"][0]["state"] == state && overview["projections"][0]["fault"] == fault
        });
        assert_eq!(overview["projections"][0]["name"], "p", "{change}");
        assert_eq!(overview["projections"][1]["state"], "running", "{change}");
        assert_eq!(overview["projections"][0]["lag_events"].is_null(), state == "broken", "{change}");
    }
}

#[test]
fn a_browser_shows_the_problems_of_other_workers() {
    let Some(chromium) = chromium() else { return };
    let database = database();
    let mut client = prepared(&database);
    let names = ["halts", "paused", "sound", "torn"];
    let start = || start(builder(database.url(), "set"), names.map(|name| Box::new(Ledger::named(name)) as _).into());
    let (one, two) = (start(), start());
    await_running(&[&one, &two]);
    append_plainly(&mut client, 20, 20);
    // A commit of a runner clears what its row reports.
    eventually("all events are handled", SOON, || {
        names.iter().all(|name| is_complete(&mut client, name)).then_some(())
    });
    client
        .batch_execute(&format!(
            "{HALTED} WHERE projection = 'halts' AND worker_id = '{}';
             UPDATE orchestrator_checkpoints SET keys = '{{[7,9)}}' WHERE projection = 'torn';
             UPDATE orchestrator_projections SET desired_state = 'paused' WHERE name = 'paused';
             INSERT INTO orchestrator_projections (name, replica_set) VALUES ('gone', 'set')",
            two.worker_id()
        ))
        .unwrap();
    let server = serve(&[&one]);
    let states = ["orphaned", "halted", "paused", "running", "broken"];
    await_overview(&server, |overview| {
        let all = overview["projections"].as_array().unwrap();
        all.iter().map(|projection| &projection["state"]).eq(states)
    });
    let url = format!("http://{}/", server.address());
    let page = rendered(&chromium, &url);
    assert_eq!(between(&page, "<title>", "</title>"), "■ set");
    let main = between(&page, "<main", "</main>");
    assert!(between(main, "<div class=\"title\">", "<dl>").contains("badge broken"), "the worst state: {main}");
    assert!(main.contains("Halted: ") && main.contains("Broken: ") && main.contains("Orphaned: "), "{main}");
    let projections = between(main, "<table class=\"projections\">", "</section>");
    for state in states {
        assert!(projections.contains(&format!("badge {state}")), "{state}: {projections}");
    }
    let error = between(projections, "<pre class=\"error\" dir=\"auto\">", "</pre>");
    assert_eq!(error, "the &lt;i&gt;other&lt;/i&gt; one failed");
    assert!(
        projections.contains("8 failed attempts at position 1 (00000000-0000-0000-0000-000000000009)"),
        "{projections}"
    );
}

/// A handler inserts a row twice, and reports the error in three ways.
#[test]
fn the_status_shows_no_row_that_the_server_quotes() {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute("CREATE TABLE customers (email text PRIMARY KEY)").unwrap();
    let inserting = |name, fail: fn(postgres::Error) -> Result<(), BoxError>| {
        meddled(name, move |tx, _| {
            let twice = "INSERT INTO customers VALUES ('jane@secret.example'), ('jane@secret.example')";
            tx.batch_execute(twice).or_else(fail)
        })
    };
    let projections = vec![
        inserting("returned", |error| Err(error.into())),
        inserting("worded", |error| Err(format!("no customer: {}", error.as_db_error().unwrap()).into())),
        inserting("unwrapped", |error| panic!("an `Err` value: {error:?}")),
    ];
    let worker = start(hasty(builder(database.url(), "set")), projections);
    await_running(&[&worker]);
    append_plainly(&mut client, 1, 1);
    let server = serve(&[&worker]);
    let all = eventually("all three are halted", SOON, || {
        let all = status(&server)["workers"][0]["projections"].take();
        all.as_array().unwrap().iter().all(|projection| projection["state"] == "halted").then_some(all)
    });
    for projection in all.as_array().unwrap() {
        let error = projection["error"].as_str().unwrap();
        assert!(error.contains(" at global position 1 ") && error.contains("customers_pkey"), "{error}");
        assert!(!error.contains("jane"), "{error}");
    }
    assert!(!format!("{:?}", worker.status()).contains("jane"));
}

#[test]
fn the_last_twenty_generations_are_shown() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    client
        .batch_execute(
            "INSERT INTO orchestrator_generations (replica_set, number, state, total_partitions, reason)
             SELECT 'set', n, 'superseded', 1, 'joined' FROM generate_series(-28, 0) AS n",
        )
        .unwrap();
    let server = serve(&[&worker]);
    let overview = await_overview(&server, |overview| overview["generations"].as_array().unwrap().len() > 1);
    let numbers: Vec<i64> =
        overview["generations"].as_array().unwrap().iter().map(|g| g["number"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (-18..=1).rev().collect::<Vec<i64>>());
}

/// How often the server was asked for an overview, according to its own log.
fn asked(server: &Postgres) -> usize {
    statements(server).iter().filter(|statement| statement.text.contains("'newest_position'")).count()
}

/// Waits while others work.
fn elapse(time: Duration) {
    never::<()>().recv_timeout(time).unwrap_err();
}

#[test]
fn many_viewers_cost_one_query_a_second_and_none_cost_nothing() {
    const LOOKING: Duration = Duration::from_secs(4);
    let postgres = start_logging_server();
    let url = postgres.create_database("looked_at").unwrap();
    Ledger::create_table(&mut Client::connect(&url, NoTls).unwrap());
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let server = serve(&[&worker]);

    let without = serve_with(MetricsServer::builder(Metrics::new().unwrap()).status_page(false), &[&worker]);
    for path in ["/", "/status", "/metrics", "/livez", "/readyz"] {
        get(&without.address().to_string(), path);
        get(&server.address().to_string(), if path == "/status" { "/" } else { path });
    }
    elapse(Duration::from_secs(1));
    assert_eq!(asked(&postgres), 0, "no viewer has looked");

    let (answers, begun) = (AtomicU64::new(0), Instant::now());
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while begun.elapsed() < LOOKING {
                    status(&server);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let (asked_then, took) = (asked(&postgres), begun.elapsed());
    println!("{} answers in {took:?}, the database was asked {asked_then} times", answers.into_inner());
    assert!(asked_then >= 2 && asked_then as u64 <= took.as_secs() + 1, "asked {asked_then} times in {took:?}");

    // For three seconds after a request, the worker expects another one.
    elapse(Duration::from_secs(4));
    let asked_last = asked(&postgres);
    elapse(Duration::from_secs(2));
    assert_eq!(asked(&postgres), asked_last, "no viewer looks any more");
}

#[test]
fn the_status_answers_at_once_while_the_database_is_down() {
    let mut postgres = Postgres::start().unwrap();
    let url = postgres.create_database("down").unwrap();
    Ledger::create_table(&mut Client::connect(&url, NoTls).unwrap());
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let server = serve(&[&worker]);
    let before = await_overview(&server, |_| true);
    let mut writer = Client::connect(&url, NoTls).unwrap();
    let mut open = writer.transaction().unwrap();
    append_elsewhere(&mut open);
    append_plainly(&mut Client::connect(&url, NoTls).unwrap(), 1, 1);
    eventually("the head is held back", SOON, || {
        (!status(&server)["workers"][0]["head_blocked"].is_null()).then_some(())
    });

    postgres.stop(StopMode::Fast).unwrap();
    let mut slowest = Duration::ZERO;
    let old = eventually("the overview is old", SOON, || {
        let begun = Instant::now();
        let worker = status(&server)["workers"][0].take();
        slowest = slowest.max(begun.elapsed());
        let is_old = worker["overview"]["age_seconds"].as_f64().unwrap() > 3.0;
        (is_old && worker["database_reachable"] == false).then_some(worker)
    });
    println!("slowest answer: {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    assert!(old["heartbeat_age_seconds"].as_f64().unwrap() > 2.0, "{old}");
    assert_eq!(old["overview"]["replica_set"]["workers"][0]["worker_id"], before["workers"][0]["worker_id"]);

    postgres.start_again().unwrap();
    eventually("the overview is fresh again", SOON, || {
        let worker = status(&server)["workers"][0].take();
        let is_fresh = worker["overview"]["age_seconds"].as_f64().unwrap() < 1.5;
        // The transaction has ended with the server that was stopped.
        (is_fresh && worker["database_reachable"] == true && worker["head_blocked"].is_null()).then_some(())
    });
}

/// The text between the two, in a document as a browser writes it, in which text is escaped.
fn between<'a>(document: &'a str, from: &str, to: &str) -> &'a str {
    let rest = document.split_once(from).unwrap_or_else(|| panic!("no {from:?} in {document}")).1;
    rest.split_once(to).unwrap_or_else(|| panic!("no {to:?} after {from:?} in {document}")).0
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[test]
fn a_browser_shows_the_replica_set_and_no_name_as_markup() {
    let Some(chromium) = chromium() else { return };
    let database = database();
    let mut client = prepared(&database);
    let workers: Vec<Handle> = (0..3)
        .map(|_| {
            let projections =
                vec![halting(HOSTILE_PROJECTION), Box::new(Ledger::named("sound")) as Box<dyn Projection>];
            start(hasty(builder(database.url(), HOSTILE_SET)), projections)
        })
        .collect();
    await_running(&workers.iter().collect::<Vec<_>>());
    append_plainly(&mut client, 20, 20);
    let is_halted = |handle: &&Handle| handle.status().projections[HOSTILE_PROJECTION].error.is_some();
    let unlucky = eventually("a projection is halted", SOON, || workers.iter().find(is_halted));
    let server = serve(&[unlucky]);
    await_overview(&server, |overview| overview["generations"][0]["state"] == "active");

    let page = rendered(&chromium, &format!("http://{}/", server.address()));
    let title = between(&page, "<title>", "</title>");
    assert_eq!(title, format!("■ {}", escaped(HOSTILE_SET)), "the title is the name, and no script of it has run");
    let main = between(&page, "<main", "</main>");
    assert!(!main.contains("<img") && !main.contains("<b>") && !main.contains("<script"), "{main}");
    assert!(between(main, "<h1>", "</h1>").contains(&format!(">{}</bdi>", escaped(HOSTILE_SET))), "{main}");

    let listed = between(main, "<table class=\"workers\">", "</table>");
    assert_eq!(listed.matches("badge running").count(), 3, "{listed}");
    for handle in &workers {
        assert!(listed.contains(&handle.worker_id().to_string()), "{listed}");
    }
    assert_eq!(listed.matches("> here<").count(), 1, "{listed}");

    let strip = between(main, "class=\"strip\"", "</section>");
    for partition in 0..3 {
        assert!(strip.contains(&format!("class=\"owner-{partition}\"")), "{strip}");
    }
    assert_eq!(strip.matches("class=\"part\"").count(), 3, "one strip for all projections: {strip}");

    let projections = between(main, "<table class=\"projections\">", "</section>");
    assert!(projections.contains(&format!(">{}</bdi>", escaped(HOSTILE_PROJECTION))), "{projections}");
    assert!(projections.contains("badge halted") && projections.contains("badge running"), "{projections}");
    let error = between(projections, "<pre class=\"error\" dir=\"auto\">", "</pre>");
    assert!(error.contains("&lt;i&gt;no&lt;/i&gt; thing-0\nis refused"), "{error}");
    let generations = between(main, "<table class=\"generations\">", "</table>");
    assert!(generations.contains(" started") && generations.contains("badge active"), "{generations}");
}
