//! The smallest program: one projection, run until Ctrl-C. Start it as often as you like: the workers share the work.
//!
//! `DATABASE_URL` says where the events are.

use std::process::ExitCode;

use postgres::Transaction;
use pupsourcing_orchestrator::{BoxError, Database, Event, Orchestrator, Projection};

#[path = "support/app.rs"]
mod app;

/// Counts the events of each aggregate.
struct EventCounts;

impl Projection for EventCounts {
    fn name(&self) -> &'static str {
        "event_counts"
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        // Committed together with the checkpoint, so each event is counted exactly once.
        tx.execute(
            "INSERT INTO event_counts AS c VALUES ($1, $2, 1)
             ON CONFLICT (aggregate_type, aggregate_id) DO UPDATE SET events = c.events + 1",
            &[&event.aggregate_type(), &event.aggregate_id()],
        )?;
        Ok(())
    }
}

fn main() -> ExitCode {
    app::main(run)
}

fn run() -> Result<(), BoxError> {
    let database = Database::from_url(&app::database_url()?)?;
    database.connect()?.batch_execute(
        "CREATE TABLE IF NOT EXISTS event_counts (aggregate_type text, aggregate_id text, events bigint NOT NULL,
             PRIMARY KEY (aggregate_type, aggregate_id))",
    )?;
    let orchestrator = Orchestrator::builder(database, "basic").projection(EventCounts).build()?;
    orchestrator.migrate()?;
    orchestrator.run(&app::shutdown_signal()?)?;
    Ok(())
}
