//! What the handlers need is missing for a while: time, disk space, a server that can be written to.
//! Nothing of it counts, and all of it passes by itself.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Handle, Names, ProjectionState, Retry};

use crate::support::handlers::{meddled, prepared};
use crate::support::installed::leave_out;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::projection_metric;
use crate::support::standby::{primary, standby_of};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

/// Two attempts, which are used up in no time.
fn impatient() -> Retry {
    Retry::default().attempts(2).first_delay(SHORT).longest_delay(SHORT).halted_interval(Duration::from_secs(3600))
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

/// Waits until the projection has been retried more often than attempts are allowed, and looks at
/// what is shown of it.
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
    /// Mounts one in a folder that belongs to the server; none if this process may not.
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

#[test]
fn a_database_that_was_read_only_is_written_to_again() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start(builder(database.url(), "set").retry(impatient()), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    append_plainly(&mut client, 10, 2);
    await_complete(&mut client, "p");
    let name = database.name();
    let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    client
        .batch_execute(&format!("ALTER DATABASE \"{name}\" SET default_transaction_read_only = on; {end_all}"))
        .unwrap();
    append_plainly(&mut client, 100, 2);
    // What a session that begins now may do is up to its settings.
    eventually("its connections are back", SOON, || worker.status().database_reachable.then_some(()));
    client.batch_execute(&format!("ALTER DATABASE \"{name}\" RESET default_transaction_read_only")).unwrap();
    let begun = Instant::now();
    await_complete(&mut client, "p");
    println!("complete after {:?}", begun.elapsed());
    worker.shutdown(SOON).unwrap();
}

/// Forwards connections to a server on this machine, which can be changed for those that follow.
struct Switch {
    port: u16,
    target: Arc<AtomicU16>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Switch {
    fn start(target: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (target, streams) = (Arc::new(AtomicU16::new(target)), Arc::new(Mutex::new(Vec::new())));
        let (to, all) = (target.clone(), streams.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(Ordering::Relaxed))) else { continue };
                for (from, into) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut into) = (from.try_clone().unwrap(), into.try_clone().unwrap());
                    std::thread::spawn(move || {
                        _ = std::io::copy(&mut from, &mut into);
                        _ = into.shutdown(Shutdown::Both);
                    });
                }
                all.lock().extend([client, server]);
            }
        });
        Self { port, target, streams }
    }

    /// Leads new connections to another server.
    fn lead_to(&self, server: &Postgres) {
        self.target.store(server.port(), Ordering::Relaxed);
    }

    /// Ends all connections.
    fn cut(&self) {
        for stream in self.streams.lock().drain(..) {
            _ = stream.shutdown(Shutdown::Both);
        }
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
    append_plainly(&mut client, 300, 2);
    eventually("it is at work", SOON, || (handled(&mut client, "p") > 0).then_some(()));
    switch.lead_to(&standby);
    switch.cut();
    let mut errors = Vec::new();
    eventually("its handlers' session is on the standby", SOON, || {
        errors.extend(worker.status().projections["p"].error.clone());
        errors.iter().any(|error| error.contains("recovery")).then_some(())
    });
    switch.lead_to(&primary);
    let begun = Instant::now();
    await_complete(&mut client, "p");
    println!("complete after {:?}", begun.elapsed());
    worker.shutdown(SOON).unwrap();
}
