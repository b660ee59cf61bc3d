//! The library within a process that runs an asynchronous runtime.

use std::time::Duration;

use pupsourcing_orchestrator::{
    AppendError, Database, Error, EventStore, ExpectedVersion, Names, NewEvent, StreamId, WaitError,
};

use crate::support::alone::alone;
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

/// Everything that an application does with a connection of its own, on the calling thread.
fn use_a_connection(url: &str, aggregate: &str) {
    let mut connection = Database::from_url(url).unwrap().connect().unwrap();
    let store = EventStore::default();
    let (stream, event) = (StreamId::new("test", "Thing", aggregate), NewEvent::new("Happened", []));
    let appended =
        store.append(&mut connection, &stream, ExpectedVersion::NoStream, std::slice::from_ref(&event)).unwrap();
    store.hint(&mut connection);
    let read = store.read_stream(&mut connection, &stream, ..).unwrap();
    assert_eq!(read.len(), 1);
    let taken = store.append(&mut connection, &stream, ExpectedVersion::NoStream, &[event]);
    assert!(matches!(taken, Err(AppendError::Conflict { .. })), "{taken:?}");
    let waited = store.wait_for(&mut connection, &["p"], &appended, Duration::ZERO);
    assert!(matches!(waited, Err(WaitError::Unknown { .. })), "{waited:?}");
}

#[test]
fn connections_are_used_and_dropped_on_a_runtimes_threads() {
    // A panic in a destructor may abort the process.
    alone(|url| {
        Database::from_url(url).unwrap().connect().unwrap().batch_execute(&Names::default().schema_sql()).unwrap();
        let unlimited = format!("{url}{}connect_timeout=0", if url.contains('?') { '&' } else { '?' });
        let current = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let several = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        for (name, runtime) in [("current", current), ("several", several)] {
            let id = |part: &str| format!("{name} {part}");
            let (outside, spawned, blocking) = (id("outside"), id("spawned"), id("blocking"));
            let urls = [url, &unlimited].map(ToOwned::to_owned);
            runtime.block_on(async {
                use_a_connection(url, &id("main"));
                let [url, unlimited] = urls.clone();
                tokio::spawn(async move { use_a_connection(&unlimited, &spawned) }).await.unwrap();
                let on_a_blocking_thread = move || {
                    use_a_connection(&url, &blocking);
                    let mut connection = Database::from_url(&url).unwrap().connect().unwrap();
                    connection.query("SELECT 1", &[]).unwrap();
                };
                tokio::task::spawn_blocking(on_a_blocking_thread).await.unwrap();
            });
            let _entered = runtime.enter();
            use_a_connection(url, &outside);
        }
    });
}
