//! Rebuilds of a read model beside the live one, and the switch.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{OnFailure, Retry};
use serde_json::json;

use crate::support::commands::{done, give, outcome, refused};
use crate::support::ledger::append_plainly;
use crate::support::parking::accounts;
use crate::support::rebuilds::{Model, await_exact, begin_rebuild, begin_rebuild_with, faults, schemas};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

/// The schema, and the table of a read model.
fn prepared(database: &TestDatabase, model: &Model) -> Client {
    let mut client = database.client();
    client.batch_execute(&pupsourcing_orchestrator::Names::default().schema_sql()).unwrap();
    model.create_table(&mut client);
    client
}

#[test]
fn damaged_read_model_is_right_after_a_rebuild() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &model);
    let workers = [1, 2].map(|lanes| start(builder(database.url(), "set").lanes(lanes), vec![model.clone().boxed()]));
    await_running(&workers.each_ref());
    append_plainly(&mut client, 5_000, 50);
    await_exact(&mut client, "orders");
    client.batch_execute("DELETE FROM orders WHERE seq % 3 = 0; UPDATE orders SET aggregate_version = -seq").unwrap();
    assert_ne!(faults(&mut client, "orders").1, [0; 4]);
    let id = begin_rebuild(&mut client, "orders");
    append_plainly(&mut client, 500, 50);
    let (outcome, result, error) = outcome(&mut client, id);
    assert_eq!((outcome.as_str(), error), ("done", None), "{result:?}");
    append_plainly(&mut client, 500, 50);
    await_exact(&mut client, "orders");
    assert_eq!(schemas(&mut client), [""; 0], "nothing is left");
    drop(workers);
}

#[test]
fn cancelled_rebuild_leaves_nothing() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &model);
    let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 5_000, 50);
    await_exact(&mut client, "orders");
    let id = begin_rebuild_with(&mut client, "orders", &json!({"rate": 10}));
    assert_eq!(schemas(&mut client), [format!("orchestrator_rebuild_{id}")]);
    let why = refused(&mut client, "orders", "rebuild", &json!({}));
    assert!(why.contains("is being rebuilt"), "{why}");
    done(&mut client, "orders", "cancel", &json!({}));
    let (outcome, _, error) = outcome(&mut client, id);
    assert_eq!((outcome.as_str(), error.as_deref()), ("failed", Some("it was cancelled by tester: a test")));
    assert_eq!(schemas(&mut client), [""; 0]);
    let rows = client.query("SELECT name FROM orchestrator_projections", &[]).unwrap();
    assert_eq!(rows.len(), 1);
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    assert!(refused(&mut client, "orders", "cancel", &json!({})).contains("not being rebuilt"));
}

#[test]
fn former_tables_can_be_brought_back() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &model);
    let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 1_000, 50);
    await_exact(&mut client, "orders");
    client.batch_execute("ALTER TABLE orders ALTER version SET DEFAULT 7; UPDATE orders SET version = 7").unwrap();
    let id = begin_rebuild_with(&mut client, "orders", &json!({"rate": null, "keep_old": true}));
    assert_eq!(outcome(&mut client, id).0, "done");
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    let sevens = |client: &mut Client| -> i64 {
        client.query_one("SELECT count(*) FROM orders WHERE version = 7", &[]).unwrap().get(0)
    };
    assert_eq!(sevens(&mut client), 0);
    done(&mut client, "orders", "revert", &json!({}));
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    assert_eq!(sevens(&mut client), 1_000, "it is the former one, and has caught up");
    done(&mut client, "orders", "drop_old", &json!({}));
    assert_eq!(schemas(&mut client), [""; 0]);
    assert!(refused(&mut client, "orders", "revert", &json!({})).contains("no former tables"));
    _ = give(&mut client, "orders", "pause", &json!({}));
}

