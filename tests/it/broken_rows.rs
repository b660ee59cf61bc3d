//! Rows of the library's own tables are deleted or changed by hand while workers run. The library
//! repairs what it can and reports the rest, without affecting other projections.

use std::time::Duration;

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{BoxError, Event, Handle, Projection, ProjectionState, Tx};

use crate::support::cluster::{assert_keys_are_covered, assert_read_models_become_right, generation};
use crate::support::handlers::prepared;
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::{metric, projection_metric};
use crate::support::statements::{start_logging_server, statements};
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A worker that processes projections `edited` and `sound`.
fn worker(database: &TestDatabase) -> Handle {
    start(builder(database.url(), "set"), ["edited", "sound"].map(|name| Box::new(Ledger::named(name)) as _).into())
}

#[track_caller]
fn await_complete(client: &mut Client, projection: &str) {
    eventually(projection, SOON, || is_complete(client, projection).then_some(()));
    assert_exactly_once(client, projection);
}

#[track_caller]
fn await_broken(workers: &[&Handle], count: f64) {
    for worker in workers {
        eventually(&format!("{count} broken projections"), SOON, || {
            (metric(worker, "broken_projections", &[]) == Some(count)).then_some(())
        });
    }
}

/// Appends events, and checks that `sound` handles all of them and `edited` none.
#[track_caller]
fn assert_only_sound_is_processed(client: &mut Client, workers: &[&Handle]) {
    await_broken(workers, 1.0);
    let before = handled(client, "edited");
    append_plainly(client, 50, 25);
    await_complete(client, "sound");
    for worker in workers {
        eventually("a broken projection has no lag", SOON, || {
            let lag = |projection| projection_metric(worker, "lag_events", projection);
            (lag("edited").is_none() && lag("sound").is_some()).then_some(())
        });
        eventually("its runner does not claim to run", SOON, || {
            (worker.status().projections["edited"].state == ProjectionState::Paused).then_some(())
        });
    }
    assert_eq!(handled(client, "edited"), before);
}

#[test]
fn projection_begins_again_when_its_rows_are_deleted() {
    let database = database();
    let mut client = prepared(&database);
    let (one, two) = (worker(&database), worker(&database));
    let number = await_running(&[&one, &two]);
    append_plainly(&mut client, 200, 50);
    for _ in 0..3 {
        for projection in ["edited", "sound"] {
            await_complete(&mut client, projection);
        }
        // In one transaction, so that its runners are not fenced before it is dealt again.
        client
            .batch_execute(
                "BEGIN;
                 DELETE FROM orchestrator_checkpoints WHERE projection = 'edited';
                 DELETE FROM orchestrator_projections WHERE name = 'edited';
                 DELETE FROM ledger WHERE projection = 'edited';
                 COMMIT",
            )
            .unwrap();
        await_complete(&mut client, "edited");
        append_plainly(&mut client, 50, 50);
    }
    for worker in [&one, &two] {
        assert_eq!(projection_metric(worker, "fenced_batches_total", "sound"), Some(0.0));
    }
    assert_eq!(generation(&mut client), number);
    assert_keys_are_covered(&mut client);
}

#[test]
fn rows_that_differ_from_the_deal_are_dealt_again() {
    let database = database();
    let mut client = prepared(&database);
    let (one, two) = (worker(&database), worker(&database));
    let number = await_running(&[&one, &two]);
    let nobody = uuid::Uuid::from_u128(7);
    for (change, owner) in [
        ("worker_id = $1", None),
        ("worker_id = $1", Some(nobody)),
        ("worker_id = $1", Some(one.worker_id().0)),
        ("worker_id = $1", Some(two.worker_id().0)),
        ("generation = 99, worker_id = coalesce($1, worker_id)", None),
        ("lane = 7, worker_id = coalesce($1, worker_id)", None),
    ] {
        let sql = format!("UPDATE orchestrator_checkpoints SET {change} WHERE projection = 'edited'");
        assert_eq!(client.execute(&sql, &[&owner]).unwrap(), 2, "{change}");
        append_plainly(&mut client, 50, 50);
        await_complete(&mut client, "edited");
        eventually("both own a part", SOON, || {
            let sql = "SELECT count(DISTINCT worker_id) FROM orchestrator_checkpoints
                       WHERE projection = 'edited' AND worker_id = ANY ($1) AND generation = $2";
            let owners = vec![one.worker_id().0, two.worker_id().0];
            (client.query_one(sql, &[&owners, &number]).unwrap().get::<_, i64>(0) == 2).then_some(())
        });
    }
    await_complete(&mut client, "sound");
    assert_eq!(generation(&mut client), number);
}

