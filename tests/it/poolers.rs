//! Real poolers and load balancers between the workers and the server.

use std::time::Duration;

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Builder, Error, Names};

use crate::support::cluster::assert_keys_are_covered;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, is_complete};
use crate::support::proxies::{PgBouncer, Proxy, pgbouncers};
use crate::support::workers::{await_running, builder};
use crate::support::{Options, PrivatePostgres, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A server with a database `pooled`, which has the schema and the ledger's table.
fn server() -> (PrivatePostgres, Client) {
    let server = PrivatePostgres::start(Options::default()).unwrap();
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
