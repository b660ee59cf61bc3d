//! What the tests share: one server for all of them, a database for each.
#![allow(dead_code, unused_imports, reason = "helpers of all tests, of which each target uses some")]

#[path = "../../../examples/support/process.rs"]
mod process;

pub(crate) mod alone;
pub(crate) mod browser;
pub(crate) mod cluster;
pub(crate) mod commands;
pub(crate) mod frozen;
pub(crate) mod handlers;
pub(crate) mod http;
#[path = "../../../examples/support/insert.rs"]
pub(crate) mod insert;
pub(crate) mod installed;
pub(crate) mod ledger;
pub(crate) mod metrics;
pub(crate) mod parking;
pub(crate) mod prometheus;
pub(crate) mod proxies;
pub(crate) mod reactions;
pub(crate) mod readers;
pub(crate) mod rebuilds;
#[path = "../../../examples/support/receiver.rs"]
pub(crate) mod receiver;
pub(crate) mod standby;
pub(crate) mod statements;
pub(crate) mod worker_process;
pub(crate) mod workers;

use std::ops::Deref;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::testing;

pub(crate) use pupsourcing_orchestrator::testing::{Postgres, StopMode};

/// A fresh database, for one test alone, on the server that all tests share.
pub(crate) fn database() -> TestDatabase {
    TestDatabase(testing::database().unwrap())
}

/// The database of one test.
#[derive(Debug)]
pub(crate) struct TestDatabase(testing::TestDatabase);

impl Deref for TestDatabase {
    type Target = testing::TestDatabase;

    fn deref(&self) -> &testing::TestDatabase {
        &self.0
    }
}

impl TestDatabase {
    /// A new connection.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.url(), NoTls).unwrap_or_else(|e| panic!("{}: {e}", self.url()))
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
