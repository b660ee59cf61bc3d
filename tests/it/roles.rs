//! The four roles of `examples/postgres/roles.sql`: each can do its work with exactly the
//! privileges in that file, and not without any of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::operator::{Command, Operator, OperatorError};
use pupsourcing_orchestrator::{Builder, EventStore, ExpectedVersion, Handle, Metrics, MetricsServer, Names};
use serde_json::json;

use crate::bad_input::SOON;
use crate::cli::{fails, succeeds};
use crate::support::http::post;
use crate::support::ledger::{Ledger, assert_exactly_once, happened, is_complete, thing};
use crate::support::workers::{await_running, builder};
use crate::support::{TestDatabase, database, eventually};

const SCRIPT: &str = include_str!("../../examples/postgres/roles.sql");

/// A database with roles of its own, because roles belong to the whole server.
struct Roles {
    database: TestDatabase,
    admin: Client,
    prefix: String,
    /// The grants after the migration.
    grants: String,
}

impl Roles {
    fn migrated() -> Self {
        static PREFIXES: AtomicUsize = AtomicUsize::new(0);
        let database = database();
        let prefix = format!("roles_{}_{}", std::process::id(), PREFIXES.fetch_add(1, Ordering::Relaxed));
        let script = SCRIPT.replace("shop_", &format!("{prefix}_"));
        let (before, grants) = script.split_once("-- After the migration:").unwrap();
        let mut admin = database.client();
        admin.batch_execute("REVOKE ALL ON SCHEMA public FROM PUBLIC").unwrap();
        admin.batch_execute(before).unwrap();
        let roles = Self { database, admin, prefix, grants: grants.to_owned() };
        roles.builder("migrator").build().unwrap().migrate().unwrap();
        let mut roles = roles;
        roles.grant();
        Ledger::create_table(&mut roles.admin);
        let read_model = format!(
            "GRANT ALL ON ledger TO {0}_worker; GRANT ALL ON SEQUENCE ledger_seq_seq TO {0}_worker",
            roles.prefix
        );
        roles.admin.batch_execute(&read_model).unwrap();
        roles
    }

    fn grant(&mut self) {
        self.admin.batch_execute(&self.grants).unwrap();
    }

    fn url(&self, role: &str) -> String {
        self.database.url().replace("postgres@", &format!("{}_{role}@", self.prefix))
    }

    fn client(&self, role: &str) -> Client {
        Client::connect(&self.url(role), NoTls).unwrap()
    }

    fn builder(&self, role: &str) -> Builder {
        builder(&self.url(role), "set").projection(Ledger::named("p"))
    }

    fn start(&self) -> Handle {
        let orchestrator = self.builder("worker").build().unwrap();
        orchestrator.migrate().unwrap();
        orchestrator.start().unwrap()
    }

    fn append(&self) -> Result<(), String> {
        let mut client = self.client("appender");
        let store = EventStore::default();
        let id = fastrand::u64(..).to_string();
        store
            .append(&mut client, &thing(&id), ExpectedVersion::NoStream, &[happened()])
            .map_err(|error| error.with_causes())?;
        store
            .append(&mut client, &thing(&id), ExpectedVersion::Exact(1), &[happened(), happened()])
            .map_err(|error| error.with_causes())?;
        store.hint(&mut client);
        Ok(())
    }

    /// Appends an event, and waits for the projection.
    fn wait(&self) -> Result<(), String> {
        let mut client = self.client("appender");
        let store = EventStore::default();
        let appended = store.append(&mut client, &thing("waits"), ExpectedVersion::Any, &[happened()]).unwrap();
        store.wait_for(&mut client, &["p"], &appended, SOON).map_err(|error| error.with_causes())
    }
}

#[test]
fn the_appender_needs_each_of_its_privileges_to_wait() {
    let mut roles = Roles::migrated();
    let role = format!("{}_appender", roles.prefix);
    let worker = roles.start();
    await_running(&[&worker]);
    roles.wait().unwrap();
    let sql = "SELECT table_name || '', column_name || '' FROM information_schema.column_privileges
               WHERE grantee = $1 AND table_name LIKE 'orchestrator%'";
    let granted = roles.admin.query(sql, &[&role]).unwrap();
    for row in &granted {
        let (table, column): (&str, &str) = (row.get(0), row.get(1));
        roles.admin.batch_execute(&format!("REVOKE SELECT ({column}) ON {table} FROM {role}")).unwrap();
        let error = roles.wait().expect_err(&format!("{table}.{column} is not needed"));
        assert!(error.contains("42501") && error.contains(table), "{table}.{column}: {error}");
        roles.grant();
    }
    let tables: BTreeSet<&str> = granted.iter().map(|row| row.get(0)).collect();
    assert_eq!(tables.len(), 5, "{tables:?}");
    roles.wait().unwrap();
}

