//! The worker that the chaos is about: the example `worker` with handlers that panic or abort the process now and then, as often as
//! `ORCHESTRATOR_PANIC_PROBABILITY` and `ORCHESTRATOR_ABORT_PROBABILITY` say. Its `event_type_counts` also aborts at events of the type
//! that `ORCHESTRATOR_ABORT_ON` names.

use std::process::ExitCode;

use postgres::Transaction;
use pupsourcing_orchestrator::{BoxError, Event, Projection, Scope, StartAt, cli};

#[allow(dead_code, reason = "it has a main of its own")]
#[path = "../../examples/worker.rs"]
mod worker;

use worker::{AggregateActivity, EventTypeCounts, TABLES};

/// Does what the projection does, and panics or aborts the process with these probabilities.
struct Panicking<P> {
    projection: P,
    panics: f64,
    aborts: f64,
    /// The type of the events that end the process.
    aborts_on: Option<String>,
}

impl<P: Projection> Panicking<P> {
    /// When the handler has done its work, so that there is something to undo.
    fn panic_perhaps(&self) {
        if fastrand::f64() < self.aborts {
            std::process::abort();
        }
        assert!(fastrand::f64() >= self.panics, "it panics now and then");
    }

    fn abort_perhaps(&self, events: &[Event]) {
        if self.aborts_on.as_deref().is_some_and(|poison| events.iter().any(|event| event.event_type() == poison)) {
            std::process::abort();
        }
    }
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

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        self.projection.handle(tx, event)?;
        self.abort_perhaps(std::slice::from_ref(event));
        self.panic_perhaps();
        Ok(())
    }

    fn handle_batch(&self, tx: &mut Transaction<'_>, events: &[Event]) -> Result<usize, BoxError> {
        // The neighbour gives the role one that is shorter than the locks and pauses of these handlers; the server then cancels statements
        // that would have succeeded, and each counts as an attempt. A handler that takes longer than its role allows has to say so.
        tx.batch_execute("SET LOCAL statement_timeout = 0")?;
        let handled = self.projection.handle_batch(tx, events)?;
        self.abort_perhaps(events);
        self.panic_perhaps();
        Ok(handled)
    }
}

fn main() -> ExitCode {
    let probability = |variable| std::env::var(variable).map_or(Ok(0.0), |text| text.parse::<f64>());
    let (Ok(panics), Ok(aborts)) =
        (probability("ORCHESTRATOR_PANIC_PROBABILITY"), probability("ORCHESTRATOR_ABORT_PROBABILITY"))
    else {
        return ExitCode::from(2);
    };
    let aborts_on = std::env::var("ORCHESTRATOR_ABORT_ON").ok();
    cli::main(|worker| {
        worker
            .replica_set("chaos")
            .projection(Panicking { projection: EventTypeCounts, panics, aborts, aborts_on })
            .projection(Panicking { projection: AggregateActivity, panics, aborts, aborts_on: None })
            .migration_sql(TABLES)
    })
}
