//! Positions that the sequence has not handed out, and changes of the sequence while workers run.

use std::time::Duration;

use postgres::{Client, GenericClient};
use pupsourcing_orchestrator::StartAt;

use crate::bad_input::{SOON, assert_says};
use crate::support::handlers::prepared;
use crate::support::insert::{ONE, insert};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::projection_metric;
use crate::support::workers::{builder, start, start_ledger};
use crate::support::{database, eventually};

fn insert_at(client: &mut impl GenericClient, position: i64) {
    client.execute(&insert(ONE, &[("global_position", "$1")]), &[&position]).unwrap();
}

fn insert_some(client: &mut impl GenericClient, count: i64) {
    client.execute(&insert("generate_series(1, $1::bigint)", &[]), &[&count]).unwrap();
}

/// Whether each event below the highest possible position was handled.
fn is_handled_below_the_highest(client: &mut Client) -> bool {
    let sql = "SELECT NOT EXISTS (SELECT FROM events e WHERE e.global_position < 9223372036854775807 AND NOT EXISTS (
                   SELECT FROM ledger l WHERE l.projection = 'p' AND l.global_position = e.global_position))";
    client.query_one(sql, &[]).unwrap().get(0)
}

/// Appends events with a hole between them, so that contiguity alone does not move the head.
fn append_around_a_hole(client: &mut Client) {
    insert_some(client, 5);
    client.query("SELECT nextval('events_global_position_seq')", &[]).unwrap();
    insert_some(client, 5);
}

#[test]
fn an_event_at_the_highest_position_loses_no_other_event() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    append_around_a_hole(&mut client);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    insert_at(&mut client, i64::MAX);
    for _ in 0..3 {
        // An event that is in flight while the head looks at the highest possible position.
        let mut writer = database.client();
        let mut open = writer.transaction().unwrap();
        insert_some(&mut open, 1);
        append_around_a_hole(&mut client);
        eventually("the worker has looked", SOON, || {
            worker
                .status()
                .head_blocked
                .is_some()
                .then_some(())
                .or_else(|| (handled(&mut client, "p") >= 10).then_some(()))
        });
        open.commit().unwrap();
        eventually("the others are handled", SOON, || is_handled_below_the_highest(&mut client).then_some(()));
    }
    assert_eq!(handled(&mut client, "p"), 10 + 3 * 11);
    // The worker also continues after it has lost its connections.
    client
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()", &[])
        .unwrap();
    append_around_a_hole(&mut client);
    eventually("the others are handled", SOON, || is_handled_below_the_highest(&mut client).then_some(()));
    worker.shutdown(SOON).unwrap();
    let refused = builder(database.url(), "set").projection(Ledger::named("p")).build().unwrap().start().unwrap_err();
    assert_says(&refused, &["event at position 9223372036854775807", "the sequence of the positions is at"]);
    client.execute("DELETE FROM events WHERE global_position = 9223372036854775807", &[]).unwrap();
    let worker = start_ledger(&database, "p");
    append_around_a_hole(&mut client);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn an_unfinished_change_of_the_sequence_delays_no_event() {
    for change in [
        "ALTER SEQUENCE events_global_position_seq CACHE 1",
        "ALTER SEQUENCE events_global_position_seq RENAME TO other",
        "LOCK TABLE aggregate_heads; SELECT pg_sequence_last_value('events_global_position_seq')",
    ] {
        let database = database();
        let mut client = prepared(&database);
        let worker = start_ledger(&database, "p");
        insert_some(&mut client, 5);
        eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
        let mut admin = database.client();
        let mut open = admin.transaction().unwrap();
        open.batch_execute(change).unwrap();
        for position in 6..=8 {
            insert_at(&mut client, position);
            eventually("the event is handled", SOON, || is_complete(&mut client, "p").then_some(()));
        }
        open.rollback().unwrap();
        client.query("SELECT setval('events_global_position_seq', 8)", &[]).unwrap();
        append_around_a_hole(&mut client);
        eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
        assert_exactly_once(&mut client, "p");
        worker.shutdown(SOON).unwrap();
    }
}

