//! Kills the worker that executes a command of a rebuild, at any message that it sends to the
//! server, and before or after the server has executed it. Then the old or the new world is whole,
//! another worker finishes, and there is nothing to clean up by hand.
//!
//! A worker sends the statements of these commands on connections of their own, as the role that
//! owns the tables. These go through a proxy, so the library contains nothing for this test.
//!
//! `cargo test` tries a few messages of each command. This tries all of them:
//!
//! ```sh
//! CRASHES=all cargo test --release --test rebuild_crashes -- --nocapture
//! ```
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod proxy;
#[path = "../it/support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::{Database, Handle, Names};
use serde_json::{Value, json};

use proxy::{Point, Proxy, Side};
use support::commands::{done, give, outcome_within};
use support::ledger::append_plainly;
use support::readers::{Pair, Readers, Way};
use support::rebuilds::{begin_rebuild_with, schemas};
use support::worker_process::{Signal, WorkerProcess};
use support::workers::{await_running, builder, start};
use support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(60);

/// At how many messages of a command the worker is killed, unless all are tried.
const FEW: usize = 4;

/// The name of the test that is the worker.
const WORKER: &str = "worker";

#[test]
#[ignore = "it is the worker that the other tests start in a process of its own"]
fn worker() {
    let [Ok(url), Ok(owner)] = ["URL", "OWNER"].map(std::env::var) else { return };
    let owner = Database::from_url(&owner).unwrap();
    let _worker = start(builder(&url, "set").owner(owner), vec![Pair::boxed()]);
    // The test kills it.
    _ = crossbeam_channel::never::<()>().recv();
}

/// The part of a command's life in which the worker is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// From the beginning of a rebuild to the switch.
    Rebuild,
    /// The same, when the content is replaced.
    Copy,
    Cancel,
    Revert,
    DropOld,
}

impl Phase {
    /// How many events there are at the beginning.
    fn events(self) -> i64 {
        match self {
            // So many that the rebuild is not about to be switched when it is cancelled. If it
            // were, the switch could come first, and the command would be refused.
            Self::Cancel => 2_000,
            _ => 200,
        }
    }

    /// What is done before, while nothing is killed.
    fn prepare(self, scene: &mut Scene) {
        match self {
            Self::Rebuild | Self::Copy => {}
            Self::Cancel => _ = begin_rebuild_with(&mut scene.client, "pair", &json!({"rate": 20})),
            Self::Revert | Self::DropOld => {
                done(&mut scene.client, "pair", "rebuild", &json!({"rate": null, "keep_old": true}));
            }
        }
    }

    fn command(self) -> (&'static str, Value) {
        match self {
            Self::Rebuild => ("rebuild", json!({"rate": null})),
            Self::Copy => ("rebuild", json!({"rate": null, "copy": true})),
            Self::Cancel => ("cancel", json!({})),
            Self::Revert => ("revert", json!({})),
            Self::DropOld => ("drop_old", json!({})),
        }
    }

    /// Whether the read model is the damaged one in the end.
    fn ends_damaged(self) -> bool {
        matches!(self, Self::Cancel | Self::Revert)
    }
}

struct Scene {
    database: TestDatabase,
    client: Client,
    proxy: Proxy,
}

