//! What operators command and see of a rebuild: by `Operator`, by the worker program, by HTTP, in
//! `/status`, in the metrics and in the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::operator::{Command, Operator, OperatorError, Rebuild, RebuildRecord};
use pupsourcing_orchestrator::{Handle, Metrics, MetricsServer, Names, Retry};
use serde_json::{Value, json};

use crate::cli::{fails, succeeds};
use crate::support::browser::{Page, chromium};
use crate::support::commands::{done, refused};
use crate::support::http::{get, post};
use crate::support::ledger::append_plainly;
use crate::support::metrics::projection_metric;
use crate::support::rebuilds::{Model, await_exact, begin_rebuild_with, schemas};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);
/// A rebuild that is nearer to the newest event than 1,000 positions has no limit any more.
const EVENTS: i64 = 3_000;
const TOKEN: &str = "a-token-of-some-length";

/// A projection `orders` with so many events that a rebuild of it is limited, on a worker of the
/// replica set `set`.
fn orders(database: &TestDatabase) -> (Client, Handle) {
    orders_as(database, Model::named("orders"))
}

fn orders_as(database: &TestDatabase, model: Model) -> (Client, Handle) {
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    model.create_table(&mut client);
    let hasty =
        builder(database.url(), "set").retry(Retry::default().attempts(1).halted_interval(Duration::from_millis(500)));
    let worker = start(hasty, vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, EVENTS, 50);
    await_exact(&mut client, "orders");
    (client, worker)
}

fn operator() -> Operator {
    Operator::new(Names::default()).unwrap().replica_set("set")
}

/// Waits until the rebuild of `orders` is as expected.
#[track_caller]
fn await_rebuild(client: &mut Client, so: impl Fn(&RebuildRecord) -> bool) -> RebuildRecord {
    let operator = operator();
    eventually("the rebuild is as expected", SOON, || {
        operator.projection(client, "orders").unwrap().rebuild.filter(|rebuild| so(rebuild))
    })
}

fn in_set<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &["--replica-set", "set"]].concat()
}

