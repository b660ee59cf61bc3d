//! Real poolers and load balancers between the workers and the server.

use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Builder, Error, Names, Retry};

use crate::support::cluster::{
    assert_keys_are_covered, assert_read_models_become_right, backends_of, terminate, worker_of,
};
use crate::support::handlers::meddled;
use crate::support::http::get;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::metrics::series::values;
use crate::support::proxies::{PgBouncer, Proxy, haproxy, pgbouncers};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A server with a database `pooled`, which has the schema and the ledger's table.
fn server() -> (Postgres, Client) {
    let server = Postgres::start().unwrap();
    let mut client = Client::connect(&server.create_database("pooled").unwrap(), NoTls).unwrap();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    (server, client)
}

fn worker(proxy: &Proxy, sessions: fn(Builder) -> Builder) -> Builder {
    sessions(builder(&proxy.url("pooled"), "set")).projection(Ledger::named("p"))
}

#[test]
fn a_pooler_that_lacks_a_capability_is_refused_by_name() {
    let (server, _) = server();
    for pgbouncer in pgbouncers() {
        let PgBouncer { is_capable, .. } = pgbouncer;
        // An old PgBouncer does not know the setting.
        let without = if is_capable { "max_prepared_statements = 0" } else { "" };
        for pool_size in ["default_pool_size = 20", "default_pool_size = 1", "server_round_robin = 1"] {
            let proxy = pgbouncer.start(server.port(), &["pool_mode = transaction", without, pool_size]);
            for (sessions, problem) in [
                (Builder::heartbeats_only as fn(Builder) -> Builder, "prepared statement"),
                (|builder| builder, "pooler"),
            ] {
                let error = worker(&proxy, sessions).build().unwrap().start().unwrap_err();
                let said = error.with_causes();
                assert!(matches!(error, Error::UnsupportedServer { .. }), "{pgbouncer:?} {pool_size}: {error:?}");
                for part in [problem, "1.21", "max_prepared_statements", "heartbeats_only", "session mode"] {
                    assert!(said.contains(part), "{pgbouncer:?} {pool_size}: {said}");
                }
            }
        }
        if is_capable {
            let proxy = pgbouncer.start(server.port(), &["pool_mode = transaction", "max_prepared_statements = 100"]);
            let error = worker(&proxy, |builder| builder).build().unwrap().start().unwrap_err().with_causes();
            assert!(error.contains("different sessions") && error.contains("heartbeats_only"), "{error}");
        }
    }
}

#[test]
fn workers_process_behind_capable_poolers() {
    for pgbouncer in pgbouncers() {
        let (server, mut client) = server();
        let (mode, sessions) = if pgbouncer.is_capable {
            ("pool_mode = transaction", Builder::heartbeats_only as fn(Builder) -> Builder)
        } else {
            ("pool_mode = session", (|builder| builder) as fn(Builder) -> Builder)
        };
        let statements = if pgbouncer.is_capable { "max_prepared_statements = 100" } else { "" };
        let proxy = pgbouncer.start(server.port(), &[mode, statements]);
        let start = || worker(&proxy, sessions).build().unwrap().start().unwrap();
        let (one, other) = (start(), start());
        await_running(&[&one, &other]);
        append_plainly(&mut client, 1_000, 100);
        eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
        other.shutdown(SOON).unwrap();
        await_running(&[&one]);
        append_plainly(&mut client, 1_000, 100);
        eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
        assert_exactly_once(&mut client, "p");
        assert_keys_are_covered(&mut client);
        one.shutdown(SOON).unwrap();
    }
}

