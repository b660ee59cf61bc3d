//! A server that goes away and comes back.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Handle, Metrics, MetricsServer, ProjectionState, Scope};

use crate::support::cluster::{assert_keys_are_covered, generation, newest};
use crate::support::http::get;
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::total;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, StopMode, eventually};

const SOON: Duration = Duration::from_secs(10);

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

/// Appends continuously until `stop` is disconnected, even if the server is away at times.
fn append_steadily(url: &str, stop: &Receiver<()>) {
    let mut client = None;
    let pause = Duration::from_millis(10);
    while stop.recv_timeout(pause) == Err(crossbeam_channel::RecvTimeoutError::Timeout) {
        client = client.filter(|client: &Client| !client.is_closed()).or_else(|| Client::connect(url, NoTls).ok());
        let Some(client) = &mut client else { continue };
        _ = client.execute(&insert("generate_series(1, 10)", &[("aggregate_type", "'Steady'")]), &[]);
    }
}

#[test]
fn workers_continue_after_the_server_was_restarted() {
    let mut server = Postgres::start().unwrap();
    let url = server.create_database("restarts").unwrap();
    Ledger::create_table(&mut connect(&url));
    let worker = || {
        // `session_loss_grace` matters here, so it has its default.
        let builder = builder(&url, "set").session_loss_grace(Duration::from_secs(1));
        start(builder, vec![Box::new(Ledger::named("p"))])
    };
    let (one, other) = (worker(), worker());
    await_running(&[&one, &other]);
    let (stop, stopped) = bounded(0);
    let appender = {
        let url = url.clone();
        thread::spawn(move || append_steadily(&url, &stopped))
    };
    for mode in [StopMode::Fast, StopMode::Immediate] {
        server.stop(mode).unwrap();
        server.start_again().unwrap();
        let back = Instant::now();
        let mut client = connect(&url);
        append_plainly(&mut client, 200, 200);
        let newest = newest(&mut client);
        let sql = "SELECT count(*) FROM ledger l JOIN events e USING (global_position) WHERE e.aggregate_type = 'Thing'
                   AND e.aggregate_version = (SELECT max(aggregate_version) FROM events) AND global_position <= $1";
        eventually("what was appended since is handled, by both", SOON, || {
            (client.query_one(sql, &[&newest]).unwrap().get::<_, i64>(0) == 200).then_some(())
        });
        let took = back.elapsed();
        let evicted = total(&one, "stale_workers_cleaned_total") + total(&other, "stale_workers_cleaned_total");
        println!("{mode:?} restart to resumed: {took:?}, evicted so far: {evicted}");
        // The limit that `benches/reconfiguration` measures against.
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    drop(stop);
    appender.join().unwrap();
    await_running(&[&one, &other]);
    let mut client = connect(&url);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    assert_keys_are_covered(&mut client);
}

/// Whether `/readyz` says yes.
pub(crate) fn is_ready(address: SocketAddr) -> bool {
    get(&address.to_string(), "/readyz").0 == 200
}

/// A worker that is cut off for this long is dead to the others.
const TIMEOUT: Duration = Duration::from_secs(2);

#[test]
fn workers_that_are_cut_off_pause_until_the_server_is_back() {
    let mut server = Postgres::start().unwrap();
    let url = server.create_database("cut_off").unwrap();
    Ledger::create_table(&mut connect(&url));
    let worker = || {
        let builder = builder(&url, "set").session_loss_grace(TIMEOUT).stale_worker_timeout(TIMEOUT);
        let busy = Ledger { takes: Duration::from_millis(1), ..Ledger::named("p") };
        let idle = Ledger { scope: Scope::all().bounded_contexts(["elsewhere"]), ..Ledger::named("idle") };
        start(builder, vec![Box::new(busy), Box::new(idle)])
    };
    let (one, other) = (worker(), worker());
    let http = MetricsServer::builder(Metrics::disabled().unwrap()).bind("127.0.0.1:0").unwrap();
    http.watch(one.health());
    let before = await_running(&[&one, &other]);
    assert!(is_ready(http.address()));
    let mut client = connect(&url);
    append_plainly(&mut client, 1_000, 100);
    eventually("they are at work", SOON, || (handled(&mut client, "p") > 0).then_some(()));

    server.stop(StopMode::Fast).unwrap();
    eventually("it is not ready", SOON, || (!is_ready(http.address())).then_some(()));
    let pauses = |worker: &Handle| worker.status().projections.values().all(|p| p.state == ProjectionState::Paused);
    eventually("both pause", Duration::from_secs(5), || (pauses(&one) && pauses(&other)).then_some(()));
    assert!(one.status().last_heartbeat.unwrap() >= TIMEOUT, "paused while it was still trusted");

    server.start_again().unwrap();
    eventually("it is ready", SOON, || is_ready(http.address()).then_some(()));
    // The worker that is back first sees old heartbeats and lost sessions, and gives the other one
    // time.
    assert_eq!(await_running(&[&one, &other]), before, "one has evicted the other");
    let mut client = connect(&url);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    assert_eq!(generation(&mut client), before, "one has evicted the other");
}