#[test]
fn a_setval_that_was_rolled_back_stalls_nothing() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    append_around_a_hole(&mut client);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    // A rollback does not undo a change of a sequence's value.
    client.batch_execute("BEGIN; SELECT setval('events_global_position_seq', 8); ROLLBACK").unwrap();
    let mut appended = 0;
    eventually("the writers recover", SOON, || {
        appended += client.execute(&insert(ONE, &[]), &[]).unwrap_or_default();
        (appended == 5).then_some(())
    });
    append_around_a_hole(&mut client);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_safe_head_in_the_table_of_workers_is_not_trusted() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    insert_some(&mut client, 50);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    worker.shutdown(SOON).unwrap();
    let mut writer = database.client();
    let mut open = writer.transaction().unwrap();
    insert_some(&mut open, 50);
    insert_some(&mut client, 50);
    client.batch_execute("UPDATE orchestrator_workers SET safe_head = 150").unwrap();
    let worker = start_ledger(&database, "p");
    let blocked = Duration::from_secs(20);
    eventually("the head is held back", blocked, || worker.status().head_blocked.map(|_| ()));
    assert_eq!(handled(&mut client, "p"), 50, "nothing above what is in flight");
    open.commit().unwrap();
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_starts_only_at_a_possible_position() {
    let database = database();
    let mut client = prepared(&database);
    for position in [i64::MIN, -1] {
        let projection = Ledger { start_at: StartAt::Position(position), ..Ledger::named("p") };
        let error = builder(database.url(), "set").projection(projection).build().unwrap_err();
        assert_says(&error, &["start_at", &position.to_string(), "positions begin with 1"]);
    }
    append_plainly(&mut client, 10, 2);
    let projections = [0, 7, i64::MAX].map(|position| Ledger {
        start_at: StartAt::Position(position),
        ..Ledger::named(["all", "some", "none"][[0, 7, i64::MAX].iter().position(|p| *p == position).unwrap()])
    });
    let worker = start(
        builder(database.url(), "set"),
        projections
            .into_iter()
            .map(|ledger| Box::new(ledger) as Box<dyn pupsourcing_orchestrator::Projection>)
            .collect(),
    );
    eventually("what is to be handled is handled", SOON, || {
        (["all", "some", "none"].map(|name| handled(&mut client, name)) == [10, 3, 0]).then_some(())
    });
    eventually("no lag is left", SOON, || {
        ["all", "some", "none"]
            .iter()
            .all(|name| projection_metric(&worker, "lag_events", name) == Some(0.0))
            .then_some(())
    });
    worker.shutdown(SOON).unwrap();
}

#[test]
fn an_event_with_an_infinite_time_does_not_break_the_lag() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    client.batch_execute("UPDATE events SET created_at = 'infinity' WHERE global_position % 2 = 1; UPDATE events SET created_at = '-infinity' WHERE global_position = 2").unwrap();
    let stuck = crate::support::handlers::meddled("stuck", |_, _| Err("not yet".into()));
    let worker = start(builder(database.url(), "set"), vec![stuck, Box::new(Ledger::named("p"))]);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    eventually("the lag is measured", SOON, || {
        (projection_metric(&worker, "lag_events", "stuck") == Some(10.0)
            && projection_metric(&worker, "lag_seconds", "stuck").is_some_and(f64::is_finite))
        .then_some(())
    });
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_worker_may_know_only_projections_that_start_ahead() {
    let database = database();
    let mut client = prepared(&database);
    insert_some(&mut client, 100);
    let ahead = Ledger { start_at: StartAt::Position(120), ..Ledger::named("p") };
    let worker = start(builder(database.url(), "set"), vec![Box::new(ahead)]);
    eventually("it has looked while there is nothing for it", SOON, || worker.status().safe_head);
    for _ in 0..4 {
        append_around_a_hole(&mut client);
    }
    let newest: i64 = client.query_one("SELECT max(global_position) FROM events", &[]).unwrap().get(0);
    let due: i64 = client.query_one("SELECT count(*) FROM events WHERE global_position > 120", &[]).unwrap().get(0);
    assert!(newest > 130 && due > 10);
    eventually("what is above it is handled", SOON, || (handled(&mut client, "p") == due).then_some(()));
    worker.shutdown(SOON).unwrap();
}
