//! Commands by HTTP and on the status page, and what the metrics say about them.

use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::{Handle, Metrics, MetricsServer};
use serde_json::{Value, json};

use crate::support::browser::{Page, chromium};
use crate::support::handlers::prepared;
use crate::support::http::{get, post};
use crate::support::ledger::{Ledger, append_plainly, handled, is_complete};
use crate::support::metrics::{metric, projection_metric};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, StopMode, database, eventually};

const SOON: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-of-some-length";

/// Markup that would change the title if it were inserted as markup.
const MARKUP: &str = r#"<img src=x onerror="document.title='owned'"><b>"#;

fn start_worker(url: &str) -> Handle {
    let worker = start(builder(url, "set"), vec![Box::new(Ledger::named("a/b")), Box::new(Ledger::named("q"))]);
    await_running(&[&worker]);
    worker
}

fn serve(worker: &Handle) -> MetricsServer {
    let server = MetricsServer::builder(Metrics::new().unwrap()).operator(TOKEN).watch(worker.health());
    server.bind("127.0.0.1:0").unwrap()
}

#[track_caller]
fn give(server: &MetricsServer, path: &str, body: &Value) -> (u16, Value) {
    post(&server.address().to_string(), &format!("/projections/{path}"), TOKEN, body)
}

#[test]
fn commands_are_given_by_http_and_answered_with_the_outcome() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_worker(database.url());
    let server = serve(&worker);
    append_plainly(&mut client, 20, 5);
    eventually("all is handled", SOON, || is_complete(&mut client, "a/b").then_some(()));

    let (code, answer) = give(&server, "a%2Fb/pause", &json!({ "reason": MARKUP, "by": "kim" }));
    assert_eq!((code, &answer["outcome"], &answer["error"]), (200, &json!("done"), &Value::Null), "{answer}");
    assert_eq!(answer["message"], "a/b is paused at position 20 on 1 worker");
    assert_eq!(answer["result"], json!({ "position": 20, "workers": 1 }));
    let sql = "SELECT requested_by, reason FROM orchestrator_commands WHERE id = $1";
    let row = client.query_one(sql, &[&answer["id"].as_i64().unwrap()]).unwrap();
    assert_eq!((row.get(0), row.get(1)), ("kim", MARKUP));
    append_plainly(&mut client, 20, 5);
    eventually("the other one goes on", SOON, || is_complete(&mut client, "q").then_some(()));
    assert_eq!(handled(&mut client, "a/b"), 20);

    let (code, answer) = give(&server, "a%2Fb/pause", &json!({ "reason": "again" }));
    assert_eq!((code, &answer["outcome"]), (409, &json!("refused")), "{answer}");
    assert!(answer["id"].is_i64() && answer["error"].as_str().unwrap().contains("by kim"), "{answer}");
    let (code, answer) = give(&server, "a%2Fb/resume", &json!({}));
    assert_eq!((code, &answer["outcome"]), (200, &json!("done")), "{answer}");
    eventually("it goes on", SOON, || is_complete(&mut client, "a/b").then_some(()));

    let (code, answer) = give(&server, "q/rewind", &json!({ "to_beginning": true, "reason": "wrong" }));
    assert_eq!((code, &answer["result"]["position"]), (200, &json!(0)), "{answer}");
    let (code, answer) = give(&server, "q/replay", &json!({ "aggregate": ["a", "b", "c"] }));
    assert_eq!((code, &answer["outcome"]), (409, &json!("refused")), "{answer}");
    let unknown = json!({ "event": "00000000-0000-0000-0000-000000000001", "reason": "bad" });
    let (code, answer) = give(&server, "q/discard", &unknown);
    assert_eq!((code, &answer["error"]), (409, &json!("there is no event with this id")), "{answer}");
    // What only the database can refuse.
    for (path, body) in [
        ("q/rewind", json!({ "to_position": -1, "reason": "r" })),
        ("q/pause", json!({ "reason": "a zero \u{0} byte" })),
    ] {
        let (code, answer) = give(&server, path, &body);
        assert_eq!((code, &answer["id"]), (400, &Value::Null), "{answer}");
    }
    let (code, answer) = post(&server.address().to_string(), "/projections/q/pause", "another-token-here", &json!({}));
    assert_eq!((code, &answer["id"]), (401, &Value::Null), "{answer}");
    let by: String = client
        .query_one("SELECT requested_by FROM orchestrator_commands WHERE command = 'resume'", &[])
        .unwrap()
        .get(0);
    assert_eq!(by, "HTTP client at 127.0.0.1");
}

