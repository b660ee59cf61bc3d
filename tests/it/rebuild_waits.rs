//! What delays the switch of a rebuild, and what happens to the rebuild meanwhile.

use std::time::Duration;

use crossbeam_channel::bounded;
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Names, Retry};
use serde_json::json;

use crate::support::commands::{done, give, outcome, outcome_within};
use crate::support::ledger::append_plainly;
use crate::support::metrics::projection_metric;
use crate::support::proxies::pgbouncers;
use crate::support::readers::{Pair, Readers, Way};
use crate::support::rebuilds::{Model, await_exact, begin_rebuild, begin_rebuild_with, faults, schemas};
use crate::support::workers::{await_running, builder, start};
use crate::support::{Postgres, TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(60);

/// By how much a reader may be delayed on a machine that is busy with other tests.
const DELAY: Duration = Duration::from_millis(500);

/// The schema and the table of a read model.
fn prepared(database: &TestDatabase, models: &[&Model]) -> Client {
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    for model in models {
        model.create_table(&mut client);
    }
    client
}

/// The state of the rebuild, and what blocks its switch.
fn state(client: &mut Client) -> Option<(String, Option<String>)> {
    let row = client.query_opt("SELECT state, blocked FROM orchestrator_rebuilds", &[]).unwrap()?;
    Some((row.get(0), row.get(1)))
}

#[track_caller]
fn await_state(client: &mut Client, wanted: &str) {
    eventually(wanted, SOON, || state(client).filter(|(state, _)| state == wanted));
}

/// Waits until the switch is blocked for a reason with this part.
#[track_caller]
fn await_blocked_by(client: &mut Client, part: &str) {
    eventually(part, SOON, || state(client).filter(|(_, why)| why.as_ref().is_some_and(|why| why.contains(part))));
}

/// Waits until the copies have as many events as the live read model.
#[track_caller]
fn await_loaded(client: &mut Client, projection: &str) {
    let sql = "SELECT (SELECT min(position) FROM orchestrator_checkpoints WHERE projection = $1 || '@rebuild')
                      = (SELECT max(global_position) FROM events)";
    eventually("the copies are filled", SOON, || {
        client.query_one(sql, &[&projection]).unwrap().get::<_, Option<bool>>(0).filter(|is_filled| *is_filled)
    });
}

fn pid_of(client: &mut Client) -> i32 {
    client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0)
}

#[test]
fn reader_with_an_old_snapshot_delays_the_switch_by_name() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &[&model]);
    let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 500, 50);
    await_exact(&mut client, "orders");
    let mut reader = database.client();
    let pid = pid_of(&mut reader);
    let mut old = reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    old.query_one("SELECT 1", &[]).unwrap();
    let id = begin_rebuild(&mut client, "orders");
    await_blocked_by(&mut client, &format!("pid {pid} "));
    // The live projection follows the rebuild meanwhile, and both go on.
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    assert_eq!(faults(&mut old, "orders").0, 500, "as of its snapshot");
    old.commit().unwrap();
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    await_exact(&mut client, "orders");
}

