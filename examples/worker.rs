//! The production worker: reads its settings from the environment, runs two projections, serves metrics, leaves gracefully on SIGTERM.
//!
//! | variable | default | |
//! |---|---|---|
//! | `DATABASE_URL` | required | `postgres://user:password@host:5432/database?sslmode=require` |
//! | `REPLICA_SET` | `main-projections` | the workers that share the work |
//! | `METRICS_ADDR` | `0.0.0.0:9090` | port 0 takes any free one; the bound address is logged |
//! | `RUST_LOG` | `info` | |
//! | `ORCHESTRATOR_HEARTBEAT_INTERVAL`, `_STALE_WORKER_TIMEOUT`, `_COORDINATION_TIMEOUT`, `_POLL_INTERVAL`, `_REGISTRATION_WAIT`, `_DATABASE_WAIT` | the library's | a duration: `10s`, `500ms` |
//! | `ORCHESTRATOR_SESSION_LOSS_GRACE` | the library's | a duration, or `off`: heartbeats only, for a pooler in transaction mode |
//! | `ORCHESTRATOR_EVENT_POLL` | the library's | two durations: `5ms..250ms` |
//! | `ORCHESTRATOR_BATCH_SIZE`, `_LANES`, `_POOL_SIZE` | the library's | a number |
//! | `ORCHESTRATOR_BATCH_BYTES` | the library's | bytes: `8388608`, `8MiB` |
//!
//! Exit codes: 0 after a graceful stop, 1 when the worker failed, 2 when a setting is missing or wrong. A second SIGTERM or SIGINT
//! ends the process at once: what it has not committed is done by others.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{bounded, select};
use postgres::Transaction;
use pupsourcing_orchestrator::{
    BoxError, Builder, Database, Error, Event, Handle, Metrics, MetricsServer, Orchestrator, Projection,
};

#[path = "support/app.rs"]
mod app;
#[path = "support/settings.rs"]
mod settings;

/// Counts events by type.
struct EventTypeCounts;

impl Projection for EventTypeCounts {
    fn name(&self) -> &'static str {
        "event_type_counts"
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        self.handle_batch(tx, std::slice::from_ref(event)).map(|_| ())
    }

    fn handle_batch(&self, tx: &mut Transaction<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let types: Vec<&str> = events.iter().map(Event::event_type).collect();
        // Sorted, so that workers which count the same types at once take the row locks in one order.
        tx.execute(
            "INSERT INTO event_type_counts AS c (event_type, events)
             SELECT t, count(*) FROM unnest($1::text[]) AS t GROUP BY t ORDER BY t
             ON CONFLICT (event_type) DO UPDATE SET events = c.events + excluded.events",
            &[&types],
        )?;
        Ok(events.len())
    }
}

/// Follows every aggregate: how many events it has, its version, and whether they came in order.
struct AggregateActivity;

impl Projection for AggregateActivity {
    fn name(&self) -> &'static str {
        "aggregate_activity"
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        tx.execute(
            "INSERT INTO aggregate_activity AS a (bounded_context, aggregate_type, aggregate_id, events, last_version, out_of_order)
             VALUES ($1, $2, $3, 1, $4, CASE WHEN $4::bigint = 1 THEN 0 ELSE 1 END)
             ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE SET
                 events = a.events + 1,
                 last_version = excluded.last_version,
                 out_of_order = a.out_of_order + CASE WHEN excluded.last_version = a.last_version + 1 THEN 0 ELSE 1 END",
            &[&event.bounded_context(), &event.aggregate_type(), &event.aggregate_id(), &event.aggregate_version()],
        )?;
        Ok(())
    }
}

fn main() -> ExitCode {
    app::main(run)
}

