//! How fast one worker catches up with events that are there already, and how fast a plain client is on the same ones.
//!
//! ```text
//! cargo bench                          all of it, in a few minutes
//! cargo bench -- --test                once each, with few events: does it work?
//! BENCH_EVENTS=1000000 cargo bench     with more events (200000 is the default)
//! ```
//!
//! A private PostgreSQL is filled with events of 200 bytes of payload, spread over 2,000 aggregates. What is measured:
//!
//! - `worker/…`: a new projection in a new replica set of one worker with the default options, from the moment the worker shows its
//!   partition to the moment it shows the newest event's position as its own, which is after that checkpoint's commit. Registration
//!   and leaving are not in it.
//! - `loop/…`: what one would write by hand with no orchestrator: one connection, one thread, a loop that reads 1,000 events, handles
//!   them and moves a checkpoint, in one transaction. No safe head, no partitions, no fence, no reading ahead.
//! - `bare/…`: the same rows read and nothing done: `select` is the worker's own query in batches of 1,000, decoded into events;
//!   `copy` is `COPY … (FORMAT binary)` of the same columns into memory, about as fast as the server gives events away.
//!
//! The handlers: `no-op` does nothing, event by event; `no-op batches` takes whole batches; `count` upserts a row of a read model for
//! every event; `count batches` upserts a batch with one statement over `unnest`. `count` runs over a tenth of the events.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

#[path = "../examples/support/private_postgres.rs"]
mod private_postgres;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};
use postgres::types::Json;
use postgres::{Client, NoTls, Row, Statement, Transaction};
use private_postgres::{Options, PrivatePostgres};
use pupsourcing_orchestrator::{
    BoxError, Database, Event, EventParts, Orchestrator, Projection, ProjectionState, StartAt,
};
use serde_json::value::RawValue;

/// The default size of a worker's batch, and that of the loops.
const BATCH: i64 = 1_000;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(10))
        .configure_from_args();
    let quick = std::env::args().any(|argument| argument == "--test");
    let mut bench = Bench::new(match std::env::var("BENCH_EVENTS") {
        Ok(events) => events.parse().expect("BENCH_EVENTS is a number"),
        Err(_) if quick => 5_000,
        Err(_) => 200_000,
    });
    bench.run(&mut criterion);
    criterion.final_summary();
    bench.report();
}

/// What is done with events.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Handler {
    NoOp,
    NoOpBatches,
    Count,
    CountBatches,
}

impl Handler {
    const ALL: [Self; 4] = [Self::NoOp, Self::NoOpBatches, Self::Count, Self::CountBatches];

    fn name(self) -> &'static str {
        match self {
            Self::NoOp => "no-op",
            Self::NoOpBatches => "no-op batches",
            Self::Count => "count",
            Self::CountBatches => "count batches",
        }
    }

    fn handle(self, tx: &mut Transaction<'_>, events: &[Event]) -> Result<usize, BoxError> {
        match self {
            Self::NoOp => Ok(1),
            Self::NoOpBatches => Ok(events.len()),
            Self::Count => {
                // As the worker example does it: the statement's text is parsed by the server for each event.
                tx.execute(
                    "INSERT INTO counts AS c (aggregate_id, events) VALUES ($1, 1)
                     ON CONFLICT (aggregate_id) DO UPDATE SET events = c.events + 1",
                    &[&events[0].aggregate_id()],
                )?;
                Ok(1)
            }
            Self::CountBatches => {
                let ids: Vec<&str> = events.iter().map(Event::aggregate_id).collect();
                tx.execute(
                    "INSERT INTO counts AS c (aggregate_id, events)
                     SELECT id, count(*) FROM unnest($1::text[]) AS id GROUP BY id ORDER BY id
                     ON CONFLICT (aggregate_id) DO UPDATE SET events = c.events + excluded.events",
                    &[&ids],
                )?;
                Ok(events.len())
            }
        }
    }
}

/// A handler as a projection, new for each measurement.
struct Measured {
    name: String,
    start_at: i64,
    handler: Handler,
}

impl Projection for Measured {
    fn name(&self) -> &str {
        &self.name
    }

    fn start_at(&self) -> StartAt {
        StartAt::Position(self.start_at)
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        self.handler.handle(tx, std::slice::from_ref(event)).map(|_| ())
    }

    fn handle_batch(&self, tx: &mut Transaction<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.handler.handle(tx, events)
    }
}

