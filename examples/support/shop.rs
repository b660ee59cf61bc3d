//! A shop: what happens in it, three read models of that, and what tells whether they are right.

use postgres::Client;
use pupsourcing_orchestrator::{BatchProjection, BoxError, Event, NewEvent, Projection, Scope, Tx};
use serde_json::{Value, json};

/// What somebody does next: events of one aggregate, some new, some well known.
pub(crate) fn next_events() -> Vec<NewEvent> {
    let new_id = fastrand::u64(..);
    match fastrand::u8(..10) {
        0..4 => {
            let order = |kind, payload| event("Order", format!("order-{new_id:016x}"), kind, &payload);
            let day = format!("2026-03-{:02}", fastrand::u8(1..=31));
            let placed = json!({"day": day, "cents": fastrand::u32(100..50_000)});
            vec![order("OrderPlaced", placed), order("OrderPaid", json!({})), order("OrderShipped", json!({}))]
        }
        4..8 => {
            let item = || {
                let article = fastrand::u32(..10_000);
                event("Cart", format!("cart-{new_id:016x}"), "ItemAdded", &json!({"article": article}))
            };
            std::iter::repeat_with(item).take(fastrand::usize(1..=6)).collect()
        }
        _ => {
            let city = ["Amsterdam", "Bogotá", "Cairo", "Dhaka", "Edinburgh"][fastrand::usize(..5)];
            let id = format!("customer-{}", fastrand::u8(..200));
            vec![event("Customer", id, "CustomerMoved", &json!({"city": city}))]
        }
    }
}

fn event(aggregate_type: &str, id: String, event_type: &str, payload: &Value) -> NewEvent {
    NewEvent::new("shop", aggregate_type, id, event_type, payload.to_string())
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

/// The names of the projections that build them.
pub(crate) const PROJECTIONS: [&str; 3] = ["revenue_per_day", "customers", "timeline"];

/// How much was sold on each day: one statement for a whole batch.
pub(crate) struct RevenuePerDay;

impl BatchProjection for RevenuePerDay {
    fn name(&self) -> &'static str {
        "revenue_per_day"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Order"])
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let placed = events.iter().filter(|event| event.event_type() == "OrderPlaced");
        let orders: Vec<Value> =
            placed.map(|event| serde_json::from_slice(event.payload())).collect::<Result<_, _>>()?;
        // In the order of days, so that workers which add to the same days wait for one another but never deadlock.
        tx.execute(
            "INSERT INTO revenue_per_day AS r (day, orders, cents)
             SELECT (o->>'day')::date, count(*), sum((o->>'cents')::bigint)
             FROM unnest($1::jsonb[]) AS o GROUP BY 1 ORDER BY 1
             ON CONFLICT (day) DO UPDATE SET orders = r.orders + excluded.orders, cents = r.cents + excluded.cents",
            &[&orders],
        )?;
        Ok(events.len())
    }
}

/// Where each customer lives: event by event, and only right if their order is.
pub(crate) struct Customers;

impl Projection for Customers {
    fn name(&self) -> &'static str {
        "customers"
    }

    fn scope(&self) -> Scope {
        Scope::all().aggregate_types(["Customer"])
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let payload: Value = serde_json::from_slice(event.payload())?;
        tx.execute(
            "INSERT INTO customers AS c (id, city, moves) VALUES ($1, $2, 1)
             ON CONFLICT (id) DO UPDATE SET city = excluded.city, moves = c.moves + 1",
            &[&event.aggregate_id(), &payload["city"].as_str()],
        )?;
        Ok(())
    }
}

/// A line for every event: nothing hides one that was handled twice or not at all.
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

/// Each read model once more, straight from the events, and in how many rows the two differ.
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
             FROM (SELECT convert_from(payload, 'UTF8')::jsonb AS o FROM events WHERE event_type = 'OrderPlaced') AS placed
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

/// What differs between the read models and the events: nothing, if every event had its effects exactly once and in order.
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
