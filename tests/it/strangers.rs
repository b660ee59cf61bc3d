//! A role that may only connect sees the advisory locks and the channels of the workers. Nothing
//! that it does with them keeps a worker from its work.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::error::SqlState;
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::Names;

use crate::support::cluster::{backends_of, state_of, terminate, worker_of};
use crate::support::handlers::prepared;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::statements::{start_logging_server, statements};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(10);

/// The URL of a new role, which may log in.
fn new_role(admin: &mut Client, url: &str) -> String {
    static ROLES: AtomicU32 = AtomicU32::new(0);
    let name = format!("stranger_{}_{}", std::process::id(), ROLES.fetch_add(1, Ordering::Relaxed));
    admin.batch_execute(&format!("CREATE ROLE {name} LOGIN")).unwrap();
    url.replace("postgres@", &format!("{name}@"))
}

/// Waits for every advisory lock of this database as a stranger, who can see it, on one connection
/// for each lock. Returns the stranger's server processes.
fn wait_for_every_lock(url: &str) -> Vec<i32> {
    let connect = || Client::connect(url, NoTls).unwrap();
    let locks = connect()
        .query(
            "SELECT DISTINCT CASE objsubid
                 WHEN 1 THEN format('SELECT pg_advisory_lock(%s)', (classid::bigint << 32) | objid::bigint)
                 ELSE format('SELECT pg_advisory_lock(%s, %s)', (classid::bit(32))::int, (objid::bit(32))::int) END
             FROM (SELECT classid::bigint, objid::bigint, objsubid FROM pg_locks WHERE locktype = 'advisory'
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) l",
            &[],
        )
        .unwrap();
    let wait_for_one = |lock: String| {
        let mut client = connect();
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
        thread::spawn(move || {
            // It has the lock, or waits for it, until the database is dropped.
            _ = client.batch_execute(&lock);
            _ = client.batch_execute("SELECT pg_sleep(600)");
        });
        pid
    };
    locks.iter().map(|lock| wait_for_one(lock.get(0))).collect()
}

#[test]
fn locks_of_a_stranger_keep_no_connection_waiting() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    let grace = || builder(database.url(), "set").session_loss_grace(Duration::from_secs(2));
    let worker = start(grace(), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));

    let stranger = new_role(&mut client, database.url());
    let strangers = wait_for_every_lock(&stranger);
    assert!(strangers.len() >= 2, "the worker has several connections: {strangers:?}");
    await_locks(&mut client, &strangers, false);
    let lost = backends_of(&mut client, worker.worker_id(), false);
    terminate(&mut client, &lost);
    await_locks(&mut client, &strangers, true);
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    eventually("its coordinator is back", SOON, || {
        let alive = backends_of(&mut client, worker.worker_id(), true);
        (alive.len() == 1 && !lost.contains(&alive[0])).then_some(())
    });
    worker.shutdown(SOON).unwrap();
}

/// Waits until these sessions wait for the locks that they want, or have them.
#[track_caller]
fn await_locks(client: &mut Client, strangers: &[i32], granted: bool) {
    eventually("the stranger has every lock, or waits for it", SOON, || {
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted = $2 AND pid = ANY ($1)";
        let locks: i64 = client.query_one(sql, &[&strangers, &granted]).unwrap().get(0);
        (usize::try_from(locks).unwrap() == strangers.len()).then_some(())
    });
}

#[test]
fn worker_leaves_while_a_stranger_holds_every_lock() {
    let database = database();
    let mut client = database.client();
    // The worker's peers would take longer to detect that its session is gone.
    let patient = [("SESSION_LOSS_GRACE", "5s"), ("HEARTBEAT_INTERVAL", "10s"), ("STALE_WORKER_TIMEOUT", "60s")];
    let mut worker = WorkerProcess::start(database.url(), &patient);
    worker.await_processing(1);
    let id = worker_of(&mut client, worker.pid());
    let stranger = new_role(&mut client, database.url());
    let strangers = wait_for_every_lock(&stranger);
    await_locks(&mut client, &strangers, false);
    let lost = backends_of(&mut client, id, false);
    terminate(&mut client, &lost);
    await_locks(&mut client, &strangers, true);
    // The worker is asked to leave after it has noticed the loss, so while its coordinator connects
    // again.
    let again = backends_of(&mut client, id, false);
    if !again.is_empty() {
        terminate(&mut client, &again);
    }
    worker.await_line(&["connection lost:", "connection=coordinator"]);
    let asked = Instant::now();
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0), "{:#?}", worker.log());
    assert!(asked.elapsed() < Duration::from_secs(5), "gone after {:?}", asked.elapsed());
    assert_eq!(state_of(&mut client, id), ("stopped".into(), Some("left".into())));
}

#[test]
fn a_strangers_lock_does_not_keep_a_dead_worker_alive() {
    let database = database();
    let mut client = database.client();
    let patient = [("HEARTBEAT_INTERVAL", "10s"), ("STALE_WORKER_TIMEOUT", "60s"), ("SESSION_LOSS_GRACE", "200ms")];
    let mut survivor = WorkerProcess::start(database.url(), &patient);
    survivor.await_processing(1);
    let mut victim = WorkerProcess::start(database.url(), &patient);
    survivor.await_processing(2);
    let id = worker_of(&mut client, victim.pid());
    let stranger = new_role(&mut client, database.url());
    assert!(!wait_for_every_lock(&stranger).is_empty());
    victim.signal(Signal::KILL);
    survivor.await_processing(1);
    assert_eq!(state_of(&mut client, id), ("stopped".into(), Some("session lost".into())));
}

