//! The production worker: reads its settings from the environment, runs two projections, serves metrics, leaves gracefully on SIGTERM.
//!
//! | variable | default | |
//! |---|---|---|
//! | `DATABASE_URL` | required | `postgres://user:password@host:5432/database?sslmode=require` |
//! | `REPLICA_SET` | `main-projections` | the workers that share the work |
//! | `METRICS_ADDR` | `0.0.0.0:9090` | port 0 takes any free one; the bound address is logged |
//! | `RUST_LOG` | `info` | |
//! | `ORCHESTRATOR_<OPTION>` | see the README | e.g. `ORCHESTRATOR_STALE_WORKER_TIMEOUT=10s`, `ORCHESTRATOR_BATCH_SIZE=500` |
//!
//! Exit codes: 0 after a graceful stop, 1 when the worker failed, 2 when a setting is missing or wrong.

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use postgres::Transaction;
use pupsourcing_orchestrator::{
    BoxError, Builder, Database, Error, Event, Metrics, MetricsServer, Orchestrator, Projection,
};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

#[path = "support/settings.rs"]
mod settings;

/// Counts events by type.
struct EventTypeCounts;

impl Projection for EventTypeCounts {
    fn name(&self) -> &str {
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
    fn name(&self) -> &str {
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

const READ_MODELS: &str = "
    SELECT pg_advisory_xact_lock(hashtextextended('projection-worker read models', 0));
    CREATE TABLE IF NOT EXISTS event_type_counts (event_type text PRIMARY KEY, events bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS aggregate_activity (
        bounded_context text, aggregate_type text, aggregate_id text, events bigint NOT NULL, last_version bigint NOT NULL,
        out_of_order bigint NOT NULL DEFAULT 0, PRIMARY KEY (bounded_context, aggregate_type, aggregate_id));";

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            let wrong_settings = matches!(
                error.downcast_ref::<Error>(),
                Some(Error::InvalidConfig { .. } | Error::InvalidUrl { .. } | Error::Http { .. })
            ) || error.is::<settings::Wrong>();
            ExitCode::from(if wrong_settings { 2 } else { 1 })
        }
    }
}

fn run() -> Result<(), BoxError> {
    let url = settings::required(
        "DATABASE_URL",
        "where the events are, e.g. postgres://user:password@host:5432/database?sslmode=require",
    )?;
    let database = Database::from_url(&url)?;
    let replica_set = settings::or("REPLICA_SET", "main-projections")?;
    let address = settings::or("METRICS_ADDR", "0.0.0.0:9090")?;
    let metrics = Metrics::new()?;
    let builder = Orchestrator::builder(database.clone(), replica_set)
        .projection(EventTypeCounts)
        .projection(AggregateActivity)
        .metrics(metrics.clone());
    let orchestrator = with_options(builder)?.build()?;

    // Before anything that takes long: a pod that is told to stop while it starts shall stop.
    let shutdown = shutdown_signal()?;
    let server = MetricsServer::bind(&address, metrics)?;
    log::info!("metrics: address=http://{}", server.address());

    orchestrator.migrate()?;
    database.connect()?.batch_execute(&format!("BEGIN; {READ_MODELS} COMMIT"))?;
    let handle = orchestrator.start()?;
    server.watch(handle.health());

    let outcome = handle.run_until(&shutdown);
    server.shutdown();
    Ok(outcome?)
}

/// Applies the options that are set in the environment.
fn with_options(mut builder: Builder) -> Result<Builder, BoxError> {
    type Duration1 = fn(Builder, Duration) -> Builder;
    let durations: [(&str, Duration1); 6] = [
        ("HEARTBEAT_INTERVAL", Builder::heartbeat_interval),
        ("STALE_WORKER_TIMEOUT", Builder::stale_worker_timeout),
        ("COORDINATION_TIMEOUT", Builder::coordination_timeout),
        ("POLL_INTERVAL", Builder::poll_interval),
        ("REGISTRATION_WAIT", Builder::registration_wait),
        ("SESSION_LOSS_GRACE", Builder::session_loss_grace),
    ];
    for (option, set) in durations {
        builder = match settings::duration(&format!("ORCHESTRATOR_{option}"))? {
            // Heartbeats only, for a pooler in transaction mode.
            Some(None) if option == "SESSION_LOSS_GRACE" => builder.heartbeats_only(),
            Some(None) => return Err(settings::Wrong(format!("ORCHESTRATOR_{option} cannot be off")).into()),
            Some(Some(value)) => set(builder, value),
            None => builder,
        };
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
    if let Some(connections) = settings::number("ORCHESTRATOR_POOL_SIZE")? {
        builder = builder.pool_size(connections);
    }
    Ok(builder)
}

/// Becomes ready with the first SIGTERM or SIGINT; a second one ends the process at once.
fn shutdown_signal() -> Result<Receiver<()>, BoxError> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let (sender, receiver) = bounded(1);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for (count, signal) in signals.forever().enumerate() {
            if count > 0 {
                log::warn!("second signal, exiting at once: signal={signal}");
                std::process::exit(128 + signal);
            }
            log::info!("stopping: signal={signal}");
            _ = sender.send(());
        }
    })?;
    Ok(receiver)
}
