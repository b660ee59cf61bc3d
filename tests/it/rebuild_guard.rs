//! The guard of a rebuild: a handler may write only to the copies. Whatever else it does, the live
//! read model stays as it is.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use postgres::Client;
use pupsourcing_orchestrator::{Handle, Names};
use serde_json::json;

use crate::support::commands::{Outcome, done, give, outcome};
use crate::support::installed::leave_out;
use crate::support::ledger::append_plainly;
use crate::support::rebuilds::{Model, await_exact, begin_rebuild, begin_rebuild_with, schemas};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// The event at which the handler does something else, in a rebuild.
const AT: i64 = 40;

/// A worker with a projection whose handler executes a statement of the test, in a rebuild only.
struct Guarded {
    database: TestDatabase,
    client: Client,
    statement: Arc<Mutex<String>>,
    _worker: Handle,
}

impl Guarded {
    fn start() -> Self {
        let database = database();
        let mut client = database.client();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        let statement = Arc::new(Mutex::new(String::new()));
        let executed = Arc::clone(&statement);
        let model = Model::named("orders").before(move |tx, event| {
            if tx.is_replay() && event.global_position() == AT {
                tx.batch_execute(&executed.lock())?;
            }
            Ok(())
        });
        model.create_table(&mut client);
        let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
        await_running(&[&worker]);
        append_plainly(&mut client, 100, 5);
        await_exact(&mut client, "orders");
        client
            .batch_execute(
                "CREATE TABLE other (id serial PRIMARY KEY, a int); INSERT INTO other (a) VALUES (7);
                 CREATE VIEW onto_other AS SELECT * FROM other;
                 CREATE SEQUENCE numbers; CREATE TABLE doomed (a int);
                 SELECT lo_from_bytea(4711, 'x');
                 CREATE FUNCTION write_orders() RETURNS void LANGUAGE sql SET search_path = public
                 AS 'INSERT INTO orders (global_position, aggregate_id, aggregate_version, version) VALUES (-1, ''x'', 1, 1)';
                 CREATE FUNCTION count_orders() RETURNS bigint LANGUAGE plpgsql SET search_path = public
                 AS 'BEGIN RETURN (SELECT count(*) FROM orders); END'",
            )
            .unwrap();
        Self { database, client, statement, _worker: worker }
    }

    /// What becomes of a rebuild whose handler executes this. The live read model is exact, and
    /// nothing is left, in any case.
    fn rebuilt(&mut self, statement: &str) -> Outcome {
        println!("{statement}");
        statement.clone_into(&mut self.statement.lock());
        let id = give(&mut self.client, "orders", "rebuild", &json!({"rate": null}));
        let outcome = outcome(&mut self.client, id);
        await_exact(&mut self.client, "orders");
        assert_eq!(schemas(&mut self.client), [""; 0], "{statement}");
        outcome
    }

    /// Everything that a handler might change, except for the read model.
    fn rest(&mut self) -> String {
        let sql = "SELECT concat((SELECT string_agg(o::text, ',') FROM other o), ' ', (SELECT count(*) FROM events), ' ',
                                 (SELECT string_agg(encode(data, 'hex'), ',') FROM pg_largeobject), ' ',
                                 (SELECT string_agg(relname, ',' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace),
                                 (SELECT count(*) FROM pg_attribute WHERE attrelid = 'other'::regclass AND NOT attisdropped))";
        self.client.query_one(sql, &[]).unwrap().get(0)
    }
}

/// A foreign table `elsewhere`, which is the table `other` of the same database.
fn create_foreign_table(guarded: &mut Guarded) -> bool {
    let url = guarded.database.url().to_owned();
    let config: postgres::Config = url.parse().unwrap();
    let (port, name) = (config.get_ports()[0], config.get_dbname().unwrap());
    let Err(error) = guarded.client.batch_execute(&format!(
        "CREATE EXTENSION postgres_fdw;
         CREATE SERVER loopback FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '{port}', dbname '{name}');
         CREATE USER MAPPING FOR postgres SERVER loopback OPTIONS (user 'postgres', password_required 'false');
         CREATE FOREIGN TABLE elsewhere (id int, a int) SERVER loopback OPTIONS (table_name 'other')"
    )) else {
        return true;
    };
    leave_out(&format!("postgres_fdw is not installed: {error}"));
    false
}