/// What the operator does: everything that the type `Operator` offers.
fn operate(client: &mut Client) -> Result<(), OperatorError> {
    let operator = Operator::new(Names::default()).unwrap();
    for command in [Command::pause("p").by("kim").reason("why"), Command::resume("p")] {
        // There is no worker.
        match operator.execute(client, &command, SOON) {
            Err(OperatorError::NoWorker { .. }) => {}
            Err(error) => return Err(error),
            Ok(applied) => panic!("{applied}"),
        }
    }
    operator.projections(client)?;
    operator.history(client, None, 10)?;
    operator.parked(client, None)?;
    Ok(())
}

#[test]
fn worker_takes_commands_by_http_with_its_privileges() {
    const TOKEN: &str = "a-token-of-some-length";
    let mut roles = Roles::migrated();
    let worker = roles.start();
    await_running(&[&worker]);
    let server = MetricsServer::builder(Metrics::new().unwrap()).operator(TOKEN).watch(worker.health());
    let server = server.bind("127.0.0.1:0").unwrap();
    let pause = || {
        let body = json!({ "reason": "why", "by": "kim" });
        post(&server.address().to_string(), "/projections/p/pause", TOKEN, &body)
    };
    let revoke = format!("REVOKE INSERT ON orchestrator_commands FROM {}_worker", roles.prefix);
    roles.admin.batch_execute(&revoke).unwrap();
    let (code, answer) = pause();
    assert_eq!((code, &answer["id"]), (403, &json!(null)), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("roles.sql"), "{answer}");
    roles.grant();
    let (code, answer) = pause();
    assert_eq!((code, &answer["outcome"]), (200, &json!("done")), "{answer}");
    let sql = "SELECT requested_by, requested_as FROM orchestrator_commands";
    let row = roles.admin.query_one(sql, &[]).unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, String>(1)), ("kim", format!("{}_worker", roles.prefix)));
}

#[test]
fn the_operator_needs_each_of_its_privileges() {
    let mut roles = Roles::migrated();
    let role = format!("{}_operator", roles.prefix);
    roles
        .admin
        .batch_execute(
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('set');
             INSERT INTO orchestrator_projections (name, replica_set) VALUES ('p', 'set')",
        )
        .unwrap();
    let mut client = roles.client("operator");
    operate(&mut client).unwrap();
    // The commands of the program need no more.
    let url = roles.url("operator");
    for arguments in
        [&["projections", "--no-rate"][..], &["history", "p"], &["parked", "p"], &["rebuild", "p", "--status"]]
    {
        succeeds(&url, &[arguments, &["--replica-set", "set"]].concat());
    }
    fails(4, &url, &["resume", "p", "--replica-set", "set"]);
    let sql =
        "SELECT requested_by LIKE $1 || '@%' AND requested_as = $1 FROM orchestrator_commands ORDER BY id DESC LIMIT 1";
    assert!(client.query_one(sql, &[&role]).unwrap().get::<_, bool>(0));
    for revoke in [
        "INSERT (projection) ON orchestrator_commands",
        "INSERT (command) ON orchestrator_commands",
        "INSERT (arguments) ON orchestrator_commands",
        "INSERT (requested_by) ON orchestrator_commands",
        "INSERT (reason) ON orchestrator_commands",
        "SELECT ON orchestrator_commands",
        "SELECT ON orchestrator_projections",
        "SELECT ON orchestrator_workers",
        "SELECT ON orchestrator_checkpoints",
        "SELECT ON orchestrator_parked",
        "SELECT ON orchestrator_rebuilds",
        "SELECT (global_position) ON events",
        "SELECT (created_at) ON events",
    ] {
        roles.admin.batch_execute(&format!("REVOKE {revoke} FROM {role}")).unwrap();
        let error = operate(&mut client).unwrap_err();
        assert!(matches!(error, OperatorError::Forbidden { .. }), "{revoke}: {error:?}");
        roles.grant();
    }
    operate(&mut client).unwrap();
    for statement in [
        "UPDATE orchestrator_commands SET outcome = 'done', applied_at = now()",
        "INSERT INTO orchestrator_commands (projection, command, requested_as) VALUES ('p', 'pause', 'someone')",
        "INSERT INTO orchestrator_commands (projection, command, outcome) VALUES ('p', 'pause', 'done')",
        "INSERT INTO orchestrator_commands (projection, command, requested_at) VALUES ('p', 'pause', now())",
        "DELETE FROM orchestrator_commands",
        "UPDATE orchestrator_projections SET desired_state = 'paused'",
        "UPDATE orchestrator_checkpoints SET position = 0",
        "DELETE FROM orchestrator_parked",
        "DELETE FROM orchestrator_rebuilds",
        "INSERT INTO orchestrator_discarded (projection) VALUES ('p')",
        "UPDATE orchestrator_workers SET state = 'stopped'",
        "SELECT payload FROM events",
        "UPDATE events SET payload = ''",
        "SELECT FROM orchestrator_generations",
        "CREATE TABLE mine (n int)",
    ] {
        assert_forbidden(&mut client, statement);
    }
    // The appender neither gives commands nor sees who has given them and why.
    assert_forbidden(&mut roles.client("appender"), "SELECT orchestrator_command('p', 'pause')");
    for column in ["requested_by", "requested_as", "reason", "error"] {
        assert_forbidden(&mut roles.client("appender"), &format!("SELECT {column} FROM orchestrator_commands"));
    }
}

