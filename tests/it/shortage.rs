//! Workers that can get only some of their connections hold no partition.

use std::time::Duration;

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Builder, Handle, Projection};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::probes::{assert_alive, await_unready, gauge};
use crate::support::cluster::{
    assert_keys_are_covered, assert_read_models_become_right, backends_of, generation, state_of, terminate, worker_of,
};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::proxies::{Switch, pgbouncers};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(15);

/// A database with a ledger, and a role for this test alone, whose connections can be limited.
struct Limited {
    database: TestDatabase,
    client: Client,
    role: String,
}

impl Limited {
    fn new() -> Self {
        let database = database();
        let mut client = database.client();
        Ledger::create_table(&mut client);
        // Roles belong to the whole server.
        let role = format!("limited_{}", database.name().split('_').nth(1).unwrap());
        Self { database, client, role }
    }

    fn migrate(&mut self) {
        builder(self.database.url(), "set").projection(Ledger::named("p")).build().unwrap().migrate().unwrap();
        self.grant();
    }

    /// Creates the role, with privileges on the current tables.
    fn grant(&mut self) {
        let role = &self.role;
        let grants = format!(
            "CREATE ROLE {role} LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role};
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}"
        );
        self.client.batch_execute(&grants).unwrap();
    }

    fn builder(&self) -> Builder {
        let url = self.database.url().replace("postgres@", &format!("{}@", self.role));
        builder(&url, "set").database_wait(Duration::from_secs(1))
    }

    fn start(&self) -> Handle {
        start(self.builder(), vec![Box::new(Ledger::named("p")) as Box<dyn Projection>])
    }

    fn connections(&mut self) -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1";
        self.client.query_one(sql, &[&self.role]).unwrap().get(0)
    }

    fn limit(&mut self, connections: i64) {
        self.client.batch_execute(&format!("ALTER ROLE {} CONNECTION LIMIT {connections}", self.role)).unwrap();
    }

    #[track_caller]
    fn await_all_handled(&mut self) {
        eventually("every event is handled", SOON, || is_complete(&mut self.client, "p").then_some(()));
        assert_exactly_once(&mut self.client, "p");
        assert_keys_are_covered(&mut self.client);
    }
}

impl Drop for Limited {
    fn drop(&mut self) {
        let role = &self.role;
        _ = self.client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    }
}

#[test]
fn newcomer_without_all_its_connections_takes_no_partition() {
    let mut limited = Limited::new();
    limited.migrate();
    let first = limited.start();
    await_running(&[&first]);
    let before = generation(&mut limited.client);
    let used = limited.connections();
    // The newcomer needs five connections: for its coordinator, its listener and its tailer, and
    // two for its runner.
    for missing in 1..=4 {
        limited.limit(used + 5 - missing);
        let orchestrator = limited.builder().projection(Ledger::named("p")).build().unwrap();
        let error = orchestrator.start().unwrap_err().with_causes();
        assert!(error.contains("too many connections for role"), "{missing} missing: {error}");
        append_plainly(&mut limited.client, 100, 10);
        limited.await_all_handled();
        eventually("its connections are gone", SOON, || (limited.connections() <= used).then_some(()));
    }
    assert_eq!(generation(&mut limited.client), before, "the newcomer has not interrupted the others");
    limited.limit(-1);
    let second = limited.start();
    await_running(&[&first, &second]);
    append_plainly(&mut limited.client, 100, 10);
    limited.await_all_handled();
}

/// The options of worker processes, with timeouts that a test can wait for.
const OPTIONS: [(&str, &str); 4] = [
    ("HEARTBEAT_INTERVAL", "200ms"),
    ("STALE_WORKER_TIMEOUT", "2s"),
    ("POLL_INTERVAL", "100ms"),
    ("DATABASE_WAIT", "10m"),
];
/// How many connections the example `worker` needs: three, and two for each of its projections.
const NEEDED: usize = 7;

const AWAY: &str = "database is away, waiting for it: at_most=";

