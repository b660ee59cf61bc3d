//! When a higher version cannot be deployed, which builds take part, and what the new version
//! declares about itself.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{
    BoxError, Builder, Database, Error, Event, Names, OnFailure, Options, Orchestrator, Projection, Scope, StartAt, Tx,
};
use serde_json::json;

use crate::support::commands::{done, give, outcome};
use crate::support::ledger::append_plainly;
use crate::support::parking::{assert_accounts, await_parked, replay};
use crate::support::rebuilds::{Model, await_exact, await_version, given, schemas};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A read model, and what it declares besides.
struct Declared {
    model: Model,
    scope: Scope,
    start_at: StartAt,
    on_failure: Option<OnFailure>,
}

impl Declared {
    fn new(version: u32) -> Self {
        let model = Model::named("orders").version(version);
        Self { model, scope: Scope::all(), start_at: StartAt::Beginning, on_failure: None }
    }

    fn without_tables(mut self) -> Self {
        self.model.tables.clear();
        self
    }
}

impl Projection for Declared {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn tables(&self) -> &[&str] {
        self.model.tables()
    }

    fn version(&self) -> u32 {
        self.model.version
    }

    fn scope(&self) -> Scope {
        self.scope.clone()
    }

    fn start_at(&self) -> StartAt {
        self.start_at
    }

    fn options(&self) -> Options {
        self.on_failure.map_or_else(Options::default, |policy| Options::default().on_failure(policy))
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.model.handle(tx, event)
    }
}

/// The schema, the table, and a worker of version 1 that has handled some events.
fn prepared(database: &TestDatabase) -> (Client, pupsourcing_orchestrator::Handle) {
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    let model = Model::named("orders");
    model.create_table(&mut client);
    let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 300, 20);
    await_exact(&mut client, "orders");
    (client, worker)
}

fn built(builder: Builder, projection: impl Projection + 'static) -> Orchestrator {
    builder.projection(projection).build().unwrap()
}

fn version(version: u32) -> Declared {
    Declared::new(version)
}

/// The worker is refused for this reason, and has left nothing.
#[track_caller]
fn assert_refused(client: &mut Client, orchestrator: Orchestrator, reasons: &[&str]) {
    let refused = orchestrator.start().unwrap_err();
    let Error::CannotRebuild { projection, version, live, problem, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!((projection.as_str(), *version, *live), ("orders", 2, 1));
    for reason in reasons {
        assert!(problem.contains(reason) && refused.to_string().contains(reason), "{reason}: {refused}");
    }
    assert_eq!(given(client, "orders"), []);
    let workers: i64 = client.query_one("SELECT count(*) FROM orchestrator_workers", &[]).unwrap().get(0);
    assert_eq!(workers, 1, "it is not registered");
}

#[test]
fn a_version_that_cannot_be_rebuilt_is_refused_at_start() {
    let database = database();
    let (mut client, old) = prepared(&database);
    let new = || builder(database.url(), "set");
    assert_refused(&mut client, built(new(), version(2).without_tables()), &["implement Projection::tables()"]);
    let at_end = Declared { start_at: StartAt::End, ..version(2) };
    assert_refused(&mut client, built(new(), at_end), &["let start_at() return a position"]);
    let mut other = version(2);
    other.model.tables = vec!["orders", "missing"];
    assert_refused(&mut client, built(new(), other), &["\"missing\" of a projection's tables() is not found"]);
    client
        .batch_execute("CREATE VIEW totals AS SELECT count(*) FROM orders; CREATE VIEW ids AS SELECT seq FROM orders")
        .unwrap();
    assert_refused(&mut client, built(new(), version(2)), &["view public.totals", "view public.ids"]);
    // The live version starts as before.
    built(new(), version(1)).start().unwrap().shutdown(SOON).unwrap();
    client.batch_execute("DROP VIEW totals; DROP VIEW ids").unwrap();
    let new = built(new(), version(2)).start().unwrap();
    await_version(&mut client, "orders", 2);
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    drop((old, new));
}

#[test]
fn a_version_of_a_role_that_owns_nothing_is_refused() {
    let database = database();
    let (mut client, old) = prepared(&database);
    let role = format!("minimal_{}", std::process::id());
    client
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
             GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ))
        .unwrap();
    let url = database.url().replace("postgres@", &format!("{role}@"));
    let reasons = ["ORCHESTRATOR_OWNER_URL", "which owns table public.orders"];
    assert_refused(&mut client, built(builder(&url, "set"), version(2)), &reasons);
    let owner = Database::from_url(database.url()).unwrap();
    let new = built(builder(&url, "set").owner(owner), version(2)).start().unwrap();
    await_version(&mut client, "orders", 2);
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    drop((old, new));
    client.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).unwrap();
}