fn run() -> Result<(), BoxError> {
    let database = Database::from_url(&app::database_url()?)?;
    let replica_set = app::setting("REPLICA_SET")?.unwrap_or_else(|| "main-projections".into());
    let address = app::setting("METRICS_ADDR")?.unwrap_or_else(|| "0.0.0.0:9090".into());
    let metrics = Metrics::new()?;
    let builder = Orchestrator::builder(database.clone(), replica_set)
        .projection(EventTypeCounts)
        .projection(AggregateActivity)
        .metrics(metrics.clone());
    let orchestrator = with_options(builder)?.build()?;
    let server = MetricsServer::bind(&address, metrics)?;
    server.watch(orchestrator.health());

    let shutdown = app::shutdown_signal()?;
    let (sender, started) = bounded(1);
    thread::Builder::new().name("start".into()).spawn(move || sender.send(start(&database, orchestrator)))?;
    let handle = select! {
        recv(started) -> handle => handle??,
        // A pod that is told to stop while it starts need not wait for a slow server or for another pod's migration.
        recv(shutdown) -> _ => return Ok(()),
    };
    // The server answers until the worker has left.
    Ok(handle.run_until(&shutdown)?)
}

/// Creates what is not there yet, and starts the worker.
fn start(database: &Database, orchestrator: Orchestrator) -> Result<Handle, Error> {
    orchestrator.migrate()?;
    let read_models = |source| Error::Database { doing: "creating the read models", source };
    database.connect()?.batch_execute(READ_MODELS).map_err(read_models)?;
    orchestrator.start()
}

/// Looks the tables up first: `CREATE TABLE IF NOT EXISTS` asks for the privilege to create even where there is nothing to create.
/// The lock is for workers that start at the same time.
const READ_MODELS: &str = "
DO $$ BEGIN
PERFORM pg_advisory_xact_lock(hashtextextended('the worker example''s read models', 0));
IF to_regclass('event_type_counts') IS NULL THEN
    CREATE TABLE event_type_counts (event_type text PRIMARY KEY, events bigint NOT NULL);
END IF;
IF to_regclass('aggregate_activity') IS NULL THEN
    CREATE TABLE aggregate_activity (
        bounded_context text,
        aggregate_type text,
        aggregate_id text,
        events bigint NOT NULL,
        last_version bigint NOT NULL,
        out_of_order bigint NOT NULL DEFAULT 0,
        PRIMARY KEY (bounded_context, aggregate_type, aggregate_id)
    );
END IF;
END $$";

/// Applies the options that are set in the environment.
fn with_options(mut builder: Builder) -> Result<Builder, app::Wrong> {
    type Set = fn(Builder, Duration) -> Builder;
    let durations: [(&str, Set); 6] = [
        ("ORCHESTRATOR_HEARTBEAT_INTERVAL", Builder::heartbeat_interval),
        ("ORCHESTRATOR_STALE_WORKER_TIMEOUT", Builder::stale_worker_timeout),
        ("ORCHESTRATOR_COORDINATION_TIMEOUT", Builder::coordination_timeout),
        ("ORCHESTRATOR_POLL_INTERVAL", Builder::poll_interval),
        ("ORCHESTRATOR_REGISTRATION_WAIT", Builder::registration_wait),
        ("ORCHESTRATOR_DATABASE_WAIT", Builder::database_wait),
    ];
    for (variable, set) in durations {
        if let Some(duration) = settings::duration(variable)? {
            builder = set(builder, duration);
        }
    }
    if app::setting("ORCHESTRATOR_SESSION_LOSS_GRACE")?.as_deref() == Some("off") {
        builder = builder.heartbeats_only();
    } else if let Some(grace) = settings::duration("ORCHESTRATOR_SESSION_LOSS_GRACE")? {
        builder = builder.session_loss_grace(grace);
    }
    if let Some((quickest, slowest)) = settings::duration_range("ORCHESTRATOR_EVENT_POLL")? {
        builder = builder.event_poll(quickest, slowest);
    }
    if let Some(events) = settings::number("ORCHESTRATOR_BATCH_SIZE")? {
        builder = builder.batch_size(events);
    }
    if let Some(bytes) = settings::bytes("ORCHESTRATOR_BATCH_BYTES")? {
        builder = builder.batch_bytes(bytes);
    }
    if let Some(lanes) = settings::number("ORCHESTRATOR_LANES")? {
        builder = builder.lanes(lanes);
    }
    if let Some(connections) = settings::number("ORCHESTRATOR_POOL_SIZE")? {
        builder = builder.pool_size(connections);
    }
    Ok(builder)
}
