//! What the tests share: one server for all of them, a database for each.
#![allow(dead_code, unused_imports, reason = "a shelf for all tests, wherever each of them is")]

#[path = "../../../examples/support/private_postgres.rs"]
mod private_postgres;
#[path = "../../../examples/support/process.rs"]
mod process;
#[path = "../../../examples/support/server.rs"]
mod server;

pub(crate) mod alone;
pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod frozen;
pub(crate) mod handlers;
pub(crate) mod http;
#[path = "../../../examples/support/insert.rs"]
pub(crate) mod insert;
pub(crate) mod installed;
pub(crate) mod ledger;
pub(crate) mod metrics;
pub(crate) mod prometheus;
pub(crate) mod proxies;
pub(crate) mod standby;
pub(crate) mod statements;
pub(crate) mod worker_process;
pub(crate) mod workers;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};

pub(crate) use private_postgres::{Options, PrivatePostgres, StopMode};
use server::Server;

/// A fresh database, for one test alone, on the server that all tests share.
pub(crate) fn database() -> TestDatabase {
    static SERVER: OnceLock<Server> = OnceLock::new();
    static DATABASES: AtomicU32 = AtomicU32::new(0);

    let server = SERVER.get_or_init(|| Server::start().unwrap_or_else(|e| panic!("{e}")));
    // The test's name is in the database's, so that the server's log and pg_stat_activity can be read.
    let number = DATABASES.fetch_add(1, Ordering::Relaxed) + 1;
    let test = thread::current().name().unwrap_or_default().to_owned();
    let mut name = format!("test_{number}_{}_{}", std::process::id(), test.replace("::", "_"));
    name.retain(|c| c.is_ascii_alphanumeric() || c == '_');
    name.truncate(63);
    let url = server.create_database(&name).unwrap_or_else(|e| panic!("{e}"));
    TestDatabase { server, name, url }
}

/// Where a test works. It goes with the server, if that is private, or with the test.
#[derive(Debug)]
pub(crate) struct TestDatabase {
    server: &'static Server,
    name: String,
    url: String,
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if let Err(problem) = self.server.drop_database(&self.name) {
            println!("{problem}");
        }
    }
}

impl TestDatabase {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A new connection.
    pub(crate) fn client(&self) -> Client {
        Client::connect(&self.url, NoTls).unwrap_or_else(|e| panic!("{}: {e}", self.url))
    }
}

/// Probes every 10 ms until there is an answer, and panics when there is none after `timeout`.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let tick = crossbeam_channel::tick(Duration::from_millis(10));
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {timeout:?}: {what}");
        tick.recv().expect("a tick never ends");
    }
}