#[test]
fn processing_continues_from_a_position_set_by_hand() {
    let database = database();
    let mut client = prepared(&database);
    let worker = worker(&database);
    await_running(&[&worker]);
    append_plainly(&mut client, 100, 10);
    await_complete(&mut client, "edited");
    client
        .batch_execute(
            "BEGIN;
             UPDATE orchestrator_checkpoints SET position = 40 WHERE projection = 'edited';
             DELETE FROM ledger WHERE projection = 'edited' AND global_position > 40;
             COMMIT",
        )
        .unwrap();
    append_plainly(&mut client, 1, 1);
    await_complete(&mut client, "edited");
}

#[test]
fn torn_projection_alone_stops_until_it_is_repaired() {
    let database = database();
    let mut client = prepared(&database);
    let (one, two) = (worker(&database), worker(&database));
    await_running(&[&one, &two]);
    append_plainly(&mut client, 50, 25);
    for projection in ["edited", "sound"] {
        await_complete(&mut client, projection);
    }
    for (tear, repair) in [
        (
            "SET keys = '{[40000,65536)}' WHERE lower(keys) = 32768",
            "SET keys = '{[32768,65536)}' WHERE lower(keys) = 40000",
        ),
        (
            "SET keys = '{[30000,65536)}' WHERE lower(keys) = 32768",
            "SET keys = '{[32768,65536)}' WHERE lower(keys) = 30000",
        ),
    ] {
        let change = |client: &mut Client, what: &str| {
            let sql = format!("UPDATE orchestrator_checkpoints {what} AND projection = 'edited'");
            assert_eq!(client.execute(&sql, &[]).unwrap(), 1, "{what}");
        };
        change(&mut client, tear);
        assert_only_sound_is_processed(&mut client, &[&one, &two]);
        // It does not delay a generation either.
        let third = worker(&database);
        await_running(&[&one, &two, &third]);
        assert_only_sound_is_processed(&mut client, &[&one, &two, &third]);
        third.shutdown(SOON).unwrap();
        await_running(&[&one, &two]);

        change(&mut client, repair);
        await_broken(&[&one, &two], 0.0);
        await_complete(&mut client, "edited");
    }
}

#[test]
fn projection_without_checkpoints_waits_until_its_claim_is_gone() {
    let database = database();
    let mut client = prepared(&database);
    let worker = worker(&database);
    await_running(&[&worker]);
    append_plainly(&mut client, 50, 25);
    await_complete(&mut client, "edited");
    client.execute("DELETE FROM orchestrator_checkpoints WHERE projection = 'edited'", &[]).unwrap();
    assert_only_sound_is_processed(&mut client, &[&worker]);
    client
        .batch_execute(
            "DELETE FROM ledger WHERE projection = 'edited'; DELETE FROM orchestrator_projections WHERE name = 'edited'",
        )
        .unwrap();
    await_complete(&mut client, "edited");
    await_broken(&[&worker], 0.0);
}

#[test]
fn broken_projection_is_named_in_the_log() {
    let database = database();
    let mut client = database.client();
    let mut worker = WorkerProcess::start(database.url(), &[]);
    worker.await_processing(1);
    client.execute("DELETE FROM orchestrator_checkpoints WHERE projection = 'event_type_counts'", &[]).unwrap();
    worker.await_line(&[
        "ERROR",
        "projection is not processed: replica_set=main-projections worker=",
        "projection=event_type_counts error=",
        "orchestrator_projections",
    ]);
    client.execute("DELETE FROM orchestrator_projections WHERE name = 'event_type_counts'", &[]).unwrap();
    worker.await_line(&["WARN", "projection begins again, its rows were deleted:", "projection=event_type_counts"]);
    append_plainly(&mut client, 50, 25);
    assert_read_models_become_right(&mut client);
    let is_of_other = |line: &&String| line.contains("projection=aggregate_activity") && !line.contains(" caught up: ");
    assert!(!worker.log().iter().any(|line| is_of_other(&line)), "{:#?}", worker.log());
}

#[test]
fn projection_given_to_another_replica_set_is_reported() {
    let database = database();
    let mut client = prepared(&database);
    let worker = worker(&database);
    await_running(&[&worker]);
    client
        .batch_execute(
            "INSERT INTO orchestrator_replica_sets (name) VALUES ('another');
             UPDATE orchestrator_projections SET replica_set = 'another' WHERE name = 'edited';
             UPDATE orchestrator_checkpoints SET worker_id = NULL WHERE projection = 'edited'",
        )
        .unwrap();
    assert_only_sound_is_processed(&mut client, &[&worker]);
    client.execute("UPDATE orchestrator_projections SET replica_set = 'set' WHERE name = 'edited'", &[]).unwrap();
    await_broken(&[&worker], 0.0);
    await_complete(&mut client, "edited");
}

