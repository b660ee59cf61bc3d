//! The example `worker` as an operator sees it: a process with settings, signals, exit codes and an
//! HTTP port.

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::time::{Duration, Instant};

use crate::support::cluster::await_blocked;
use crate::support::http::{get, get_as};
use crate::support::insert::insert;
use crate::support::ledger::append_plainly;
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::{Postgres, StopMode, database, eventually};

const SOON: Duration = Duration::from_secs(15);

fn text_of(worker: &mut WorkerProcess) -> String {
    worker.log().join("\n")
}

#[test]
fn a_worker_exits_and_names_a_wrong_setting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    // No server listens there. The worker reports a wrong setting before it connects.
    let url = "postgres://user:hidden@127.0.0.1:1/none";
    for (settings, code, parts) in [
        (&[][..], 2, &["DATABASE_URL is not set", "postgres://"][..]),
        (&[("DATABASE_URL", " ")], 2, &["DATABASE_URL is not set"]),
        (&[("DATABASE_URL", "mysql://u:hidden@h/d")], 2, &["database URL", "mysql"]),
        (&[("DATABASE_URL", "postgres://h/d?sslmode=maybe")], 2, &["sslmode is \"maybe\""]),
        (&[("DATABASE_URL", "postgres://h/d?sslrootcert=/missing.pem&sslmode=verify-ca")], 2, &["/missing.pem"]),
        (
            &[("DATABASE_URL", url), ("ORCHESTRATOR_DATABASE_WAIT", "50ms")],
            1,
            &["database is away, waiting for it: at_most=", "cannot connect to 127.0.0.1:1/none as user", "refused"],
        ),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_DATABASE_WAIT", "25h")], 2, &["database_wait is 90000s", "24 h"]),
        (&[("DATABASE_URL", url), ("REPLICA_SET", url)], 2, &["replica_set is \"postgres://user:***@", "password"]),
        (&[("DATABASE_URL", url), ("REPLICA_SET", "dbname=d password=hidden")], 2, &["replica_set is", "password"]),
        (&[("DATABASE_URL", url), ("METRICS_ADDR", url)], 2, &["postgres://user:***@", "0.0.0.0:9090"]),
        (&[("DATABASE_URL", url), ("STATUS_PAGE", url)], 2, &["STATUS_PAGE is", "on or off"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_LANES", url)], 2, &["LANES is \"postgres://user:***@", "number"]),
        (&[("DATABASE_URL", url), ("REPLICA_SET", "a\tb")], 2, &["replica_set is \"a\\tb\""]),
        (&[("DATABASE_URL", url), ("METRICS_ADDR", "nonsense")], 2, &["\"nonsense\"", "0.0.0.0:9090"]),
        (&[("DATABASE_URL", url), ("METRICS_ADDR", &taken)], 2, &[&taken, "in use"]),
        (&[("DATABASE_URL", url), ("STATUS_PAGE", "0")], 2, &["STATUS_PAGE is \"0\"", "on or off"]),
        (
            &[("DATABASE_URL", url), ("ORCHESTRATOR_HEARTBEAT_INTERVAL", "5")],
            2,
            &["HEARTBEAT_INTERVAL is \"5\"", "10s"],
        ),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_STALE_WORKER_TIMEOUT", "soon")], 2, &["TIMEOUT is \"soon\"", "10s"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_SESSION_LOSS_GRACE", "no")], 2, &["SESSION_LOSS_GRACE is \"no\""]),
        (
            &[("DATABASE_URL", url), ("ORCHESTRATOR_COORDINATION_TIMEOUT", "-1s")],
            2,
            &["COORDINATION_TIMEOUT is \"-1s\""],
        ),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_POLL_INTERVAL", "1d")], 2, &["POLL_INTERVAL is \"1d\""]),
        (
            &[("DATABASE_URL", url), ("ORCHESTRATOR_REGISTRATION_WAIT", "1.2.3s")],
            2,
            &["REGISTRATION_WAIT is \"1.2.3s\""],
        ),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_EVENT_POLL", "5ms")], 2, &["EVENT_POLL is \"5ms\"", "5ms..250ms"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_BATCH_SIZE", "1k")], 2, &["BATCH_SIZE is \"1k\"", "whole number"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_BATCH_BYTES", "8MB")], 2, &["BATCH_BYTES is \"8MB\"", "8MiB"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_POOL_SIZE", "-1")], 2, &["POOL_SIZE is \"-1\"", "whole number"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_POOL_SIZE", "3")], 2, &["pool_size is 3", "2 lanes", "= 4"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_LANES", "0")], 2, &["lanes is 0", "1 to 64"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_BATCH_SIZE", "0")], 2, &["batch_size is 0", "at least 1"]),
        (&[("DATABASE_URL", url), ("ORCHESTRATOR_RETRY_ATTEMPTS", "0")], 2, &["retry.attempts is 0", "at least 1"]),
        (
            &[("DATABASE_URL", url), ("ORCHESTRATOR_STALE_WORKER_TIMEOUT", "10s")],
            2,
            &["stale_worker_timeout is 10s", "3 × heartbeat_interval (5s)"],
        ),
    ] {
        let mut worker = WorkerProcess::start_with(&[], settings);
        assert_eq!(worker.exit_code(), Some(code), "{settings:?}: {}", text_of(&mut worker));
        let log = text_of(&mut worker);
        for part in parts {
            assert!(log.contains(part), "{settings:?}: {log:?} should contain {part:?}");
        }
        assert!(!log.contains("hidden"), "{settings:?}: {log:?}");
    }
}

