//! A shop: the events of its orders, a command, two read models, and a receipt for each paid order.

use pupsourcing_orchestrator::{BoxError, Call, Event, Fold, NewEvent, Projection, Reaction, Scope, Tx};
use pupsourcing_orchestrator::{CommandError, DecodeError, EventStore, StreamId, postgres::Client};
use serde::{Deserialize, Serialize};

/// The events of an order. The variant is the event type, and its fields are the payload.
#[derive(Serialize, Deserialize)]
pub enum OrderEvent {
    OrderPlaced { product: String, cents: i64 },
    OrderPaid { address: String },
}

/// The state of an order, on which its commands decide.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Order {
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

/// The state of each order, for readers: the same that the commands decide on.
pub struct Orders;

impl Fold for Orders {
    type State = Order;

    fn name(&self) -> &str {
        "orders"
    }

    fn apply(&self, order: Option<Order>, event: &Event) -> Result<Option<Order>, BoxError> {
        let mut order = order.unwrap_or_default();
        order.apply(event)?;
        Ok(Some(order))
    }
}

pub const TABLES: &str = "CREATE TABLE IF NOT EXISTS to_ship (order_id text PRIMARY KEY, address text NOT NULL)";

/// The addresses to which paid orders are sent: SQL of one's own, in a table of one's own.
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

/// A receipt for each paid order: an effect outside of the database. The function is given the
/// address and a key, which is the same if a receipt is sent again.
pub struct Receipts<S>(pub S);

impl<S: Fn(&str, &str) -> Result<(), BoxError> + Send + Sync> Reaction for Receipts<S> {
    fn name(&self) -> &str {
        "receipts"
    }

    fn scope(&self) -> Scope {
        Scope::all().event_types(["OrderPaid"])
    }

    fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        if let OrderEvent::OrderPaid { address } = events[0].decode()? {
            (self.0)(&address, &events[0].event_id().to_string())?;
        }
        Ok(1)
    }
}