#[test]
fn session_that_has_locked_the_table_delays_the_switch_by_name() {
    let database = database();
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Pair::create(&mut client);
    let worker = start(builder(database.url(), "set"), vec![Pair::boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 10);
    let mut holder = database.client();
    let pid = pid_of(&mut holder);
    let mut tx = holder.transaction().unwrap();
    tx.batch_execute("SELECT FROM pair_sums").unwrap();
    // The attempts to lock delay other readers, each only a little.
    let readers = Readers::start(database.url(), &[Way::Simple, Way::Prepared]);
    let id = begin_rebuild(&mut client, "pair");
    await_blocked_by(&mut client, &format!("pid {pid} "));
    await_blocked_by(&mut client, "has a lock on public.pair_sums");
    for read in readers.stop() {
        assert!(read.longest < DELAY, "{read:?}");
    }
    tx.commit().unwrap();
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    assert_eq!(schemas(&mut client), [""; 0]);
}

#[test]
fn autovacuum_of_the_live_table_does_not_starve_the_switch() {
    let server = Postgres::options().setting("autovacuum_naptime", "1s").start().unwrap();
    let mut client = Client::connect(&server.create_database("busy").unwrap(), NoTls).unwrap();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    let model = Model::named("orders");
    model.create_table(&mut client);
    let worker = start(builder(&server.url("busy"), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 1_500, 50);
    await_exact(&mut client, "orders");
    // A vacuum of this table takes minutes, and begins again at once.
    client
        .batch_execute(
            "ALTER TABLE orders SET (autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_cost_delay = 100,
                                     autovacuum_vacuum_cost_limit = 1);
             UPDATE orders SET version = version",
        )
        .unwrap();
    let vacuum = "SELECT FROM pg_stat_progress_vacuum WHERE relid = 'orders'::regclass";
    eventually("the table is vacuumed", SOON, || client.query_opt(vacuum, &[]).unwrap().map(drop));
    let id = begin_rebuild(&mut client, "orders");
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    await_exact(&mut client, "orders");
}

#[test]
fn paused_projection_is_not_switched() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &[&model]);
    let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 300, 50);
    await_exact(&mut client, "orders");
    done(&mut client, "orders", "pause", &json!({}));
    let id = begin_rebuild(&mut client, "orders");
    await_loaded(&mut client, "orders");
    let old: u32 = client.query_one("SELECT 'orders'::regclass::oid", &[]).unwrap().get(0);
    assert!(crossbeam_channel::never::<()>().recv_timeout(Duration::from_secs(1)).is_err());
    assert_eq!(state(&mut client), Some(("loading".to_owned(), None)));
    done(&mut client, "orders", "resume", &json!({}));
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    let new: u32 = client.query_one("SELECT 'orders'::regclass::oid", &[]).unwrap().get(0);
    assert_ne!(old, new);
}

#[test]
fn projection_that_is_paused_in_the_middle_is_not_switched() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &[&model]);
    let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 300, 50);
    await_exact(&mut client, "orders");
    let mut reader = database.client();
    let mut old = reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    old.query_one("SELECT 1", &[]).unwrap();
    let id = begin_rebuild(&mut client, "orders");
    await_state(&mut client, "following");
    done(&mut client, "orders", "pause", &json!({}));
    append_plainly(&mut client, 100, 50);
    old.commit().unwrap();
    await_blocked_by(&mut client, "is paused");
    assert_eq!(faults(&mut client, "orders").0, 300, "nothing of it is processed");
    done(&mut client, "orders", "resume", &json!({}));
    await_exact(&mut client, "orders");
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    await_exact(&mut client, "orders");
}

#[test]
fn rewind_in_the_middle_changes_neither_the_copies_nor_the_end() {
    let (database, model) = (database(), Model::named("orders"));
    let mut client = prepared(&database, &[&model]);
    let worker = start(builder(database.url(), "set").lanes(2), vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 500, 50);
    await_exact(&mut client, "orders");
    let mut reader = database.client();
    let mut old = reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    old.query_one("SELECT 1", &[]).unwrap();
    let id = begin_rebuild_with(&mut client, "orders", &json!({"rate": 1_000}));
    done(&mut client, "orders", "rewind", &json!({"to_position": 100}));
    await_state(&mut client, "following");
    await_exact(&mut client, "orders");
    done(&mut client, "orders", "rewind", &json!({"to_position": 200}));
    await_exact(&mut client, "orders");
    old.commit().unwrap();
    append_plainly(&mut client, 100, 50);
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    await_exact(&mut client, "orders");
}

#[test]
fn workers_join_and_leave_during_rebuilds_of_two_projections() {
    let models = [Model::named("orders"), Model::named("invoices")];
    let database = database();
    let mut client = prepared(&database, &models.each_ref());
    let begin = |lanes| start(builder(database.url(), "set").lanes(lanes), models.clone().map(Model::boxed).into());
    let first = begin(2);
    await_running(&[&first]);
    append_plainly(&mut client, 2_000, 50);
    let mut reader = database.client();
    let mut old = reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    old.query_one("SELECT 1", &[]).unwrap();
    let ids = ["orders", "invoices"].map(|name| begin_rebuild_with(&mut client, name, &json!({"rate": 1_000})));
    let second = begin(1);
    await_running(&[&first, &second]);
    first.shutdown(SOON).unwrap();
    let third = begin(3);
    await_running(&[&second, &third]);
    // The executor of one of the switches leaves while the live projection follows.
    await_state_of_all(&mut client, "following");
    second.shutdown(SOON).unwrap();
    append_plainly(&mut client, 500, 50);
    old.commit().unwrap();
    for id in ids {
        let (outcome, _, error) = outcome_within(&mut client, id, SOON);
        assert_eq!((outcome.as_str(), error), ("done", None));
    }
    for name in ["orders", "invoices"] {
        await_exact(&mut client, name);
    }
    assert_eq!(schemas(&mut client), [""; 0]);
}