#[test]
fn the_status_page_is_served_unless_turned_off() {
    let database = database();
    for (setting, code) in [("", 200), ("on", 200), ("off", 404)] {
        let mut worker = WorkerProcess::start_with(&[], &[("DATABASE_URL", database.url()), ("STATUS_PAGE", setting)]);
        let address = worker.await_ready();
        assert_eq!([get(&address, "/").0, get(&address, "/status").0], [code; 2], "STATUS_PAGE={setting}");
    }
}

#[test]
fn the_status_is_served_under_the_configured_names() {
    let database = database();
    for (setting, code) in [("", 421), ("ops.example, status.example", 200)] {
        let mut worker = WorkerProcess::start_with(&[], &[("DATABASE_URL", database.url()), ("STATUS_HOSTS", setting)]);
        let address = worker.await_ready();
        assert_eq!(get_as("status.example:80", &address, "/status").0, code, "STATUS_HOSTS={setting}");
        assert_eq!(get_as("status.example:80", &address, "/readyz").0, 200);
    }
}

const PUBLISHED: [&str; 13] = [
    "generations_total counter",
    "workers_registered_total counter",
    "partition_assignments_total counter",
    "reconfiguration_total counter",
    "stale_workers_cleaned_total counter",
    "events_processed_total counter",
    "projection_errors_total counter",
    "active_workers gauge",
    "current_generation_partitions gauge",
    "worker_state gauge",
    "coordination_duration_seconds histogram",
    "event_processing_duration_seconds histogram",
    "heartbeat_latency_seconds histogram",
];

#[test]
fn a_worker_with_every_setting_builds_read_models_and_leaves() {
    let database = database();
    let mut worker = WorkerProcess::start_with(
        &[],
        &[
            ("DATABASE_URL", database.url()),
            ("REPLICA_SET", "shop"),
            ("ORCHESTRATOR_HEARTBEAT_INTERVAL", "200ms"),
            ("ORCHESTRATOR_STALE_WORKER_TIMEOUT", "2s"),
            ("ORCHESTRATOR_SESSION_LOSS_GRACE", "0.5s"),
            ("ORCHESTRATOR_COORDINATION_TIMEOUT", "1m"),
            ("ORCHESTRATOR_POLL_INTERVAL", "100ms"),
            ("ORCHESTRATOR_REGISTRATION_WAIT", "0ms"),
            ("ORCHESTRATOR_EVENT_POLL", "2ms..50ms"),
            ("ORCHESTRATOR_BATCH_SIZE", "100"),
            ("ORCHESTRATOR_BATCH_BYTES", "64KiB"),
            ("ORCHESTRATOR_POOL_SIZE", "5"),
            ("ORCHESTRATOR_MAX_EVENT_BYTES", " "),
            ("ORCHESTRATOR_RETRY_ATTEMPTS", "3"),
        ],
    );
    let address = worker.await_ready();
    let mut client = database.client();
    append_plainly(&mut client, 500, 10);
    // An aggregate whose second event was lost earlier.
    let torn = [
        ("aggregate_type", "'Torn'"),
        ("aggregate_id", "'torn'"),
        ("aggregate_version", "version"),
        ("event_type", "'Torn'"),
    ];
    client.batch_execute(&insert("unnest('{1,3,4}'::bigint[]) AS version", &torn)).unwrap();
    let activity = "SELECT count(*), sum(events)::bigint, sum(out_of_order)::bigint,
                           count(*) FILTER (WHERE last_version = 50 AND aggregate_type = 'Thing' AND bounded_context = 'test')
                    FROM aggregate_activity";
    eventually("aggregate_activity is complete", SOON, || {
        let row = client.query_one(activity, &[]).unwrap();
        ((row.get(0), row.get(1), row.get(2), row.get(3)) == (11_i64, Some(503_i64), Some(1_i64), 10_i64)).then_some(())
    });
    eventually("event_type_counts is complete", SOON, || {
        let rows = client.query("SELECT event_type, events FROM event_type_counts ORDER BY 1", &[]).unwrap();
        let counts: Vec<(String, i64)> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        (counts == [("Happened".into(), 500), ("Torn".into(), 3)]).then_some(())
    });

    assert_eq!(get(&address, "/livez").0, 200);
    assert_eq!(get(&address, "/readyz").0, 200);
    assert_eq!(get(&address, "/no-such-page").0, 404);
    let (status, metrics) = get(&address, "/metrics");
    assert_eq!(status, 200);
    for metric in PUBLISHED {
        assert!(metrics.contains(&format!("# TYPE pupsourcing_orchestrator_{metric}\n")), "{metric} in:\n{metrics}");
    }
    for series in [
        "events_processed_total{projection=\"event_type_counts\",replica_set=\"shop\"} 503\n",
        "active_workers{replica_set=\"shop\"} 1\n",
        "current_generation_partitions{replica_set=\"shop\"} 1\n",
        "pool_size{replica_set=\"shop\",worker_id=\"",
    ] {
        assert!(metrics.contains(&format!("pupsourcing_orchestrator_{series}")), "{series} in:\n{metrics}");
    }

    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0));
    let left: String = client.query_one("SELECT state FROM orchestrator_workers", &[]).unwrap().get(0);
    assert_eq!(left, "stopped");
}

