//! Settings of the server, the database, the role and the handlers: none of them may cost an event.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use postgres::{Client, IsolationLevel, NoTls};
use pupsourcing_orchestrator::{
    BoxError, Event, EventStore, ExpectedVersion, Handle, Projection, ProjectionState, Scope, StartAt, Tx,
};

use crate::bad_input::{SOON, assert_says, orchestrator, start_refused, stranger};
use crate::support::handlers::{meddled, prepared};
use crate::support::insert::{ONE, insert};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, happened, is_complete, thing};
use crate::support::metrics::total;
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

/// Changes a setting with which new sessions begin.
fn set_default(client: &mut Client, database: &TestDatabase, setting: &str) {
    client.batch_execute(&format!("ALTER DATABASE \"{}\" SET {setting}", database.name())).unwrap();
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually("all events are handled", SOON, || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

#[track_caller]
fn await_halted(worker: &Handle, projection: &str) -> String {
    eventually("the projection halts", SOON, || {
        let status = worker.status().projections[projection].clone();
        (status.state == ProjectionState::Halted).then_some(status.error.unwrap_or_default())
    })
}

/// Statements that rewrite the table of events, and wait for its readers.
const REWRITES: [&str; 4] = [
    "ALTER TABLE events ADD COLUMN extra uuid NOT NULL DEFAULT gen_random_uuid()",
    "ALTER TABLE events ALTER event_version TYPE int USING event_version + 0",
    "ALTER TABLE events SET UNLOGGED",
    "CLUSTER events USING events_pkey",
];

fn assert_no_rewrite_hides_events(isolation: &str) {
    let database = database();
    let mut client = prepared(&database);
    set_default(&mut client, &database, &format!("default_transaction_isolation = '{isolation}'"));
    append_plainly(&mut client, 4_000, 40);
    // Slow enough for each batch to be read by a statement of its own.
    let slow = meddled("p", |_, event| {
        if event.global_position() % 100 == 0 {
            crossbeam_channel::never::<()>().recv_timeout(Duration::from_millis(10)).unwrap_err();
        }
        Ok(())
    });
    // The coordinator measures the lag on the same table, and its heartbeats wait for that.
    let configured = builder(database.url(), "set").batch_size(100).stale_worker_timeout(SOON);
    let worker = start(configured, vec![slow]);
    let waiting = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%AS weight%'";
    let mut maintenance = Client::connect(database.url(), NoTls).unwrap();
    for rewrite in REWRITES {
        let before = handled(&mut client, "p");
        eventually("events are handled", SOON, || (handled(&mut client, "p") > before).then_some(()));
        let mut tx = maintenance.build_transaction().isolation_level(IsolationLevel::ReadCommitted).start().unwrap();
        tx.batch_execute(rewrite).unwrap();
        // The reader has begun its statement when the table is rewritten.
        eventually("the reader waits for the lock", SOON, || {
            (tx.query_one(waiting, &[]).unwrap().get::<_, i64>(0) > 0).then_some(())
        });
        tx.commit().unwrap();
        append_plainly(&mut client, 400, 40);
    }
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_rewritten_table_is_not_empty_under_read_committed() {
    assert_no_rewrite_hides_events("read committed");
}

#[test]
fn a_rewritten_table_is_not_empty_under_repeatable_read() {
    assert_no_rewrite_hides_events("repeatable read");
}

#[test]
fn a_rewritten_table_is_not_empty_under_serializable() {
    assert_no_rewrite_hides_events("serializable");
}

#[test]
fn concurrent_migrations_take_turns_under_any_isolation() {
    for isolation in ["repeatable read", "serializable"] {
        let database = database();
        set_default(&mut database.client(), &database, &format!("default_transaction_isolation = '{isolation}'"));
        let outcomes: Vec<_> = thread::scope(|scope| {
            let migrating: Vec<_> = (0..6)
                .map(|_| scope.spawn(|| orchestrator(database.url()).migrate().map_err(|e| e.with_causes())))
                .collect();
            migrating.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(outcomes, vec![Ok(()); 6], "{isolation}");
    }
}

/// Creates a role with all privileges that a worker needs. Returns its name and its URL.
fn worker_role(database: &TestDatabase, client: &mut Client) -> (String, String) {
    let (role, url) = stranger(database, client);
    client
        .batch_execute(&format!(
            "GRANT USAGE ON SCHEMA public TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
             GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {role}"
        ))
        .unwrap();
    (role, url)
}

#[test]
fn row_security_is_refused_and_hides_no_event() {
    let database = database();
    let mut client = prepared(&database);
    let (role, url) = worker_role(&database, &mut client);
    append_plainly(&mut client, 500, 50);
    let hide =
        "ALTER TABLE events ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON events USING (global_position % 2 = 0)";
    client.batch_execute(hide).unwrap();
    assert_says(&start_refused(&database, &url), &["row-level security", "events", &role, "BYPASSRLS"]);

    client.batch_execute("ALTER TABLE events DISABLE ROW LEVEL SECURITY").unwrap();
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_complete(&mut client, "p");
    client.batch_execute("ALTER TABLE events ENABLE ROW LEVEL SECURITY").unwrap();
    append_plainly(&mut client, 500, 50);
    // The worker looks without success, and continues when it may see the events again.
    eventually("the tailer is refused", SOON, || (total(&worker, "reconnects_total") > 0).then_some(()));
    assert_eq!(handled(&mut client, "p"), 500);
    client.batch_execute("ALTER TABLE events DISABLE ROW LEVEL SECURITY").unwrap();
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn checkpoints_that_were_hidden_are_found_again() {
    let database = database();
    let mut client = prepared(&database);
    let (role, url) = worker_role(&database, &mut client);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    append_plainly(&mut client, 100, 10);
    await_complete(&mut client, "p");
    client.batch_execute("ALTER TABLE orchestrator_checkpoints ENABLE ROW LEVEL SECURITY").unwrap();
    append_plainly(&mut client, 100, 10);
    eventually("the runner is fenced", SOON, || (total(&worker, "fenced_batches_total") > 0).then_some(()));
    eventually("it looks for its rows in vain", SOON, || {
        let status = worker.status().projections["p"].clone();
        status.error.is_some_and(|error| error.contains("row-level security")).then_some(())
    });
    assert_says(&start_again(&url), &["row-level security", "orchestrator_checkpoints", &role, "BYPASSRLS"]);
    client.batch_execute("ALTER TABLE orchestrator_checkpoints DISABLE ROW LEVEL SECURITY").unwrap();
    await_complete(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

fn start_again(url: &str) -> pupsourcing_orchestrator::Error {
    builder(url, "set").projection(Ledger::named("p")).build().unwrap().start().unwrap_err()
}

/// A schema with shadows: for each of these functions and operators of the server one of the same
/// name and types, where that can be created. A shadow that the library calls raises an error.
const SHADOWS: &str = r"
    CREATE SCHEMA shadows;
    CREATE FUNCTION shadows.shadow(name text) RETURNS void LANGUAGE plpgsql AS $f$
        BEGIN RAISE EXCEPTION 'the shadow of % was called', name; END $f$;
    DO $do$
    DECLARE f RECORD; o RECORD;
    BEGIN
        FOR f IN SELECT p.oid, p.proname, pg_get_function_identity_arguments(p.oid) AS arguments, pg_get_function_result(p.oid) AS result
                 FROM pg_proc p WHERE p.pronamespace = 'pg_catalog'::regnamespace AND p.prokind = 'f' AND NOT p.proretset
                 AND p.proname IN ('hashtextextended', 'cardinality', 'clock_timestamp', 'now', 'pg_notify', 'current_setting', 'set_config',
                     'pg_advisory_lock_shared', 'pg_advisory_xact_lock_shared', 'pg_advisory_xact_lock', 'pg_try_advisory_lock_shared',
                     'pg_try_advisory_xact_lock_shared', 'uuid_hash', 'gen_random_uuid',
                     'pg_advisory_unlock_all', 'octet_length', 'concat', 'format', 'isempty', 'to_regclass', 'to_regnamespace', 'lower',
                     'upper', 'convert_to', 'current_schemas', 'pg_terminate_backend', 'has_table_privilege', 'has_schema_privilege',
                     'pg_is_in_recovery', 'current_database', 'pg_backend_pid', 'isfinite', 'round', 'extract', 'date_part', 'pg_has_role')
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION shadows.%I(%s) RETURNS %s LANGUAGE plpgsql AS $x$ BEGIN PERFORM shadows.shadow(%L); RETURN NULL; END $x$',
                    f.proname, f.arguments, f.result, f.proname);
            EXCEPTION WHEN OTHERS THEN NULL; -- of a type that no such function can have
            END;
        END LOOP;
        FOR o IN SELECT oprname, l.oid::regtype AS l, r.oid::regtype AS r, oprresult::regtype AS result
                 FROM pg_operator JOIN pg_type l ON l.oid = oprleft JOIN pg_type r ON r.oid = oprright
                 WHERE oprkind = 'b' AND oprnamespace = 'pg_catalog'::regnamespace
                 AND oprname IN ('=', '<>', '<', '>', '<=', '>=', '+', '-', '*', '/', '&', '|', '@>', '<@', '||', '<<')
                 AND oprleft::regtype::text IN ('bigint', 'integer', 'text', 'uuid', 'character varying', 'anymultirange', 'name', 'oid', 'timestamp with time zone', 'boolean')
        LOOP
            BEGIN
                EXECUTE format('CREATE FUNCTION shadows.%I(%s, %s) RETURNS %s LANGUAGE plpgsql AS $x$ BEGIN PERFORM shadows.shadow(%L); RETURN NULL; END $x$',
                    'op ' || o.oprname, replace(o.l::text, 'anymultirange', 'int4multirange'), replace(o.r::text, 'anymultirange', 'int4multirange'),
                    replace(o.result::text, 'anymultirange', 'int4multirange'), o.oprname);
                EXECUTE format('CREATE OPERATOR shadows.%s (FUNCTION = shadows.%I, LEFTARG = %s, RIGHTARG = %s)',
                    o.oprname, 'op ' || o.oprname, replace(o.l::text, 'anymultirange', 'int4multirange'), replace(o.r::text, 'anymultirange', 'int4multirange'));
            EXCEPTION WHEN OTHERS THEN NULL;
            END;
        END LOOP;
    END $do$;
    -- Exact overloads, which win even over the order of the path.
    CREATE FUNCTION shadows.hashtextextended(text, int) RETURNS bigint LANGUAGE sql AS 'SELECT 0::bigint';
    CREATE FUNCTION shadows.never(int4multirange, int) RETURNS boolean LANGUAGE sql AS 'SELECT false';
    CREATE OPERATOR shadows.@> (FUNCTION = shadows.never, LEFTARG = int4multirange, RIGHTARG = int);
    CREATE FUNCTION shadows.plus(int4multirange, int4multirange) RETURNS int4multirange LANGUAGE sql AS 'SELECT ''{[0,1)}''::int4multirange';
    CREATE FUNCTION shadows.first_only(bigint, bigint) RETURNS bigint LANGUAGE plpgsql AS $f$ BEGIN RAISE EXCEPTION 'the shadow of max was called'; END $f$;
    CREATE AGGREGATE shadows.max(bigint) (SFUNC = shadows.first_only, STYPE = bigint);
    CREATE AGGREGATE shadows.min(bigint) (SFUNC = shadows.first_only, STYPE = bigint);
    CREATE FUNCTION shadows.unnest(int4multirange) RETURNS SETOF int4range LANGUAGE sql AS 'SELECT ''[0,1)''::int4range';
    CREATE FUNCTION shadows.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT ''nothing''::text';
    CREATE DOMAIN shadows.int8 AS pg_catalog.int8 CHECK (false);
    CREATE DOMAIN shadows.text AS pg_catalog.text CHECK (false);
";

/// Stores each event without calling a function or an operator that could be a shadow.
struct Notes;

impl Projection for Notes {
    fn name(&self) -> &str {
        "p"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        // Slow enough to be in the middle of its events when the other worker leaves.
        crossbeam_channel::never::<()>().recv_timeout(Duration::from_micros(500)).unwrap_err();
        let values = (event.global_position(), event.aggregate_id(), event.aggregate_version());
        tx.batch_execute(&format!(
            "INSERT INTO public.ledger (projection, global_position, aggregate_id, aggregate_version) VALUES ('p', {}, '{}', {})",
            values.0, values.1, values.2
        ))?;
        Ok(())
    }
}

#[test]
fn no_search_path_replaces_functions_the_library_calls() {
    for heartbeats_only in [false, true] {
        let database = database();
        let mut client = prepared(&database);
        client.batch_execute(SHADOWS).unwrap();
        let made: i64 = client
            .query_one("SELECT count(*) FROM pg_proc WHERE pronamespace = 'shadows'::regnamespace", &[])
            .unwrap()
            .get(0);
        assert!(made > 60, "only {made} functions have a shadow");
        set_default(&mut client, &database, "search_path = shadows, pg_catalog, public");
        let called = Client::connect(database.url(), NoTls)
            .unwrap()
            .batch_execute("SELECT 'a'::pg_catalog.text = 'b'::pg_catalog.text");
        assert!(called.unwrap_err().as_db_error().unwrap().message().contains("shadow of ="), "shadows are found");

        append_plainly(&mut client, 2_000, 200);
        let configured = || {
            let builder = builder(database.url(), "set").batch_size(100);
            if heartbeats_only { builder.heartbeats_only() } else { builder }
        };
        let workers = [(); 2].map(|()| start(configured(), vec![Box::new(Notes)]));
        await_running(&workers.each_ref());
        // Append with the function, and read, on a connection with that search path.
        let mut application = Client::connect(database.url(), NoTls).unwrap();
        let store = EventStore::default();
        store.append(&mut application, &thing("new"), ExpectedVersion::NoStream, &[happened(), happened()]).unwrap();
        let conflict =
            store.append(&mut application, &thing("new"), ExpectedVersion::Exact(7), &[happened()]).unwrap_err();
        assert!(conflict.to_string().contains("it is at 2"), "{conflict}");
        store.append(&mut application, &thing("new"), ExpectedVersion::Any, &[happened()]).unwrap();
        store.hint(&mut application);
        assert_eq!(store.read_stream(&mut application, &thing("new"), 2..).unwrap().len(), 2);
        let last = store.append(&mut application, &thing("new"), ExpectedVersion::Any, &[happened()]).unwrap();
        store.wait_for(&mut application, &["p"], &last, SOON).unwrap();
        await_complete(&mut client, "p");
        assert_eq!(handled(&mut client, "p"), 2_004);
        // The other worker takes over what the leaving worker has not handled, and merges it with
        // its own keys.
        append_plainly(&mut client, 2_000, 200);
        eventually("both have begun", SOON, || (handled(&mut client, "p") > 2_300).then_some(()));
        let [leaves, stays] = workers;
        leaves.shutdown(SOON).unwrap();
        let rows = "SELECT count(*) FROM orchestrator_checkpoints";
        assert!(client.query_one(rows, &[]).unwrap().get::<_, i64>(0) > 1, "there is something to merge");
        await_complete(&mut client, "p");
        eventually("they are merged", SOON, || {
            (client.query_one(rows, &[]).unwrap().get::<_, i64>(0) == 1).then_some(())
        });
        stays.shutdown(SOON).unwrap();
    }
}

#[test]
fn timeouts_of_the_role_do_not_end_long_reads() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 300_000, 1_000);
    client.execute(&insert(ONE, &[("aggregate_type", "'Rare'")]), &[]).unwrap();
    for timeout in ["statement_timeout = '20ms'", "lock_timeout = '20ms'", "idle_session_timeout = '300ms'"] {
        set_default(&mut client, &database, timeout);
    }
    // The handler itself gets more time, because the machine may be slow.
    let handler = Meddler {
        name: "p",
        scope: Scope::all().aggregate_types(["Rare"]),
        setting: "SET LOCAL statement_timeout = 0",
    };
    let worker = start(builder(database.url(), "set"), vec![Box::new(handler)]);
    eventually("the rare event is handled", SOON, || (handled(&mut client, "p") == 1).then_some(()));
    assert_eq!(worker.status().projections["p"].error, None);
    worker.shutdown(SOON).unwrap();
}

/// A ledger that executes a statement before each event.
struct Meddler {
    name: &'static str,
    scope: Scope,
    setting: &'static str,
}

impl Projection for Meddler {
    fn name(&self) -> &str {
        self.name
    }

    fn scope(&self) -> Scope {
        self.scope.clone()
    }

    fn start_at(&self) -> StartAt {
        StartAt::Beginning
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        tx.batch_execute(self.setting)?;
        Ledger::named(self.name).handle(tx, event)
    }
}

/// What a handler may set. Each would break another handler on the same connection if it stayed.
const LEFT_BEHIND: [&str; 8] = [
    "SET search_path = elsewhere",
    "SET ROLE nobody_else",
    "SET SESSION AUTHORIZATION nobody_else",
    "CREATE TEMPORARY TABLE IF NOT EXISTS ledger (LIKE public.ledger INCLUDING ALL)",
    "SET default_transaction_read_only = on",
    "SET session_replication_role = replica; SET row_security = off; SET statement_timeout = '1min'",
    "SELECT pg_advisory_unlock_all()",
    "SET default_transaction_isolation = 'serializable'; LISTEN something",
];

/// The state of a session. An untouched session has the settings of the application's role, and
/// holds the locks by which it is found: its own, and the one of the transaction.
const UNTOUCHED: &str = "
    SELECT concat_ws(', ', current_user, session_user, current_setting('search_path'), current_setting('default_transaction_read_only'),
        current_setting('statement_timeout'), current_setting('row_security'), current_setting('session_replication_role'),
        (SELECT count(*) FROM pg_class WHERE relpersistence = 't' AND pg_table_is_visible(oid)),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(DISTINCT objid) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()))";

#[test]
fn no_setting_of_a_handler_reaches_another_projection() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "CREATE SCHEMA elsewhere; CREATE TABLE elsewhere.ledger (LIKE public.ledger INCLUDING ALL);
             DO $$ BEGIN CREATE ROLE nobody_else; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
             GRANT USAGE ON SCHEMA public, elsewhere TO nobody_else;
             GRANT ALL ON ALL TABLES IN SCHEMA public, elsewhere TO nobody_else;
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO nobody_else",
        )
        .unwrap();
    let lost = "DO $$ BEGIN RAISE 'as if' USING ERRCODE = '40P01'; END $$";
    for left_behind in LEFT_BEHIND {
        // Every second attempt fails and returns its connection to the pool, so that the
        // projections exchange connections. The settings of the other attempts stay.
        let attempts = AtomicUsize::new(0);
        let meddling = meddled("meddler", move |tx, _| {
            tx.batch_execute(left_behind)?;
            if attempts.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
                tx.batch_execute(lost)?;
            }
            Ok(())
        });
        let seen = Arc::new(parking_lot::Mutex::new(BTreeSet::new()));
        let (noted, attempts) = (seen.clone(), AtomicUsize::new(0));
        let bystander = meddled("bystander", move |tx, _| {
            noted.lock().insert(tx.query_one(UNTOUCHED, &[])?.get::<_, String>(0));
            if attempts.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
                tx.batch_execute(lost)?;
            }
            Ok(())
        });
        append_plainly(&mut client, 20, 4);
        let worker = start(builder(database.url(), "set").batch_size(1), vec![meddling, bystander]);
        eventually("the other one handles all", SOON, || is_complete(&mut client, "bystander").then_some(()));
        assert_exactly_once(&mut client, "bystander");
        let untouched = "postgres, postgres, \"$user\", public, off, 0, on, origin, 0, 0, 2";
        assert_eq!(seen.lock().iter().collect::<Vec<_>>(), [untouched], "{left_behind}");
        worker.shutdown(SOON).unwrap();
        let again = "DELETE FROM orchestrator_checkpoints; DELETE FROM orchestrator_projections; TRUNCATE ledger, elsewhere.ledger";
        client.batch_execute(again).unwrap();
    }
}

