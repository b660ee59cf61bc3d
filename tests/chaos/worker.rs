//! The worker that the chaos is about: the example `worker` with handlers that go wrong.
//!
//! | variable | what its handlers do |
//! |---|---|
//! | `ORCHESTRATOR_PANIC_PROBABILITY` | panic so often, of all calls |
//! | `ORCHESTRATOR_ABORT_PROBABILITY` | abort the process so often, of all calls with an event that is dangerous |
//! | `ORCHESTRATOR_ABORT_ON` | `event_type_counts` aborts the process at each event of this type |
//! | `ORCHESTRATOR_BUSY_WHILE` | wait for as long as this file exists |

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Database, Event, Metrics, MetricsServer, Orchestrator, Projection, Scope, StartAt, Tx,
};

#[path = "../../examples/support/app.rs"]
mod app;
#[path = "../../examples/support/read_models.rs"]
mod read_models;
#[path = "../../examples/support/settings.rs"]
mod settings;

use read_models::{AggregateActivity, EventTypeCounts};

/// One in so many events is dangerous, whichever worker handles it.
const DANGEROUS: u128 = 4_000;

/// Does what the projection does, and panics or aborts the process with these probabilities.
struct Panicking<P> {
    projection: P,
    panics: f64,
    aborts: f64,
    /// The type of the events that end the process.
    aborts_on: Option<String>,
    /// The file in whose presence the handler waits.
    busy_while: Option<PathBuf>,
}

impl<P> Panicking<P> {
    /// When the handler has done its work, so that there is something to undo.
    fn panic_perhaps(&self) {
        assert!(fastrand::f64() >= self.panics, "it panics now and then");
    }

    fn wait_perhaps(&self) {
        let Some(file) = &self.busy_while else { return };
        let tick = crossbeam_channel::tick(Duration::from_millis(10));
        while file.exists() {
            _ = tick.recv();
        }
    }

    fn abort_perhaps(&self, events: &[Event]) {
        let is_poison = |event: &Event| self.aborts_on.as_deref() == Some(event.event_type());
        let is_dangerous = |event: &Event| event.event_id().as_u128().is_multiple_of(DANGEROUS);
        if events.iter().any(is_poison) || (events.iter().any(is_dangerous) && fastrand::f64() < self.aborts) {
            std::process::abort();
        }
    }
}

/// The neighbour gives the role a time that is shorter than the locks and pauses of these handlers;
/// the server then cancels statements that would have succeeded, and each counts as an attempt. A
/// handler that takes longer than its role allows has to say so.
fn allow_time(tx: &mut Tx<'_>) -> Result<(), BoxError> {
    Ok(tx.batch_execute("SET LOCAL statement_timeout = 0")?)
}

impl<P: Projection> Projection for Panicking<P> {
    fn name(&self) -> &str {
        self.projection.name()
    }

    fn scope(&self) -> Scope {
        self.projection.scope()
    }

    fn start_at(&self) -> StartAt {
        self.projection.start_at()
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        allow_time(tx)?;
        self.wait_perhaps();
        self.projection.handle(tx, event)?;
        self.abort_perhaps(std::slice::from_ref(event));
        self.panic_perhaps();
        Ok(())
    }
}

impl<P: BatchProjection> BatchProjection for Panicking<P> {
    fn name(&self) -> &str {
        self.projection.name()
    }

    fn scope(&self) -> Scope {
        self.projection.scope()
    }

    fn start_at(&self) -> StartAt {
        self.projection.start_at()
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        allow_time(tx)?;
        self.wait_perhaps();
        let handled = self.projection.handle_batch(tx, events)?;
        self.abort_perhaps(events);
        self.panic_perhaps();
        Ok(handled)
    }
}

fn main() -> ExitCode {
    app::main(run)
}

fn run() -> Result<(), BoxError> {
    let database = Database::from_url(&app::database_url()?)?;
    let panics = settings::number("ORCHESTRATOR_PANIC_PROBABILITY")?.unwrap_or(0.0);
    let aborts = settings::number("ORCHESTRATOR_ABORT_PROBABILITY")?.unwrap_or(0.0);
    let aborts_on = app::setting("ORCHESTRATOR_ABORT_ON")?;
    let busy_while = app::setting("ORCHESTRATOR_BUSY_WHILE")?.map(PathBuf::from);
    let metrics = Metrics::new()?;
    let builder = Orchestrator::builder(database.clone(), "chaos")
        .options_from_env("ORCHESTRATOR_")?
        .batch_projection(Panicking {
            projection: EventTypeCounts,
            panics,
            aborts,
            aborts_on,
            busy_while: busy_while.clone(),
        })
        .projection(Panicking { projection: AggregateActivity, panics, aborts, aborts_on: None, busy_while })
        .metrics(metrics.clone());
    let orchestrator = builder.build()?;
    let shutdown = app::shutdown_signal()?;
    let address = app::setting("METRICS_ADDR")?.unwrap_or_else(|| "127.0.0.1:0".into());
    let server = MetricsServer::builder(metrics).bind(&address)?;
    server.watch(orchestrator.health());
    orchestrator.migrate()?;
    read_models::create(&database)?;
    Ok(orchestrator.run(&shutdown)?)
}