/// Waits until each rebuild was in this state at some moment.
#[track_caller]
fn await_state_of_all(client: &mut Client, state: &str) {
    for projection in ["orders", "invoices"] {
        let sql = "SELECT FROM orchestrator_rebuilds WHERE projection = $1 AND state = $2";
        eventually(state, SOON, || client.query_opt(sql, &[&projection, &state]).unwrap().map(drop));
    }
}

#[test]
fn batch_of_the_rebuild_in_flight_delays_the_switch() {
    for has_written in [true, false] {
        let database = database();
        let ((say, stopped), (goes_on, wait)) = (bounded(1), bounded::<()>(1));
        let model = Model::named("orders").before(move |tx, event| {
            if tx.is_replay() && event.global_position() == 301 {
                if has_written {
                    tx.batch_execute("UPDATE orders SET version = version")?;
                }
                say.send(())?;
                wait.recv()?;
            }
            Ok(())
        });
        let mut client = prepared(&database, &[&model]);
        let worker = start(builder(database.url(), "set"), vec![model.boxed()]);
        await_running(&[&worker]);
        append_plainly(&mut client, 300, 50);
        await_exact(&mut client, "orders");
        let mut reader = database.client();
        let mut old =
            reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
        old.query_one("SELECT 1", &[]).unwrap();
        let id = begin_rebuild(&mut client, "orders");
        await_state(&mut client, "following");
        append_plainly(&mut client, 10, 50);
        stopped.recv_timeout(SOON).unwrap();
        assert_eq!(faults(&mut client, "orders").0, 300, "the live projection goes no further");
        old.commit().unwrap();
        if has_written {
            await_blocked_by(&mut client, "has a lock on");
            goes_on.send(()).unwrap();
            assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
        } else {
            assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
            // Its statement leads to the new live table now, and its checkpoint is gone.
            goes_on.send(()).unwrap();
        }
        // What it would have handled is handled by the live projection.
        await_exact(&mut client, "orders");
        append_plainly(&mut client, 10, 50);
        await_exact(&mut client, "orders");
    }
}