#[test]
fn a_handler_that_ends_its_transaction_halts() {
    for ending in [
        "COMMIT",
        "ROLLBACK",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
        "COMMIT; BEGIN",
        "ROLLBACK; BEGIN ISOLATION LEVEL SERIALIZABLE",
        "PREPARE TRANSACTION 'theirs'",
    ] {
        for heartbeats_only in [false, true] {
            let database = database();
            let mut client = prepared(&database);
            append_plainly(&mut client, 60, 6);
            let ends = meddled("p", move |tx, event| {
                if event.global_position() == 41 {
                    tx.batch_execute(ending)?;
                }
                Ok(())
            });
            let configured = builder(database.url(), "set").batch_size(20);
            let configured = if heartbeats_only { configured.heartbeats_only() } else { configured };
            let retry = pupsourcing_orchestrator::Retry::default().attempts(2);
            let worker = start(configured.retry(retry), vec![ends, Box::new(Ledger::named("q"))]);
            let error = await_halted(&worker, "p");
            // While its session holds the same lock twice, the server itself refuses to prepare the
            // transaction.
            let is_said = error.contains("has ended the transaction") && error.contains("41 to 60");
            let is_refused = ending.starts_with("PREPARE") && error.contains("cannot PREPARE");
            assert!(is_said || is_refused, "{ending}: {error}");
            await_complete(&mut client, "q");
            let position: i64 = client
                .query_one("SELECT min(position) FROM orchestrator_checkpoints WHERE projection = 'p'", &[])
                .unwrap()
                .get(0);
            assert_eq!(position, 40, "{ending}: the checkpoint stays where it was");
            worker.shutdown(SOON).unwrap();
            let prepared =
                client.query_opt("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()", &[]);
            if let Some(row) = prepared.unwrap() {
                client.batch_execute(&format!("ROLLBACK PREPARED '{}'", row.get::<_, String>(0))).unwrap();
            }
        }
    }
}