#[test]
fn a_stranger_with_the_migration_lock_is_named() {
    let database = database();
    let mut client = database.client();
    let stranger = new_role(&mut client, database.url());
    let with_lock = |url: &str| {
        let mut client = Client::connect(url, NoTls).unwrap();
        let lock =
            "SELECT pg_advisory_lock(hashtextextended('\"public\".\"orchestrator_migrations\"', 0)), pg_backend_pid()";
        let pid: i32 = client.query_one(lock, &[]).unwrap().get(1);
        (client, pid)
    };
    let (holder, pid) = with_lock(&stranger);
    let mut worker = WorkerProcess::start(database.url(), &[]);
    worker.await_line(&["migration waits for another session: schema=public", &format!(" pid={pid} "), "stranger_"]);
    let begun = Instant::now();
    let orchestrator = || builder(database.url(), "set").projection(Ledger::named("p")).database_wait(Duration::ZERO);
    let refused = orchestrator().build().unwrap().migrate().unwrap_err().with_causes();
    assert!(refused.contains("waiting for the migration lock"), "{refused}");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    drop(holder);
    worker.await_processing(1);
    // Once the schema exists, a migration does not wait.
    let _holder = with_lock(&stranger);
    orchestrator().build().unwrap().migrate().unwrap();
}

#[test]
fn the_application_migrates_in_turns_that_no_stranger_can_take() {
    let database = database();
    let mut client = database.client();
    let stranger = new_role(&mut client, database.url());
    WorkerProcess::start(database.url(), &[]).await_processing(1);
    let turn = "BEGIN; LOCK TABLE orchestrator_replica_sets IN SHARE UPDATE EXCLUSIVE MODE";
    let denied = Client::connect(&stranger, NoTls).unwrap().batch_execute(turn).unwrap_err();
    assert_eq!(denied.code(), Some(&SqlState::INSUFFICIENT_PRIVILEGE));

    // Another process migrates.
    let mut other = database.client();
    other.batch_execute(turn).unwrap();
    let pid: i32 = other.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let mut worker = WorkerProcess::start(database.url(), &[("DATABASE_WAIT", "1s")]);
    worker.await_line(&["migration waits for another session: schema=public", &format!(" pid={pid} user=postgres")]);
    other.batch_execute("COMMIT").unwrap();
    worker.await_logged(&["processing:"]);
}

/// The URL of a new role that may process, but not notify. Notifications fail for other reasons as
/// well: an old transaction of a session that listens fills their queue.
fn role_that_cannot_notify(client: &mut Client, url: &str) -> String {
    let url = new_role(client, url);
    let role = url.split_once("://").unwrap().1.split_once('@').unwrap().0;
    client
        .batch_execute(&format!(
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};
             REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC"
        ))
        .unwrap();
    url
}

#[test]
fn workers_that_cannot_notify_still_register() {
    let database = database();
    let mut client = prepared(&database);
    let worker = role_that_cannot_notify(&mut client, database.url());
    let one = || builder(&worker, "set").projection(Ledger::named("p")).build().unwrap().start().unwrap();
    let (first, second) = (one(), one());
    await_running(&[&first, &second]);
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    second.shutdown(SOON).unwrap();
    await_running(&[&first]);
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    first.shutdown(SOON).unwrap();
}

#[test]
fn worker_that_cannot_notify_logs_a_warning() {
    let database = database();
    let mut client = database.client();
    let migrated = WorkerProcess::start_with(&["migrate"], &[("DATABASE_URL", database.url())]).exit_code();
    assert_eq!(migrated, Some(0));
    let url = role_that_cannot_notify(&mut client, database.url());
    let mut worker = WorkerProcess::start(&url, &[]);
    worker.await_line(&[
        "WARN",
        "workers are not notified of a change: replica_set=main-projections error=",
        "permission denied for function pg_notify",
    ]);
    worker.await_processing(1);
}

#[test]
fn a_flood_of_notifications_makes_few_statements() {
    let server = start_logging_server();
    let url = server.create_database("flooded").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let coordinator = backends_of(&mut client, worker.worker_id(), true)[0];
    let executed = || statements(&server).iter().filter(|statement| statement.backend == coordinator).count();

    let over = AtomicBool::new(false);
    let stranger = new_role(&mut client, &url);
    let (before, begun) = (executed(), Instant::now());
    let notify = "NOTIFY pupsourcing_coordination, '\"public\".\"orchestrator_workers\" set'";
    let sent = thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut stranger = Client::connect(&stranger, NoTls).unwrap();
            let mut sent = 0;
            while !over.load(Ordering::Relaxed) {
                stranger.batch_execute(notify).unwrap();
                sent += 1;
            }
            sent
        });
        _ = crossbeam_channel::after(Duration::from_secs(3)).recv();
        over.store(true, Ordering::Relaxed);
        flood.join().unwrap()
    });
    let (made, took) = (executed() - before, begun.elapsed());
    assert!(sent > 1000, "{sent} notifications are no flood");
    // Notifications cause twenty statements at once and twenty a second. The worker's own looks are
    // ten a second, and there are its heartbeats.
    let most = 20 + usize::try_from(took.as_millis()).unwrap() * 60 / 1000;
    assert!(made < most, "{made} statements for {sent} notifications in {took:?}");
    assert!(made > 30, "it hears nothing any more: {made}");
    // It still reacts to real changes.
    let second = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker, &second]);
}
