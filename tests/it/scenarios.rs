//! The test kit, as the tests of an application use it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use pupsourcing_orchestrator::testing::{Error, Scenario};
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Call, Event, NewEvent, OnFailure, Options, Projection, Reaction, StreamId, Tx,
};

const TABLES: &str = "CREATE TABLE orders (id text PRIMARY KEY, placed bigint NOT NULL, paid bigint NOT NULL);
                      CREATE TABLE newest (one bool PRIMARY KEY DEFAULT true, id text NOT NULL);
                      CREATE TABLE total (one bool PRIMARY KEY DEFAULT true, events bigint NOT NULL)";

/// Sound: each aggregate has a row of its own.
struct Orders;

impl Projection for Orders {
    fn name(&self) -> &str {
        "orders"
    }

    /// In a test, a failing event is an error nevertheless.
    fn options(&self) -> Options {
        Options::default().on_failure(OnFailure::park(10))
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let column = match event.event_type() {
            "OrderPlaced" => "placed",
            "OrderPaid" => "paid",
            other => return Err(format!("{other} is not known").into()),
        };
        tx.execute("INSERT INTO orders VALUES ($1, 0, 0) ON CONFLICT DO NOTHING", &[&event.aggregate_id()])?;
        tx.execute(&format!("UPDATE orders SET {column} = {column} + 1 WHERE id = $1"), &[&event.aggregate_id()])?;
        Ok(())
    }
}

/// Defective: the last event of all aggregates decides.
struct Newest;

impl Projection for Newest {
    fn name(&self) -> &str {
        "newest"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let sql = "INSERT INTO newest (id) VALUES ($1) ON CONFLICT (one) DO UPDATE SET id = EXCLUDED.id";
        tx.execute(sql, &[&event.aggregate_id()])?;
        Ok(())
    }
}

/// Defective: what it counts in memory is not rolled back.
#[derive(Default)]
struct Total(Mutex<i64>);

impl Projection for Total {
    fn name(&self) -> &str {
        "total"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let mut total = self.0.lock().unwrap();
        // The events of each database are counted from the first.
        *total = if event.global_position() == 1 { 1 } else { *total + 1 };
        let sql = "INSERT INTO total (events) VALUES ($1) ON CONFLICT (one) DO UPDATE SET events = EXCLUDED.events";
        tx.execute(sql, &[&*total])?;
        Ok(())
    }
}

/// Defective: it handles one event, and says that it has handled all.
struct FirstOfBatch;

impl BatchProjection for FirstOfBatch {
    fn name(&self) -> &str {
        "first_of_batch"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        Orders.handle(tx, &events[0]).map(|()| events.len())
    }
}

fn append(shop: &mut Scenario, id: &str, event_type: &str) {
    shop.append(&StreamId::new("shop", "Order", id), &[NewEvent::new(event_type, "{}")]).unwrap();
}

/// Orders that are placed in this sequence, then paid.
fn append_orders(shop: &mut Scenario, ids: &[&str]) {
    for event_type in ["OrderPlaced", "OrderPaid"] {
        for id in ids {
            append(shop, id, event_type);
        }
    }
}

fn scenario_of(add: impl FnOnce(Scenario) -> Scenario, ids: &[&str]) -> Scenario {
    let mut scenario = add(Scenario::new(TABLES).unwrap());
    append_orders(&mut scenario, ids);
    scenario
}

fn of_orders(ids: &[&str]) -> Scenario {
    scenario_of(|shop| shop.projection(Orders), ids)
}

#[test]
fn events_become_read_models_step_by_step() {
    let mut shop = Scenario::new(TABLES).unwrap().projection(Orders).projection(Newest);
    shop.run_to_end().unwrap();
    let mut expected = Vec::new();
    for id in ["order-1", "order-2", "order-3"] {
        append_orders(&mut shop, &[id]);
        shop.run_to_end().unwrap();
        expected.push((id.to_owned(), 1, 1));
        let rows = shop.client().query("SELECT id, placed, paid FROM orders ORDER BY id", &[]).unwrap();
        let found: Vec<(String, i64, i64)> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
        assert_eq!(found, expected);
        let newest = shop.client().query_one("SELECT id FROM newest", &[]).unwrap();
        assert_eq!(newest.get::<_, String>(0), id);
    }
}