/// Nothing was begun by a rebuild that was refused, so the next start asks again.
#[test]
fn a_refused_rebuild_is_asked_for_again() {
    let database = database();
    let (mut client, old) = prepared(&database);
    let id = give(&mut client, "orders", "rebuild", &json!({"version": 2}));
    let (refused, _, error) = outcome(&mut client, id);
    assert_eq!(refused, "refused");
    assert!(error.unwrap().contains("of the version that is needed"));
    let new = built(builder(database.url(), "set"), version(2)).start().unwrap();
    await_version(&mut client, "orders", 2);
    assert_eq!(given(&mut client, "orders").len(), 2);
    await_exact(&mut client, "orders");
    drop((old, new));
}

#[test]
fn another_build_of_a_version_begins_once_and_is_not_mixed() {
    let database = database();
    let (mut client, old) = prepared(&database);
    let worker = |build: &str, model: Model| start(builder(database.url(), "set").build_id(build), vec![model.boxed()]);
    let model = |is_slow| {
        Model::named("orders").version(2).before(move |tx, _| {
            if is_slow {
                tx.batch_execute("SELECT pg_sleep(0.1)")?;
            }
            Ok(())
        })
    };
    let build_of_rebuild = |client: &mut Client| -> Option<Option<String>> {
        let row = client
            .query_opt("SELECT build_id FROM orchestrator_projections WHERE name = 'orders@rebuild'", &[])
            .unwrap();
        row.map(|row| row.get(0))
    };
    let await_build = |client: &mut Client, build: &str| {
        eventually("the build rebuilds", SOON, || {
            (build_of_rebuild(client) == Some(Some(build.to_owned()))).then_some(())
        });
    };
    let a = worker("a", model(true));
    await_build(&mut client, "a");
    let b = worker("b", model(true));
    await_build(&mut client, "b");
    let sql = "SELECT DISTINCT worker_id FROM orchestrator_checkpoints WHERE projection = 'orders@rebuild' AND worker_id IS NOT NULL";
    let owners = eventually("the rebuild has an owner", SOON, || {
        let owners: Vec<uuid::Uuid> = client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect();
        Some(owners).filter(|owners| !owners.is_empty())
    });
    assert_eq!(owners, [b.worker_id().0], "the other build takes no part");
    // The former build does not come back, and a program without a build id takes no part.
    a.shutdown(SOON).unwrap();
    let a = worker("a", model(true));
    let none = start(builder(database.url(), "set"), vec![model(true).boxed()]);
    await_running(&[&old, &a, &b, &none]);
    await_build(&mut client, "b");
    let before = given(&mut client, "orders");
    let shown: Vec<(&str, Option<&str>)> =
        before.iter().map(|given| (given.command.as_str(), given.build.as_deref())).collect();
    assert_eq!(shown, [("rebuild", Some("a")), ("cancel", None), ("rebuild", Some("b"))]);
    assert_eq!(before[1].reason.as_deref(), Some("build \"b\" of version 2 was deployed"));
    b.shutdown(SOON).unwrap();
    let b = worker("b", model(false));
    await_version(&mut client, "orders", 2);
    // Then every build of the version takes part.
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    assert_eq!(given(&mut client, "orders").len(), 3);
    drop((old, a, b, none));
}

#[test]
fn an_unusable_build_id_is_refused() {
    for (build, problem) in [("", "empty"), ("a\0b", "NUL"), (&"x".repeat(256), "255 bytes")] {
        let database = Database::from_url("postgres://u@localhost/d").unwrap();
        let refused = Orchestrator::builder(database, "set").build_id(build).projection(version(1)).build();
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("build_id") && text.contains(problem), "{text}");
    }
}

/// A handler that writes elsewhere ends the rebuild, and the next start does not repeat it.
#[test]
fn a_trespass_is_not_repeated_at_the_next_start() {
    let database = database();
    let (mut client, old) = prepared(&database);
    client.batch_execute("CREATE TABLE other (a int)").unwrap();
    let trespassing = || {
        let model = Model::named("orders").version(2);
        model.before(|tx, _| Ok(tx.batch_execute("INSERT INTO other VALUES (1)")?)).boxed()
    };
    let new = start(builder(database.url(), "set"), vec![trespassing()]);
    let first = eventually("the rebuild has ended", SOON, || {
        given(&mut client, "orders").into_iter().find(|given| given.outcome.as_deref() == Some("failed"))
    });
    assert!(first.error.unwrap().contains("other"));
    new.shutdown(SOON).unwrap();
    let new = start(builder(database.url(), "set"), vec![trespassing()]);
    await_running(&[&old, &new]);
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    assert_eq!((given(&mut client, "orders").len(), schemas(&mut client).len()), (2, 0));
    drop((old, new));
}

