//! Measures appends with [`EventStore`], compared with bare inserts of the same rows. Each call is
//! a transaction. Every connection has a hundred aggregates of its own, whose versions it knows.
//! The table has 100,000 events before.
//!
//! - *append*: [`EventStore::append`].
//! - *insert*: `INSERT … SELECT unnest(…)`, sent like the library's call, unprepared and in one
//!   round trip. It detects a conflict only by the unique constraint, and writes no head.
//! - *insert and head*: the same with the upsert of the aggregate's head, so it writes the same
//!   rows as the library.
//! - *prepared insert*, *prepared insert and head*: the same, parsed and planned once, which a
//!   pooler in transaction mode does not allow.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use postgres::types::{ToSql, Type};
use postgres::{Client, Statement};
use pupsourcing_orchestrator::{EventStore, ExpectedVersion, NewEvent, StreamId};
use uuid::Uuid;

use crate::lab::{Filling, Lab};
use crate::line::{Line, Target};
use crate::support::samples::in_turn;
use crate::support::server::connect;
use crate::support::units::Unit::EventsPerSecond;

const AGGREGATES: usize = 100;
const PAYLOAD: [u8; 200] = [b'x'; 200];

const INSERT: &str = "
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version, payload)
    SELECT 'shop', 'Order', $1, $2 + n, event_id, event_type, event_version, payload
    FROM unnest($3, $4, $5, $6) WITH ORDINALITY AS e (event_id, event_type, event_version, payload, n) ORDER BY n";

const HEAD: &str = "
    WITH head AS (
        INSERT INTO aggregate_heads AS h (bounded_context, aggregate_type, aggregate_id, aggregate_version)
        VALUES ('shop', 'Order', $1, $2 + cardinality($3)) ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE
        SET aggregate_version = excluded.aggregate_version, updated_at = clock_timestamp())";

const TYPES: [Type; 6] =
    [Type::TEXT, Type::INT8, Type::UUID_ARRAY, Type::TEXT_ARRAY, Type::INT4_ARRAY, Type::BYTEA_ARRAY];

#[derive(Clone, Copy, Debug)]
enum Way {
    Append,
    Insert,
    InsertAndHead,
    PreparedInsert,
    PreparedInsertAndHead,
}

pub(crate) fn measure(lab: &mut Lab) {
    let lasts = lab.real_or_quick(Duration::from_millis(750), Duration::from_millis(50));
    for connections in [1, 8] {
        for events in [1, 10, 100] {
            // Each case has a new table, because inserts become slower as the table grows.
            let base = Filling::of(lab.real_or_quick(100_000, 1_000));
            let (database, url) = lab.database_filled_with(base);
            let pass = |way| {
                let url = url.as_str();
                move |lab: &mut Lab| append(url, &lab.name(), way, events, connections, lasts)
            };
            let [appended, insert, with_head, prepared, prepared_with_head] = in_turn(
                lab.rounds_times(2),
                lab,
                [
                    &pass(Way::Append),
                    &pass(Way::Insert),
                    &pass(Way::InsertAndHead),
                    &pass(Way::PreparedInsert),
                    &pass(Way::PreparedInsertAndHead),
                ],
            );
            let name = format!("append, events per call: {events}, connections: {connections}");
            let line = Line::new(name, EventsPerSecond, &appended);
            lab.report.line(&line.clone().beside("insert", &insert).target(Target::RatioAtLeast(0.8)));
            for (baseline, measured) in [
                ("insert and head", &with_head),
                ("prepared insert", &prepared),
                ("prepared insert and head", &prepared_with_head),
            ] {
                lab.report.line(&line.clone().beside(baseline, measured));
            }
            lab.server.drop_database(&database);
        }
    }
}

/// Returns the events per second of all connections together.
fn append(url: &str, prefix: &str, way: Way, events: usize, connections: usize, lasts: Duration) -> f64 {
    let together = Barrier::new(connections);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..connections)
            .map(|connection| {
                let appender = Appender::new(url, format!("{prefix}-{connection}"), way, events);
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    appender.run(lasts)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

struct Appender {
    client: Client,
    way: Way,
    insert: String,
    prepared: Option<Statement>,
    prefix: String,
    events: usize,
}

impl Appender {
    fn new(url: &str, prefix: String, way: Way, events: usize) -> Self {
        let mut client = connect(url);
        let insert = match way {
            Way::InsertAndHead | Way::PreparedInsertAndHead => format!("{HEAD} {INSERT}"),
            _ => INSERT.into(),
        };
        let is_prepared = matches!(way, Way::PreparedInsert | Way::PreparedInsertAndHead);
        let prepared = is_prepared.then(|| client.prepare_typed(&insert, &TYPES).unwrap());
        Self { client, way, insert, prepared, prefix, events }
    }

    /// Appends for this long, to one aggregate after the other. Returns the events per second.
    fn run(mut self, lasts: Duration) -> f64 {
        let ids: Vec<String> = (0..AGGREGATES).map(|aggregate| format!("{}-{aggregate}", self.prefix)).collect();
        let begun = Instant::now();
        let mut calls = 0;
        while begun.elapsed() < lasts {
            let version = calls / AGGREGATES * self.events;
            self.call(&ids[calls % AGGREGATES], version as i64);
            calls += 1;
        }
        (calls * self.events) as f64 / begun.elapsed().as_secs_f64()
    }

    fn call(&mut self, id: &str, version: i64) {
        if let Way::Append = self.way {
            let expected = if version == 0 { ExpectedVersion::NoStream } else { ExpectedVersion::Exact(version) };
            let event = || NewEvent::new("OrderPlaced", PAYLOAD);
            let events: Vec<NewEvent> = std::iter::repeat_with(event).take(self.events).collect();
            EventStore::default()
                .append(&mut self.client, &StreamId::new("shop", "Order", id), expected, &events)
                .unwrap();
            return;
        }
        let ids: Vec<Uuid> = std::iter::repeat_with(Uuid::new_v4).take(self.events).collect();
        let types = vec!["OrderPlaced"; self.events];
        let versions = vec![1i32; self.events];
        let payloads = vec![PAYLOAD.as_slice(); self.events];
        let values: [&(dyn ToSql + Sync); 6] = [&id, &version, &ids, &types, &versions, &payloads];
        match &self.prepared {
            Some(statement) => self.client.execute(statement, &values),
            None => self.client.execute_typed(&self.insert, &values.into_iter().zip(TYPES).collect::<Vec<_>>()),
        }
        .unwrap();
    }
}
