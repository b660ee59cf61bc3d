//! Measures a fold with 10,000 keys, compared with a projection that sends one upsert for each
//! event, and with a hand-written one that does for a batch what a fold does: it reads the states
//! of the batch with one statement, applies the events and writes the states with another. All
//! three have the same state for each aggregate, as `jsonb`.
//!
//! The second part has a proxy between worker and server, which adds 0.5 ms to each round trip.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Builder, Event, Fold, Projection, ProjectionState, StartAt, Tx,
};
use serde::{Deserialize, Serialize};

use crate::delay::proxy;
use crate::lab::{Lab, builder};
use crate::line::{Line, Target};
use crate::support::insert::insert;
use crate::support::samples::in_turn;
use crate::support::server::connect;
use crate::support::units::Unit::EventsPerSecond;

const KEYS: i64 = 10_000;
const DELAY: Duration = Duration::from_micros(500);

const TABLE: &str = "CREATE TABLE summaries (id text PRIMARY KEY, state jsonb NOT NULL, version bigint NOT NULL)";

const UPSERT: &str = "
    INSERT INTO summaries AS s (id, state, version) VALUES ($1, jsonb_build_object('orders', 1, 'total_cents', $2::bigint, 'note', $3::text), 1)
    ON CONFLICT (id) DO UPDATE SET version = s.version + 1, state = jsonb_build_object(
        'orders', (s.state->>'orders')::bigint + 1, 'total_cents', (s.state->>'total_cents')::bigint + $2, 'note', $3::text)";

const READ: &str = "SELECT id, state::text, version FROM summaries WHERE id = ANY ($1)";

const WRITE: &str = "
    INSERT INTO summaries AS s (id, state, version)
    SELECT id, state::jsonb, version FROM unnest($1::text[], $2::text[], $3::bigint[]) AS given (id, state, version)
    ON CONFLICT (id) DO UPDATE SET state = excluded.state, version = excluded.version";

#[derive(Deserialize)]
struct Placed {
    cents: i64,
    note: String,
}

#[derive(Default, Deserialize, Serialize)]
struct Summary {
    orders: i64,
    total_cents: i64,
    note: String,
}

impl Summary {
    fn after(self, event: &Event) -> Result<Self, BoxError> {
        let Placed { cents, note } = serde_json::from_slice(event.payload())?;
        Ok(Self { orders: self.orders + 1, total_cents: self.total_cents + cents, note })
    }
}

/// What the contenders have in common.
struct Contender {
    name: String,
    start_at: i64,
    is_open: AtomicBool,
    gate: Arc<Barrier>,
}

impl Contender {
    /// Waits before the first event until the measurement begins.
    fn pass(&self) {
        if !self.is_open.load(Ordering::Relaxed) {
            self.is_open.store(true, Ordering::Relaxed);
            self.gate.wait();
        }
    }
}

struct Folded(Contender);

impl Fold for Folded {
    type State = Summary;

    fn name(&self) -> &str {
        &self.0.name
    }

    fn start_at(&self) -> StartAt {
        StartAt::Position(self.0.start_at)
    }

    fn key(&self, event: &Event) -> Option<String> {
        self.0.pass();
        Some(event.aggregate_id().to_owned())
    }

    fn apply(&self, state: Option<Summary>, event: &Event) -> Result<Option<Summary>, BoxError> {
        state.unwrap_or_default().after(event).map(Some)
    }
}

struct Upserts(Contender);

impl Projection for Upserts {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn start_at(&self) -> StartAt {
        StartAt::Position(self.0.start_at)
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.0.pass();
        let Placed { cents, note } = serde_json::from_slice(event.payload())?;
        tx.execute(UPSERT, &[&event.aggregate_id(), &cents, &note])?;
        Ok(())
    }
}

struct HandWritten(Contender);

impl BatchProjection for HandWritten {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn start_at(&self) -> StartAt {
        StartAt::Position(self.0.start_at)
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.0.pass();
        let mut ids: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut states: HashMap<String, (Summary, i64)> = HashMap::new();
        for row in tx.query(READ, &[&ids])? {
            states.insert(row.get(0), (serde_json::from_str(row.get(1))?, row.get(2)));
        }
        for event in events {
            let (state, version) = states.remove(event.aggregate_id()).unwrap_or_default();
            states.insert(event.aggregate_id().to_owned(), (state.after(event)?, version + 1));
        }
        let (mut keys, mut texts, mut versions) = (Vec::new(), Vec::new(), Vec::new());
        for (key, (state, version)) in states {
            keys.push(key);
            texts.push(serde_json::to_string(&state)?);
            versions.push(version);
        }
        tx.execute(WRITE, &[&keys, &texts, &versions])?;
        Ok(events.len())
    }
}