/// The rebuild has the scope, the start, the lanes and the policy of the new version, and its
/// accounts are right at each moment.
#[test]
fn the_new_version_declares_the_rebuild() {
    let database = database();
    let (mut client, old) = prepared(&database);
    assert_accounts(&mut client);
    let typed = "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_type, payload, event_id)
                 SELECT 'test', 'Other', 'other-' || i % 5, 1 + i / 5, 'Happened', '\\x01', gen_random_uuid() FROM generate_series(0, 99) AS i";
    client.batch_execute(typed).unwrap();
    await_exact(&mut client, "orders");
    let poisonous = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_poisonous = poisonous.clone();
    let mut new = Declared {
        scope: Scope::all().aggregate_types(["Thing"]),
        start_at: StartAt::Position(100),
        on_failure: Some(OnFailure::park(10)),
        ..version(2)
    };
    new.model = new.model.before(move |_, event| {
        let fails = event.aggregate_id() == "thing-7" && is_poisonous.load(std::sync::atomic::Ordering::Relaxed);
        if fails { Err("it is poisonous".into()) } else { Ok(()) }
    });
    let retry = pupsourcing_orchestrator::Retry::default().attempts(1);
    let new = built(builder(database.url(), "set").lanes(3).retry(retry), new).start().unwrap();
    await_parked(&mut client, "orders@rebuild", 1);
    assert_accounts(&mut client);
    let lanes = "SELECT count(DISTINCT lane) FROM orchestrator_checkpoints WHERE projection = 'orders@rebuild'";
    eventually("three lanes work", SOON, || {
        (client.query_one(lanes, &[]).unwrap().get::<_, i64>(0) == 3).then_some(())
    });
    append_plainly(&mut client, 100, 20);
    assert_accounts(&mut client);
    poisonous.store(false, std::sync::atomic::Ordering::Relaxed);
    replay(&mut client, "orders@rebuild");
    await_version(&mut client, "orders", 2);
    assert_accounts(&mut client);
    append_plainly(&mut client, 100, 20);
    let expected = "SELECT (SELECT count(*) FROM orders) = count(*) AND (SELECT count(DISTINCT global_position) FROM orders) = count(*)
                    FROM events WHERE aggregate_type = 'Thing' AND global_position > 100";
    eventually("exactly the events of the new scope are there", SOON, || {
        client.query_one(expected, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert_accounts(&mut client);
    let row = client
        .query_one("SELECT counted_from, scope::text FROM orchestrator_projections WHERE name = 'orders'", &[])
        .unwrap();
    assert_eq!((row.get::<_, Option<i64>>(0), row.get::<_, &str>(1).contains("Thing")), (Some(100), true));
    // The former version does not declare its scope any more.
    old.shutdown(SOON).unwrap();
    let old = built(builder(database.url(), "set"), version(1)).start().unwrap();
    await_running(&[&old, &new]);
    append_plainly(&mut client, 50, 20);
    eventually("exactly the events of the new scope are there", SOON, || {
        client.query_one(expected, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    assert_accounts(&mut client);
    drop((old, new));
}

/// A rewind that only a worker of the former version could execute does not hold up the rebuild.
#[test]
fn a_rewind_of_the_former_version_does_not_hold_up_the_new_one() {
    let database = database();
    let (mut client, old) = prepared(&database);
    old.shutdown(SOON).unwrap();
    let rewind = give(&mut client, "orders", "rewind", &json!({"to_beginning": true}));
    let executor = uuid::Uuid::new_v4();
    let begun = "UPDATE orchestrator_commands SET step = 'executing', executor = $2, attempt = 1 WHERE id = $1";
    client.execute(begun, &[&rewind, &executor]).unwrap();
    let new = built(builder(database.url(), "set"), version(2)).start().unwrap();
    await_version(&mut client, "orders", 2);
    assert_eq!(outcome(&mut client, rewind).0, "failed");
    append_plainly(&mut client, 100, 20);
    await_exact(&mut client, "orders");
    done(&mut client, "orders", "pause", &json!({}));
    drop(new);
}

/// A worker that runs to a position ends with an error if only another version could get there, and
/// after the switch if it deploys a version.
#[test]
fn run_to_ends_for_every_version() {
    let database = database();
    let (mut client, old) = prepared(&database);
    old.shutdown(SOON).unwrap();
    append_plainly(&mut client, 100, 20);
    let (_keep, never) = crossbeam_channel::bounded(0);
    let run = |version| {
        let orchestrator = built(builder(database.url(), "set"), Declared::new(version));
        orchestrator.run_to(None, &never, |_| ())
    };
    run(2).unwrap();
    await_version(&mut client, "orders", 2);
    await_exact(&mut client, "orders");
    append_plainly(&mut client, 100, 20);
    let refused = run(1).unwrap_err();
    assert!(refused.to_string().contains("no worker has that version of its code"), "{refused}");
    run(2).unwrap();
    await_exact(&mut client, "orders");
}

/// A switch while former tables are kept would make them impossible to bring back.
#[test]
fn former_tables_are_in_the_way_of_a_version() {
    let database = database();
    let (mut client, old) = prepared(&database);
    let id = give(&mut client, "orders", "rebuild", &json!({"rate": null, "keep_old": true}));
    assert_eq!(outcome(&mut client, id).0, "done");
    let refused = built(builder(database.url(), "set"), version(2)).start().unwrap_err();
    assert!(refused.to_string().contains("its former tables are kept: drop them first"), "{refused}");
    done(&mut client, "orders", "drop_old", &json!({}));
    let new = built(builder(database.url(), "set"), version(2)).start().unwrap();
    await_version(&mut client, "orders", 2);
    drop((old, new));
}
