//! The library within a process that runs an asynchronous runtime.

use std::time::Duration;

use pupsourcing_orchestrator::Error;

use crate::support::cluster::state_of;
use crate::support::database;
use crate::support::ledger::Ledger;
use crate::support::workers::{await_running, builder};

#[test]
fn a_worker_starts_and_ends_on_a_runtimes_thread() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let new = |set: &str| builder(database.url(), set).projection(Ledger::named("p")).build().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let workers = runtime.block_on(async {
        let first = new("set");
        first.migrate().unwrap();
        let (first, second) = (first.start().unwrap(), new("set").start().unwrap());
        await_running(&[&first, &second]);
        assert!(matches!(new("another").start(), Err(Error::ProjectionClaimed { .. })));
        let workers = [first.worker_id(), second.worker_id()];
        first.shutdown(Duration::from_secs(10)).unwrap();
        drop(second);
        workers
    });
    for worker in workers {
        assert_eq!(state_of(&mut client, worker), ("stopped".into(), Some("left".into())));
    }
}