struct Bench {
    server: PrivatePostgres,
    client: Client,
    events: i64,
    runs: u64,
    /// Events per second of every measured pass, by what was measured.
    rates: BTreeMap<String, Vec<f64>>,
}

impl Bench {
    fn new(events: i64) -> Self {
        let server = PrivatePostgres::start(Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let client = Client::connect(&server.url("postgres"), NoTls).unwrap();
        let mut bench = Self { server, client, events, runs: 0, rates: BTreeMap::new() };
        bench.orchestrator(Handler::NoOp, 0).migrate().unwrap();
        let begun = Instant::now();
        bench
            .client
            .execute(
                "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
                 SELECT 'shop', 'Order', 'order-' || i % 2000, 1 + i / 2000, gen_random_uuid(), 'OrderPlaced',
                        convert_to(rpad('{\"order\": ' || i || ', \"note\": \"', 198, md5(i::text)) || '\"}', 'UTF8')
                 FROM generate_series(0, $1::bigint - 1) AS i ORDER BY i",
                &[&events],
            )
            .unwrap();
        bench
            .client
            .batch_execute(
                "CREATE TABLE counts (aggregate_id text PRIMARY KEY, events bigint NOT NULL);
                 CREATE TABLE loop_checkpoint (position bigint NOT NULL); INSERT INTO loop_checkpoint VALUES (0)",
            )
            .unwrap();
        bench.client.batch_execute("VACUUM ANALYZE events").unwrap();
        println!("{events} events appended in {:.1?}", begun.elapsed());
        bench
    }

    fn run(&mut self, criterion: &mut Criterion) {
        for handler in Handler::ALL {
            let (name, start) = (handler.name(), self.start(handler));
            // One right after the other, so that both have the same neighbours on a busy machine.
            self.measure(criterion, "worker", name, start, |bench, after| bench.worker(handler, after));
            self.measure(criterion, "loop", name, start, |bench, after| bench.plain_loop(handler, after));
        }
        self.measure(criterion, "bare", "select", 0, |bench, _| bench.select());
        self.measure(criterion, "bare", "copy", 0, |bench, _| bench.copy());
    }

    /// Passes over the events above `after`, as often as criterion likes.
    fn measure(
        &mut self,
        criterion: &mut Criterion,
        group: &str,
        name: &str,
        after: i64,
        pass: impl Fn(&mut Self, i64) -> Duration,
    ) {
        let events = self.events - after;
        let mut criterion_group = criterion.benchmark_group(group);
        criterion_group
            .sampling_mode(SamplingMode::Flat)
            .throughput(Throughput::Elements(u64::try_from(events).expect("not negative")));
        criterion_group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter_custom(|passes| {
                let mut total = Duration::ZERO;
                for _ in 0..passes {
                    self.client.batch_execute("TRUNCATE counts").unwrap();
                    let took = pass(self, after);
                    #[expect(clippy::cast_precision_loss, reason = "a rate needs no more")]
                    self.rates.entry(format!("{group}/{name}")).or_default().push(events as f64 / took.as_secs_f64());
                    total += took;
                }
                total
            });
        });
        criterion_group.finish();
    }

    /// Where a pass begins: the slow handler gets a tenth of the events.
    fn start(&self, handler: Handler) -> i64 {
        if handler == Handler::Count { self.events - self.events / 10 } else { 0 }
    }

    fn orchestrator(&mut self, handler: Handler, start_at: i64) -> Orchestrator {
        self.runs += 1;
        let name = format!("run-{}", self.runs);
        Orchestrator::builder(Database::from_url(&self.server.url("postgres")).unwrap(), name.clone())
            .projection(Measured { name, start_at, handler })
            .build()
            .unwrap()
    }

    fn worker(&mut self, handler: Handler, start_at: i64) -> Duration {
        let handle = self.orchestrator(handler, start_at).start().unwrap();
        let tick = crossbeam_channel::tick(Duration::from_millis(5));
        while handle.assignment().is_none() {
            tick.recv().unwrap();
        }
        let begun = Instant::now();
        loop {
            let status = handle.status();
            let projection = status.projections.values().next().unwrap();
            if projection.position == Some(self.events) {
                break;
            }
            assert!(projection.state != ProjectionState::Halted, "halted: {:?}", projection.error);
            tick.recv().unwrap();
        }
        let took = begun.elapsed();
        let events = handle.status().projections.values().next().unwrap().events;
        assert_eq!(i64::try_from(events), Ok(self.events - start_at), "every event is handled, once");
        handle.shutdown(Duration::from_secs(10)).unwrap();
        took
    }

    fn plain_loop(&mut self, handler: Handler, start_at: i64) -> Duration {
        let begun = Instant::now();
        let mut client = Client::connect(&self.server.url("postgres"), NoTls).unwrap();
        let read = client.prepare(READ).unwrap();
        let advance = client.prepare("UPDATE loop_checkpoint SET position = $1").unwrap();
        let mut position = start_at;
        while position < self.events {
            let mut tx = client.transaction().unwrap();
            let events: Vec<Event> =
                tx.query(&read, &[&position, &self.events, &BATCH]).unwrap().iter().map(event_of).collect();
            let mut rest = events.as_slice();
            while !rest.is_empty() {
                rest = &rest[handler.handle(&mut tx, rest).unwrap()..];
            }
            position = events.last().expect("positions without holes").global_position();
            tx.execute(&advance, &[&position]).unwrap();
            tx.commit().unwrap();
        }
        begun.elapsed()
    }

    fn select(&mut self) -> Duration {
        let begun = Instant::now();
        let read: Statement = self.client.prepare(READ).unwrap();
        let mut position = 0;
        while position < self.events {
            let events: Vec<Event> =
                self.client.query(&read, &[&position, &self.events, &BATCH]).unwrap().iter().map(event_of).collect();
            position = events.last().expect("positions without holes").global_position();
        }
        begun.elapsed()
    }

    fn copy(&mut self) -> Duration {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        self.client.copy_out(COPY).unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes.len() > 200 * usize::try_from(self.events).expect("not negative"), "every payload is there");
        begun.elapsed()
    }

    /// The medians, and what the worker makes of what a plain client reaches.
    fn report(&self) {
        println!("\n{:<24}{:>12}", "median", "events/s");
        for (name, rates) in &self.rates {
            println!("{name:<24}{:>12.0}", median(rates));
        }
        println!();
        for (worker, plain) in [
            ("worker/no-op", "loop/no-op"),
            ("worker/no-op batches", "loop/no-op batches"),
            ("worker/no-op batches", "bare/select"),
            ("worker/no-op batches", "bare/copy"),
            ("worker/count", "loop/count"),
            ("worker/count batches", "loop/count batches"),
        ] {
            // Unless left out by a filter on the command line.
            if let (Some(a), Some(b)) = (self.rates.get(worker), self.rates.get(plain)) {
                println!("ratio {worker} to {plain}: {:.2}", median(a) / median(b));
            }
        }
    }
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The worker's query (`store::events::prepare_read`) for all keys and any scope.
const READ: &str = "
    SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version,
           payload, trace_id, correlation_id, causation_id, metadata, created_at,
           (hashtextextended(aggregate_id, 0) & 65535)::int4 AS key, total
    FROM (SELECT *, sum(octet_length(payload) + coalesce(pg_column_size(metadata), 0))
                    OVER (ORDER BY global_position ROWS UNBOUNDED PRECEDING) AS total
          FROM (SELECT * FROM events WHERE global_position > $1 AND global_position <= $2
                AND coalesce('{[0,65536)}'::int4multirange @> (hashtextextended(aggregate_id, 0) & 65535)::int4, false)
                ORDER BY global_position LIMIT $3) AS matching) AS weighed
    WHERE total - (octet_length(payload) + coalesce(pg_column_size(metadata), 0)) < 8388608 ORDER BY global_position";

const COPY: &str = "
    COPY (SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version,
                 payload, trace_id, correlation_id, causation_id, metadata, created_at,
                 (hashtextextended(aggregate_id, 0) & 65535)::int4 AS key
          FROM events ORDER BY global_position) TO STDOUT (FORMAT binary)";

fn event_of(row: &Row) -> Event {
    Event::from(EventParts {
        global_position: row.get(0),
        bounded_context: row.get(1),
        aggregate_type: row.get(2),
        aggregate_id: row.get(3),
        aggregate_version: row.get(4),
        event_id: row.get(5),
        event_type: row.get(6),
        event_version: row.get(7),
        payload: row.get(8),
        trace_id: row.get(9),
        correlation_id: row.get(10),
        causation_id: row.get(11),
        metadata: row.get::<_, Option<Json<Box<RawValue>>>>(12).map(|json| json.0),
        created_at: row.get(13),
    })
}