#[test]
fn a_worker_without_its_server_is_alive_but_not_ready() {
    let mut server = Postgres::start().unwrap();
    let mut worker = WorkerProcess::start_with(
        &[],
        &[
            ("DATABASE_URL", &server.url("postgres")),
            ("ORCHESTRATOR_HEARTBEAT_INTERVAL", "200ms"),
            ("ORCHESTRATOR_STALE_WORKER_TIMEOUT", "2s"),
        ],
    );
    let address = worker.await_ready();
    server.stop(StopMode::Fast).unwrap();
    // If a worker gets little time, another reason may come first.
    eventually("no heartbeat is answered any more", SOON, || {
        let (status, body) = get(&address, "/readyz");
        let is_expected = body.contains("no heartbeat was answered for") && body.contains("cannot connect to");
        (status == 503 && is_expected).then_some(())
    });
    let asked = Instant::now();
    let (status, metrics) = get(&address, "/metrics");
    let took = asked.elapsed();
    assert!(status == 200 && took < Duration::from_millis(500), "{status} after {took:?}");
    assert!(metrics.contains("pupsourcing_orchestrator_database_up{"), "{metrics}");
    assert_eq!(get(&address, "/livez"), (200, "ok\n".into()));

    server.start_again().unwrap();
    worker.await_ready();
    worker.signal(Signal::INT);
    assert_eq!(worker.exit_code(), Some(0));
}

#[test]
fn a_worker_started_before_its_server_waits_and_logs_it() {
    let mut server = Postgres::start().unwrap();
    let url = server.url("postgres");
    server.stop(StopMode::Fast).unwrap();
    let mut worker = WorkerProcess::start_with(&[], &[("DATABASE_URL", &url)]);
    let address = worker.metrics_address();
    eventually("it is waiting", SOON, || text_of(&mut worker).contains("waiting for it").then_some(()));
    let (status, reason) = get(&address, "/readyz");
    assert!(status == 503 && reason.contains("has not registered yet"), "{status} {reason}");
    assert_eq!(get(&address, "/livez"), (200, "ok\n".into()));

    let mut told_to_stop = WorkerProcess::start_with(&[], &[("DATABASE_URL", &url)]);
    eventually("another one is waiting", SOON, || text_of(&mut told_to_stop).contains("waiting for it").then_some(()));
    told_to_stop.signal(Signal::TERM);
    assert_eq!(told_to_stop.exit_code(), Some(0));

    server.start_again().unwrap();
    worker.await_ready();
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let database = database();
    let mut worker = WorkerProcess::start_with(&[], &[("DATABASE_URL", database.url())]);
    worker.await_ready();
    let (mut client, mut other) = (database.client(), database.client());
    client.execute("INSERT INTO event_type_counts VALUES ('Happened', 0)", &[]).unwrap();
    let mut lock = other.transaction().unwrap();
    lock.execute("SELECT FROM event_type_counts WHERE event_type = 'Happened' FOR UPDATE", &[]).unwrap();
    append_plainly(&mut client, 1, 1);
    await_blocked(&mut client);

    worker.signal(Signal::TERM);
    eventually("the signal is heard", SOON, || text_of(&mut worker).contains("stopping: signal=15").then_some(()));
    // The worker waits for its handler. The test can only see that it still runs, and that it is
    // not ready.
    let address = worker.metrics_address();
    eventually("it leaves", SOON, || get(&address, "/readyz").1.contains("stop").then_some(()));
    assert_eq!(worker.ended(), None);

    let asked = Instant::now();
    worker.signal(Signal::TERM);
    let status = worker.await_end();
    assert_eq!((status.code(), status.signal()), (Some(128 + 15), None));
    assert!(asked.elapsed() < Duration::from_secs(2), "after {:?}", asked.elapsed());
    lock.rollback().unwrap();
}

