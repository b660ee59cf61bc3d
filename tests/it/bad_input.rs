//! Input that cannot work is refused by name before anything begins: nothing is created, registered
//! or left open.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Builder, Database, Error, Event, Names, Orchestrator, Projection, Retry, Tx};

use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, TestDatabase, database, eventually};

pub(crate) const SOON: Duration = Duration::from_secs(10);

struct Named(String);

impl Projection for Named {
    fn name(&self) -> &str {
        &self.0
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        Err("nothing is ever handled here".into())
    }
}

pub(crate) fn orchestrator(url: &str) -> Orchestrator {
    builder(url, "set").projection(Named("p".into())).build().unwrap()
}

#[track_caller]
pub(crate) fn assert_says(error: &Error, parts: &[&str]) {
    let message = error.with_causes();
    for part in parts {
        assert!(message.contains(part), "{message:?} should contain {part:?}");
    }
}

/// Starts a worker, which must be refused and must leave neither a row nor a connection.
#[track_caller]
pub(crate) fn start_refused(database: &TestDatabase, url: &str) -> Error {
    let error = orchestrator(url).start().unwrap_err();
    let mut client = database.client();
    for table in ["workers", "replica_sets", "projections", "checkpoints", "generations"] {
        let rows: i64 = client.query_one(&format!("SELECT count(*) FROM orchestrator_{table}"), &[]).unwrap().get(0);
        assert_eq!(rows, 0, "in orchestrator_{table} after: {error}");
    }
    await_nobody(&mut client);
    error
}

/// Migrates, which must be refused and must leave no table.
#[track_caller]
pub(crate) fn migrate_refused(database: &TestDatabase, url: &str) -> Error {
    let mut client = database.client();
    let before = relations(&mut client);
    let error = orchestrator(url).migrate().unwrap_err();
    assert_eq!(relations(&mut client), before, "after: {error}");
    await_nobody(&mut client);
    error
}

fn relations(client: &mut Client) -> Vec<String> {
    let sql = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1";
    client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect()
}

/// Waits until the library has no connection: a thread that still ran would hold one.
#[track_caller]
fn await_nobody(client: &mut Client) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
               AND application_name LIKE 'pupsourcing-orchestrator%'";
    eventually("no connection is left", SOON, || {
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
}

#[test]
fn wrong_settings_are_refused_without_a_connection() {
    // No server listens there.
    let valid = || {
        Orchestrator::builder(Database::from_url("postgres://127.0.0.1:1/none").unwrap(), "set")
            .projection(Named("p".into()))
    };
    let on = |replica_set: &str| {
        Orchestrator::builder(Database::from_url("postgres://127.0.0.1:1/none").unwrap(), replica_set)
    };
    let p = |name: &str| Named(name.to_owned());
    let long = "x".repeat(256);
    let (ms, s) = (Duration::from_millis, Duration::from_secs);
    let names = |change: fn(Names) -> Names| valid().names(change(Names::default()));
    let rows: Vec<(Builder, &[&str])> = vec![
        (on("").projection(p("p")), &["replica_set is \"\"", "empty"]),
        (on(" \t").projection(p("p")), &["replica_set", "empty"]),
        (on(&long).projection(p("p")), &["replica_set", "256 bytes", "255"]),
        (on("a\nb").projection(p("p")), &["replica_set is \"a\\nb\"", "control"]),
        (on("set").projection(p("")), &["projection name is \"\"", "empty"]),
        (on("set").projection(p(&long)), &["projection name", "256 bytes"]),
        (on("set").projection(p("a\0")), &["projection name", "control"]),
        (on("set").projection(p("twice")).projection(p("twice")), &["\"twice\"", "two projections"]),
        (on("set"), &["projections", "at least one"]),
        (valid().heartbeat_interval(s(11)), &["stale_worker_timeout is 30s", "3 × heartbeat_interval (11s)"]),
        (valid().stale_worker_timeout(s(14)), &["stale_worker_timeout is 14s", "3 × heartbeat_interval (5s)"]),
        (valid().session_loss_grace(s(31)), &["session_loss_grace is 31s", "stale_worker_timeout (30s)"]),
        (valid().registration_wait(s(61)), &["registration_wait is 61s", "coordination_timeout (60s)"]),
        (valid().poll_interval(s(61)), &["poll_interval is 61s", "coordination_timeout (60s)"]),
        (valid().event_poll(ms(2), ms(1)), &["event_poll is 2ms to 1ms"]),
        (valid().heartbeat_interval(ms(0)), &["heartbeat_interval is 0ns", "at least"]),
        (valid().stale_worker_timeout(ms(0)), &["stale_worker_timeout is 0ns"]),
        (valid().session_loss_grace(ms(0)), &["session_loss_grace is 0ns"]),
        (valid().coordination_timeout(ms(0)), &["coordination_timeout is 0ns"]),
        (valid().poll_interval(ms(0)), &["poll_interval is 0ns"]),
        (valid().event_poll(ms(0), ms(1)), &["event_poll minimum is 0ns"]),
        (valid().coordination_timeout(Duration::MAX), &["coordination_timeout", "at most 24 h"]),
        (valid().retry(Retry::default().attempts(0)), &["retry.attempts is 0"]),
        (valid().batch_size(0), &["batch_size is 0"]),
        (valid().batch_bytes(0), &["batch_bytes is 0"]),
        (valid().pool_size(0), &["pool_size is 0", "1 lanes", "= 2 connections"]),
        (valid().pool_size(1), &["pool_size is 1", "= 2 connections"]),
        // The pool would reserve memory for that many connections.
        (valid().pool_size(u32::MAX), &["pool_size is 4294967295", "at most 10000 (the default to 10000)"]),
        (names(|n| n.schema("s\"; DROP TABLE events; --")), &["schema is", "'\"' is not allowed"]),
        (names(|n| n.schema("")), &["schema is \"\"", "empty"]),
        (names(|n| n.events_schema("a;b")), &["events_schema is \"a;b\"", "';' is not allowed"]),
        (names(|n| n.events_table("e'vents")), &["events_table is \"e'vents\"", "'\\'' is not allowed"]),
        (names(|n| n.events_table("public.events")), &["events_table", "'.' is not allowed"]),
        (names(|n| n.events_table("é".repeat(32))), &["events_table", "64 bytes", "63"]),
        (names(|n| n.aggregate_heads_table("x".repeat(64))), &["aggregate_heads_table", "64 bytes"]),
        (names(|n| n.prefix("x".repeat(52))), &["prefix", "64 bytes"]),
    ];
    for (builder, parts) in rows {
        let error = builder.build().unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error:?}");
        assert_says(&error, parts);
    }
    valid().build().unwrap();
}