#[test]
fn a_rebuild_in_progress_is_seen_everywhere_and_is_no_lag() {
    let database = database();
    let (mut client, worker) = orders(&database);
    let server = MetricsServer::builder(Metrics::new().unwrap()).operator(TOKEN).watch(worker.health());
    let server = server.bind("127.0.0.1:0").unwrap();
    let address = server.address().to_string();
    let slow = Command::rebuild("orders", Rebuild::default().rate(20)).reason("wrong totals").by("kim");
    let begun = operator().execute(&mut client, &slow, SOON).unwrap();
    assert!(!begun.is_done);
    let said = begun.to_string();
    assert!(said.starts_with("orders is being rebuilt in copies of ") && said.contains("orders ("), "{said}");
    let again = operator().execute(&mut client, &slow, SOON).unwrap_err();
    assert!(matches!(&again, OperatorError::Refused { why, .. } if why.contains("is being rebuilt")), "{again:?}");
    // It is not done within this time.
    let done = slow.clone().until_done();
    let error = operator().execute(&mut client, &done, Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, OperatorError::Refused { .. }), "{error:?}");

    let seen = await_rebuild(&mut client, |rebuild| rebuild.events > 0);
    assert_eq!((seen.command_id, seen.state.as_str(), seen.rate_limit), (begun.id, "loading", Some(20)));
    assert_eq!((seen.version, seen.workers, seen.parked, seen.blocked.len()), (1, 1, 0, 0));
    assert!(seen.progress > 0.0 && seen.progress < 1.0 && seen.positions_left > 0, "{seen:?}");
    assert!(seen.events_per_second > 0.0 && seen.seconds_to_go.is_some_and(|seconds| seconds > 0.0), "{seen:?}");

    let all = operator().projections(&mut client).unwrap();
    let [orders] = all.as_slice() else { panic!("the rebuild is no projection: {all:?}") };
    assert_eq!((orders.state.as_str(), orders.lag_events, orders.pending_commands), ("running", Some(0), 0));
    eventually("the metrics show it", SOON, || {
        projection_metric(&worker, "rebuild_progress_ratio", "orders").filter(|ratio| *ratio > 0.0)
    });
    assert_eq!(projection_metric(&worker, "rebuild_blocked", "orders"), Some(0.0));
    for name in ["rebuild_events", "rebuild_positions_to_go"] {
        assert!(projection_metric(&worker, name, "orders").is_some_and(|value| value > 0.0), "{name}");
    }
    for name in ["lag_events", "projection_paused", "parked_aggregates", "commands_pending", "rebuild_blocked"] {
        assert_eq!(projection_metric(&worker, name, "orders@rebuild"), None, "{name}");
    }
    assert_eq!(projection_metric(&worker, "commands_pending", "orders"), Some(0.0));
    assert_eq!(get(&address, "/readyz").0, 200);
    let shown = eventually("the status shows it", SOON, || {
        let status: Value = serde_json::from_str(&get(&address, "/status").1).unwrap();
        let mut all = status["workers"][0]["overview"]["replica_set"]["projections"].clone();
        let is_shown = all[0]["rebuild"]["progress"].as_f64().is_some();
        is_shown.then(|| all.as_array_mut().unwrap().split_off(0))
    });
    assert_eq!(shown.len(), 1, "{shown:?}");
    let rebuild = &shown[0]["rebuild"];
    assert_eq!(
        (&rebuild["state"], &rebuild["rate_limit"], &shown[0]["old"]),
        (&json!("loading"), &json!(20), &Value::Null)
    );
    assert_eq!(serde_json::from_value::<RebuildRecord>(rebuild.clone()).unwrap().command_id, begun.id);

    let url = database.url();
    let said = succeeds(url, &in_set(&["rebuild", "orders", "--status"]));
    for part in ["orders is being rebuilt: command ", "at most 20 events per second", "positions to go", "--cancel"] {
        assert!(said.contains(part), "{part} in: {said}");
    }
    let said = succeeds(url, &in_set(&["projections", "--no-rate"]));
    assert!(said.contains("orders is being rebuilt: ") && !said.contains("@rebuild"), "{said}");
    let said = succeeds(url, &in_set(&["status"]));
    assert!(said.contains("look with: worker rebuild orders --status") && said.contains("loading"), "{said}");
    let said = succeeds(url, &in_set(&["history", "orders"]));
    assert!(said.contains("rebuild rate=20") && said.contains("loading"), "{said}");

    let (code, answer) = post(&address, "/projections/orders/cancel", TOKEN, &json!({ "reason": "not now" }));
    assert_eq!((code, &answer["message"]), (200, &json!("the rebuild of orders is cancelled")), "{answer}");
    eventually("it is not shown any more", SOON, || {
        projection_metric(&worker, "rebuild_progress_ratio", "orders").is_none().then_some(())
    });
    let said = succeeds(url, &in_set(&["rebuild", "orders", "--status"]));
    assert_eq!(said, "orders is not being rebuilt\n");
    let (code, answer) = post(&address, "/projections/orders/rebuild", TOKEN, &json!({ "reason": "now", "rate": 20 }));
    assert_eq!((code, &answer["outcome"], &answer["error"]), (202, &json!("begun"), &Value::Null), "{answer}");
    assert!(answer["message"].as_str().unwrap().starts_with("orders is being rebuilt in copies"), "{answer}");
}

#[test]
fn what_blocks_the_switch_is_named() {
    let database = database();
    let is_bad = Arc::new(AtomicBool::new(false));
    let fails = is_bad.clone();
    let model = Model::named("orders").before(move |_, event| {
        let is_chosen = event.global_position() == 100 && fails.load(Ordering::Relaxed);
        if is_chosen { Err("no such customer".into()) } else { Ok(()) }
    });
    let (mut client, worker) = orders_as(&database, model);
    is_bad.store(true, Ordering::Relaxed);
    begin_rebuild_with(&mut client, "orders", &json!({"rate": null}));
    let halted = await_rebuild(&mut client, |rebuild| !rebuild.blocked.is_empty());
    assert!(
        halted.blocked[0].contains("its handler has halted") && halted.blocked[0].contains("no such customer"),
        "{halted:?}"
    );
    assert_eq!(operator().projection(&mut client, "orders").unwrap().state, "running", "the live one goes on");
    eventually("the metric says it", SOON, || {
        (projection_metric(&worker, "rebuild_blocked", "orders") == Some(1.0)).then_some(())
    });
    let said = succeeds(database.url(), &in_set(&["projections", "--no-rate"]));
    assert!(said.contains("  blocked: its handler has halted") && said.contains("no such customer"), "{said}");

    for (command, name, part) in
        [("pause", "orders@rebuild", "paused the rebuild"), ("pause", "orders", "the projection is paused")]
    {
        done(&mut client, name, command, &json!({}));
        let blocked = await_rebuild(&mut client, |_| true).blocked;
        assert!(blocked.iter().any(|why| why.contains(part)), "{part}: {blocked:?}");
    }
    is_bad.store(false, Ordering::Relaxed);
    done(&mut client, "orders@rebuild", "resume", &json!({}));
    await_rebuild(&mut client, |rebuild| rebuild.progress >= 1.0 && rebuild.blocked.len() == 1);
    done(&mut client, "orders", "resume", &json!({}));
    eventually("the switch is done", SOON, || {
        operator().projection(&mut client, "orders").unwrap().rebuild.is_none().then_some(())
    });
    await_exact(&mut client, "orders");
}