/// Checks that the newcomer waits for connections that it cannot get for this reason, logs this
/// line, and takes no partition.
#[track_caller]
fn assert_waits(newcomer: &mut WorkerProcess, client: &mut Client, line: &str, reason: &str) {
    let address = newcomer.metrics_address();
    newcomer.await_line(&["WARN", line, " error=", reason]);
    append_plainly(client, 50, 5);
    assert_read_models_become_right(client);
    await_unready(&address, "the worker has not registered yet");
    assert_alive(&address);
    assert!(gauge(&address, "ready").is_none_or(|ready| ready < 1.0));
    let registered = "SELECT count(*) FROM orchestrator_workers WHERE pid = $1";
    assert_eq!(client.query_one(registered, &[&newcomer.pid()]).unwrap().get::<_, i64>(0), 0);
}

/// Checks that the newcomer takes part, after connections have become available.
#[track_caller]
fn assert_takes_part(first: &mut WorkerProcess, newcomer: &mut WorkerProcess, client: &mut Client) {
    newcomer.await_processing(2);
    newcomer.await_ready();
    first.await_processing(2);
    append_plainly(client, 50, 5);
    assert_read_models_become_right(client);
    assert_keys_are_covered(client);
}

#[test]
fn newcomer_waits_while_the_server_has_no_more_connections() {
    // Enough for the first worker, this test, and all but one of the newcomer's connections.
    let most = (2 * NEEDED + 1).to_string();
    let options = Postgres::options().setting("max_connections", most).setting("superuser_reserved_connections", "0");
    let server = options.start().unwrap();
    let url = server.create_database("full").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    let mut first = WorkerProcess::start(&url, &OPTIONS);
    first.await_processing(1);
    let filler = Client::connect(&url, NoTls).unwrap();
    let mut newcomer = WorkerProcess::start(&url, &OPTIONS);
    assert_waits(&mut newcomer, &mut client, AWAY, "too many clients already");
    drop(filler);
    assert_takes_part(&mut first, &mut newcomer, &mut client);
}

#[test]
fn newcomer_waits_while_its_pooler_has_no_more_connections() {
    for pgbouncer in pgbouncers() {
        let server = Postgres::start().unwrap();
        let url = server.create_database("pooled").unwrap();
        let mut client = Client::connect(&url, NoTls).unwrap();
        let size = format!("default_pool_size = {}", 2 * NEEDED);
        let proxy = pgbouncer.start(server.port(), &["pool_mode = session", &size]);
        let url = proxy.url("pooled");
        let mut first = WorkerProcess::start(&url, &OPTIONS);
        first.await_processing(1);
        let mut filler = Client::connect(&url, NoTls).unwrap();
        filler.batch_execute("SELECT 1").unwrap();
        let mut newcomer = WorkerProcess::start(&url, &OPTIONS);
        // The pooler accepts every connection, and lets the statement wait.
        let line = "database is away, waiting for it: at_most=";
        assert_waits(&mut newcomer, &mut client, line, "connect");
        drop(filler);
        assert_takes_part(&mut first, &mut newcomer, &mut client);
    }
}

/// Lets a process have this many open files.
fn allow_files(pid: i32, most: u64) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Pid::from_raw(pid), Resource::Nofile, Rlimit { current: Some(most), maximum }).unwrap();
}

fn open_files(pid: i32) -> u64 {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count().try_into().unwrap()
}

#[test]
fn newcomer_waits_while_it_may_open_no_more_files() {
    let database = database();
    let mut client = database.client();
    let mut first = WorkerProcess::start(database.url(), &OPTIONS);
    first.await_processing(1);
    let files = open_files(first.pid());
    let backends = |client: &mut Client| -> i64 {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()";
        client.query_one(sql, &[]).unwrap().get(0)
    };
    let others = backends(&mut client);
    let mut newcomer = WorkerProcess::start_with_files(files - 3, database.url(), &OPTIONS);
    assert_waits(&mut newcomer, &mut client, AWAY, "connect");
    // Too few files for a connection: the probe itself uses the last file.
    let address = newcomer.metrics_address();
    allow_files(newcomer.pid(), 1);
    eventually("its connections are closed", SOON, || (backends(&mut client) <= others).then_some(()));
    allow_files(newcomer.pid(), open_files(newcomer.pid()) + 1);
    for _ in 0..200 {
        assert_alive(&address);
    }
    allow_files(newcomer.pid(), files + 50);
    assert_takes_part(&mut first, &mut newcomer, &mut client);
}

