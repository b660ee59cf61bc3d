//! Workers that are asked to leave while the database hangs: they go within a bound.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use postgres::{Client, NoTls, Transaction};
use pupsourcing_orchestrator::{BoxError, Error, Event, Projection};

use crate::probes::{assert_alive, await_unready};
use crate::support::cluster::state_of;
use crate::support::frozen::Frozen;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, database, eventually};

/// With `leave_timeout` at one second: that second, three more for what is cancelled, and the time
/// of a loaded machine. Without a bound a worker waits for as long as the database hangs.
const BOUND: Duration = Duration::from_secs(9);

/// Starts a worker's process that handles the events there are.
fn process(url: &str) -> WorkerProcess {
    let mut worker = WorkerProcess::start(
        url,
        &[("LEAVE_TIMEOUT", "1s"), ("HEARTBEAT_INTERVAL", "300ms"), ("STALE_WORKER_TIMEOUT", "20s")],
    );
    worker.await_processing(1);
    worker
}

#[track_caller]
fn assert_goes(worker: &mut WorkerProcess) {
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    worker.await_end();
    assert!(asked.elapsed() < BOUND, "gone after {:?}", asked.elapsed());
}

#[test]
fn worker_leaves_while_a_table_is_locked() {
    for table in ["events", "orchestrator_workers", "orchestrator_checkpoints", "orchestrator_replica_sets"] {
        let database = database();
        let mut worker = process(database.url());
        let mut locker = database.client();
        locker.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).unwrap();
        // So that a statement of each thread waits for the lock.
        _ = crossbeam_channel::never::<()>().recv_timeout(Duration::from_millis(700));
        println!("{table} is locked");
        assert_goes(&mut worker);
    }
}

#[test]
fn worker_leaves_while_the_server_is_frozen() {
    let server = Postgres::start().unwrap();
    let mut worker = process(&server.create_database("frozen").unwrap());
    let address = worker.await_ready();
    let frozen = Frozen::freeze(&server);
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    await_unready(&address, "the worker is stopping");
    assert_alive(&address);
    worker.await_end();
    assert!(asked.elapsed() < BOUND, "gone after {:?}", asked.elapsed());
    let log = worker.log().join("\n");
    assert!(log.contains("cancelling statements") && log.contains("threads left behind"), "{log}");
    drop(frozen);
}

#[test]
fn worker_leaves_while_commits_wait_for_a_standby() {
    let server = Postgres::options().setting("synchronous_commit", "on").start().unwrap();
    let url = server.create_database("unreplicated").unwrap();
    let mut worker = process(&url);
    let mut admin = Client::connect(&url, NoTls).unwrap();
    admin.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'missing'").unwrap();
    admin.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("the heartbeats wait for a standby", Duration::from_secs(10), || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        (admin.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0).then_some(())
    });
    assert_goes(&mut worker);
}

/// A ledger that says when it has begun, and then waits for a lock that another session holds.
struct Waiting {
    ledger: Ledger,
    begun: Sender<()>,
}

impl Projection for Waiting {
    fn name(&self) -> &str {
        self.ledger.name
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        _ = self.begun.try_send(());
        tx.batch_execute("LOCK TABLE wanted")?;
        self.ledger.handle(tx, event)
    }
}

#[test]
fn handler_that_waits_for_a_lock_is_cancelled() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    client.batch_execute("CREATE TABLE wanted ()").unwrap();
    let mut locker = database.client();
    locker.batch_execute("BEGIN; LOCK TABLE wanted").unwrap();
    let (begun, has_begun): (Sender<()>, Receiver<()>) = bounded(1);
    let bounded_builder = builder(database.url(), "set").leave_timeout(Duration::from_millis(300));
    let handle = start(bounded_builder, vec![Box::new(Waiting { ledger: Ledger::named("p"), begun })]);
    append_plainly(&mut client, 20, 4);
    has_begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let (worker, asked) = (handle.worker_id(), Instant::now());
    handle.request_shutdown();
    handle.join().unwrap();
    assert!(asked.elapsed() < BOUND, "{:?}", asked.elapsed());
    assert_eq!(state_of(&mut client, worker), ("stopped".into(), Some("left".into())), "it left in order");
    assert_eq!(handled(&mut client, "p"), 0);

    drop(locker);
    let next = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p"))]);
    eventually("the next worker handles everything", Duration::from_secs(10), || {
        is_complete(&mut client, "p").then_some(())
    });
    assert_exactly_once(&mut client, "p");
    next.shutdown(Duration::from_secs(10)).unwrap();
}

#[test]
fn shutdown_names_the_threads_that_are_left_behind() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("frozen").unwrap();
    Ledger::create_table(&mut Client::connect(&url, NoTls).unwrap());
    let builder = builder(&url, "set").leave_timeout(Duration::from_millis(300));
    let handle = start(builder, vec![Box::new(Ledger::named("p"))]);
    await_running(&[&handle]);
    let frozen = Frozen::freeze(&server);
    let asked = Instant::now();
    let error = handle.shutdown(Duration::from_secs(60)).unwrap_err();
    assert!(asked.elapsed() < BOUND, "{:?}", asked.elapsed());
    assert!(matches!(&error, Error::ShutdownTimeout { threads, .. } if threads.contains("pup-coord")), "{error}");
    drop(frozen);
}
