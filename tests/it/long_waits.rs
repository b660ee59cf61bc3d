//! Workers that wait longer than their own code may run: a wait is no reason to restart them.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{bounded, tick};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Handle, MetricsServer};

use crate::probes::{await_unready, probed, send_hints};
use crate::support::frozen::Frozen;
use crate::support::handlers::{meddled, prepared};
use crate::support::http::get;
use crate::support::ledger::{Ledger, append_plainly};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{Postgres, TestDatabase, database};

const SOON: Duration = Duration::from_secs(10);

/// Longer than `STUCK_AFTER` in `src/threads.rs`, after which `/livez` fails.
const LONG: Duration = Duration::from_secs(95);

/// A worker and its probes.
struct Probed {
    worker: Handle,
    address: String,
    _server: MetricsServer,
}

impl Probed {
    fn new(worker: Handle) -> Self {
        await_running(&[&worker]);
        let (server, address) = probed(&worker);
        Self { worker, address, _server: server }
    }
}

/// A worker, and another session that has locked a table.
fn locked(table: &str) -> (TestDatabase, Probed, Client) {
    let database = database();
    let probed = Probed::new(start_ledger(&database, "p"));
    let mut locker = database.client();
    locker.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).unwrap();
    (database, probed, locker)
}

/// All waits are in one test, because together they take as long as one of them.
#[test]
fn worker_that_waits_for_a_long_time_is_alive() {
    let (_events, blind, _events_locker) = locked("events");
    let (_workers, silent, _workers_locker) = locked("orchestrator_workers");

    let busy_database = database();
    let mut client = prepared(&busy_database);
    let (let_go, go_on) = bounded::<()>(0);
    let (entered, was_entered) = bounded(1);
    let busy = meddled("p", move |_, _| {
        _ = entered.try_send(());
        // When the channel is disconnected, every event passes.
        _ = go_on.recv();
        Ok(())
    });
    let busy = Probed::new(start(builder(busy_database.url(), "set"), vec![busy]));
    append_plainly(&mut client, 10, 5);
    was_entered.recv_timeout(SOON).unwrap();

    let flooded_database = database();
    let flooded = Probed::new(start_ledger(&flooded_database, "p"));
    let (stop, stopped) = bounded(0);
    let client = flooded_database.client();
    let flood = thread::spawn(move || send_hints(client, Duration::from_millis(5), &stopped));

    let mut unstarted = WorkerProcess::start("postgres://nobody@127.0.0.1:1/none", &[("DATABASE_WAIT", "10m")]);
    let unstarted = unstarted.metrics_address();

    let server = Postgres::start().unwrap();
    let url = server.create_database("frozen").unwrap();
    Ledger::create_table(&mut Client::connect(&url, NoTls).unwrap());
    let cut_off = Probed::new(start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]));
    let frozen = Frozen::freeze(&server);

    let begun = Instant::now();
    let waiting = [
        ("events locked", blind.address.as_str(), Some("the events could not be read for")),
        ("workers locked", &silent.address, Some("no heartbeat was answered for")),
        ("handler busy", &busy.address, None),
        ("notifications", &flooded.address, None),
        ("not started", &unstarted, Some("has not registered yet")),
        ("server frozen", &cut_off.address, Some("no heartbeat was answered for")),
    ];
    for (_, address, reason) in waiting {
        if let Some(reason) = reason {
            await_unready(address, reason);
        }
    }
    let ask = tick(Duration::from_secs(1));
    while begun.elapsed() < LONG {
        ask.recv().unwrap();
        for (what, address, reason) in waiting {
            let (live, ready) = (get(address, "/livez"), get(address, "/readyz"));
            let after = begun.elapsed();
            assert_eq!(live, (200, "ok\n".into()), "{what}, after {after:?}");
            let as_expected = reason.map_or(ready.0 == 200, |reason| ready.0 == 503 && ready.1.contains(reason));
            assert!(as_expected, "{what}, after {after:?}: {ready:?}");
        }
    }
    drop((frozen, let_go, stop));
    let sent = flood.join().unwrap();
    assert!(sent > 30 * LONG.as_secs(), "only {sent} notifications");
    for probed in [busy, flooded] {
        probed.worker.shutdown(SOON).unwrap();
    }
}
