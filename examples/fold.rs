//! A fold: the total of each customer's orders. Orders are aggregates, and several of them have the
//! same customer. The program starts a private PostgreSQL, appends orders, lets two workers fold
//! them, and reads the totals back: typed, and with SQL.
#![allow(clippy::print_stdout, reason = "it is a show")]

use std::error::Error;
use std::time::Duration;

use pupsourcing_orchestrator::{
    BoxError, Column, Database, Event, EventStore, ExpectedVersion, Fold, NewEvent, Orchestrator, StreamId, testing,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
enum OrderEvent {
    Placed { customer: String, cents: i64 },
    Refunded { customer: String, cents: i64 },
}

/// What a customer has spent.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Customer {
    orders: i64,
    cents: i64,
}

struct Customers;

impl Fold for Customers {
    type State = Customer;

    fn name(&self) -> &str {
        "customers"
    }

    /// Not the order's id: orders of one customer have the same key.
    fn key(&self, event: &Event) -> Option<String> {
        match event.decode().ok()? {
            OrderEvent::Placed { customer, .. } | OrderEvent::Refunded { customer, .. } => Some(customer),
        }
    }

    fn apply(&self, state: Option<Customer>, event: &Event) -> Result<Option<Customer>, BoxError> {
        let Customer { orders, cents: before } = state.unwrap_or_default();
        Ok(Some(match event.decode()? {
            OrderEvent::Placed { cents, .. } => Customer { orders: orders + 1, cents: before + cents },
            OrderEvent::Refunded { cents, .. } => Customer { orders, cents: before - cents },
        }))
    }

    fn columns(&self) -> Vec<Column<Customer>> {
        vec![Column::new("cents", "bigint", |customer: &Customer| customer.cents)]
    }
}

const CUSTOMERS: [&str; 3] = ["ada", "grace", "edsger"];
const ORDERS: usize = 3_000;

fn main() -> Result<(), Box<dyn Error>> {
    let server = testing::database()?;
    let database = server.database();
    let worker = || Orchestrator::builder(database.clone(), "main-projections").fold(Customers).build();
    worker()?.migrate()?;
    append(&database)?;

    // Two workers, each of which handles a part of the orders. A third one leaves at the last
    // event.
    let workers = [worker()?.start()?, worker()?.start()?];
    let end = worker()?.run_to(None, &crossbeam_channel::never(), |_| {})?;
    println!("folded {} orders up to position {}", ORDERS, end.position.unwrap_or_default());

    let mut client = database.connect()?;
    for customer in CUSTOMERS {
        println!("{customer}: {:?}", Customers.get(&mut client, customer)?.unwrap_or_default());
    }
    // The table is an interface for readers. They may add indexes.
    client.batch_execute("CREATE INDEX ON customers (cents)")?;
    let row =
        client.query_one("SELECT key, cents, version, position FROM customers ORDER BY cents DESC LIMIT 1", &[])?;
    let (key, cents, events, position): (String, i64, i64, i64) = (row.get(0), row.get(1), row.get(2), row.get(3));
    println!("most: {key} with {cents} cents, from {events} events up to position {position}");
    let counted: i64 = client.query_one("SELECT sum(version)::bigint FROM customers", &[])?.get(0);
    assert_eq!(counted, i64::try_from(ORDERS + ORDERS / 10)?, "each event was applied once");
    println!("OK");
    workers.into_iter().try_for_each(|worker| worker.shutdown(Duration::from_secs(10)))?;
    Ok(())
}

/// Appends orders of each customer, of which every tenth is refunded.
fn append(database: &Database) -> Result<(), Box<dyn Error>> {
    let (mut client, store) = (database.connect()?, EventStore::default());
    for (number, customer) in (0..ORDERS).zip(CUSTOMERS.into_iter().cycle()) {
        let (customer, cents) = (customer.to_owned(), i64::try_from(number)?);
        let mut events = vec![NewEvent::encode(&OrderEvent::Placed { customer: customer.clone(), cents })?];
        if number % 10 == 0 {
            events.push(NewEvent::encode(&OrderEvent::Refunded { customer, cents })?);
        }
        let order = StreamId::new("shop", "Order", format!("order-{number}"));
        store.append(&mut client, &order, ExpectedVersion::NoStream, &events)?;
    }
    Ok(())
}
