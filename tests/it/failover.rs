//! The primary dies for good, and its synchronous standby takes over.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Metrics, MetricsServer, Names};
use uuid::Uuid;

use crate::restarts::is_ready;
use crate::support::cluster::{assert_keys_are_covered, generation, newest};
use crate::support::http::get;
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::series::values;
use crate::support::standby::{primary, standby_of};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, StopMode, eventually};

const SOON: Duration = Duration::from_secs(10);

fn connect(url: &str) -> Client {
    Client::connect(url, NoTls).unwrap()
}

/// The URL of a database on the one of the two servers that is the primary.
fn url_of_primary(database: &str, servers: [&Postgres; 2]) -> String {
    let [first, second] = servers.map(Postgres::port);
    format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/{database}?target_session_attrs=read-write")
}

/// Appends continuously until `stop` is disconnected, even if the server is away at times, and
/// sends the ids of acknowledged events. No version is used twice, even if its event is lost.
fn append_steadily(url: &str, stop: &Receiver<()>, acknowledged: &Sender<Vec<Uuid>>) {
    let mut client = None;
    let pause = Duration::from_millis(10);
    for version in 1_i64.. {
        if stop.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
            break;
        }
        client = client.filter(|client: &Client| !client.is_closed()).or_else(|| Client::connect(url, NoTls).ok());
        let Some(client) = &mut client else { continue };
        let columns =
            [("aggregate_type", "'Steady'"), ("aggregate_id", "'steady-' || i"), ("aggregate_version", "$1::bigint")];
        let sql = insert("generate_series(1, 5) AS i", &columns);
        let appended = client.query(&format!("{sql} RETURNING event_id"), &[&version]);
        if let Ok(rows) = appended {
            acknowledged.send(rows.iter().map(|row| row.get(0)).collect()).unwrap();
        }
    }
}