type Add = fn(Builder, Contender) -> Builder;

const FOLD: Add = |builder, contender| builder.fold(Folded(contender));
const UPSERTS: Add = |builder, contender| builder.projection(Upserts(contender));
const HAND_WRITTEN: Add = |builder, contender| builder.batch_projection(HandWritten(contender));

/// Returns the events per second of a worker that handles the last events.
fn run(lab: &mut Lab, (url, events): (&str, i64), last: i64, add: Add) -> f64 {
    let name = lab.name();
    connect(url).batch_execute("TRUNCATE summaries").unwrap();
    let gate = Arc::new(Barrier::new(2));
    let is_open = AtomicBool::new(false);
    let contender = Contender { name: name.clone(), start_at: events - last, is_open, gate: gate.clone() };
    let orchestrator = add(builder(url, &name), contender).build().unwrap();
    orchestrator.migrate().unwrap();
    let handle = orchestrator.start().unwrap();
    gate.wait();
    let begun = std::time::Instant::now();
    let tick = crossbeam_channel::tick(Duration::from_millis(5));
    loop {
        let status = handle.status();
        let projection = status.projections.values().next().unwrap();
        if projection.position == Some(events) {
            assert_eq!(projection.events as i64, last, "every event is handled, once");
            break;
        }
        assert!(projection.state != ProjectionState::Halted, "halted: {:?}", projection.error);
        tick.recv().unwrap();
    }
    let took = begun.elapsed();
    handle.shutdown(Duration::from_secs(10)).unwrap();
    last as f64 / took.as_secs_f64()
}

pub(crate) fn measure(lab: &mut Lab) {
    let events = lab.real_or_quick(lab.events.min(500_000), lab.events);
    let (database, url) = lab.database();
    fill(&url, events);
    let place = (&*url, events);
    let few = lab.real_or_quick(20_000, 500).min(events);
    let rounds = lab.rounds;
    let [fold, hand_written, upserts] = in_turn(
        rounds,
        lab,
        [
            &|lab: &mut Lab| run(lab, place, events, FOLD),
            &|lab: &mut Lab| run(lab, place, events, HAND_WRITTEN),
            &|lab: &mut Lab| run(lab, place, few, UPSERTS),
        ],
    );
    let line = |baseline: &str| Line::new(format!("fold, 10,000 keys{baseline}"), EventsPerSecond, &fold);
    lab.report.line(&line("").target(Target::AtLeast(100_000.0)));
    lab.report.line(&line(", and written by hand").beside("by hand", &hand_written).target(Target::RatioAtLeast(0.8)));
    lab.report.line(&line(", and one upsert per event").beside("upserts", &upserts).target(Target::RatioAtLeast(8.0)));

    let (before, port) = url.strip_suffix(&format!("/{database}")).and_then(|url| url.rsplit_once(':')).unwrap();
    let far = format!("{before}:{}/{database}", proxy(port.parse().unwrap(), DELAY));
    let (place, many, few) = ((&*far, events), lab.real_or_quick(100_000, 1_000), lab.real_or_quick(2_000, 100));
    let [fold, upserts] = in_turn(
        rounds,
        lab,
        [&|lab: &mut Lab| run(lab, place, many.min(events), FOLD), &|lab: &mut Lab| {
            run(lab, place, few.min(events), UPSERTS)
        }],
    );
    let line = Line::new("fold, 0.5 ms more per round trip, and one upsert per event", EventsPerSecond, &fold);
    lab.report.line(&line.beside("upserts", &upserts).target(Target::RatioAtLeast(20.0)));
    lab.server.drop_database(&database);
}

/// Appends events to the aggregates in a random order.
fn fill(url: &str, events: i64) {
    let mut client = connect(url);
    let columns = [
        ("bounded_context", "'shop'"),
        ("aggregate_type", "'Customer'"),
        ("aggregate_id", "'customer-' || key"),
        ("aggregate_version", "row_number() OVER (PARTITION BY key ORDER BY i)"),
        ("event_type", "'OrderPlaced'"),
        (
            "payload",
            r#"convert_to(format('{"cents": %s, "note": "%s"}', i % 1000, rpad('', 40, md5(i::text))), 'UTF8')"#,
        ),
    ];
    let rows =
        "(SELECT i, abs(hashint8(i)::bigint) % $2::bigint AS key FROM generate_series(0, $1::bigint - 1) AS i) AS g";
    client.execute(&format!("{} ORDER BY i", insert(rows, &columns)), &[&events, &KEYS]).unwrap();
    client.batch_execute("VACUUM ANALYZE events").unwrap();
    client.batch_execute(TABLE).unwrap();
}
