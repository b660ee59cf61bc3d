//! A shop: its events, three read models of different kinds, mails to customers, and queries that
//! check the read models.

use std::net::SocketAddr;

use postgres::Client;
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Call, Column, EncodeError, Event, Fold, NewEvent, Options, Passing, Projection,
    Reaction, Scope, StartAt, StreamId, Tx,
};
use serde::{Deserialize, Serialize};

use super::mailbox::{self, Mail};

/// The events of an order.
#[derive(Serialize, Deserialize)]
enum OrderEvent {
    Placed { day: String, cents: i64 },
    Paid,
    Shipped,
}

/// The events of a cart.
#[derive(Serialize, Deserialize)]
enum CartEvent {
    ItemAdded { article: u32 },
}

/// The events of a customer.
#[derive(Serialize, Deserialize)]
enum CustomerEvent {
    CustomerMoved { city: String },
}

/// Returns the next events, all of one aggregate, which is often a new one.
pub(crate) fn next_events() -> Result<(StreamId, Vec<NewEvent>), EncodeError> {
    let new_id = fastrand::u64(..);
    let stream = |aggregate_type: &str, id: String| StreamId::new("shop", aggregate_type, id);
    Ok(match fastrand::u8(..10) {
        0..4 => {
            let day = format!("2026-03-{:02}", fastrand::u8(1..=31));
            let placed = OrderEvent::Placed { day, cents: fastrand::i64(100..50_000) };
            let events = [placed, OrderEvent::Paid, OrderEvent::Shipped];
            let events = events.iter().map(NewEvent::encode).collect::<Result<_, _>>()?;
            (stream("Order", format!("order-{new_id:016x}")), events)
        }
        4..8 => {
            let item = || NewEvent::encode(&CartEvent::ItemAdded { article: fastrand::u32(..10_000) });
            let events = std::iter::repeat_with(item).take(fastrand::usize(1..=6));
            (stream("Cart", format!("cart-{new_id:016x}")), events.collect::<Result<_, _>>()?)
        }
        _ => {
            let city = ["Amsterdam", "Bogotá", "Cairo", "Dhaka", "Edinburgh"][fastrand::usize(..5)].to_owned();
            let id = format!("customer-{}", fastrand::u8(..200));
            (stream("Customer", id), vec![NewEvent::encode(&CustomerEvent::CustomerMoved { city })?])
        }
    })
}

/// The tables of the read models, except that of the fold.
pub(crate) const TABLES: &str = "
    CREATE TABLE customers (id text PRIMARY KEY, city text NOT NULL, moves bigint NOT NULL);
    CREATE TABLE timeline (
        line bigserial PRIMARY KEY,
        global_position bigint NOT NULL,
        aggregate text NOT NULL,
        aggregate_version bigint NOT NULL,
        shown_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE INDEX ON timeline (global_position)";

/// The names of the projections, and of the reaction.
pub(crate) const PROJECTIONS: [&str; 4] = ["revenue_per_day", "customers", "timeline", "mails"];

/// How much was sold on each day: a state per key. All workers add to the same days.
pub(crate) struct RevenuePerDay;

#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Revenue {
    orders: u64,
    cents: i64,
}

impl Fold for RevenuePerDay {
    type State = Revenue;

    fn name(&self) -> &'static str {
        "revenue_per_day"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Order"]).event_types(["Placed"])
    }

    fn key(&self, event: &Event) -> Option<String> {
        match event.decode() {
            Ok(OrderEvent::Placed { day, .. }) => Some(day),
            _ => None,
        }
    }

    fn apply(&self, revenue: Option<Revenue>, event: &Event) -> Result<Option<Revenue>, BoxError> {
        let Revenue { orders, cents: before } = revenue.unwrap_or_default();
        Ok(match event.decode()? {
            OrderEvent::Placed { cents, .. } => Some(Revenue { orders: orders + 1, cents: before + cents }),
            _ => None,
        })
    }

    fn columns(&self) -> Vec<Column<Revenue>> {
        vec![
            Column::new("orders", "bigint", |revenue: &Revenue| revenue.orders),
            Column::new("cents", "bigint", |revenue: &Revenue| revenue.cents),
        ]
    }
}

/// Where each customer lives. It handles event by event, and is right only if the events are in
/// order.
pub(crate) struct Customers;