#[test]
fn a_rebuild_needs_a_worker_of_its_version_and_build() {
    let database = database();
    let (mut client, _worker) = orders(&database);
    begin_rebuild_with(&mut client, "orders", &json!({"rate": 10}));
    let change = |client: &mut Client, what: &str| {
        client
            .batch_execute(&format!("UPDATE orchestrator_projections SET {what} WHERE name = 'orders@rebuild'"))
            .unwrap();
        await_rebuild(client, |_| true)
    };
    assert_eq!(change(&mut client, "version = 1").workers, 1);
    let newer = change(&mut client, "version = 2");
    assert_eq!((newer.workers, newer.blocked.len()), (0, 1), "{newer:?}");
    assert!(newer.blocked[0].contains("no running worker has version 2 of its code"), "{newer:?}");
    let other = change(&mut client, "version = 1, build_id = 'a1'");
    assert!(other.blocked[0].contains("version 1 and build \"a1\" of its code"), "{other:?}");
}

#[test]
fn former_tables_are_listed_until_they_are_dropped() {
    let database = database();
    let (mut client, worker) = orders(&database);
    let url = database.url();
    let rebuild = ["rebuild", "orders", "--reason", "version 2", "--keep-old", "--rate", "unlimited"];
    let said = succeeds(url, &in_set(&rebuild));
    assert!(
        said.starts_with("orders is rebuilt at position 3,000: 3,000 events handled; its former tables are in "),
        "{said}"
    );
    let record = operator().projection(&mut client, "orders").unwrap();
    let old = record.old.unwrap();
    assert_eq!((record.rebuild, vec![old.schema.clone()]), (None, schemas(&mut client)));
    assert!(old.bytes > 8_192 && old.version == 1 && old.age_seconds < SOON.as_secs_f64(), "{old:?}");
    assert!(old.tables.iter().any(|table| table.contains("orders")), "{old:?}");
    assert_eq!(operator().projections(&mut client).unwrap().len(), 1);
    let age = || projection_metric(&worker, "old_tables_age_seconds", "orders");
    eventually("the metric says it", SOON, age);
    assert_eq!(projection_metric(&worker, "lag_events", "orders@old"), None);
    for command in [&["projections", "--no-rate"][..], &["rebuild", "orders", "--status"], &["status"]] {
        let said = succeeds(url, &in_set(command));
        assert!(said.contains(&format!("are kept in schema {}", old.schema)) && said.contains("--drop-old"), "{said}");
    }
    let json: Value =
        serde_json::from_str(&succeeds(url, &in_set(&["rebuild", "orders", "--status", "--json"]))).unwrap();
    assert_eq!((&json["old"]["schema"], &json["rebuild"]), (&json!(old.schema), &Value::Null));

    let (_, err) = fails(3, url, &in_set(&["rebuild", "orders", "--cancel", "--reason", "no"]));
    assert!(err.contains("it is not being rebuilt"), "{err}");
    let said = succeeds(url, &in_set(&["rebuild", "orders", "--revert"]));
    assert!(
        said.starts_with("orders has its former tables again at position 3,000; those that were live are in"),
        "{said}"
    );
    let said = succeeds(url, &in_set(&["rebuild", "orders", "--drop-old"]));
    assert!(said.starts_with("the former tables of orders are dropped: schema "), "{said}");
    assert_eq!(operator().projection(&mut client, "orders").unwrap().old, None);
    eventually("the metric is gone", SOON, || age().is_none().then_some(()));
    let (_, err) = fails(3, url, &in_set(&["rebuild", "invoices", "--status"]));
    assert!(err.contains("there is no projection \"invoices\"") && err.contains("\"orders\""), "{err}");
}