#[test]
fn a_handler_that_ends_its_transaction_and_fails_halts_at_once() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 2);
    let ends = meddled("p", |tx, event| {
        if event.global_position() == 11 {
            tx.batch_execute("COMMIT")?;
            return Err("and then it fails".into());
        }
        Ok(())
    });
    let worker = start(builder(database.url(), "set"), vec![ends]);
    let error = await_halted(&worker, "p");
    assert!(error.contains("has ended the transaction"), "{error}");
    assert_eq!(handled(&mut client, "p"), 10, "what it has committed is there once");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_session_unlocked_by_a_handler_is_ended_with_its_worker() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 30, 3);
    let (entered, was_entered) = bounded(1);
    let (let_go, go_on) = bounded::<()>(0);
    let frozen = meddled("p", move |tx, _| {
        tx.batch_execute("SELECT pg_advisory_unlock_all()")?;
        tx.batch_execute(
            "INSERT INTO ledger (projection, global_position, aggregate_id, aggregate_version) VALUES ('q', 0, '', 0)",
        )?;
        _ = entered.try_send(());
        _ = go_on.recv();
        Ok(())
    });
    let configured = || builder(database.url(), "set").coordination_timeout(Duration::from_secs(1));
    let zombie = start(configured(), vec![frozen]);
    was_entered.recv_timeout(SOON).unwrap();
    let other = start(configured(), vec![Box::new(Ledger::named("p"))]);
    eventually("the other one handles every event", SOON, || is_complete(&mut client, "p").then_some(()));
    let open = "SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND state LIKE 'idle in transaction%' AND xact_start < now() - interval '1 second'";
    assert_eq!(client.query_one(open, &[]).unwrap().get::<_, i64>(0), 0, "its session keeps no lock");
    drop(let_go);
    assert_exactly_once(&mut client, "p");
    other.shutdown(SOON).unwrap();
    zombie.shutdown(SOON).unwrap();
}