/// Checks that a worker gives its partition back when its connections are gone and no new ones are
/// available, and takes part again when they are.
fn lose_connections(
    url: &str,
    lasting: &str,
    client: &mut Client,
    reason: &str,
    mut limit: impl FnMut(&mut Client, i32, bool),
) {
    let mut first = WorkerProcess::start(lasting, &OPTIONS);
    first.await_processing(1);
    let mut second = WorkerProcess::start(url, &OPTIONS);
    for worker in [&mut first, &mut second] {
        worker.await_processing(2);
    }
    let (address, worker) = (second.await_ready(), worker_of(client, second.pid()));
    let coordinator = backends_of(client, worker, true);
    let mut others = backends_of(client, worker, false);
    others.retain(|pid| !coordinator.contains(pid));
    assert!(!others.is_empty());
    limit(client, second.pid(), true);
    terminate(client, &others);
    append_plainly(client, 50, 5);
    first.await_processing(1);
    assert_eq!(state_of(client, worker), ("stopped".into(), Some("left".into())));
    assert_read_models_become_right(client);
    await_unready(&address, "it could not get its connections for ");
    eventually("the gauge says so", SOON, || (gauge(&address, "ready") == Some(0.0)).then_some(()));
    assert_eq!(gauge(&address, "database_up"), Some(1.0));
    assert_alive(&address);
    let of_worker = format!(" replica_set=main-projections worker={worker} ");
    for (level, line, subject, reason) in [
        ("WARN", "connection lost:", of_worker.as_str(), "terminating connection"),
        ("WARN", "pool has no connection: database=", "", " error="),
        ("ERROR", "partition given back, too few connections:", &of_worker, reason),
        ("ERROR", "too few connections, will register later:", &of_worker, reason),
    ] {
        second.await_logged(&[level, line, subject, reason]);
    }
    second.await_logged(&["WARN", "not ready:", &of_worker, "reason=\"it could not get its connections for "]);

    limit(client, second.pid(), false);
    second.await_logged(&["WARN", "registering again:", of_worker.trim()]);
    first.await_processing(2);
    second.await_ready();
    second.await_logged(&["INFO", "ready again:", &of_worker]);
    append_plainly(client, 50, 5);
    assert_read_models_become_right(client);
    assert_keys_are_covered(client);
}

#[test]
fn worker_whose_role_is_limited_gives_its_partition_back() {
    let mut limited = Limited::new();
    let migrated = WorkerProcess::start_with(&["migrate"], &[("DATABASE_URL", limited.database.url())]).exit_code();
    assert_eq!(migrated, Some(0));
    limited.grant();
    let Limited { database, client, role } = &mut limited;
    let url = database.url().replace("postgres@", &format!("{role}@"));
    // The limit affects only the second worker.
    lose_connections(&url, database.url(), client, "too many connections for role", |client, _, is_limited| {
        let most = if is_limited { 1 } else { -1 };
        client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT {most}")).unwrap();
    });
}

#[test]
fn worker_that_may_open_no_files_gives_its_partition_back() {
    let database = database();
    let mut client = database.client();
    // The pool, the listener and the tailer lack connections. The first of them gives the reason,
    // which may be that there is no answer yet.
    let reason = " error=";
    lose_connections(database.url(), database.url(), &mut client, reason, |_, pid, is_limited| {
        // Enough for the coordinator's connection, and for the probes.
        allow_files(pid, if is_limited { open_files(pid) - 10 } else { 500 });
    });
}

#[test]
fn a_worker_comes_back_behind_a_slow_network() {
    let server = Postgres::start().unwrap();
    let url = server.create_database("far").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    let network = Switch::start(server.port());
    let far = format!("postgres://postgres@127.0.0.1:{}/far", network.port);
    let options = [OPTIONS.as_slice(), &[("STALE_WORKER_TIMEOUT", "10s")]].concat();
    let mut first = WorkerProcess::start(&url, &options);
    first.await_processing(1);
    let mut second = WorkerProcess::start(&far, &options);
    for worker in [&mut first, &mut second] {
        worker.await_processing(2);
    }
    // Each connection takes about two seconds, and the pool has four of them.
    network.slow_down(Duration::from_millis(280));
    network.cut();
    first.await_processing(1);
    append_plainly(&mut client, 50, 5);
    assert_read_models_become_right(&mut client);
    second.await_line(&["WARN", "registering again: "]);
    first.await_processing(2);
    network.slow_down(Duration::ZERO);
    second.await_ready();
    append_plainly(&mut client, 50, 5);
    assert_read_models_become_right(&mut client);
    assert_keys_are_covered(&mut client);
}