#[test]
fn wrong_urls_and_certificate_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let no_certificate = dir.path().join("ca.pem");
    std::fs::write(&no_certificate, "not a certificate").unwrap();
    let (missing, no_certificate) = (dir.path().join("missing.pem"), no_certificate.display());
    for (url, parts) in [
        (String::new(), &["empty"][..]),
        ("nonsense".to_owned(), &["neither a URL"]),
        ("mysql://u:hidden@h/d".to_owned(), &["scheme is \"mysql\""]),
        ("postgres://u:hidden@h:port/d".to_owned(), &["port", "not a number"]),
        ("postgres://u:hidden@h/d?sslmode=always".to_owned(), &["sslmode is \"always\"", "verify-full"]),
        (format!("postgres://u:hidden@h/d?sslmode=verify-ca&sslrootcert={}", missing.display()), &["missing.pem"]),
        (format!("postgres://u:hidden@h/d?sslmode=verify-ca&sslrootcert={no_certificate}"), &["ca.pem"]),
    ] {
        let error = Database::from_url(&url).unwrap_err();
        assert!(matches!(error, Error::InvalidUrl { .. } | Error::Tls { .. }), "{url}: {error:?}");
        assert_says(&error, parts);
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
    }
}

#[test]
fn a_wrong_password_and_a_missing_database_are_named() {
    let hba = "host all guarded all scram-sha-256\nhost all all all trust\n";
    let server = Postgres::options().hba(hba).start().unwrap();
    let mut client = Client::connect(&server.url("postgres"), postgres::NoTls).unwrap();
    client.batch_execute("CREATE ROLE guarded LOGIN PASSWORD 'right'").unwrap();
    let begun = Instant::now();
    let guarded = |password: &str| format!("postgres://guarded:{password}@127.0.0.1:{}/postgres", server.port());
    for (url, code, parts) in [
        (guarded("hidden"), Some("28P01"), ["password authentication failed", "guarded"]),
        (server.url("no_such_db"), Some("3D000"), ["no_such_db", "does not exist"]),
        (guarded(""), None, ["guarded", "password"]),
    ] {
        for error in [orchestrator(&url).migrate().unwrap_err(), orchestrator(&url).start().unwrap_err()] {
            assert!(matches!(error, Error::Connect { .. }), "{error:?}");
            assert_eq!(error.as_postgres().and_then(|e| e.code()).map(|code| code.code().to_owned()).as_deref(), code);
            assert_says(&error, &parts);
            assert_says(&error, &["127.0.0.1", &server.port().to_string()]);
            assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
        }
    }
    orchestrator(&guarded("right")).start().expect_err("there is no schema yet");
    assert!(begun.elapsed() < SOON, "none of these errors is waited for");
}

