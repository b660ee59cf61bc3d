//! The commands of the worker program, in processes of their own: the example `worker`.

use std::io::Write as _;
use std::process::{Output, Stdio};
use std::time::Duration;

use postgres::{Client, NoTls};
use serde_json::Value;

use crate::support::installed::installed;
use crate::support::ledger::append_plainly;
use crate::support::proxies::pgbouncers;
use crate::support::standby::{primary, standby_of};
use crate::support::worker_process::{Signal, WorkerProcess, command};
use crate::support::{Postgres, TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);
const NOWHERE: &str = "postgres://user:hidden@127.0.0.1:1/none";

/// Runs the program to its end.
pub(crate) fn run(url: &str, arguments: &[&str]) -> Output {
    let mut command = command("worker");
    let output = command.env("DATABASE_URL", url).args(arguments).stdout(Stdio::piped()).output().unwrap();
    let said = format!("{}{}", stdout(&output), stderr(&output));
    assert!(!said.contains("hidden"), "{arguments:?}: {said}");
    output
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs the program, which must succeed, and returns what it wrote.
#[track_caller]
pub(crate) fn succeeds(url: &str, arguments: &[&str]) -> String {
    let output = run(url, arguments);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

/// Runs the program, which must fail with this code, and returns what it wrote to both streams.
#[track_caller]
pub(crate) fn fails(code: i32, url: &str, arguments: &[&str]) -> (String, String) {
    let output = run(url, arguments);
    let (out, err) = (stdout(&output), stderr(&output));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
    (out, err)
}

fn migrated() -> TestDatabase {
    let database = database();
    succeeds(database.url(), &["migrate"]);
    database
}

#[test]
fn help_and_version_are_printed() {
    for arguments in [&["--help"][..], &["-h"], &["status", "--help"], &["help", "check"], &["--version"]] {
        let said = succeeds(NOWHERE, arguments);
        assert!(said.contains("worker"), "{arguments:?}: {said}");
    }
    assert!(succeeds(NOWHERE, &["--help"]).contains("ORCHESTRATOR_RETRY_HALTED_INTERVAL"));
    let version = succeeds(NOWHERE, &["--version"]);
    assert_eq!(version.trim(), format!("worker {0} (pupsourcing-orchestrator {0})", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_misspelt_variable_is_named_in_the_log() {
    let database = migrated();
    let settings = [("DATABASE_URL", database.url()), ("ORCHESTRATOR_HEARTBEAT", "1s")];
    let mut worker = WorkerProcess::start_with(&["migrate"], &settings);
    assert_eq!(worker.exit_code(), Some(0));
    worker.await_logged(&["WARN", "unknown setting, ignored: variable=ORCHESTRATOR_HEARTBEAT"]);
    let log = worker.log();
    assert!(!log.iter().any(|line| line.contains("NOTICE")), "{log:?}");
}

#[test]
fn each_flag_and_command_is_refused_by_name() {
    for (arguments, parts) in [
        (&["--database-url", "mysql://u:hidden@h/d"][..], &["database URL", "mysql"][..]),
        (&["--replica-set", ""], &["replica_set is \"\""]),
        (&["--metrics-addr", "nonsense"], &["\"nonsense\"", "0.0.0.0:9090"]),
        (&["--status-page", "0"], &["--status-page is \"0\"", "on or off"]),
        (&["--log", "verbose"], &["--log is \"verbose\"", "warn,shop=debug"]),
        (&["--log", "info,shop=loud"], &["--log is \"info,shop=loud\""]),
        (&["--batch-time", "250"], &["--batch-time is \"250\""]),
        (&["--heartbeat-interval", "5"], &["--heartbeat-interval is \"5\"", "10s"]),
        (&["--stale-worker-timeout", "soon"], &["--stale-worker-timeout is \"soon\""]),
        (&["--session-loss-grace", "no"], &["--session-loss-grace is \"no\"", "off"]),
        (&["--coordination-timeout", "-1s"], &["--coordination-timeout is \"-1s\""]),
        (&["--poll-interval", "1d"], &["--poll-interval is \"1d\""]),
        (&["--registration-wait", "1.2.3s"], &["--registration-wait is \"1.2.3s\""]),
        (&["--database-wait", "25h"], &["database_wait is 90000s", "24 h"]),
        (&["--leave-timeout", "1"], &["--leave-timeout is \"1\""]),
        (&["--ready-while-halted", "yes"], &["--ready-while-halted is \"yes\"", "on or off"]),
        (&["--event-poll", "5ms"], &["--event-poll is \"5ms\"", "5ms..250ms"]),
        (&["--batch-size", "0"], &["batch_size is 0", "at least 1"]),
        (&["--batch-bytes", "8MB"], &["--batch-bytes is \"8MB\"", "8MiB"]),
        (&["--max-event-bytes", "x"], &["--max-event-bytes is \"x\""]),
        (&["--lanes", NOWHERE], &["--lanes is \"postgres://user:***@"]),
        (&["--pool-size", "3"], &["pool_size is 3", "= 4"]),
        (&["--retry-attempts", "0"], &["retry.attempts is 0"]),
        (&["--retry-first-delay", "x"], &["--retry-first-delay is \"x\""]),
        (&["--retry-longest-delay", "1ms"], &["retry.longest_delay is 1ms", "first_delay"]),
        (&["--retry-halted-interval", "x"], &["--retry-halted-interval is \"x\""]),
        (&["status", "--lanes", "0"], &["lanes is 0"]),
        (&["check", "--status-page", "0"], &["--status-page is \"0\""]),
        (&["catch-up", "--to-position", "x"], &["--to-position", "'x'"]),
        (&["catch-up", "--to-position=-1"], &["--to-position", "-1"]),
        (&["status", "--print"], &["'--print'"]),
        (&["stat"], &["'stat'", "status"]),
    ] {
        let (out, err) = fails(2, NOWHERE, arguments);
        assert_eq!(out, "", "{arguments:?}");
        for part in parts {
            assert!(err.contains(part), "{arguments:?}: {err:?} should contain {part:?}");
        }
    }
}

#[test]
fn each_command_fails_when_the_server_is_unreachable() {
    for arguments in [&["status"][..], &["migrate"], &["catch-up"], &["run"]] {
        let (out, err) = fails(1, NOWHERE, &[arguments, &["--database-wait", "0s"]].concat());
        assert_eq!(out, "");
        assert!(err.contains("error: cannot connect to 127.0.0.1:1/none as user"), "{arguments:?}: {err}");
    }
    let (out, _) = fails(1, NOWHERE, &["check"]);
    assert!(out.starts_with("error  connection  cannot connect to 127.0.0.1:1/none as user"), "{out}");
}

#[test]
fn printed_sql_makes_the_schema_that_migrate_makes() {
    let Some(psql) = installed(&["psql"]) else { return };
    let (printed, made) = (database(), migrated());
    // This needs no database.
    let sql = succeeds("", &["migrate", "--print"]);
    let mut psql = std::process::Command::new(psql)
        .args(["--quiet", "--no-psqlrc", "--set=ON_ERROR_STOP=1", printed.url()])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    psql.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    assert!(psql.wait().unwrap().success());
    let schema = |database: &TestDatabase| {
        let sql = "SELECT string_agg(line, E'\n' ORDER BY line COLLATE \"C\") FROM (
            SELECT format('%s.%s %s %s', table_name, column_name, data_type, column_default) FROM information_schema.columns
            WHERE table_schema = 'public'
            UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
            UNION ALL SELECT md5(prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
            UNION ALL SELECT conrelid::regclass::text || pg_get_constraintdef(oid) FROM pg_constraint
            WHERE connamespace = 'public'::regnamespace
            UNION ALL SELECT format('migration %s %s', number, hash_probe) FROM orchestrator_migrations) AS lines (line)";
        database.client().query_one(sql, &[]).unwrap().get::<_, String>(0)
    };
    let made = schema(&made);
    assert!(made.contains("aggregate_activity") && made.contains("orchestrator_checkpoints"), "{made}");
    assert_eq!(schema(&printed), made);
}

/// Two workers that have processed all events.
fn two_workers(database: &TestDatabase, client: &mut Client) -> [WorkerProcess; 2] {
    let settings = [("DATABASE_URL", database.url()), ("ORCHESTRATOR_REGISTRATION_WAIT", "50ms")];
    let mut workers = [(); 2].map(|()| WorkerProcess::start_with(&[], &settings));
    for worker in &mut workers {
        worker.await_processing(2);
    }
    append_plainly(client, 100, 50);
    await_counted(client, 100);
    workers
}

#[track_caller]
fn await_counted(client: &mut Client, events: i64) {
    let sql = "SELECT coalesce(sum(events), 0)::bigint = $1 FROM event_type_counts";
    let both = "SELECT coalesce(sum(events), 0)::bigint = $1 FROM aggregate_activity";
    eventually("all events are counted", SOON, || {
        let mut is_done = |sql| client.query_one(sql, &[&events]).unwrap().get::<_, bool>(0);
        (is_done(sql) && is_done(both)).then_some(())
    });
}

#[test]
fn status_shows_the_workers_and_the_projections() {
    let database = database();
    let (_, err) = fails(1, database.url(), &["status"]);
    assert!(err.contains("error: the schema cannot be used: there is no table"), "{err}");
    let mut client = database.client();
    let workers = two_workers(&database, &mut client);

    let said = succeeds(database.url(), &["status"]);
    assert!(said.starts_with("replica set main-projections\n") && said.contains(" 2 partitions"), "{said}");
    assert!(!said.contains('\x1b'), "no terminal: {said:?}");
    for worker in &workers {
        let pid = worker.pid().to_string();
        let is_listed = |line: &str| line.contains("running") && line.split_whitespace().any(|word| word == pid);
        assert!(said.lines().any(is_listed), "{pid} in: {said}");
    }
    for projection in ["event_type_counts", "aggregate_activity"] {
        let line = said.lines().find(|line| line.starts_with(projection)).unwrap();
        assert!(line.contains("running") && line.contains(" 100 "), "{line}");
    }

    let json: Value = serde_json::from_str(&succeeds(database.url(), &["status", "--json"])).unwrap();
    assert_eq!((json["workers"].as_array().unwrap().len(), &json["newest_position"]), (2, &100.into()));

    let other = succeeds(database.url(), &["status", "--replica-set", "other"]);
    assert!(other.contains("no worker of this replica set has ever run here"), "{other}");
}

#[test]
fn status_watches_until_it_is_asked_to_stop() {
    let database = migrated();
    for arguments in [&["status", "--watch"][..], &["status", "--watch", "--json"]] {
        let mut watching = WorkerProcess::start_shown(arguments, &[("DATABASE_URL", database.url())]);
        let part = if arguments.contains(&"--json") { "newest_position" } else { "replica set" };
        watching.await_line(&[part]);
        watching.await_line(&[part]);
        watching.signal(Signal::TERM);
        assert_eq!(watching.exit_code(), Some(0), "{arguments:?}");
    }
}

#[test]
fn check_names_each_problem_and_its_remedy() {
    let database = database();
    let (out, _) = fails(1, database.url(), &["check"]);
    assert!(out.contains("error  schema") && out.contains("there is no table"), "{out}");

    succeeds(database.url(), &["migrate"]);
    let mut client = database.client();
    client.batch_execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC").unwrap();
    let said = succeeds(database.url(), &["check"]);
    assert!(said.lines().all(|line| line.starts_with("ok ")), "{said}");
    for subject in
        ["server", "primary", "sessions", "schema", "privileges", "hash", "sequence", "projections", "connections"]
    {
        assert!(said.lines().any(|line| line.split_whitespace().nth(1) == Some(subject)), "{subject} in: {said}");
    }

    let mut worker = WorkerProcess::start_with(&[], &[("DATABASE_URL", database.url()), ("REPLICA_SET", "theirs")]);
    worker.await_ready();
    let (out, _) = fails(1, database.url(), &["check"]);
    assert!(out.contains("error  projections") && out.contains("live replica set \"theirs\""), "{out}");
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(0));
    let said = succeeds(database.url(), &["check"]);
    assert!(said.contains("warning  projections") && said.contains("aggregate_activity, event_type_counts"), "{said}");

    client.batch_execute("CREATE ROLE may_nothing LOGIN; CREATE ROLE may_read LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO may_read").unwrap();
    let as_role = |role: &str| database.url().replace("postgres@", &format!("{role}@"));
    let (out, _) = fails(1, &as_role("may_nothing"), &["check"]);
    assert!(out.contains("may_nothing lacks SELECT on table") && out.contains("grant it"), "{out}");
    let (out, _) = fails(1, &as_role("may_read"), &["check"]);
    for lacking in ["INSERT", "UPDATE", "DELETE"] {
        let line = format!("may_read lacks {lacking} on table \"public\".\"orchestrator_checkpoints\"");
        assert!(out.contains(&line), "{line} in: {out}");
    }

    client
        .batch_execute("ALTER SEQUENCE events_global_position_seq CACHE 10; GRANT CREATE ON SCHEMA public TO PUBLIC")
        .unwrap();
    let (out, _) = fails(1, database.url(), &["check"]);
    let line = |subject: &str| out.lines().find(|line| line.contains(subject)).unwrap_or_default().to_owned();
    assert!(line(" sequence ").starts_with("error") && line(" sequence ").contains("CACHE 1"), "{out}");
    assert!(line(" search path ").starts_with("warning") && line(" search path ").contains("REVOKE"), "{out}");
    let (json, _) = fails(1, database.url(), &["check", "--json"]);
    let json: Vec<Value> = serde_json::from_str(&json).unwrap();
    assert!(json.iter().any(|finding| finding["level"] == "error" && finding["subject"] == "sequence"), "{json:?}");
}

#[test]
fn check_refuses_a_standby_and_status_reads_it() {
    let primary = primary();
    let standby = standby_of(&primary);
    succeeds(&primary.url("postgres"), &["migrate"]);
    let url = standby.url("postgres");
    let (out, _) = fails(1, &url, &["check"]);
    assert!(out.contains("error  primary") && out.contains("in recovery"), "{out}");
    eventually("the standby has the schema", SOON, || {
        let mut client = Client::connect(&url, NoTls).unwrap();
        let sql = "SELECT to_regclass('orchestrator_checkpoints') IS NOT NULL";
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert!(succeeds(&url, &["status"]).contains("no worker of this replica set"));
}

#[test]
fn check_names_a_pooler_that_lacks_a_capability() {
    let server = Postgres::start().unwrap();
    succeeds(&server.create_database("pooled").unwrap(), &["migrate"]);
    for pgbouncer in pgbouncers() {
        let shared = pgbouncer.start(server.port(), &["pool_mode = transaction"]);
        let (out, _) = fails(1, &shared.url("pooled"), &["check"]);
        assert!(out.contains("error  sessions") && out.contains("a pooler needs session mode"), "{pgbouncer:?}: {out}");
        let own = pgbouncer.start(server.port(), &["pool_mode = session"]);
        assert!(succeeds(&own.url("pooled"), &["check"]).contains("each connection has a session of its own"));
        if pgbouncer.is_capable {
            let settings = ["pool_mode = transaction", "max_prepared_statements = 100"];
            let shared = pgbouncer.start(server.port(), &settings);
            let said = succeeds(&shared.url("pooled"), &["check", "--session-loss-grace", "off"]);
            assert!(said.contains("heartbeats alone") && !said.contains("connections "), "{said}");
        }
    }
}

#[test]
fn catch_up_processes_all_events_and_leaves() {
    let database = migrated();
    let mut client = database.client();
    append_plainly(&mut client, 100, 50);
    let said = succeeds(database.url(), &["catch-up", "--to-position", "40", "--batch-size", "10"]);
    assert!(said.starts_with("position 40 reached after "), "{said}");
    assert!(succeeds(database.url(), &["catch-up"]).starts_with("position 100 reached after "));
    await_counted(&mut client, 100);
    append_plainly(&mut client, 1, 1);
    let status: Value = serde_json::from_str(&succeeds(database.url(), &["status", "--json"])).unwrap();
    for projection in status["projections"].as_array().unwrap() {
        assert_eq!((&projection["state"], &projection["lag_events"]), (&"stopped".into(), &1.into()), "{projection}");
    }

    // Also while another worker runs.
    let workers = two_workers_more(&database, &mut client);
    assert!(succeeds(database.url(), &["catch-up"]).starts_with("position 301 reached after "));
    await_counted(&mut client, 301);
    drop(workers);
}

fn two_workers_more(database: &TestDatabase, client: &mut Client) -> WorkerProcess {
    let mut worker = WorkerProcess::start_with(&[], &[("DATABASE_URL", database.url())]);
    worker.await_processing(1);
    append_plainly(client, 200, 20);
    worker
}

#[test]
fn catch_up_fails_when_a_projection_halts() {
    let database = migrated();
    let mut client = database.client();
    client.batch_execute("ALTER TABLE event_type_counts ADD CONSTRAINT few CHECK (events < 50)").unwrap();
    append_plainly(&mut client, 100, 50);
    let (out, err) = fails(1, database.url(), &["catch-up", "--retry-attempts", "1"]);
    assert_eq!(out, "");
    let error = err.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    assert!(error.contains("projection \"event_type_counts\" has halted: ") && error.contains("few"), "{err}");
}

#[test]
fn catch_up_stops_on_a_signal() {
    let database = migrated();
    let (mut client, mut other) = (database.client(), database.client());
    client.execute("INSERT INTO event_type_counts VALUES ('Happened', 0)", &[]).unwrap();
    append_plainly(&mut client, 1, 1);
    let mut lock = other.transaction().unwrap();
    lock.execute("SELECT FROM event_type_counts WHERE event_type = 'Happened' FOR UPDATE", &[]).unwrap();
    let settings = [("DATABASE_URL", database.url()), ("ORCHESTRATOR_LEAVE_TIMEOUT", "100ms")];
    let mut worker = WorkerProcess::start_with(&["catch-up"], &settings);
    worker.await_line(&["processing:"]);
    worker.signal(Signal::TERM);
    assert_eq!(worker.exit_code(), Some(1));
    let log = worker.log().join("\n");
    // The worker may not know the position yet.
    let stopped = ["error: stopped before position 1 was reached", "error: stopped before the position was reached"];
    assert!(stopped.iter().any(|line| log.contains(line)), "{log}");
}