#[test]
fn a_person_may_stop_watching() {
    let database = database();
    let (mut client, _worker) = orders(&database);
    let arguments = in_set(&["rebuild", "orders", "--reason", "r", "--rate", "10"]);
    let mut watching = WorkerProcess::start_with(&arguments, &[("DATABASE_URL", database.url())]);
    await_rebuild(&mut client, |rebuild| rebuild.events > 20);
    watching.await_line(&["orders: "]);
    watching.signal(Signal::INT);
    assert_eq!(watching.exit_code(), Some(4));
    let err = watching.log().join("\n");
    for part in [
        "orders is being rebuilt in copies of ",
        "more disk space until the switch",
        "orders: ",
        "the rebuild of orders goes on, as command ",
        "cancel it with: worker rebuild orders --cancel --reason",
    ] {
        assert!(err.contains(part), "{part} in: {err}");
    }
    // Nobody needs to watch.
    let out = succeeds(database.url(), &in_set(&["rebuild", "orders", "--cancel", "--reason", "no", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["outcome"], "done");
}

#[test]
fn a_cancelled_rebuild_is_told_to_who_watches() {
    let database = database();
    let (mut client, _worker) = orders(&database);
    let url = database.url().to_owned();
    let watching = std::thread::spawn(move || {
        fails(1, &url, &in_set(&["rebuild", "orders", "--reason", "r", "--rate", "10", "--json"]))
    });
    await_rebuild(&mut client, |rebuild| rebuild.events > 0);
    done(&mut client, "orders", "cancel", &json!({}));
    let (out, err) = watching.join().unwrap();
    let outcome: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(outcome["outcome"], "failed", "{out}{err}");
    assert!(err.contains("it was cancelled by tester: a test"), "{err}");
}

#[test]
fn progress_is_logged_by_one_worker() {
    let database = database();
    let mut client = database.client();
    let options = [("HEARTBEAT_INTERVAL", "200ms")];
    let mut workers = [(); 2].map(|()| WorkerProcess::start(database.url(), &options));
    for worker in &mut workers {
        worker.await_processing(2);
    }
    append_plainly(&mut client, EVENTS, 50);
    begin_rebuild_with(&mut client, "event_type_counts", &json!({"rate": 20}));
    let parts = ["rebuilding: ", " projection=event_type_counts ", " state=loading ", " time_to_go=", " blocked=no"];
    let is_logged =
        |worker: &mut WorkerProcess| worker.log().iter().any(|line| parts.iter().all(|part| line.contains(part)));
    eventually("one logs it", SOON, || workers.iter_mut().any(is_logged).then_some(()));
    let sql =
        "SELECT count(*) FROM orchestrator_checkpoints WHERE projection = 'event_type_counts@rebuild' AND handled > 50";
    eventually("some time has passed", SOON, || {
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0).then_some(())
    });
    let logged =
        workers.iter_mut().map(|worker| worker.log().iter().filter(|line| line.contains("rebuilding: ")).count());
    assert_eq!(logged.sum::<usize>(), 1, "the next line comes after a minute");
}

/// The page shows a bar, and what blocks the switch as text. The buttons rebuild and cancel.
#[test]
fn the_page_shows_a_bar_and_gives_the_commands() {
    const MARKUP: &str = "<img src=x onerror=\"document.title='owned'\"><b>";
    let Some(chromium) = chromium() else { return };
    let database = database();
    let is_bad = Arc::new(AtomicBool::new(false));
    let fails = is_bad.clone();
    let model = Model::named("orders").before(move |_, event| {
        let is_chosen = event.global_position() == 1_500 && fails.load(Ordering::Relaxed);
        if is_chosen { Err(MARKUP.into()) } else { Ok(()) }
    });
    let (mut client, worker) = orders_as(&database, model);
    is_bad.store(true, Ordering::Relaxed);
    let server = MetricsServer::builder(Metrics::new().unwrap()).operator(TOKEN).watch(worker.health());
    let server = server.bind("127.0.0.1:0").unwrap();
    let page = &mut Page::open(&chromium, &format!("http://{}/", server.address()), 1000, 1.0);
    await_page(page, "document.querySelectorAll('.projections .badge.running').length >= 2");
    assert_eq!(page.value("document.querySelector('progress')"), Value::Null);

    page.value(&format!(
        "void (document.querySelector('#desk [name=token]').value = '{TOKEN}', document.querySelector('#desk form').requestSubmit())"
    ));
    let click = |label: &str| {
        format!(
            "[...document.querySelectorAll('button[data-open]')].find((button) => button.textContent === '{label}')?.click() === undefined"
        )
    };
    let fill = |name: &str, value: &str| format!("document.querySelector('#desk [name={name}]').value = '{value}'");
    let send = "document.querySelector('#desk [data-form=order]').requestSubmit() === undefined";
    await_page(page, "document.querySelectorAll('button[data-open]').length === 3");
    page.value(&click("Rebuild"));
    page.value(&fill("rate", "fast"));
    page.value(&fill("reason", "wrong totals"));
    page.value(&fill("by", "kim"));
    page.value(send);
    await_page(page, "document.querySelector('#desk .alarm')?.textContent.includes('a whole number')");
    page.value(&fill("rate", "900000"));
    page.value("void (document.querySelector('#desk [name=keep_old]').checked = true)");
    page.value(send);
    await_page(
        page,
        "document.querySelector('#desk .good')?.textContent.includes('Begun: orders is being rebuilt in copies')",
    );
    let asked: Value = client.query_one("SELECT arguments FROM orchestrator_commands", &[]).unwrap().get(0);
    assert_eq!(asked, json!({ "rate": 900_000, "keep_old": true }));

    await_page(page, "document.querySelector('progress')?.value > 0.4");
    await_page(page, "document.querySelector('.rebuild li')?.textContent.includes('its handler has halted')");
    let label = page.value("document.querySelector('progress').getAttribute('aria-label')");
    assert_eq!(label, "rebuild of orders");
    let spoken = page.value("document.querySelector('progress').getAttribute('aria-valuetext')");
    assert!(spoken.as_str().unwrap().ends_with(" percent"), "{spoken}");
    assert_eq!(page.value("document.querySelectorAll('img, b, main script').length"), 0);
    assert_ne!(page.value("document.title"), "owned");
    assert_eq!(page.value("document.querySelectorAll('table.projections > tbody > tr').length"), 2, "one projection");
    if let Some(file) = std::env::var_os("PICTURE_OF_REBUILD") {
        std::fs::write(file, page.picture("main", "light")).unwrap();
    }

    is_bad.store(false, Ordering::Relaxed);
    await_page(page, "document.querySelector('.kept')?.textContent.includes('The former tables (version 1, ')");
    await_page(page, "document.querySelector('.kept code')?.textContent === 'worker rebuild orders --revert'");
    assert_eq!(page.value("document.querySelector('progress')"), Value::Null);
    page.value(&click("Revert the rebuild"));
    page.value(send);
    await_page(
        page,
        "document.querySelector('#desk .good')?.textContent.includes('orders has its former tables again')",
    );
    begin_rebuild_refused(&mut client);
    done(&mut client, "orders", "drop_old", &json!({}));
    begin_rebuild_with(&mut client, "orders", &json!({"rate": 20}));
    await_page(page, "document.querySelector('.rebuild .badge')?.textContent.includes('loading')");
    page.value(&click("Cancel the rebuild"));
    page.value(&fill("reason", "not now"));
    page.value(send);
    await_page(
        page,
        "document.querySelector('#desk .good')?.textContent.includes('the rebuild of orders is cancelled')",
    );
}

/// While former tables are kept, no other rebuild begins.
#[track_caller]
fn begin_rebuild_refused(client: &mut Client) {
    let why = refused(client, "orders", "rebuild", &json!({}));
    assert!(why.contains("former tables are kept"), "{why}");
}

#[track_caller]
fn await_page(page: &mut Page, expression: &str) {
    eventually(expression, SOON, || (page.value(expression) == true).then_some(()));
}