#[test]
fn whatever_is_not_a_copy_fails_the_rebuild_by_name() {
    let mut guarded = Guarded::start();
    let has_foreign_table = create_foreign_table(&mut guarded);
    let before = guarded.rest();
    let row = "(global_position, aggregate_id, aggregate_version, version) VALUES (-1, 'x', 1, 1)";
    let qualified = format!("INSERT INTO public.orders {row}");
    let by_path = format!("SET LOCAL search_path = public; INSERT INTO orders {row}");
    let event = "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version, payload)
                 VALUES ('test', 'Thing', 'thing-x', 1, gen_random_uuid(), 'Happened', 1, '')";
    let cases = [
        (qualified.as_str(), "changed public.orders"),
        (by_path.as_str(), "changed public.orders"),
        ("SELECT write_orders()", "changed public.orders"),
        ("TRUNCATE public.orders", "changed public.orders"),
        ("DELETE FROM public.orders WHERE false", "changed public.orders"),
        // What is taken from the live table is not built anew.
        ("DO 'BEGIN PERFORM count_orders(); END'", "read the live table public.orders"),
        ("SELECT FROM public.orders LIMIT 1 FOR UPDATE", "read the live table public.orders"),
        ("INSERT INTO other (a) VALUES (1)", "changed public.other"),
        ("INSERT INTO onto_other (a) VALUES (1)", "changed public.other"),
        ("TRUNCATE other", "changed public.other"),
        ("ALTER TABLE other ADD COLUMN b int", "changed public.other"),
        ("CREATE INDEX ON other (a)", "changed public.other"),
        ("LOCK TABLE other IN SHARE MODE", "changed public.other"),
        ("DROP TABLE doomed", "changed a table that it has dropped"),
        ("CREATE TABLE public.more (a int)", "changed public.more"),
        ("CREATE TABLE more AS SELECT 1 AS a", ".more"),
        ("CREATE VIEW public.seen AS SELECT 1 AS a", "changed public.seen"),
        ("SELECT nextval('numbers')", "changed public.numbers"),
        ("SELECT setval('public.orders_seq_seq', 1000000)", "changed public.orders_seq_seq"),
        ("SELECT lo_put(4711, 0, 'y')", "changed pg_catalog.pg_largeobject"),
        ("SELECT lo_unlink(4711)", "changed large object 4711"),
        (event, "changed public.events"),
        ("DROP TABLE orders", "the copy of table orders does not exist any more"),
        ("ALTER TABLE orders RENAME TO former", "changed public.orders"),
        ("SAVEPOINT s; INSERT INTO other (a) VALUES (1); RELEASE s", "changed public.other"),
    ];
    let foreign = ("INSERT INTO elsewhere VALUES (100, 1)", "changed public.elsewhere");
    for (statement, named) in cases.into_iter().chain(has_foreign_table.then_some(foreign)) {
        let (outcome, _, error) = guarded.rebuilt(statement);
        let error = error.unwrap_or_default();
        assert_eq!(outcome, "failed", "{statement}: {error}");
        assert!(error.contains("it was cancelled by worker") && error.contains(named), "{statement}: {error}");
        // A sequence that is set is set for good, whatever becomes of the transaction.
        assert_eq!(guarded.rest(), before, "{statement}");
    }
}

#[test]
fn what_changes_no_other_table_is_allowed() {
    let mut guarded = Guarded::start();
    for statement in [
        "DO 'BEGIN PERFORM * FROM other; PERFORM * FROM onto_other; PERFORM * FROM events; END'",
        "SELECT FROM other FOR UPDATE; SELECT FROM other FOR KEY SHARE",
        "CREATE TEMPORARY TABLE scratch (id serial PRIMARY KEY, t text) ON COMMIT DROP; INSERT INTO scratch (t) VALUES ('x'); ANALYZE scratch",
        "CREATE TEMPORARY TABLE kept AS SELECT * FROM other; CREATE INDEX ON kept (a); UPDATE kept SET a = 1",
        "SAVEPOINT s; INSERT INTO other VALUES (9, 1); DELETE FROM public.orders; ROLLBACK TO s",
        "SELECT nextval('orders_seq_seq'); SELECT setval('orders_seq_seq', 500)",
        "CREATE TABLE IF NOT EXISTS orders (a int)",
        "LOCK TABLE orders IN EXCLUSIVE MODE; ANALYZE orders",
        "NOTIFY somebody",
        "SELECT pg_advisory_xact_lock(1)",
        "PREPARE mine AS SELECT count(*) FROM orders; EXECUTE mine; DEALLOCATE mine",
    ] {
        let before = guarded.rest();
        let (outcome, _, error) = guarded.rebuilt(statement);
        assert_eq!((outcome.as_str(), error), ("done", None), "{statement}");
        assert_eq!(guarded.rest(), before, "{statement}");
    }
}

