//! Workers in this process, with short timeouts where a test waits for them.

use std::time::Duration;

use pupsourcing_orchestrator::{Builder, Database, Handle, Orchestrator, Projection};

use super::ledger::Ledger;
use super::{TestDatabase, eventually};

/// A builder with timeouts that a test can wait for. The relations between them are those of the
/// defaults.
pub(crate) fn builder(url: &str, replica_set: &str) -> Builder {
    // RUST_LOG shows what the library logs. Only the first call in a process succeeds.
    _ = env_logger::builder().is_test(true).try_init();
    Orchestrator::builder(Database::from_url(url).unwrap(), replica_set)
        .heartbeat_interval(Duration::from_millis(200))
        .stale_worker_timeout(Duration::from_secs(2))
        .session_loss_grace(Duration::from_millis(200))
        .registration_wait(Duration::from_millis(50))
        .poll_interval(Duration::from_millis(100))
}

/// Migrates, and starts a worker with these projections.
pub(crate) fn start(builder: Builder, projections: Vec<Box<dyn Projection>>) -> Handle {
    let builder = projections.into_iter().fold(builder, Builder::projection);
    let orchestrator = builder.build().unwrap();
    orchestrator.migrate().unwrap();
    orchestrator.start().unwrap()
}

/// Starts a worker of the replica set `set` with a ledger of this name, whose table is created.
pub(crate) fn start_ledger(database: &TestDatabase, name: &'static str) -> Handle {
    Ledger::create_table(&mut database.client());
    start(builder(database.url(), "set"), vec![Box::new(Ledger::named(name))])
}

/// Waits until the workers process together in one generation. Returns its number.
#[track_caller]
pub(crate) fn await_running(handles: &[&Handle]) -> i64 {
    eventually("all workers run in one generation", Duration::from_secs(10), || {
        let assignments: Option<Vec<_>> = handles.iter().map(|handle| handle.assignment()).collect();
        let assignments = assignments?;
        let first = assignments.first()?;
        assignments
            .iter()
            .all(|a| a.generation == first.generation && a.total_partitions == handles.len())
            .then_some(first.generation)
    })
}