#[test]
fn a_server_in_recovery_is_refused_after_the_wait() {
    let standby = Postgres::options().file("standby.signal", "").start().unwrap();
    let url = standby.url("postgres");
    for wait in [Duration::ZERO, Duration::from_secs(1)] {
        let orchestrator = || {
            let builder = builder(&url, "set").projection(Named("p".into())).database_wait(wait);
            builder.build().unwrap()
        };
        for attempt in [|it: Orchestrator| it.migrate().unwrap_err(), |it: Orchestrator| it.start().unwrap_err()] {
            let begun = Instant::now();
            let error = attempt(orchestrator());
            assert!(begun.elapsed() >= wait, "the server may be promoted meanwhile");
            assert!(matches!(error, Error::InRecovery), "{error:?}");
            assert_says(&error, &["in recovery", "target_session_attrs=read-write"]);
        }
    }
}

/// Creates a role that may log in and do nothing else. Returns its name and its URL.
pub(crate) fn stranger(database: &TestDatabase, client: &mut Client) -> (String, String) {
    static ROLES: AtomicUsize = AtomicUsize::new(0);
    let role = format!("stranger_{}", ROLES.fetch_add(1, Ordering::Relaxed));
    client.batch_execute(&format!("CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")).unwrap();
    let url = database.url().replace("postgres@", &format!("{role}@"));
    (role, url)
}

#[track_caller]
fn assert_lacks(error: &Error, role: &str, lacking: &str, on: &str) {
    match error {
        Error::MissingPrivilege { user, privilege, object, .. } => {
            assert_eq!((user.as_str(), privilege.as_str(), object.as_str()), (role, lacking, on));
        }
        other => panic!("{lacking} on {on} is missing, but the error is: {other}"),
    }
    assert_says(error, &[role, lacking, on]);
}

#[test]
fn every_missing_privilege_is_named() {
    let database = database();
    let mut client = database.client();
    let (role, url) = stranger(&database, &mut client);

    assert_lacks(&migrate_refused(&database, &url), &role, "CREATE", "schema \"public\"");
    let elsewhere = builder(&url, "set").projection(Named("p".into())).names(Names::default().schema("own"));
    let error = elsewhere.build().unwrap().migrate().unwrap_err();
    assert_lacks(&error, &role, "CREATE", &format!("database {:?} (to create schema \"own\")", database.name()));

    orchestrator(database.url()).migrate().unwrap();
    let everything = "GRANT SELECT ON events, orchestrator_migrations TO _; GRANT USAGE ON SCHEMA public TO PUBLIC;
        GRANT SELECT, INSERT, UPDATE ON orchestrator_replica_sets TO _;
        GRANT SELECT, INSERT, UPDATE ON orchestrator_commands TO _;
        GRANT SELECT, INSERT, DELETE ON orchestrator_discarded TO _;
        GRANT SELECT, INSERT, UPDATE, DELETE ON orchestrator_generations, orchestrator_workers, orchestrator_projections,
            orchestrator_checkpoints, orchestrator_parked, orchestrator_rebuilds TO _"
        .replace(" TO _", &format!(" TO {role}"));
    let rows: [(&str, &[&str]); 11] = [
        ("events", &["SELECT"]),
        ("orchestrator_migrations", &["SELECT"]),
        ("orchestrator_replica_sets", &["SELECT", "INSERT", "UPDATE"]),
        ("orchestrator_projections", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("orchestrator_commands", &["SELECT", "INSERT", "UPDATE"]),
        ("orchestrator_discarded", &["SELECT", "INSERT", "DELETE"]),
        ("orchestrator_parked", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("orchestrator_rebuilds", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("orchestrator_generations", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("orchestrator_workers", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
        ("orchestrator_checkpoints", &["SELECT", "INSERT", "UPDATE", "DELETE"]),
    ];
    for (table, privileges) in rows {
        for privilege in privileges {
            client.batch_execute(&everything).unwrap();
            client.batch_execute(&format!("REVOKE {privilege} ON {table} FROM {role}")).unwrap();
            assert_lacks(&start_refused(&database, &url), &role, privilege, &format!("table \"public\".\"{table}\""));
        }
    }
    client.batch_execute(&everything).unwrap();
    client.batch_execute("REVOKE USAGE ON SCHEMA public FROM PUBLIC").unwrap();
    assert_lacks(&start_refused(&database, &url), &role, "USAGE", "schema \"public\"");
    assert_lacks(&migrate_refused(&database, &url), &role, "USAGE", "schema \"public\"");

    // These privileges are sufficient.
    client.batch_execute(&everything).unwrap();
    let handle = start(builder(&url, "set"), vec![Box::new(Named("p".into()))]);
    await_running(&[&handle]);
    handle.shutdown(SOON).unwrap();
}