impl Scene {
    fn prepared(events: i64) -> Self {
        let database = database();
        let mut client = database.client();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        Pair::create(&mut client);
        append_plainly(&mut client, events, 10);
        let config: postgres::Config = database.url().parse().unwrap();
        let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], config.get_ports()[0])));
        let mut scene = Self { database, client, proxy };
        let other = scene.other_worker();
        scene.await_complete();
        other.shutdown(SOON).unwrap();
        scene
    }

    /// A worker that is not killed.
    fn other_worker(&self) -> Handle {
        let worker = start(builder(self.database.url(), "set"), vec![Pair::boxed()]);
        await_running(&[&worker]);
        worker
    }

    fn await_complete(&mut self) {
        let sql = "SELECT (SELECT count(*) FROM pair_events) = (SELECT count(*) FROM events)
                          AND (SELECT sum(events) FROM pair_sums) = (SELECT count(*) FROM events)
                          AND NOT EXISTS (SELECT FROM pair_events FULL JOIN events USING (global_position)
                                          WHERE pair_events.aggregate_id IS DISTINCT FROM events.aggregate_id)";
        eventually("the read model is complete", SOON, || {
            self.client.query_one(sql, &[]).unwrap().get::<_, Option<bool>>(0).filter(|is_complete| *is_complete)
        });
    }

    fn is_damaged(&mut self) -> bool {
        let sql = "SELECT max(pair_events.damage) + max(pair_sums.damage) FROM pair_events, pair_sums";
        match self.client.query_one(sql, &[]).unwrap().get(0) {
            0 => false,
            2 => true,
            mixture => panic!("a mixture: {mixture}"),
        }
    }

    /// Gives the command to a worker, and kills it at this point. Another worker does the rest.
    /// Returns how many messages the first one has sent.
    fn crash(&mut self, phase: Phase, point: Option<Point>) -> usize {
        let begun = Instant::now();
        self.proxy.arm(None);
        let (url, port) = (self.database.url().to_owned(), self.proxy.port());
        let config: postgres::Config = url.parse().unwrap();
        let behind = url.replace(&format!(":{}/", config.get_ports()[0]), &format!(":{port}/"));
        assert_ne!(url, behind);
        let mut worker = WorkerProcess::start_test(WORKER, &[("URL", &url), ("OWNER", &behind)]);
        worker.await_processing(1);
        self.client.batch_execute("UPDATE pair_events SET damage = 1; UPDATE pair_sums SET damage = 1").unwrap();
        phase.prepare(self);
        if phase == Phase::Revert || phase == Phase::DropOld {
            assert!(!self.is_damaged());
        }
        let readers = (phase != Phase::Revert).then(|| Readers::start(&url, &[Way::Simple, Way::Prepared]));
        self.proxy.arm(point);
        let (command, arguments) = phase.command();
        let id = give(&mut self.client, "pair", command, &arguments);
        let ended = "SELECT FROM orchestrator_commands WHERE id = $1 AND applied_at IS NOT NULL";
        let is_killed = eventually("the worker stops, or is done", SOON, || {
            let is_stopped = self.proxy.stopped().try_recv().is_ok();
            (is_stopped || self.client.query_opt(ended, &[&id]).unwrap().is_some()).then_some(is_stopped)
        });
        let messages = self.proxy.messages();
        worker.signal(Signal::KILL);
        worker.await_end();
        self.proxy.disconnect();
        _ = self.proxy.stopped().try_recv();
        // The old or the new world is whole, before any other worker does something.
        self.is_damaged();
        append_plainly(&mut self.client, 10, 10);
        let other = self.other_worker();
        let (outcome, _, error) = outcome_within(&mut self.client, id, SOON);
        assert_eq!((outcome.as_str(), error), ("done", None), "{phase:?} {point:?}");
        self.await_complete();
        assert_eq!(self.is_damaged(), phase.ends_damaged(), "{phase:?} {point:?}");
        if let Some(readers) = readers {
            readers.stop();
        }
        if phase == Phase::Revert {
            done(&mut self.client, "pair", "drop_old", &json!({}));
        }
        assert_eq!(schemas(&mut self.client), [""; 0], "{phase:?} {point:?}");
        let rows = self.client.query("SELECT FROM orchestrator_projections", &[]).unwrap();
        assert_eq!(rows.len(), 1, "{phase:?} {point:?}");
        append_plainly(&mut self.client, 10, 10);
        self.await_complete();
        other.shutdown(SOON).unwrap();
        println!("{phase:?} {point:?}: killed={is_killed} messages={messages} after {:?}", begun.elapsed());
        messages
    }
}

fn crash_everywhere(phase: Phase) {
    let mut scene = Scene::prepared(phase.events());
    let messages = scene.crash(phase, None);
    assert!(messages > 5, "the proxy sees the connection: {messages}");
    let tries_all = std::env::var("CRASHES").is_ok_and(|which| which == "all");
    let step = if tries_all { 1 } else { messages.div_ceil(FEW) };
    for message in (1..=messages).step_by(step) {
        let sides = [Side::Before, Side::After];
        for side in sides.into_iter().filter(|side| tries_all || (message / step % 2 == 0) == (*side == Side::Before)) {
            scene.crash(phase, Some(Point { message, side }));
        }
    }
}

#[test]
fn rebuild_survives_a_crash_at_any_message() {
    crash_everywhere(Phase::Rebuild);
}

#[test]
fn copying_survives_a_crash_at_any_message() {
    crash_everywhere(Phase::Copy);
}

#[test]
fn cancelling_survives_a_crash_at_any_message() {
    crash_everywhere(Phase::Cancel);
}

#[test]
fn reverting_survives_a_crash_at_any_message() {
    crash_everywhere(Phase::Revert);
}

#[test]
fn dropping_old_tables_survives_a_crash_at_any_message() {
    crash_everywhere(Phase::DropOld);
}
