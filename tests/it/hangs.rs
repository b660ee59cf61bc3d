//! Workers that are asked to leave while the database hangs: they end within a limited time.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{BoxError, Error, Event, Projection, Tx};

use crate::probes::{assert_alive, await_unready, gauge};
use crate::support::cluster::{
    assert_keys_are_covered, assert_read_models_become_right, await_blocked, backends_of, state_of, worker_of,
};
use crate::support::frozen::Frozen;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, database, eventually};

/// With a `leave_timeout` of one second: that second, three more for the cancelled statements, and
/// a reserve for a loaded machine. Without a limit, a worker would wait for as long as the database
/// hangs.
const BOUND: Duration = Duration::from_secs(9);

/// Starts the process of a worker, and waits until it processes as one of `workers`.
fn process(url: &str, workers: usize) -> WorkerProcess {
    let mut worker = WorkerProcess::start(
        url,
        &[("LEAVE_TIMEOUT", "1s"), ("HEARTBEAT_INTERVAL", "300ms"), ("STALE_WORKER_TIMEOUT", "20s")],
    );
    worker.await_processing(workers);
    worker
}

/// A worker that is asked to leave while the database hangs, and one that stays.
struct Pair {
    client: Client,
    leaves: WorkerProcess,
    stays: WorkerProcess,
}

impl Pair {
    fn start(url: &str) -> Self {
        let mut stays = process(url, 1);
        let leaves = process(url, 2);
        stays.await_processing(2);
        Self { client: Client::connect(url, NoTls).unwrap(), leaves, stays }
    }

    /// Asks the first worker to leave, and checks that it is alive but not ready until it ends.
    /// Returns its exit code.
    #[track_caller]
    fn leave(&mut self) -> Option<i32> {
        let (address, asked) = (self.leaves.await_ready(), Instant::now());
        self.leaves.signal(Signal::TERM);
        await_unready(&address, "the worker is stopping");
        eventually("the gauge says so", BOUND, || (gauge(&address, "ready") == Some(0.0)).then_some(()));
        assert_alive(&address);
        let code = self.leaves.exit_code();
        assert!(asked.elapsed() < BOUND, "gone after {:?}", asked.elapsed());
        code
    }

    /// Checks that the last log lines of the leaving worker say that it did not wait any longer.
    #[track_caller]
    fn assert_left_threads_behind(&mut self) {
        let cancelling = "leaving takes too long, cancelling statements: replica_set=";
        self.leaves.await_logged(&["WARN", cancelling, " waited=1s threads="]);
        let line = self.leaves.await_logged(&["ERROR", "threads left behind: replica_set=", " threads="]);
        assert!(line.contains("pup-coord"), "{line}");
    }

    /// Checks that the other worker processes everything once the database answers again. Returns
    /// the reason for which the leaving worker is stopped.
    #[track_caller]
    fn assert_taken_over(&mut self) -> String {
        self.stays.await_processing(1);
        let worker = worker_of(&mut self.client, self.leaves.pid());
        let (state, reason) = state_of(&mut self.client, worker);
        assert_eq!(state, "stopped");
        append_plainly(&mut self.client, 200, 20);
        assert_read_models_become_right(&mut self.client);
        assert_keys_are_covered(&mut self.client);
        assert_eq!(backends_of(&mut self.client, worker, false), [] as [i32; 0], "its sessions have ended");
        reason.unwrap()
    }
}

#[test]
fn worker_leaves_while_a_table_is_locked() {
    // While a table other than `events` is locked, the worker cannot leave in order, and the other
    // worker evicts it.
    for (table, code, reason) in [
        ("events", 0, "left"),
        ("orchestrator_workers", 1, "session lost"),
        ("orchestrator_checkpoints", 1, "session lost"),
        ("orchestrator_replica_sets", 1, "session lost"),
    ] {
        println!("{table} is locked");
        let database = database();
        let mut pair = Pair::start(database.url());
        let mut locker = database.client();
        locker.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).unwrap();
        // The last table is needed only for changes of the replica set.
        if table != "orchestrator_replica_sets" {
            await_blocked(&mut pair.client);
        }
        assert_eq!(pair.leave(), Some(code), "{table}");
        if code == 0 {
            pair.leaves.await_logged(&["INFO", " left: replica_set="]);
        } else {
            pair.assert_left_threads_behind();
        }
        locker.batch_execute("ROLLBACK").unwrap();
        assert_eq!(pair.assert_taken_over(), reason, "{table}");
    }
}

#[test]
fn worker_leaves_while_the_server_is_frozen() {
    let server = Postgres::start().unwrap();
    let mut pair = Pair::start(&server.create_database("frozen").unwrap());
    let frozen = Frozen::freeze(&server);
    assert_eq!(pair.leave(), Some(1));
    pair.assert_left_threads_behind();
    drop(frozen);
    assert_eq!(pair.assert_taken_over(), "session lost");
}

#[test]
fn worker_leaves_while_commits_wait_for_a_standby() {
    let server = Postgres::options().setting("synchronous_commit", "on").start().unwrap();
    let mut pair = Pair::start(&server.create_database("unreplicated").unwrap());
    pair.client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'missing'").unwrap();
    pair.client.batch_execute("SELECT pg_reload_conf()").unwrap();
    eventually("the heartbeats wait for a standby", Duration::from_secs(10), || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        (pair.client.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0).then_some(())
    });
    assert_eq!(pair.leave(), Some(1));
    pair.assert_left_threads_behind();
    pair.client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").unwrap();
    pair.client.batch_execute("SELECT pg_reload_conf()").unwrap();
    // A commit that was cancelled while it waited for the standby has taken effect anyway.
    let reason = pair.assert_taken_over();
    assert!(["left", "session lost"].contains(&reason.as_str()), "{reason}");
}

/// A ledger that reports when it has begun, and then waits for a lock that another session holds.
struct Waiting {
    ledger: Ledger,
    begun: Sender<()>,
}

impl Projection for Waiting {
    fn name(&self) -> &str {
        self.ledger.name
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
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