/// Keeps every worker from applying a command.
fn hold_up(client: &mut Client) -> postgres::Transaction<'_> {
    let mut lock = client.transaction().unwrap();
    lock.query("SELECT FROM orchestrator_replica_sets FOR UPDATE", &[]).unwrap();
    lock
}

#[test]
fn a_command_that_waits_is_answered_with_its_number() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_worker(database.url());
    let server = serve(&worker);
    let mut locker = database.client();
    let lock = hold_up(&mut locker);
    let server = &server;
    let answers = std::thread::scope(|scope| {
        let asked: Vec<_> = ["a%2Fb", "q"]
            .map(|name| scope.spawn(move || give(server, &format!("{name}/pause"), &json!({ "reason": "r" }))))
            .into();
        // Probes are answered meanwhile.
        let begun = Instant::now();
        eventually("both commands are recorded", SOON, || {
            let asked = Instant::now();
            assert_eq!(get(&server.address().to_string(), "/livez").0, 200);
            assert!(asked.elapsed() < Duration::from_secs(2));
            let sql = "SELECT count(*) FROM orchestrator_commands";
            (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 2).then_some(())
        });
        eventually("they wait", SOON, || {
            (projection_metric(&worker, "commands_pending", "q") == Some(1.0)).then_some(())
        });
        assert!(begun.elapsed() < SOON);
        asked.into_iter().map(|asked| asked.join().unwrap()).collect::<Vec<_>>()
    });
    for (code, answer) in &answers {
        assert_eq!((*code, &answer["outcome"]), (202, &json!("pending")), "{answer}");
        assert!(answer["id"].is_i64() && answer["error"].as_str().unwrap().contains("stays recorded"), "{answer}");
    }
    lock.rollback().unwrap();
    eventually("both are applied", SOON, || {
        let sql = "SELECT count(*) FROM orchestrator_commands WHERE outcome = 'done'";
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 2).then_some(())
    });
}

#[test]
fn no_command_is_taken_while_the_database_is_down() {
    let mut postgres = Postgres::start().unwrap();
    let url = postgres.create_database("down").unwrap();
    Ledger::create_table(&mut Client::connect(&url, postgres::NoTls).unwrap());
    let worker = start_worker(&url);
    let server = serve(&worker);
    postgres.stop(StopMode::Fast).unwrap();
    let (code, answer) = give(&server, "q/pause", &json!({ "reason": "r" }));
    assert_eq!((code, &answer["id"], &answer["outcome"]), (503, &Value::Null, &Value::Null), "{answer}");
    postgres.start_again().unwrap();
    eventually("commands are taken again", SOON, || {
        (give(&server, "q/pause", &json!({ "reason": "r" })).0 == 200).then_some(())
    });
}

/// Parks an aggregate by hand.
const PARK: &str = "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                   event_type, attempts, error)
    SELECT 'lost', 'c', 'T', $1, 1, 1, '00000000-0000-0000-0000-000000000009', $1, 8, $1";