#[test]
fn a_signal_ends_a_worker_that_is_starting() {
    let database = database();
    let (mut client, mut other) = (database.client(), database.client());
    // A migration that was not made is a failure, so that it is tried again.
    for (arguments, code) in [(&[][..], 0), (&["migrate"], 1)] {
        let mut lock = other.transaction().unwrap();
        lock.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('\"public\".\"orchestrator_migrations\"', 0))",
            &[],
        )
        .unwrap();
        let mut worker = WorkerProcess::start_with(arguments, &[("DATABASE_URL", database.url())]);
        await_blocked(&mut client);
        worker.signal(Signal::TERM);
        assert_eq!(worker.exit_code(), Some(code), "{arguments:?}");
        lock.rollback().unwrap();
    }
    let tables: i64 =
        client.query_one("SELECT count(*) FROM pg_class WHERE relname LIKE 'orchestrator%'", &[]).unwrap().get(0);
    assert_eq!(tables, 0);
}

#[test]
fn a_worker_exits_and_names_an_unknown_argument() {
    for (arguments, named) in [
        (&["migrat"][..], "'migrat'"),
        (&["migrate", "now"], "'now'"),
        (&["--lane", "1"], "'--lane'"),
        (&["postgres://u:hidden@h/d"], "'postgres://u:***@h/d'"),
    ] {
        let mut worker = WorkerProcess::start_with(arguments, &[("DATABASE_URL", "postgres://u@127.0.0.1:1/none")]);
        assert_eq!(worker.exit_code(), Some(2));
        let log = text_of(&mut worker);
        assert!(log.contains(named) && !log.contains("hidden"), "{arguments:?}: {log}");
    }
}

#[test]
fn migrate_creates_tables_for_workers_without_the_privilege() {
    let database = database();
    let mut client = database.client();
    client
        .batch_execute(
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC; CREATE ROLE only_runs LOGIN;
             ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO only_runs",
        )
        .unwrap();
    let url = database.url().replace("postgres@", "only_runs@");
    let mut too_early = WorkerProcess::start_with(&[], &[("DATABASE_URL", &url)]);
    assert_eq!(too_early.exit_code(), Some(1));
    assert!(
        text_of(&mut too_early).contains("only_runs") && text_of(&mut too_early).contains("CREATE"),
        "{}",
        text_of(&mut too_early)
    );

    // A second migration changes nothing. The address of the metrics server does not matter.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for _ in 0..2 {
        let settings = [("DATABASE_URL", database.url()), ("METRICS_ADDR", &taken)];
        assert_eq!(WorkerProcess::start_with(&["migrate"], &settings).exit_code(), Some(0));
    }
    let workers: i64 = client.query_one("SELECT count(*) FROM orchestrator_workers", &[]).unwrap().get(0);
    assert_eq!(workers, 0);

    let mut first = WorkerProcess::start_with(&[], &[("DATABASE_URL", &url)]);
    let mut second = WorkerProcess::start_with(&[], &[("DATABASE_URL", &url)]);
    first.await_ready();
    second.await_ready();
    append_plainly(&mut client, 100, 50);
    let sql = "SELECT coalesce(sum(events), 0)::bigint FROM event_type_counts";
    eventually("all is counted", SOON, || (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 100).then_some(()));
    for worker in [&mut first, &mut second] {
        worker.signal(Signal::TERM);
        assert_eq!(worker.exit_code(), Some(0));
    }
}
