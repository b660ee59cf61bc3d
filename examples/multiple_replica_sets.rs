//! Two replica sets in one process, each with workers of its own. A busy projection gets three
//! workers, a light one gets one, and neither pauses when the other is scaled.
//!
//! `DATABASE_URL` names the database that has the events.

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{select, tick};
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Builder, Database, Event, Handle, Orchestrator, Projection, Tx,
};

#[path = "support/app.rs"]
mod app;

/// Writes one row for each event, so several workers are useful.
struct Journal;

impl Projection for Journal {
    fn name(&self) -> &'static str {
        "journal"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        let (id, kind, text) = (event.event_id(), event.event_type(), String::from_utf8_lossy(event.payload()));
        tx.execute("INSERT INTO journal (event_id, event_type, text) VALUES ($1, $2, $3)", &[&id, &kind, &text])?;
        Ok(())
    }
}

/// Counts with one statement for a whole batch, so one worker is enough.
struct Total;

impl BatchProjection for Total {
    fn name(&self) -> &'static str {
        "total"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        tx.execute("UPDATE total SET events = events + $1", &[&i64::try_from(events.len())?])?;
        Ok(events.len())
    }
}

fn main() -> ExitCode {
    app::main(run)
}

fn run() -> Result<(), BoxError> {
    let database = Database::from_url(&app::database_url()?)?;
    database.connect()?.batch_execute(
        "CREATE TABLE IF NOT EXISTS journal (event_id uuid PRIMARY KEY, event_type text NOT NULL, text text NOT NULL);
         CREATE TABLE IF NOT EXISTS total (single boolean PRIMARY KEY DEFAULT true, events bigint NOT NULL);
         INSERT INTO total (events) VALUES (0) ON CONFLICT DO NOTHING",
    )?;
    let shutdown = app::shutdown_signal()?;

    let worker = |replica_set| Orchestrator::builder(database.clone(), replica_set);
    let mut workers = vec![start(worker("counting").batch_projection(Total))?];
    for _ in 0..3 {
        workers.push(start(worker("writing").projection(Journal))?);
    }
    let every_two_seconds = tick(Duration::from_secs(2));
    loop {
        select! {
            recv(every_two_seconds) -> _ => workers.iter().for_each(report),
            recv(shutdown) -> _ => break,
        }
    }
    // All workers are asked to leave before the first is joined, so that they leave at the same
    // time.
    workers.iter().for_each(Handle::request_shutdown);
    workers.into_iter().try_for_each(Handle::join)?;
    Ok(())
}

fn start(builder: Builder) -> Result<Handle, pupsourcing_orchestrator::Error> {
    let orchestrator = builder.build()?;
    orchestrator.migrate()?;
    orchestrator.start()
}

fn report(worker: &Handle) {
    let status = worker.status();
    let partition = status.assignment.map_or_else(
        || "no partition yet".to_owned(),
        |a| format!("partition {} of {} in generation {}", a.partition, a.total_partitions, a.generation),
    );
    for (name, projection) in status.projections {
        let (position, lag) = (projection.position.unwrap_or(0), projection.lag.unwrap_or(0));
        log::info!("{}: {name} {}, {partition}, position {position}, lag {lag}", status.replica_set, projection.state);
    }
}
