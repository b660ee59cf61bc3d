//! The production worker: reads its settings from the environment, runs two projections, serves
//! metrics, leaves gracefully on SIGTERM.
//!
//! | variable | default | |
//! |---|---|---|
//! | `DATABASE_URL` | required | `postgres://user:password@host:5432/database?sslmode=require` |
//! | `REPLICA_SET` | `main-projections` | the workers that share the work |
//! | `METRICS_ADDR` | `0.0.0.0:9090` | port 0 takes any free one; the bound address is logged |
//! | `STATUS_PAGE` | `on` | `off`: the status page and `/status` are not served beside the metrics |
//! | `STATUS_HOSTS` | none | host names under which both are served, besides `localhost` and IP addresses: `ops.example,status.example` |
//! | `RUST_LOG` | `info` | |
//!
//! The options of the library, which `Builder` documents:
//!
//! | variable | default | value |
//! |---|---|---|
//! | `ORCHESTRATOR_HEARTBEAT_INTERVAL` | 5 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_STALE_WORKER_TIMEOUT` | 30 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_SESSION_LOSS_GRACE` | 1 s | a duration such as 500ms, 10s or 2m, or off |
//! | `ORCHESTRATOR_COORDINATION_TIMEOUT` | 60 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_POLL_INTERVAL` | 1 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_REGISTRATION_WAIT` | 1 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_DATABASE_WAIT` | 1 min | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_LEAVE_TIMEOUT` | 20 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_READY_WHILE_HALTED` | off | on or off |
//! | `ORCHESTRATOR_EVENT_POLL` | 5 ms and 250 ms | two durations such as 5ms..250ms |
//! | `ORCHESTRATOR_BATCH_SIZE` | 2000 | a whole number such as 1000 |
//! | `ORCHESTRATOR_BATCH_TIME` | 250 ms | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_BATCH_BYTES` | 8 MiB | a number of bytes such as 8388608, 64KiB or 8MiB |
//! | `ORCHESTRATOR_MAX_EVENT_BYTES` | 64 MiB | a number of bytes such as 8388608, 64KiB or 8MiB |
//! | `ORCHESTRATOR_LANES` | 1 | a whole number such as 1000 |
//! | `ORCHESTRATOR_POOL_SIZE` | two for each lane of each projection | a whole number such as 1000 |
//! | `ORCHESTRATOR_RETRY_ATTEMPTS` | 8 | a whole number such as 1000 |
//! | `ORCHESTRATOR_RETRY_FIRST_DELAY` | 100 ms | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_RETRY_LONGEST_DELAY` | 30 s | a duration such as 500ms, 10s or 2m |
//! | `ORCHESTRATOR_RETRY_HALTED_INTERVAL` | 1 min | a duration such as 500ms, 10s or 2m, or off |
//!
//! With the argument `migrate` it only creates the tables, or brings them up to date, and exits: as
//! a user who may, for workers whose user may not.
//!
//! Exit codes: 0 after a graceful stop, 1 when the worker failed, 2 when a setting is missing or
//! wrong. A second SIGTERM or SIGINT ends the process at once: what it has not committed is done by
//! others.

use std::process::ExitCode;
use std::thread;

use crossbeam_channel::{Receiver, bounded, select};
use pupsourcing_orchestrator::{BoxError, Database, Metrics, MetricsServer, Orchestrator};

#[path = "support/app.rs"]
mod app;
#[path = "support/read_models.rs"]
mod read_models;
#[path = "support/settings.rs"]
mod settings;

use read_models::{AggregateActivity, EventTypeCounts};

fn main() -> ExitCode {
    app::main(run)
}

fn run() -> Result<(), BoxError> {
    let migrate_only = migrate_only()?;
    let database = Database::from_url(&app::database_url()?)?;
    let replica_set = app::setting("REPLICA_SET")?.unwrap_or_else(|| "main-projections".into());
    let address = app::setting("METRICS_ADDR")?.unwrap_or_else(|| "0.0.0.0:9090".into());
    let metrics = Metrics::new()?;
    let builder = Orchestrator::builder(database.clone(), replica_set)
        .batch_projection(EventTypeCounts)
        .projection(AggregateActivity)
        .metrics(metrics.clone());
    let orchestrator = builder.options_from_env("ORCHESTRATOR_")?.build()?;
    let shutdown = app::shutdown_signal()?;
    if migrate_only {
        let migrated = unless_stopped(&shutdown, move || migrate(&database, &orchestrator))?;
        return migrated.ok_or_else(|| "stopped before the tables were up to date".into());
    }
    let status_page = settings::switch("STATUS_PAGE")?.unwrap_or(true);
    let hosts = app::setting("STATUS_HOSTS")?.unwrap_or_default();
    let _server = MetricsServer::builder(metrics)
        .status_page(status_page)
        .allow_hosts(hosts.split(','))
        .watch(orchestrator.health())
        .bind(&address)?;

    let start = move || {
        migrate(&database, &orchestrator)?;
        Ok(orchestrator.start()?)
    };
    let Some(handle) = unless_stopped(&shutdown, start)? else { return Ok(()) };
    // The server answers until the worker has left.
    Ok(handle.run_until(&shutdown)?)
}

/// Whether the program was called with the argument `migrate`.
fn migrate_only() -> Result<bool, app::Wrong> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    match arguments.as_slice() {
        [] => Ok(false),
        [only] if only == "migrate" => Ok(true),
        _ => {
            let shown: Vec<String> = arguments.iter().map(|argument| app::shown(&argument.to_string_lossy())).collect();
            Err(app::Wrong(format!("the arguments are [{}]: none is needed, or migrate", shown.join(", "))))
        }
    }
}

/// Does what may take long, or returns none as soon as the process is to stop: a pod need not wait
/// for a slow server or for another pod's migration.
fn unless_stopped<T: Send + 'static>(
    shutdown: &Receiver<()>,
    work: impl FnOnce() -> Result<T, BoxError> + Send + 'static,
) -> Result<Option<T>, BoxError> {
    let (sender, done) = bounded(1);
    thread::Builder::new().name("start".into()).spawn(move || sender.send(work()))?;
    select! {
        recv(done) -> done => Ok(Some(done??)),
        recv(shutdown) -> _ => Ok(None),
    }
}

/// Creates what is not there yet.
fn migrate(database: &Database, orchestrator: &Orchestrator) -> Result<(), BoxError> {
    orchestrator.migrate()?;
    read_models::create(database)
}