#[track_caller]
fn assert_forbidden(client: &mut Client, statement: &str) {
    let error = client.batch_execute(statement).unwrap_err();
    assert_eq!(error.code().map(postgres::error::SqlState::code), Some("42501"), "{statement}: {error:?}");
}

#[test]
fn the_documented_privileges_are_sufficient() {
    let mut roles = Roles::migrated();
    let workers = [(); 2].map(|()| roles.start());
    await_running(&workers.each_ref());
    for _ in 0..50 {
        roles.append().unwrap();
    }
    roles.wait().unwrap();
    eventually("all events are handled", SOON, || is_complete(&mut roles.admin, "p").then_some(()));
    // One worker leaves, and the other one takes over its keys.
    let [one, other] = workers;
    other.shutdown(SOON).unwrap();
    roles.append().unwrap();
    eventually("all events are handled", SOON, || is_complete(&mut roles.admin, "p").then_some(()));
    assert_exactly_once(&mut roles.admin, "p");
    one.shutdown(SOON).unwrap();
    // Neither role may do what it does not need.
    for (role, statement) in [
        ("worker", "UPDATE events SET payload = ''"),
        ("worker", "DELETE FROM events"),
        ("worker", "INSERT INTO events (aggregate_id) VALUES ('')"),
        ("worker", "SELECT nextval('events_global_position_seq')"),
        ("worker", "CREATE TABLE mine (n int)"),
        ("appender", "INSERT INTO events (global_position) VALUES (9223372036854775807)"),
        ("appender", "INSERT INTO events (created_at) VALUES ('infinity')"),
        ("appender", "SELECT setval('events_global_position_seq', 1)"),
        ("appender", "DELETE FROM events"),
        ("appender", "SELECT FROM orchestrator_generations"),
        ("appender", "SELECT host FROM orchestrator_workers"),
        ("appender", "SELECT errors FROM orchestrator_parked"),
        ("appender", "SELECT FROM orchestrator_discarded"),
        ("appender", "SELECT FROM orchestrator_rebuilds"),
        ("appender", "UPDATE orchestrator_checkpoints SET position = 0"),
        ("appender", "DELETE FROM orchestrator_parked"),
        ("appender", "INSERT INTO orchestrator_commands (projection, command) VALUES ('p', 'pause')"),
    ] {
        assert_forbidden(&mut roles.client(role), statement);
    }
}

#[test]
fn the_appender_needs_each_of_its_privileges() {
    let mut roles = Roles::migrated();
    let role = format!("{}_appender", roles.prefix);
    roles.append().unwrap();
    for revoke in [
        "SELECT ON events",
        "USAGE ON SEQUENCE events_global_position_seq",
        "SELECT ON aggregate_heads",
        "INSERT ON aggregate_heads",
        "UPDATE ON aggregate_heads",
        "INSERT (payload) ON events",
        "INSERT (metadata) ON events",
    ] {
        roles.admin.batch_execute(&format!("REVOKE {revoke} FROM {role}")).unwrap();
        let error = roles.append().unwrap_err();
        assert!(error.contains("42501"), "{revoke}: {error}");
        roles.grant();
    }
    roles.append().unwrap();
}