/// Only the worker that knows the projection can let it begin again.
#[test]
fn projection_that_only_one_worker_knows_begins_again() {
    let database = database();
    let mut client = prepared(&database);
    let ledger = |name| Box::new(Ledger::named(name)) as _;
    let old = start(builder(database.url(), "set"), vec![ledger("old"), ledger("both")]);
    let new = start(builder(database.url(), "set"), vec![ledger("both")]);
    await_running(&[&old, &new]);
    append_plainly(&mut client, 50, 25);
    await_complete(&mut client, "old");
    let delete = "BEGIN;
        DELETE FROM orchestrator_checkpoints WHERE projection = 'old';
        DELETE FROM orchestrator_projections WHERE name = 'old';
        DELETE FROM ledger WHERE projection = 'old';
        COMMIT";
    client.batch_execute(delete).unwrap();
    await_complete(&mut client, "old");
    // Without that worker, no worker knows the projection.
    old.shutdown(SOON).unwrap();
    await_running(&[&new]);
    eventually("it is an orphan without a lag", SOON, || {
        let orphans = metric(&new, "orphaned_projections", &[]);
        (orphans == Some(1.0) && projection_metric(&new, "lag_events", "old").is_none()).then_some(())
    });
    assert!(projection_metric(&new, "lag_events", "both").is_some());
    client.batch_execute(delete).unwrap();
    eventually("it is gone", SOON, || (metric(&new, "orphaned_projections", &[]) == Some(0.0)).then_some(()));
    append_plainly(&mut client, 50, 25);
    await_complete(&mut client, "both");
    assert_eq!(metric(&new, "broken_projections", &[]), Some(0.0));
}

#[test]
fn inspecting_the_rows_needs_no_statement_of_its_own() {
    let postgres = start_logging_server();
    let url = postgres.create_database("inspected").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    Ledger::create_table(&mut client);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    await_running(&[&worker]);
    let looks = || statements(&postgres).iter().filter(|statement| statement.text.contains("AS found")).count();
    let before = looks();
    eventually("it looks", SOON, || (looks() > before + 10).then_some(()));
    // The deal writes the digest, and only the coordinator's view compares it.
    let statements = statements(&postgres);
    let others = statements
        .iter()
        .filter(|statement| !["AS found", "CREATE TABLE"].iter().any(|part| statement.text.contains(part)));
    assert_eq!(others.filter(|statement| statement.text.contains("dealt_as")).count(), 1);
}

/// The first block of SQL after this text in the guide.
fn documented(after: &str) -> String {
    let text = include_str!("../../src/guide/operating.md").split_once(after).unwrap().1;
    text.split_once("```sql\n").unwrap().1.split_once("```").unwrap().0.to_owned()
}

/// A projection like the one of the README's smallest program.
struct OrdersPlaced;

impl Projection for OrdersPlaced {
    fn name(&self) -> &str {
        "orders_placed"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if event.event_type() == "OrderPlaced" {
            tx.execute(
                "INSERT INTO orders_placed AS o VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET times = o.times + 1",
                &[&event.aggregate_id()],
            )?;
        }
        Ok(())
    }
}

/// Executes the recipe exactly as printed, while events arrive and workers process them.
#[test]
fn projection_is_rebuilt_in_place_as_documented() {
    let recipe = documented("**In place, by hand.**");
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute("CREATE TABLE orders_placed (id text PRIMARY KEY, times bigint NOT NULL)").unwrap();
    let start = || start(builder(database.url(), "set").batch_size(5), vec![Box::new(OrdersPlaced)]);
    let append = |client: &mut Client| {
        client.execute(&insert("generate_series(1, 40) n", &[("event_type", "'OrderPlaced'")]), &[]).unwrap();
    };
    let await_counted = |client: &mut Client| {
        eventually("every order is counted once", SOON, || {
            let sql = "SELECT coalesce(sum(times), 0)::bigint, (SELECT count(*) FROM events), (SELECT min(position) >= (SELECT max(global_position) FROM events)
                              FROM orchestrator_checkpoints) FROM orders_placed";
            let row = client.query_one(sql, &[]).unwrap();
            let (counted, events): (i64, i64) = (row.get(0), row.get(1));
            assert!(counted <= events, "{counted} of {events}");
            let is_done = counted == events && row.get::<_, Option<bool>>(2) == Some(true);
            is_done.then_some(())
        });
    };
    let (one, two) = (start(), start());
    await_running(&[&one, &two]);
    for _ in 0..10 {
        append(&mut client);
        client.batch_execute(&recipe).unwrap();
        append(&mut client);
    }
    await_counted(&mut client);
    client.batch_execute(&recipe).unwrap();
    await_counted(&mut client);
    // The recipe also works while no worker runs.
    one.shutdown(SOON).unwrap();
    two.shutdown(SOON).unwrap();
    client.batch_execute(&recipe).unwrap();
    let _again = start();
    await_counted(&mut client);
}