#[test]
fn metrics_tell_what_operators_have_done() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_worker(database.url());
    let server = serve(&worker);
    let shown = |name: &str, projection: &str| projection_metric(&worker, name, projection);
    let await_value = |name: &str, projection: &str, value: f64| {
        eventually(name, SOON, || (shown(name, projection) == Some(value)).then_some(()));
    };
    let names = ["projection_paused", "projection_rewinding", "parked_aggregates", "commands_pending"];
    for name in names {
        await_value(name, "q", 0.0);
    }
    append_plainly(&mut client, 20, 5);
    eventually("all is handled", SOON, || is_complete(&mut client, "q").then_some(()));
    give(&server, "q/pause", &json!({ "reason": "r" }));
    await_value("projection_paused", "q", 1.0);
    assert_eq!(shown("projection_paused", "a/b"), Some(0.0));
    give(&server, "q/pause", &json!({ "reason": "r" }));
    // It stays paused, so it cannot catch up.
    give(&server, "q/rewind", &json!({ "to_position": 7, "reason": "r" }));
    await_value("projection_rewinding", "q", 1.0);
    give(&server, "q/resume", &json!({}));
    await_value("projection_paused", "q", 0.0);
    await_value("projection_rewinding", "q", 0.0);
    for (command, outcome, times) in
        [("pause", "done", 1.0), ("pause", "refused", 1.0), ("rewind", "done", 1.0), ("resume", "done", 1.0)]
    {
        let labels = [("command", command), ("outcome", outcome)];
        assert_eq!(metric(&worker, "commands_total", &labels), Some(times), "{command} {outcome}");
    }
    client.execute("INSERT INTO orchestrator_projections (name, replica_set) VALUES ('lost', 'set')", &[]).unwrap();
    client.execute(PARK, &[&"one"]).unwrap();
    // Also of a projection that no worker knows.
    await_value("parked_aggregates", "lost", 1.0);
    client
        .batch_execute("DELETE FROM orchestrator_parked; DELETE FROM orchestrator_projections WHERE name = 'lost'")
        .unwrap();
    eventually("what is gone is not shown", SOON, || shown("parked_aggregates", "lost").is_none().then_some(()));
}

/// Fills in and submits a form of the page.
fn submit(page: &mut Page, form: &str, fields: &[(&str, &str)]) {
    for (field, value) in fields {
        let value = json!(value);
        page.value(&format!(
            "void (document.querySelector('#desk [data-form={form}] [name={field}]').value = {value})"
        ));
    }
    page.value(&format!("void document.querySelector('#desk [data-form={form}]').requestSubmit()"));
}

#[track_caller]
fn await_page(page: &mut Page, expression: &str) {
    eventually(expression, SOON, || (page.value(expression) == true).then_some(()));
}

const BUTTONS: &str = "document.querySelectorAll('button[data-open]').length";

fn click(page: &mut Page, label: &str, projection: &str) {
    let found = format!(
        "[...document.querySelectorAll('button[data-open]')].find((button) => {{ const order = JSON.parse(button.dataset.open); \
         return order.label === {} && order.projection === {} }})",
        json!(label),
        json!(projection)
    );
    await_page(page, &format!("{found} !== undefined"));
    page.value(&format!("void {found}.click()"));
}