/// The handler has written nothing when the tables are exchanged. Then its row is in the new table
/// already, and its checkpoint belongs to nobody.
#[test]
fn live_batch_in_flight_at_the_switch_is_not_blamed() {
    let database = database();
    let ((say, stopped), (goes_on, wait)) = (bounded(1), bounded::<()>(1));
    let model = Model::named("orders").before(move |tx, event| {
        if !tx.is_replay() && event.global_position() == 301 {
            say.send(())?;
            wait.recv()?;
        }
        Ok(())
    });
    let mut client = prepared(&database, &[&model]);
    client.batch_execute("CREATE UNIQUE INDEX ON orders (global_position)").unwrap();
    let once = builder(database.url(), "set").retry(Retry::default().attempts(1).stay_halted());
    let worker = start(once, vec![model.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 300, 50);
    await_exact(&mut client, "orders");
    let mut reader = database.client();
    let mut old = reader.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    old.query_one("SELECT 1", &[]).unwrap();
    let id = begin_rebuild(&mut client, "orders");
    await_state(&mut client, "following");
    append_plainly(&mut client, 10, 50);
    stopped.recv_timeout(SOON).unwrap();
    old.commit().unwrap();
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    goes_on.send(()).unwrap();
    append_plainly(&mut client, 10, 50);
    await_exact(&mut client, "orders");
    let errors = projection_metric(&worker, "projection_errors_total", "orders");
    assert!(errors.unwrap_or(0.0) < 0.5, "its handler is not blamed: {errors:?}");
}

#[test]
fn rebuild_goes_through_a_pooler() {
    for pgbouncer in pgbouncers().into_iter().filter(|pgbouncer| pgbouncer.is_capable) {
        let server = Postgres::start().unwrap();
        let mut client = Client::connect(&server.create_database("pooled").unwrap(), NoTls).unwrap();
        client.batch_execute(&Names::default().schema_sql()).unwrap();
        let model = Model::named("orders");
        model.create_table(&mut client);
        let proxy = pgbouncer.start(server.port(), &["pool_mode = transaction", "max_prepared_statements = 100"]);
        let worker = start(builder(&proxy.url("pooled"), "set").heartbeats_only(), vec![model.boxed()]);
        await_running(&[&worker]);
        append_plainly(&mut client, 1_000, 50);
        await_exact(&mut client, "orders");
        client.batch_execute("DELETE FROM orders WHERE seq % 3 = 0").unwrap();
        let id = begin_rebuild(&mut client, "orders");
        append_plainly(&mut client, 100, 50);
        let (outcome, _, error) = outcome_within(&mut client, id, SOON);
        assert_eq!((outcome.as_str(), error), ("done", None), "{pgbouncer:?}");
        await_exact(&mut client, "orders");
        worker.shutdown(SOON).unwrap();
    }
}

/// A view, a foreign key and a publication keep the tables from being exchanged, but not their
/// content from being replaced.
#[test]
fn content_is_replaced_under_what_depends_on_the_table() {
    let database = database();
    let mut client = database.client();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Pair::create(&mut client);
    let worker = start(builder(database.url(), "set"), vec![Pair::boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 1_000, 50);
    eventually("the read model is complete", SOON, || {
        let sql = "SELECT count(*) FROM pair_events";
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 1_000).then_some(())
    });
    client
        .batch_execute(
            "CREATE VIEW shown AS SELECT count(*) AS events FROM pair_events;
             CREATE TABLE notes (aggregate_id text REFERENCES pair_sums, note text);
             INSERT INTO notes SELECT aggregate_id, 'x' FROM pair_sums;
             CREATE PUBLICATION theirs FOR TABLE pair_events",
        )
        .unwrap();
    let oids =
        "SELECT concat('pair_events'::regclass::oid, ' ', 'pair_sums'::regclass::oid, ' ', 'shown'::regclass::oid)";
    let before: String = client.query_one(oids, &[]).unwrap().get(0);
    let refused = give(&mut client, "pair", "rebuild", &json!({"rate": null}));
    let (outcome_of_swap, _, error) = outcome(&mut client, refused);
    assert_eq!(outcome_of_swap, "refused");
    for named in ["public.shown", "public.notes", "theirs"] {
        assert!(error.as_ref().unwrap().contains(named), "{error:?} does not name {named}");
    }
    Pair::damage(&mut client);
    client
        .batch_execute(
            "DELETE FROM pair_events WHERE aggregate_id = 'thing-7'; UPDATE pair_sums SET events = 0 WHERE aggregate_id = 'thing-7';
             INSERT INTO pair_events SELECT 1000000 + i, 'strange', 1 FROM generate_series(1, 5) i;
             INSERT INTO pair_sums VALUES ('strange', 5, 1)",
        )
        .unwrap();
    let readers = Readers::start(database.url(), &[Way::Simple, Way::Generic, Way::SqlFunction]);
    let id = begin_rebuild_with(&mut client, "pair", &json!({"rate": null, "copy": true}));
    append_plainly(&mut client, 100, 50);
    assert_eq!(outcome_within(&mut client, id, SOON).0, "done");
    for read in readers.stop() {
        assert!(read.longest < DELAY && read.damaged > 0, "{read:?}");
    }
    eventually("the read model is complete", SOON, || {
        let sql = "SELECT (SELECT events FROM shown) = (SELECT count(*) FROM events) AND (SELECT sum(events) FROM pair_sums) = (SELECT count(*) FROM events)";
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    let wrong = "SELECT count(*) FROM pair_events FULL JOIN events USING (global_position)
                 WHERE pair_events.aggregate_id IS DISTINCT FROM events.aggregate_id OR damage <> 0";
    assert_eq!(client.query_one(wrong, &[]).unwrap().get::<_, i64>(0), 0);
    assert_eq!(client.query_one(oids, &[]).unwrap().get::<_, String>(0), before, "all of them are the former ones");
    assert_eq!(schemas(&mut client), [""; 0]);
}