#[test]
fn workers_continue_on_the_promoted_standby() {
    let begun = Instant::now();
    let mut primary = primary();
    let standby = standby_of(&primary);
    println!("both servers run after {:?}", begun.elapsed());
    let mut client = connect(&primary.create_database("failover").unwrap());
    let replication = client.query_one("SELECT state, sync_state FROM pg_stat_replication", &[]).unwrap();
    assert_eq!((replication.get(0), replication.get(1)), ("streaming", "sync"));
    Ledger::create_table(&mut client);

    let worker = |servers| {
        // `session_loss_grace` matters here, so it has its default.
        let builder = builder(&url_of_primary("failover", servers), "set").session_loss_grace(Duration::from_secs(1));
        start(builder, vec![Box::new(Ledger { takes: Duration::from_millis(1), ..Ledger::named("p") })])
    };
    // The order must not matter, because the client skips a standby.
    let (one, other) = (worker([&primary, &standby]), worker([&standby, &primary]));
    let workers = [&one, &other];
    let sites = workers.map(|worker| {
        let site = MetricsServer::builder(Metrics::disabled().unwrap()).bind("127.0.0.1:0").unwrap();
        site.watch(worker.health());
        site
    });
    let all_say = |ready: bool| {
        workers.iter().all(|worker| worker.status().database_reachable == ready)
            && sites.iter().all(|site| is_ready(site.address()) == ready)
    };
    let generation_before = await_running(&workers);
    eventually("both are ready", SOON, || all_say(true).then_some(()));

    // Unfinished work, and above it a hole with further events after it.
    append_plainly(&mut client, 1_000, 200);
    let mut slow = connect(&primary.url("failover"));
    let mut open = slow.transaction().unwrap();
    append_plainly(&mut open, 1, 1);
    let hole = newest(&mut open);
    let (stop, stopped) = bounded(0);
    let (acknowledged, acknowledgements) = unbounded();
    let appender = {
        let url = url_of_primary("failover", [&primary, &standby]);
        thread::spawn(move || append_steadily(&url, &stopped, &acknowledged))
    };
    let acknowledge_more = || {
        let before = acknowledgements.len();
        eventually("appends are acknowledged", SOON, || (acknowledgements.len() > before + 5).then_some(()));
    };
    acknowledge_more();
    eventually("they are at work", SOON, || (handled(&mut client, "p") > 0).then_some(()));
    primary.stop(StopMode::Immediate).unwrap();
    drop(open);
    drop(primary);

    let mut client = connect(&standby.url("failover"));
    eventually("neither is ready", SOON, || all_say(false).then_some(()));
    let reported = client.query_one("SELECT max(safe_head) FROM orchestrator_workers", &[]).unwrap();
    assert!(reported.get::<_, i64>(0) < hole, "a head beyond an open transaction was reported");
    assert!(client.query_one("SELECT pg_is_in_recovery()", &[]).unwrap().get::<_, bool>(0));
    assert!(all_say(false), "a read-only server does not count as reachable");
    assert!(client.query_one("SELECT pg_promote()", &[]).unwrap().get::<_, bool>(0));
    let promoted = Instant::now();
    let mut client = connect(&standby.url("failover"));
    let handled_before = handled(&mut client, "p");
    let last_before = newest(&mut client);
    assert!(hole < last_before, "nothing was appended above {hole}");

    append_plainly(&mut client, 200, 200);
    eventually("they go on", SOON, || (handled(&mut client, "p") > handled_before).then_some(()));
    let resumed = promoted.elapsed();
    eventually("both are ready", SOON, || all_say(true).then_some(()));
    let ready = promoted.elapsed();
    acknowledge_more();
    let sql = "SELECT count(*) FROM ledger JOIN events USING (global_position) WHERE aggregate_type = 'Thing' AND global_position > $1";
    eventually("what was appended since is handled", SOON, || {
        (client.query_one(sql, &[&last_before]).unwrap().get::<_, i64>(0) == 200).then_some(())
    });
    let caught_up = promoted.elapsed();

    // The safe head respects the writers on this server.
    let mut slow = connect(&standby.url("failover"));
    let mut open = slow.transaction().unwrap();
    append_plainly(&mut open, 1, 1);
    let later_hole = newest(&mut open);
    assert!(later_hole > last_before, "{later_hole} is not above {last_before}");
    acknowledge_more();
    assert!(workers.iter().all(|worker| worker.status().safe_head < Some(later_hole)), "a hole was stepped over");
    open.commit().unwrap();

    drop(stop);
    appender.join().unwrap();
    await_running(&workers);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    assert_keys_are_covered(&mut client);

    let acknowledged: Vec<Uuid> = acknowledgements.iter().flatten().collect();
    let sql = "SELECT (SELECT count(*) FROM unnest($1::uuid[]) AS id WHERE NOT EXISTS (SELECT FROM events WHERE event_id = id)),
                      (SELECT count(*) FROM ledger l WHERE NOT EXISTS (SELECT FROM events e WHERE e.global_position = l.global_position)),
                      (SELECT count(*) FROM events WHERE global_position = $2)";
    let row = client.query_one(sql, &[&acknowledged, &hole]).unwrap();
    let found: (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!(found, (0, 0, 0), "(acknowledged and lost, handled and lost, never committed and there)");
    let last = newest(&mut client);
    let heads = || workers.map(|worker| worker.status().safe_head);
    eventually("the safe head is the newest event", SOON, || (heads() == [Some(last); 2]).then_some(()));
    println!(
        "promotion to resumed: {resumed:?}, both ready: {ready:?}, caught up: {caught_up:?}; acknowledged: {}, handled before: \
         {handled_before}, generations: {generation_before} to {}, test: {:?}",
        acknowledged.len(),
        generation(&mut client),
        begun.elapsed()
    );
}

#[test]
fn events_lost_in_a_failover_are_not_handled() {
    let primary = primary();
    let mut standby = standby_of(&primary);
    let mut client = connect(&primary.create_database("failover").unwrap());
    Ledger::create_table(&mut client);
    let url = url_of_primary("failover", [&primary, &standby]);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 10);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));

    // From here on nothing reaches the standby, and the primary no longer waits for it.
    standby.stop(StopMode::Fast).unwrap();
    client.batch_execute("ALTER SYSTEM SET synchronous_standby_names = ''").unwrap();
    client.batch_execute("SELECT pg_reload_conf()").unwrap();
    append_plainly(&mut client, 200, 20);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    let lost = newest(&mut client);
    drop(primary);
    standby.start_again().unwrap();
    let mut client = connect(&standby.url("postgres"));
    assert!(client.query_one("SELECT pg_promote()", &[]).unwrap().get::<_, bool>(0));
    let mut client = connect(&standby.url("failover"));

    // Other events get the positions of the lost events.
    append_plainly(&mut client, 100, 10);
    assert!(newest(&mut client) < lost, "no position is used again");
    append_plainly(&mut client, 200, 20);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    let sql = "SELECT count(*) FROM ledger l LEFT JOIN events e USING (global_position)
               WHERE (l.aggregate_id, l.aggregate_version) IS DISTINCT FROM (e.aggregate_id, e.aggregate_version)";
    assert_eq!(client.query_one(sql, &[]).unwrap().get::<_, i64>(0), 0, "events of the lost server were handled");
    assert_exactly_once(&mut client, "p");
}

#[test]
fn a_worker_that_starts_on_a_standby_awaits_its_promotion() {
    let primary = primary();
    let standby = standby_of(&primary);
    let mut client = connect(&primary.create_database("failover").unwrap());
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    append_plainly(&mut client, 100, 10);
    drop(primary);

    let mut worker = WorkerProcess::start(&standby.url("failover"), &[]);
    let address = worker.metrics_address();
    worker.await_logged(&["database is away, waiting for it: at_most=", "in recovery (a standby)"]);
    assert_eq!(get(&address, "/livez").0, 200);
    let (status, reason) = get(&address, "/readyz");
    assert!(status == 503 && reason.contains("has not registered yet"), "{status} {reason}");
    let not_ready: Vec<i64> = values(&get(&address, "/metrics").1, "not_ready", &[("reason", "not_registered")]);
    assert_eq!(not_ready, [1]);
    let mut client = connect(&standby.url("postgres"));
    assert!(client.query_one("SELECT pg_promote()", &[]).unwrap().get::<_, bool>(0));
    worker.await_ready();
    let mut client = connect(&standby.url("failover"));
    let sql = "SELECT coalesce(sum(events), 0)::bigint = (SELECT count(*) FROM events) FROM aggregate_activity";
    eventually("all events are handled", SOON, || client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(()));
}