/// The transaction that `COMMIT` ends has not been looked at, and a name leads to the live table
/// afterwards. So a handler must not do that, in a rebuild as little as elsewhere.
#[test]
fn handler_that_commits_halts_the_rebuild() {
    let mut guarded = Guarded::start();
    "COMMIT".clone_into(&mut guarded.statement.lock());
    begin_rebuild(&mut guarded.client, "orders");
    let sql = "SELECT error FROM orchestrator_checkpoints WHERE projection = 'orders@rebuild' AND state = 'halted'";
    let error: String =
        eventually("the rebuild halts", SOON, || Some(guarded.client.query_opt(sql, &[]).unwrap()?.get(0)));
    assert!(error.contains("has ended the transaction"), "{error}");
    done(&mut guarded.client, "orders", "cancel", &json!({}));
    assert_eq!(schemas(&mut guarded.client), [""; 0]);
}

#[test]
fn copy_that_somebody_drops_fails_the_rebuild() {
    let mut guarded = Guarded::start();
    for change in
        ["DROP TABLE {}.orders", "ALTER TABLE {}.orders SET SCHEMA aside", "ALTER TABLE {}.orders RENAME TO o"]
    {
        guarded.client.batch_execute("CREATE SCHEMA aside").unwrap();
        let id = begin_rebuild_with(&mut guarded.client, "orders", &json!({"rate": 50}));
        let change = change.replace("{}", &schemas(&mut guarded.client)[0]);
        guarded.client.batch_execute(&change).unwrap();
        append_plainly(&mut guarded.client, 20, 5);
        let (outcome, _, error) = outcome(&mut guarded.client, id);
        let error = error.unwrap_or_default();
        assert_eq!(outcome, "failed", "{change}: {error}");
        assert!(error.contains("has changed public.orders"), "{change}: {error}");
        assert_eq!(
            error.contains("the copy of table orders does not exist any more"),
            change.contains("DROP"),
            "{error}"
        );
        guarded.client.batch_execute("DROP SCHEMA aside CASCADE").unwrap();
        await_exact(&mut guarded.client, "orders");
    }
}

/// A handler that stops in a rebuild, until the test lets it go on.
struct Stopping {
    _database: TestDatabase,
    client: Client,
    /// Says that the handler has stopped.
    stopped: Receiver<()>,
    goes_on: Sender<()>,
    _worker: Handle,
}

impl Stopping {
    /// The handler stops at the event at this position. The batch has written those
    /// before it.
    fn start(at: i64) -> Self {
        let database = database();
        let mut client = database.client();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        let ((say, stopped), (goes_on, wait)) = (bounded(1), bounded::<()>(1));
        let model = Model::named("orders").before(move |tx, event| {
            if tx.is_replay() && event.global_position() == at {
                say.send(())?;
                wait.recv()?;
            }
            Ok(())
        });
        model.create_table(&mut client);
        let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
        await_running(&[&worker]);
        append_plainly(&mut client, 100, 5);
        await_exact(&mut client, "orders");
        Self { _database: database, client, stopped, goes_on, _worker: worker }
    }
}

#[test]
fn cancelling_waits_for_a_batch_that_has_written() {
    let mut stopping = Stopping::start(AT);
    begin_rebuild(&mut stopping.client, "orders");
    stopping.stopped.recv_timeout(SOON).unwrap();
    let cancel = give(&mut stopping.client, "orders", "cancel", &json!({}));
    let waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%LOCK TABLE%'";
    eventually("the cancelling waits", SOON, || stopping.client.query_opt(waits, &[]).unwrap().map(drop));
    // Live work goes on meanwhile.
    append_plainly(&mut stopping.client, 50, 5);
    await_exact(&mut stopping.client, "orders");
    stopping.goes_on.send(()).unwrap();
    assert_eq!(outcome(&mut stopping.client, cancel).0, "done");
    assert_eq!(schemas(&mut stopping.client), [""; 0]);
    await_exact(&mut stopping.client, "orders");
}

#[test]
fn batch_of_a_cancelled_rebuild_changes_nothing() {
    let mut stopping = Stopping::start(1);
    begin_rebuild(&mut stopping.client, "orders");
    stopping.stopped.recv_timeout(SOON).unwrap();
    done(&mut stopping.client, "orders", "cancel", &json!({}));
    assert_eq!(schemas(&mut stopping.client), [""; 0], "it has locked nothing yet");
    // Its statement leads to the live table now. The next rebuild has nothing to do with it.
    let next = begin_rebuild_with(&mut stopping.client, "orders", &json!({"rate": 20}));
    stopping.goes_on.send(()).unwrap();
    stopping.goes_on.send(()).unwrap();
    stopping.stopped.recv_timeout(SOON).unwrap();
    assert_eq!(outcome(&mut stopping.client, next).0, "done");
    await_exact(&mut stopping.client, "orders");
    let rows = stopping.client.query("SELECT FROM orchestrator_commands WHERE command = 'cancel'", &[]).unwrap();
    assert_eq!(rows.len(), 1, "only the test has cancelled");
}