#[test]
fn handler_that_writes_elsewhere_fails_the_rebuild() {
    for statement in [
        "INSERT INTO public.orders (global_position, aggregate_id, aggregate_version, version) VALUES (-1, 'x', 1, 1)",
        "INSERT INTO other VALUES (1)",
        "TRUNCATE other",
        "ALTER TABLE other ADD COLUMN IF NOT EXISTS b int",
        "SELECT write_orders()",
    ] {
        let database = database();
        let is_armed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let armed = is_armed.clone();
        let model = Model::named("orders").before(move |tx, event| {
            if armed.load(std::sync::atomic::Ordering::Relaxed) && event.global_position() == 40 {
                tx.batch_execute(statement)?;
            }
            Ok(())
        });
        let mut client = prepared(&database, &model);
        client
            .batch_execute(
                "CREATE TABLE other (a int);
                 CREATE FUNCTION write_orders() RETURNS void LANGUAGE sql SET search_path = public
                 AS 'INSERT INTO orders (global_position, aggregate_id, aggregate_version, version) VALUES (-1, ''x'', 1, 1)'",
            )
            .unwrap();
        let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
        await_running(&[&worker]);
        append_plainly(&mut client, 100, 5);
        await_exact(&mut client, "orders");
        is_armed.store(true, std::sync::atomic::Ordering::Relaxed);
        let id = give(&mut client, "orders", "rebuild", &json!({"rate": null}));
        let (outcome, _, error) = outcome(&mut client, id);
        let error = error.unwrap_or_default();
        assert_eq!(outcome, "failed", "{statement}: {error}");
        let table = if statement.contains("orders") { "orders" } else { "other" };
        assert!(error.contains("the handler has changed") && error.contains(table), "{statement}: {error}");
        await_exact(&mut client, "orders");
        assert_eq!(schemas(&mut client), [""; 0]);
        let others: i64 = client.query_one("SELECT count(*) FROM other", &[]).unwrap().get(0);
        assert_eq!(others, 0);
    }
}

/// Both have parked the aggregate. As long as only the live projection has gone on, the copies
/// would have fewer events.
#[test]
fn what_is_parked_and_discarded_counts_for_the_rebuild_as_well() {
    let database = database();
    let model = Model::named("orders").before(|_, event| match event.global_position() {
        40 => Err("it is bad".into()),
        _ => Ok(()),
    });
    let mut client = prepared(&database, &model);
    let retry = Retry::default().attempts(1);
    let builder = builder(database.url(), "set").on_failure(OnFailure::park(10)).retry(retry);
    let worker = start(builder, vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 5);
    let parked = |client: &mut Client| -> Vec<String> {
        let sql = "SELECT projection FROM orchestrator_parked ORDER BY 1";
        client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
    };
    let first = begin_rebuild(&mut client, "orders");
    assert_eq!(outcome(&mut client, first).0, "done", "it has parked the same");
    assert_eq!(parked(&mut client), ["orders"]);
    let second = begin_rebuild_with(&mut client, "orders", &json!({"rate": 1_000_000}));
    let event: uuid::Uuid =
        client.query_one("SELECT event_id FROM events WHERE global_position = 40", &[]).unwrap().get(0);
    done(&mut client, "orders", "discard", &json!({"event": event.to_string()}));
    assert_eq!(outcome(&mut client, second).0, "done");
    eventually("nothing is parked", Duration::from_secs(20), || parked(&mut client).is_empty().then_some(()));
    let sql = "SELECT count(*) FROM orchestrator_discarded WHERE projection = 'orders' AND event_id = $1";
    assert_eq!(client.query_one(sql, &[&event]).unwrap().get::<_, i64>(0), 1);
    eventually("all others are handled", Duration::from_secs(20), || {
        (faults(&mut client, "orders") == (99, [1, 0, 0, 0])).then_some(())
    });
    assert_eq!(accounts(&mut client).unwrap(), [("orders".to_owned(), [99, 0, 1, 100])]);
    drop(worker);
}