impl Projection for Customers {
    fn name(&self) -> &'static str {
        "customers"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Customer"])
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let CustomerEvent::CustomerMoved { city } = event.decode()?;
        tx.execute(
            "INSERT INTO customers AS c (id, city, moves) VALUES ($1, $2, 1)
             ON CONFLICT (id) DO UPDATE SET city = excluded.city, moves = c.moves + 1",
            &[&event.aggregate_id(), &city],
        )?;
        Ok(())
    }
}

/// A line for every event, so an event that was handled twice or not at all is visible.
pub(crate) struct Timeline;

impl BatchProjection for Timeline {
    fn name(&self) -> &'static str {
        "timeline"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let positions: Vec<i64> = events.iter().map(Event::global_position).collect();
        let aggregates: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
        let versions: Vec<i64> = events.iter().map(Event::aggregate_version).collect();
        tx.execute(
            "INSERT INTO timeline (global_position, aggregate, aggregate_version)
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])",
            &[&positions, &aggregates, &versions],
        )?;
        Ok(events.len())
    }
}

/// A mail about each payment and each shipment: an effect outside of the database.
pub(crate) struct Mails {
    pub(crate) to: SocketAddr,
}

impl Reaction for Mails {
    fn name(&self) -> &'static str {
        "mails"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Order"]).event_types(["Paid", "Shipped"])
    }

    /// The show begins with the first event.
    fn start_at(&self) -> StartAt {
        StartAt::Beginning
    }

    fn options(&self) -> Options {
        Options::default().batch_size(MAILS_AT_ONCE)
    }

    fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let mail = |event: &Event| Mail {
            position: event.global_position(),
            aggregate: event.aggregate_id().to_owned(),
            version: event.aggregate_version(),
        };
        let mails: Vec<Mail> = events.iter().map(mail).collect();
        mailbox::send(self.to, &mails).map_err(Passing::new)?;
        Ok(events.len())
    }
}

/// How many mails one call sends at most. These may be repeated if the worker is killed.
pub(crate) const MAILS_AT_ONCE: usize = 100;

/// The positions of the events about which there is a mail.
pub(crate) fn mailed(client: &mut Client) -> Result<Vec<i64>, postgres::Error> {
    let sql = "SELECT global_position FROM events WHERE event_type IN ('Paid', 'Shipped')";
    Ok(client.query(sql, &[])?.iter().map(|row| row.get(0)).collect())
}

/// Computes each read model directly from the events, and counts the rows that differ.
const DIFFERENCES: [(&str, &str); 5] = [
    (
        "events missing in timeline",
        "SELECT count(*) FROM events e WHERE NOT EXISTS (SELECT FROM timeline t WHERE t.global_position = e.global_position)",
    ),
    ("events repeated in timeline", "SELECT count(*) - count(DISTINCT global_position) FROM timeline"),
    (
        "events out of order in timeline",
        "SELECT count(*) FROM (
             SELECT aggregate_version - lag(aggregate_version, 1, 0::bigint) OVER (PARTITION BY aggregate ORDER BY line) AS step
             FROM timeline) AS steps WHERE step <> 1",
    ),
    (
        "days wrong in revenue_per_day",
        "SELECT count(*) FROM revenue_per_day r FULL JOIN (
             SELECT o->>'day' AS key, count(*) AS orders, sum((o->>'cents')::bigint) AS cents
             FROM (SELECT convert_from(payload, 'UTF8')::jsonb AS o FROM events WHERE event_type = 'Placed') AS placed
             GROUP BY 1) AS e USING (key)
         WHERE (r.orders, r.cents, r.version, r.state->>'cents') IS DISTINCT FROM (e.orders, e.cents, e.orders, e.cents::text)",
    ),
    (
        "rows wrong in customers",
        "SELECT count(*) FROM customers c FULL JOIN (
             SELECT aggregate_id AS id, count(*) AS moves,
                    (array_agg(convert_from(payload, 'UTF8')::jsonb->>'city' ORDER BY aggregate_version DESC))[1] AS city
             FROM events WHERE aggregate_type = 'Customer' GROUP BY 1) AS e USING (id)
         WHERE (c.city, c.moves) IS DISTINCT FROM (e.city, e.moves)",
    ),
];

/// Returns the differences between the read models and the events. There are none if every event
/// had its effects exactly once and in order.
pub(crate) fn differences(client: &mut Client) -> Result<Vec<String>, postgres::Error> {
    let mut found = Vec::new();
    for (what, sql) in DIFFERENCES {
        let count: i64 = client.query_one(sql, &[])?.get(0);
        if count != 0 {
            found.push(format!("{count} {what}"));
        }
    }
    Ok(found)
}
