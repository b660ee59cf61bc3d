//! A shop: its events, three read models, and queries that check the read models.

use std::collections::BTreeMap;

use postgres::Client;
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, EncodeError, Event, NewEvent, Projection, Scope, StreamId, Tx,
};
use serde::{Deserialize, Serialize};

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

/// The tables of the read models.
pub(crate) const TABLES: &str = "
    CREATE TABLE revenue_per_day (day date PRIMARY KEY, orders bigint NOT NULL, cents bigint NOT NULL);
    CREATE TABLE customers (id text PRIMARY KEY, city text NOT NULL, moves bigint NOT NULL);
    CREATE TABLE timeline (
        line bigserial PRIMARY KEY,
        global_position bigint NOT NULL,
        aggregate text NOT NULL,
        aggregate_version bigint NOT NULL,
        shown_at timestamptz NOT NULL DEFAULT clock_timestamp()
    );
    CREATE INDEX ON timeline (global_position)";

/// The names of the projections that build the read models.
pub(crate) const PROJECTIONS: [&str; 3] = ["revenue_per_day", "customers", "timeline"];

/// How much was sold on each day. Uses one statement for a whole batch.
pub(crate) struct RevenuePerDay;

impl BatchProjection for RevenuePerDay {
    fn name(&self) -> &'static str {
        "revenue_per_day"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Order"])
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let mut sold = BTreeMap::<String, (i64, i64)>::new();
        for event in events {
            if let OrderEvent::Placed { day, cents } = event.decode()? {
                let (orders, total) = sold.entry(day).or_default();
                *orders += 1;
                *total += cents;
            }
        }
        // Sorted by day, so workers that add to the same days wait for one another but never
        // deadlock.
        let days: Vec<&str> = sold.keys().map(String::as_str).collect();
        let (orders, cents): (Vec<i64>, Vec<i64>) = sold.values().copied().unzip();
        tx.execute(
            "INSERT INTO revenue_per_day AS r (day, orders, cents)
             SELECT day::date, orders, cents FROM unnest($1::text[], $2::bigint[], $3::bigint[]) AS sold (day, orders, cents)
             ON CONFLICT (day) DO UPDATE SET orders = r.orders + excluded.orders, cents = r.cents + excluded.cents",
            &[&days, &orders, &cents],
        )?;
        Ok(events.len())
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
             SELECT (o->>'day')::date AS day, count(*) AS orders, sum((o->>'cents')::bigint) AS cents
             FROM (SELECT convert_from(payload, 'UTF8')::jsonb AS o FROM events WHERE event_type = 'Placed') AS placed
             GROUP BY 1) AS e USING (day)
         WHERE (r.orders, r.cents) IS DISTINCT FROM (e.orders, e.cents)",
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
