//! A shop: the events of its orders, a command, and three read models that are built from them.

use pupsourcing_orchestrator::{BatchProjection, BoxError, Event, NewEvent, Projection, Scope, Tx, postgres::Client};
use pupsourcing_orchestrator::{CommandError, DecodeError, EventStore, StreamId};
use serde::{Deserialize, Serialize};

/// The events of an order. The variant is the event type, and its fields are the payload.
#[derive(Serialize, Deserialize)]
pub enum OrderEvent {
    OrderPlaced { product: String, cents: i64 },
    OrderPaid { address: String },
}

/// The state of an order, on which its commands decide.
#[derive(Default)]
enum Order {
    #[default]
    New,
    Placed,
    Paid,
}

impl Order {
    fn apply(&mut self, event: &Event) -> Result<(), DecodeError> {
        *self = match event.decode()? {
            OrderEvent::OrderPlaced { .. } => Self::Placed,
            OrderEvent::OrderPaid { .. } => Self::Paid,
        };
        Ok(())
    }
}

pub fn order(id: &str) -> StreamId {
    StreamId::new("shop", "Order", id)
}

/// Pays an order. If another command has changed it meanwhile, this one decides again.
pub fn pay(client: &mut Client, id: &str, address: &str) -> Result<(), CommandError<BoxError>> {
    let store = EventStore::default();
    store.execute(client, &order(id), Order::default, Order::apply, |order| match order {
        Order::New => Err("there is no such order".into()),
        Order::Placed => Ok(vec![NewEvent::encode(&OrderEvent::OrderPaid { address: address.into() })?]),
        Order::Paid => Err("the order has been paid".into()),
    })?;
    store.hint(client); // The workers then read the event at once.
    Ok(())
}

pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, cents bigint NOT NULL, is_paid bool NOT NULL);
    CREATE TABLE IF NOT EXISTS products (name text PRIMARY KEY, orders bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS to_ship (order_id text PRIMARY KEY, address text NOT NULL)";

/// Each order, and whether it is paid.
pub struct Orders;

impl Projection for Orders {
    fn name(&self) -> &str {
        "orders"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let id = event.aggregate_id();
        match event.decode()? {
            OrderEvent::OrderPlaced { cents, .. } => {
                tx.execute("INSERT INTO orders VALUES ($1, $2, false)", &[&id, &cents])?
            }
            OrderEvent::OrderPaid { .. } => tx.execute("UPDATE orders SET is_paid = true WHERE id = $1", &[&id])?,
        };
        Ok(())
    }
}

/// How many orders each product has. All workers write the same rows.
pub struct Products;

impl BatchProjection for Products {
    fn name(&self) -> &str {
        "products"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let mut names = Vec::new();
        for event in events {
            if let OrderEvent::OrderPlaced { product, .. } = event.decode()? {
                names.push(product);
            }
        }
        // Sorted by key: workers that lock the rows in the same order cannot deadlock.
        tx.execute(
            "INSERT INTO products SELECT name, count(*) FROM unnest($1::text[]) AS name GROUP BY name ORDER BY name
             ON CONFLICT (name) DO UPDATE SET orders = products.orders + excluded.orders",
            &[&names],
        )?;
        Ok(events.len())
    }
}

/// The addresses to which paid orders are sent.
pub struct ToShip;

impl Projection for ToShip {
    fn name(&self) -> &str {
        "to_ship"
    }

    fn scope(&self) -> Scope {
        Scope::all().event_types(["OrderPaid"])
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if let OrderEvent::OrderPaid { address } = event.decode()? {
            tx.execute("INSERT INTO to_ship VALUES ($1, $2)", &[&event.aggregate_id(), &address])?;
        }
        Ok(())
    }
}