#[test]
fn operator_with_the_token_gives_commands_in_the_browser() {
    let Some(chromium) = chromium() else { return };
    let database = database();
    let mut client = prepared(&database);
    let worker = start_worker(database.url());
    let server = serve(&worker);
    let url = format!("http://{}/", server.address());
    let page = &mut Page::open(&chromium, &url, 1000, 1.0);
    await_page(page, "document.querySelectorAll('.projections .badge.running').length >= 2");
    assert_eq!(page.value(BUTTONS), 0, "there are no buttons without the token");

    submit(page, "token", &[("token", "short")]);
    await_page(page, "document.querySelector('#desk .alarm')?.textContent.includes('16 printable')");
    submit(page, "token", &[("token", "a-wrong-token-of-some-length")]);
    click(page, "Pause", "a/b");
    submit(page, "order", &[("reason", "r"), ("by", "kim")]);
    await_page(page, "document.querySelector('#desk .alarm')?.textContent.includes('The token is wrong')");
    assert_eq!(page.value(BUTTONS), 0, "a wrong token is forgotten");
    let commands = "SELECT count(*) FROM orchestrator_commands";
    assert_eq!(client.query_one(commands, &[]).unwrap().get::<_, i64>(0), 0);

    submit(page, "token", &[("token", TOKEN)]);
    click(page, "Pause", "a/b");
    submit(page, "order", &[("reason", ""), ("by", "kim")]);
    assert_eq!(page.value("document.querySelector('#desk [data-form=order] :invalid').name"), "reason");
    submit(page, "order", &[("reason", MARKUP), ("by", MARKUP)]);
    await_page(page, "document.querySelector('#desk .good')?.textContent.includes('a/b is paused at position')");
    await_page(page, "document.querySelector('.paused-by')?.textContent.includes('<img src=x')");
    await_page(page, "document.querySelectorAll('.projections .lead .badge.paused').length === 1");
    await_page(page, "document.querySelector('.paused-by code').textContent === 'worker resume a/b'");
    let row = client.query_one("SELECT requested_by, reason, outcome FROM orchestrator_commands", &[]).unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (MARKUP, MARKUP, "done"));
    assert_eq!(page.value("document.querySelector('#desk [data-form=order]')"), Value::Null, "the form is closed");

    click(page, "Resume", "a/b");
    submit(page, "order", &[]);
    await_page(page, "document.querySelector('#desk .good')?.textContent.includes('a/b is resumed')");
    await_page(page, "document.querySelectorAll('.projections .badge.running').length >= 2");
    click(page, "Rewind", "q");
    submit(page, "order", &[("target", "to_position"), ("value", "x"), ("reason", "typed")]);
    await_page(page, "document.querySelector('#desk .alarm')?.textContent.includes('whole number')");
    let reason = "document.querySelector('#desk [name=reason]').value";
    assert_eq!(page.value(reason), "typed", "what was typed is kept");
    submit(page, "order", &[("value", "99")]);
    await_page(page, "document.querySelector('#desk .alarm')?.textContent.includes('nothing above 99')");
    await_page(page, "document.querySelectorAll('.commands .badge.refused').length === 1");

    let everything = page.value("document.documentElement.outerHTML + location.href + document.cookie");
    assert!(!everything.as_str().unwrap().contains(TOKEN), "the token is nowhere in the document");
    assert_eq!(page.value("localStorage.length + sessionStorage.length"), 0);
    assert_eq!(page.value("document.querySelectorAll('img, b, main script').length"), 0);
    assert_ne!(page.value("document.title"), "owned");
    submit(page, "forget", &[]);
    assert_eq!(page.value(BUTTONS), 0);
}

#[test]
fn the_page_shows_what_is_parked_and_no_markup() {
    let Some(chromium) = chromium() else { return };
    let database = database();
    let mut client = prepared(&database);
    let worker = start_worker(database.url());
    // Without a token.
    let server = MetricsServer::builder(Metrics::new().unwrap()).watch(worker.health()).bind("127.0.0.1:0").unwrap();
    client.execute("INSERT INTO orchestrator_projections (name, replica_set) VALUES ('lost', 'set')", &[]).unwrap();
    client.execute(PARK, &[&MARKUP]).unwrap();
    client.execute(PARK, &[&"it's 7"]).unwrap();
    let mut locker = database.client();
    let _lock = hold_up(&mut locker);
    client
        .execute(
            "INSERT INTO orchestrator_commands (projection, command, arguments, reason, requested_by, applied_at, outcome, error)
             VALUES ('lost', 'pause', jsonb_build_object($1::text, $1::text), $1, $1, now(), 'failed', $1)",
            &[&MARKUP],
        )
        .unwrap();
    client
        .execute(
            "INSERT INTO orchestrator_commands (projection, command, reason, requested_by, step, executor, attempt)
             VALUES ('lost', 'rewind', $1, $1, 'executing', gen_random_uuid(), 1)",
            &[&MARKUP],
        )
        .unwrap();
    let page = &mut Page::open(&chromium, &format!("http://{}/", server.address()), 1000, 1.0);
    await_page(page, "document.querySelectorAll('table.parked > tbody > tr').length === 4");
    await_page(page, "document.querySelectorAll('table.commands > tbody > tr').length === 2");
    let text = page.value("document.querySelector('main').textContent");
    let text = text.as_str().unwrap();
    for part in [
        "Rewinding: lost clears its read model on",
        "worker replay lost --aggregate 'c/T/it'\\''s 7'",
        "worker discard lost --event 00000000-0000-0000-0000-000000000009 --reason …",
        "worker remove lost",
        "2 aggregates",
        MARKUP,
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(page.value("document.querySelectorAll('img, b, main script').length"), 0);
    assert_ne!(page.value("document.title"), "owned");
    assert_eq!(page.value("document.querySelectorAll('button, form, input').length"), 0, "nothing acts");
}