#[test]
fn a_failing_handler_is_reported_with_its_event() {
    let mut shop = of_orders(&["order-1"]);
    append(&mut shop, "order-2", "OrderLost");
    let checked = shop.check_partitioning().tables(["orders"]).run();
    for error in [shop.run_to_end().unwrap_err(), checked.unwrap_err()] {
        for part in ["\"orders\"", "OrderLost of shop/Order/order-2 at global position 3", "OrderLost is not known"] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

/// Counts the events of each type that it was called for.
#[derive(Clone, Default)]
struct Mails(Arc<Mutex<BTreeMap<String, usize>>>);

impl Reaction for Mails {
    fn name(&self) -> &str {
        "mails"
    }

    fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let done = events.iter().take_while(|event| event.event_type() != "OrderLost").count();
        if done == 0 {
            return Err("nobody gets this mail".into());
        }
        for event in &events[..done] {
            *self.0.lock().unwrap().entry(event.event_type().to_owned()).or_default() += 1;
        }
        Ok(done)
    }
}

#[test]
fn a_reaction_reacts_to_all_events_of_a_scenario() {
    let mails = Mails::default();
    let mut shop = scenario_of(|shop| shop.projection(Orders).reaction(mails.clone()), &["order-1", "order-2"]);
    shop.run_to_end().unwrap();
    append_orders(&mut shop, &["order-3"]);
    shop.run_to_end().unwrap();
    let expected: BTreeMap<String, usize> = [("OrderPlaced".to_owned(), 3), ("OrderPaid".to_owned(), 3)].into();
    assert_eq!(*mails.0.lock().unwrap(), expected);
    // It has no read model, so the check leaves it out.
    shop.check_partitioning().tables(["orders"]).run().unwrap();
    assert_eq!(*mails.0.lock().unwrap(), expected);
}

#[test]
fn a_failing_reaction_is_reported_with_its_event() {
    let mut shop = scenario_of(|shop| shop.reaction(Mails::default()), &["order-1"]);
    append(&mut shop, "order-2", "OrderLost");
    let error = shop.run_to_end().unwrap_err().to_string();
    for part in ["\"mails\"", "OrderLost of shop/Order/order-2 at global position 3", "nobody gets this mail"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn tables_that_cannot_be_created_are_an_error() {
    let error = Scenario::new("CREATE TABLE orders (id nonsense)").unwrap_err();
    assert!(error.to_string().contains("read models") && error.to_string().contains("nonsense"), "{error}");
}

#[test]
fn a_scenario_runs_within_a_runtime() {
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let mut shop = of_orders(&["order-1", "order-2"]);
        shop.run_to_end().unwrap();
        shop.check_partitioning().tables(["orders"]).run().unwrap();
    });
}

#[test]
fn sound_projections_pass_the_check() {
    let ids: Vec<String> = (1..=9).map(|number| format!("order-{number}")).collect();
    let shop = of_orders(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    for seed in [0, 1] {
        shop.check_partitioning().tables(["orders"]).seed(seed).run().unwrap();
    }
}

fn difference(add: impl FnOnce(Scenario) -> Scenario, table: &str) -> Error {
    // The check finds the difference even with few aggregates, and with any order of their keys.
    let shop = scenario_of(add, &["order-1", "order-2"]);
    let check = || shop.check_partitioning().tables([table]).run().unwrap_err();
    let error = check();
    assert_eq!(error.to_string(), check().to_string(), "the same seed leads to the same error");
    error
}

#[test]
fn defective_projections_fail_with_the_first_row() {
    for (error, parts) in [
        (
            difference(|shop| shop.projection(Newest), "newest"),
            [r#"in order: {"id": "order-2", "#, r#"here:     {"id": "order-1", "#, "2 partitions"],
        ),
        (
            difference(|shop| shop.projection(Total::default()), "total"),
            [r#"{"one": true, "events": 4}"#, "table total", "rollbacks (seed 0)"],
        ),
        (
            difference(|shop| shop.batch_projection(FirstOfBatch), "orders"),
            [r#"{"id": "order-1", "paid": 0, "placed": 1}"#, "1 partition", "table orders"],
        ),
    ] {
        for part in parts {
            assert!(error.to_string().contains(part), "{part} is missing: {error}");
        }
    }
}

#[test]
fn a_check_that_compares_nothing_is_an_error() {
    let shop = of_orders(&["order-1"]);
    for (tables, part) in [(&[][..], "tables()"), (&["newest"], "newest is empty"), (&["nowhere"], "nowhere")] {
        let error = shop.check_partitioning().tables(tables.iter().copied()).run().unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
    // If every column is ignored, all rows are equal.
    let shop = scenario_of(|shop| shop.projection(Newest), &["order-1", "order-2"]);
    shop.check_partitioning().tables(["newest"]).ignoring(["id"]).run().unwrap();
}
