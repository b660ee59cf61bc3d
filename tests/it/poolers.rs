//! Real poolers and load balancers between the workers and the server.

use std::time::Duration;

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Builder, Error, Names};

use crate::support::cluster::assert_keys_are_covered;
use crate::support::http::get;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::metrics::series::values;
use crate::support::proxies::{PgBouncer, Proxy, haproxy, pgbouncers};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder};
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
        // An old one does not know the setting.
        let without = if is_capable { "max_prepared_statements = 0" } else { "" };
        for pool_size in ["default_pool_size = 20", "default_pool_size = 1", "server_round_robin = 1"] {
            let proxy = pgbouncer.start(server.port(), &["pool_mode = transaction", without, pool_size]);
            for (sessions, problem) in [
                (Builder::heartbeats_only as fn(Builder) -> Builder, "prepared statement"),
                (|builder| builder, "pooler"),
            ] {
                let error = worker(&proxy, sessions).build().unwrap().start().unwrap_err();
                let said = error.to_string();
                assert!(matches!(error, Error::UnsupportedServer { .. }), "{pgbouncer:?} {pool_size}: {error:?}");
                for part in [problem, "1.21", "max_prepared_statements", "heartbeats_only", "session mode"] {
                    assert!(said.contains(part), "{pgbouncer:?} {pool_size}: {said}");
                }
            }
        }
        if is_capable {
            let proxy = pgbouncer.start(server.port(), &["pool_mode = transaction", "max_prepared_statements = 100"]);
            let error = worker(&proxy, |builder| builder).build().unwrap().start().unwrap_err().to_string();
            assert!(error.contains("different sessions") && error.contains("heartbeats_only"), "{error}");
        }
    }
}

#[test]
fn workers_process_behind_poolers_that_are_capable() {
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
fn losses_that_follow_one_another_are_logged_once() {
    let (server, mut client) = server();
    let mut worker = WorkerProcess::start(&server.url("pooled"), &[]);
    let address = worker.await_ready();
    let losses = || {
        let (_, metrics) = get(&address, "/metrics");
        values(&metrics, "reconnects_total", &[("connection", "listener")]).first().copied().unwrap_or(0_i64)
    };
    for loss in 1..=4 {
        // What a listener executes last: it measures the lag as well.
        let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'pooled'
                   AND (query LIKE 'LISTEN %' OR query LIKE '%isfinite(next.created_at)%') AND pid <> pg_backend_pid()";
        eventually("it listens", SOON, || (!client.query(sql, &[]).unwrap().is_empty()).then_some(()));
        eventually("it has lost its connection", SOON, || (losses() == loss).then_some(()));
    }
    let log = worker.log();
    let logged = |text: &str| log.iter().filter(|line| line.contains(text)).count();
    assert_eq!((logged("connection lost"), logged("connection regained")), (1, 1), "{}", log.join("\n"));
}