/// The pooler keeps a statement for each text, even when the worker prepares it again.
#[test]
fn altering_a_table_behind_a_pooler_halts_nothing() {
    for pgbouncer in pgbouncers().into_iter().filter(|pgbouncer| pgbouncer.is_capable) {
        let (server, mut client) = server();
        client.batch_execute("CREATE TABLE altered AS SELECT 1 AS a").unwrap();
        let proxy = pgbouncer.start(server.port(), &["pool_mode = transaction", "max_prepared_statements = 100"]);
        let handler = meddled("p", |tx, _| {
            tx.query("SELECT * FROM altered", &[])?;
            Ok(())
        });
        let builder = builder(&proxy.url("pooled"), "set").heartbeats_only().retry(Retry::default().attempts(1));
        let worker = start(builder, vec![handler]);
        for column in ["b", "c", "d"] {
            append_plainly(&mut client, 20, 4);
            eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
            client.batch_execute(&format!("ALTER TABLE altered ADD {column} int")).unwrap();
        }
        append_plainly(&mut client, 20, 4);
        eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
        assert_exactly_once(&mut client, "p");
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn a_listener_keeps_its_connection_through_a_load_balancer() {
    const IDLE: Duration = Duration::from_secs(2);
    let (server, mut client) = server();
    let Some(proxy) = haproxy(server.port(), IDLE) else { return };
    let mut worker = WorkerProcess::start(&proxy.url("pooled"), &[]);
    let address = worker.await_ready();
    eventually("its session is older than several idle times", SOON, || {
        let sql = "SELECT FROM pg_stat_activity WHERE datname = 'pooled' AND pid <> pg_backend_pid() AND query = ''
                   AND backend_start < clock_timestamp() - interval '1 second' * $1::float8";
        client.query_opt(sql, &[&(4 * IDLE).as_secs_f64()]).unwrap()
    });
    let (_, metrics) = get(&address, "/metrics");
    let lost: Vec<i64> = values(&metrics, "reconnects_total", &[("connection", "listener")]);
    assert_eq!(lost, [1], "it was lost once");
    let log = worker.log();
    assert_eq!(log.iter().filter(|line| line.contains("connection lost")).count(), 1, "{}", log.join("\n"));
    assert_eq!(log.iter().filter(|line| line.contains("connection regained")).count(), 1, "{}", log.join("\n"));
}

#[test]
fn successive_losses_are_logged_once() {
    let (server, mut client) = server();
    let mut worker = WorkerProcess::start(&server.url("pooled"), &[]);
    let address = worker.await_ready();
    let losses = || {
        let (_, metrics) = get(&address, "/metrics");
        values(&metrics, "reconnects_total", &[("connection", "listener")]).first().copied().unwrap_or(0_i64)
    };
    for loss in 1..=4 {
        // The last statement of a listener, which also measures the lag.
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pooled'
                   AND (query LIKE 'LISTEN %' OR query LIKE 'SELECT p.name, lag.position%') AND pid <> pg_backend_pid()";
        eventually("it listens", SOON, || (!client.query(sql, &[]).unwrap().is_empty()).then_some(()));
        eventually("it has lost its connection", SOON, || (losses() == loss).then_some(()));
    }
    let log = worker.log();
    let logged = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((logged("connection lost"), logged("connection regained")), (1, 1), "{}", log.join("\n"));
}

/// How many connections the example `worker` needs: the coordinator's, the listener's, the tailer's
/// and two for each of its projections.
const OF_WORKER: usize = 7;

/// Clients that occupy sessions of a pooler, as soon as it has free ones.
struct Occupants {
    /// The clients leave when this is disconnected.
    _stay: Sender<()>,
    arrivals: Receiver<()>,
    count: usize,
}

impl Occupants {
    fn come(proxy: &Proxy, count: usize) -> Self {
        let (stay, leave) = bounded::<()>(0);
        let (arrived, arrivals) = bounded(count);
        for _ in 0..count {
            let (url, leave, arrived) = (proxy.url("pooled"), leave.clone(), arrived.clone());
            thread::spawn(move || {
                let mut client = Client::connect(&url, NoTls).unwrap();
                client.batch_execute("SELECT").unwrap();
                arrived.send(()).unwrap();
                _ = leave.recv();
            });
        }
        Self { _stay: stay, arrivals, count }
    }

    #[track_caller]
    fn await_sessions(&self) {
        for _ in 0..self.count {
            self.arrivals.recv_timeout(SOON).expect("the pooler has a session for it");
        }
    }
}

#[test]
fn a_worker_started_at_a_full_pooler_waits_for_room() {
    let room = 2 * OF_WORKER;
    for pgbouncer in pgbouncers() {
        for (limits, said) in [
            (vec![format!("default_pool_size = {room}")], "within"),
            // "cannot connect to" of a thread, or "no connection from the pool": all try at once.
            (vec![format!("default_pool_size = {room}"), "query_wait_timeout = 1".to_owned()], "connect"),
            (vec!["default_pool_size = 50".to_owned(), format!("max_client_conn = {room}")], "max_client_conn"),
        ] {
            let (server, mut client) = server();
            let settings: Vec<&str> = limits.iter().map(String::as_str).chain(["pool_mode = session"]).collect();
            let proxy = pgbouncer.start(server.port(), &settings);
            let url = format!("{}?connect_timeout=1", proxy.url("pooled"));
            let mut first = WorkerProcess::start(&url, &[]);
            first.await_processing(1);
            let occupants = Occupants::come(&proxy, 1);
            occupants.await_sessions();
            let mut generation =
                || -> i64 { client.query_one("SELECT max(number) FROM orchestrator_generations", &[]).unwrap().get(0) };
            let before = generation();

            let mut second = WorkerProcess::start(&url, &[]);
            let address = second.metrics_address();
            second.await_line(&["database is away, waiting for it: at_most=", said]);
            assert_eq!(get(&address, "/livez").0, 200);
            let (status, reason) = get(&address, "/readyz");
            assert!(status == 503 && reason.contains("has not registered yet"), "{status} {reason}");
            let not_ready: Vec<i64> =
                values(&get(&address, "/metrics").1, "not_ready", &[("reason", "not_registered")]);
            assert_eq!(not_ready, [1]);
            assert_eq!(generation(), before, "it takes no partition, {said}");

            append_plainly(&mut client, 100, 10);
            assert_read_models_become_right(&mut client);

            drop(occupants);
            second.await_processing(2);
            second.await_ready();
            append_plainly(&mut client, 100, 10);
            assert_read_models_become_right(&mut client);
        }
    }
}

#[test]
fn a_full_pooler_does_not_delay_a_coordinator() {
    let pgbouncer = pgbouncers().into_iter().next().expect("PgBouncer is installed");
    let (server, mut client) = server();
    let limit = format!("default_pool_size = {}", 2 * OF_WORKER);
    let proxy = pgbouncer.start(server.port(), &["pool_mode = session", &limit]);
    let url = format!("{}?connect_timeout=1", proxy.url("pooled"));
    let options = [("HEARTBEAT_INTERVAL", "300ms"), ("STALE_WORKER_TIMEOUT", "8s"), ("POLL_INTERVAL", "100ms")];
    let mut workers = [(); 2].map(|()| WorkerProcess::start(&url, &options));
    let addresses = workers.each_mut().map(WorkerProcess::await_ready);
    let [_, second] = &mut workers;
    let address = &addresses[1];
    second.await_processing(2);
    let worker = worker_of(&mut client, second.pid());
    let coordinator = backends_of(&mut client, worker, true);
    let mut others = backends_of(&mut client, worker, false);
    others.retain(|pid| !coordinator.contains(pid));
    let occupants = Occupants::come(&proxy, others.len());
    terminate(&mut client, &others);
    occupants.await_sessions();
    append_plainly(&mut client, 100, 10);
    second.await_line(&["partition given back, too few connections"]);
    assert_read_models_become_right(&mut client);
    second.await_line(&["too few connections, will register later"]);

    let heartbeats = || -> i64 {
        let (_, metrics) = get(address, "/metrics");
        values::<i64>(&metrics, "heartbeat_latency_seconds_count", &[]).into_iter().sum()
    };
    // Each heartbeat comes from another round of the coordinator's loop.
    let enough = heartbeats() + 5;
    eventually("the coordinator continues", SOON, || {
        let (status, reason) = get(address, "/readyz");
        assert!(status == 503 && reason.contains("it could not get its connections for"), "{status} {reason}");
        (heartbeats() >= enough).then_some(())
    });
    assert_eq!(get(address, "/livez").0, 200);
    let not_ready: Vec<i64> = values(&get(address, "/metrics").1, "not_ready", &[("reason", "lacks_connections")]);
    assert_eq!(not_ready, [1]);

    drop(occupants);
    second.await_processing(2);
    second.await_ready();
    append_plainly(&mut client, 100, 10);
    assert_read_models_become_right(&mut client);
}
