//! Something that the handlers need is missing for a while: time, disk space, a writable server.
//! Such failures do not count as attempts, and processing continues by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Handle, Names, ProjectionState, Retry};

use crate::probes::{assert_alive, await_unready, probed};
use crate::support::cluster::assert_read_models_become_right;
use crate::support::handlers::{meddled, prepared};
use crate::support::http::get;
use crate::support::installed::leave_out;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::series::values;
use crate::support::metrics::{metric, projection_metric};
use crate::support::proxies::Switch;
use crate::support::standby::{primary, standby_of};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

/// Ends all other sessions of the database. Later sessions have its current settings.
fn terminate_others(client: &mut Client) {
    let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                  WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client.batch_execute(others).unwrap();
}

/// Two attempts, which are used up quickly.
fn impatient() -> Retry {
    Retry::default().attempts(2).first_delay(SHORT).longest_delay(SHORT).halted_interval(Duration::from_secs(3600))
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

/// Waits until the projection has been retried more often than attempts are allowed, and checks
/// what is reported about it.
#[track_caller]
fn await_retries(worker: &Handle, client: &mut Client, code: &str) {
    let retries = || projection_metric(worker, "retries_total", "p").unwrap_or(0.0);
    let enough = retries() + 6.0;
    eventually("it is retried again and again", SOON, || (retries() >= enough).then_some(()));
    let error = eventually("it says so", SOON, || {
        let status = worker.status().projections["p"].clone();
        assert_ne!(status.state, ProjectionState::Halted, "{status:?}");
        status.error.filter(|_| status.state == ProjectionState::Retrying)
    });
    assert!(error.contains(&format!("({code})")) && error.contains("Happened of test/Thing/thing-"), "{error}");
    let sql =
        "SELECT state, error, attempts FROM orchestrator_checkpoints WHERE projection = 'p' AND state = 'retrying'";
    let reported = eventually("it is reported", SOON, || client.query_opt(sql, &[]).unwrap());
    assert!(reported.get::<_, String>(1).contains(code));
    assert_eq!(projection_metric(worker, "projection_errors_total", "p"), Some(0.0));
}

/// Another session holds a lock for longer than all attempts take.
fn a_lock_outlasts_the_attempts(database: &TestDatabase, setting: &str, code: &str) {
    let mut client = prepared(database);
    client.batch_execute(&format!("ALTER DATABASE \"{}\" SET {setting}", database.name())).unwrap();
    append_plainly(&mut client, 10, 2);
    let mut other = database.client();
    let mut locked = other.transaction().unwrap();
    locked.batch_execute("LOCK TABLE ledger IN EXCLUSIVE MODE").unwrap();
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![Box::new(Ledger::named("p"))]);
    await_retries(&worker, &mut client, code);
    locked.rollback().unwrap();
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_statement_that_takes_too_long_does_not_count() {
    a_lock_outlasts_the_attempts(&database(), "statement_timeout = '100ms'", "57014");
}

#[test]
fn a_lock_that_is_not_available_does_not_count() {
    a_lock_outlasts_the_attempts(&database(), "lock_timeout = '50ms'", "55P03");
}

#[test]
fn a_limit_raised_by_the_operator_is_effective_at_once() {
    let database = database();
    let mut client = prepared(&database);
    let name = database.name();
    client.batch_execute(&format!("ALTER DATABASE \"{name}\" SET temp_file_limit = '1MB'")).unwrap();
    append_plainly(&mut client, 10, 2);
    let greedy = meddled("p", |tx, _| {
        tx.batch_execute("SET LOCAL work_mem = '64kB'")?;
        tx.query("SELECT n FROM generate_series(1, 100000) AS n ORDER BY md5(n::text) LIMIT 1 OFFSET 90000", &[])?;
        Ok(())
    });
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![greedy]);
    await_retries(&worker, &mut client, "53400");
    client.batch_execute(&format!("ALTER DATABASE \"{name}\" RESET temp_file_limit")).unwrap();
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// A small file system, which is unmounted when this is dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one in a folder of the server. `None` if this process is not allowed to.
    fn mount(server: &Postgres) -> Option<Self> {
        let folder = server.data_dir().with_file_name("small");
        std::fs::create_dir(&folder).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=1m,mode=0777", "small"];
        let mounted = Command::new("mount").args(options).arg(&folder).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(folder))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_does_not_count() {
    let server = Postgres::start().unwrap();
    let Some(disk) = SmallDisk::mount(&server) else {
        return leave_out("no file system can be mounted here");
    };
    let url = server.create_database("full").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    let place = disk.path().join("space");
    std::fs::create_dir(&place).unwrap();
    let owner = std::fs::metadata(server.data_dir()).unwrap();
    std::os::unix::fs::chown(
        &place,
        Some(std::os::unix::fs::MetadataExt::uid(&owner)),
        Some(std::os::unix::fs::MetadataExt::gid(&owner)),
    )
    .unwrap();
    client.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{}'", place.display())).unwrap();
    Ledger::create_table(&mut client);
    client.batch_execute("ALTER TABLE ledger SET TABLESPACE small").unwrap();
    std::fs::write(disk.path().join("filler"), vec![0; 900 << 10]).ok();
    append_plainly(&mut client, 5_000, 10);
    let worker = start(builder(&url, "set").retry(impatient()), vec![Box::new(Ledger::named("p"))]);
    await_retries(&worker, &mut client, "53100");
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// `default_transaction_read_only` is only a default: the sessions and transactions of the library
/// and of the handlers state that they write.
#[test]
fn a_database_that_is_read_only_by_default_is_written_to() {
    let database = database();
    let mut client = prepared(&database);
    for heartbeats_only in [false, true] {
        let name = if heartbeats_only { "q" } else { "p" };
        let configured = || {
            let configured = builder(database.url(), name).retry(impatient());
            if heartbeats_only { configured.heartbeats_only() } else { configured }
        };
        let refused = Arc::new(AtomicUsize::new(0));
        let worker = || {
            let noted = refused.clone();
            let ledger = meddled(name, move |tx, _| {
                let setting: String = tx.query_one("SHOW transaction_read_only", &[])?.get(0);
                noted.fetch_add(usize::from(setting == "on"), Ordering::Relaxed);
                Ok(())
            });
            start(configured(), vec![ledger])
        };
        let one = worker();
        await_running(&[&one]);
        append_plainly(&mut client, 10, 2);
        await_complete(&mut client, name);

        let read_only = format!("ALTER DATABASE \"{}\" SET default_transaction_read_only = on", database.name());
        client.batch_execute(&read_only).unwrap();
        terminate_others(&mut client);
        let error = database.client().batch_execute("CREATE TABLE refused ()").unwrap_err();
        assert_eq!(error.code().unwrap().code(), "25006", "an ordinary session may not write");
        // The second worker migrates and registers.
        let other = worker();
        await_running(&[&one, &other]);
        append_plainly(&mut client, 100, 2);
        await_complete(&mut client, name);
        assert_eq!(refused.load(Ordering::Relaxed), 0, "no transaction was read-only");
        let errors = [&one, &other].map(|worker| projection_metric(worker, "projection_errors_total", name));
        assert_eq!(errors, [Some(0.0); 2]);
        for worker in [one, other] {
            worker.shutdown(SOON).unwrap();
        }
        client
            .batch_execute(&format!("ALTER DATABASE \"{}\" RESET default_transaction_read_only", database.name()))
            .unwrap();
    }
}

#[test]
fn sessions_on_a_standby_are_replaced_after_a_switchover() {
    for heartbeats_only in [false, true] {
        switch_over(heartbeats_only);
    }
}

fn switch_over(heartbeats_only: bool) {
    let primary = primary();
    let standby = standby_of(&primary);
    let mut client = Client::connect(&primary.create_database("switched").unwrap(), NoTls).unwrap();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    let switch = Switch::start(primary.port());
    let url = format!("postgres://postgres@127.0.0.1:{}/switched", switch.port);
    let configured = builder(&url, "set").retry(impatient());
    let configured = if heartbeats_only { configured.heartbeats_only() } else { configured };
    let ledger = Ledger { takes: Duration::from_millis(10), ..Ledger::named("p") };
    let worker = start(configured, vec![Box::new(ledger)]);
    await_running(&[&worker]);
    let (_server, address) = probed(&worker);
    append_plainly(&mut client, 300, 2);
    eventually("it is at work", SOON, || (handled(&mut client, "p") > 0).then_some(()));
    switch.lead_to(standby.port());
    switch.cut();
    let mut errors = Vec::new();
    eventually("its handlers' session is on the standby", SOON, || {
        errors.extend(worker.status().projections["p"].error.clone());
        errors.iter().any(|error| error.contains("recovery")).then_some(())
    });
    // In a session of its own, the first UPDATE fails; in a shared one, the BEGIN.
    let code = if heartbeats_only { "(0A000)" } else { "(25006)" };
    let reason = await_unready(&address, "no heartbeat was answered for");
    assert!(reason.contains(code), "{reason}");
    assert_alive(&address);
    eventually("the metrics say so", SOON, || {
        let not_ready = metric(&worker, "not_ready", &[("reason", "no_heartbeat")]);
        (not_ready == Some(1.0) && metric(&worker, "database_up", &[]) == Some(0.0)).then_some(())
    });
    switch.lead_to(primary.port());
    let begun = Instant::now();
    await_complete(&mut client, "p");
    println!("complete after {:?}", begun.elapsed());
    eventually("it is ready again", SOON, || (get(&address, "/readyz").0 == 200).then_some(()));
    assert_eq!(metric(&worker, "not_ready", &[]), None);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_that_stops_alone_keeps_its_worker_ready() {
    let database = database();
    let mut client = database.client();
    client.batch_execute(&format!("ALTER DATABASE \"{}\" SET lock_timeout = '50ms'", database.name())).unwrap();
    let mut worker =
        WorkerProcess::start(database.url(), &[("POLL_INTERVAL", "100ms"), ("HEARTBEAT_INTERVAL", "300ms")]);
    worker.await_processing(1);
    let address = worker.await_ready();
    let shown = |name: &str, labels: &[(&str, &str)]| {
        let values: Vec<i64> = values(&get(&address, "/metrics").1, name, labels);
        values.first().copied().unwrap_or_default()
    };
    let assert_ready = || assert_eq!([get(&address, "/livez").0, get(&address, "/readyz").0], [200; 2]);

    // A timeout in the handlers of one projection.
    let labels = [("projection", "event_type_counts")];
    let mut other = database.client();
    let mut locked = other.transaction().unwrap();
    locked.batch_execute("LOCK TABLE event_type_counts IN EXCLUSIVE MODE").unwrap();
    append_plainly(&mut client, 10, 2);
    worker.await_line(&["batch failed, will retry", "projection=event_type_counts", "(55P03)"]);
    eventually("the lag is shown", SOON, || (shown("lag_events", &labels) == 10).then_some(()));
    assert!(shown("retries_total", &labels) > 0);
    assert_ready();
    locked.rollback().unwrap();
    assert_read_models_become_right(&mut client);

    // A torn projection, and one that no worker knows.
    client
        .batch_execute(
            "UPDATE orchestrator_checkpoints SET keys = '{[0,10)}' WHERE projection = 'event_type_counts';
             INSERT INTO orchestrator_projections (name, replica_set) VALUES ('unknown', 'main-projections');
             INSERT INTO orchestrator_checkpoints (projection, keys, position) VALUES ('unknown', '{[0,65536)}', 0)",
        )
        .unwrap();
    worker.await_line(&["projection is not processed", "projection=event_type_counts", "overlap or leave keys out"]);
    for metric in ["broken_projections", "orphaned_projections"] {
        eventually(metric, SOON, || (shown(metric, &[]) == 1).then_some(()));
    }
    assert_ready();
}

#[test]
fn a_worker_that_cannot_coordinate_gives_that_reason() {
    let database = database();
    let options = [("POLL_INTERVAL", "100ms"), ("HEARTBEAT_INTERVAL", "300ms"), ("STALE_WORKER_TIMEOUT", "10s")];
    let mut worker = WorkerProcess::start(database.url(), &options);
    worker.await_processing(1);
    let address = worker.await_ready();
    let mut client = database.client();
    let mut locked = client.transaction().unwrap();
    locked.batch_execute("LOCK TABLE orchestrator_generations").unwrap();
    worker.await_line(&["coordination failed, will retry", "lock timeout"]);
    let reason = await_unready(&address, "the replica set could not be coordinated for");
    assert!(reason.contains("lock timeout"), "{reason}");
    assert_alive(&address);
    eventually("the metric says so", SOON, || {
        let not_ready: Vec<i64> = values(&get(&address, "/metrics").1, "not_ready", &[("reason", "cannot_coordinate")]);
        (not_ready == [1]).then_some(())
    });
    locked.rollback().unwrap();
    worker.await_ready();
}
