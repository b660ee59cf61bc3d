//! Events that are removed: by an archive, or so that their positions are handed out again.

use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{Error, Handle, Names, ProjectionState, StartAt};

use crate::bad_input::{SOON, assert_says};
use crate::support::insert::{ONE, insert};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::workers::{await_running, builder, start, start_ledger};
use crate::support::{Postgres, StopMode, TestDatabase, database, eventually};

const BEGIN_ANEW: &str = "TRUNCATE events, ledger RESTART IDENTITY";

/// A database with 300 events that the projection `p` has processed, and the worker that did.
fn processed() -> (TestDatabase, Client, Handle) {
    let database = database();
    let worker = start_ledger(&database, "p");
    let mut client = database.client();
    append_plainly(&mut client, 300, 30);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    (database, client, worker)
}

fn start_again(database: &TestDatabase) -> Result<Handle, Error> {
    builder(database.url(), "set").projection(Ledger::named("p")).build().unwrap().start()
}

#[test]
fn reused_positions_are_refused_until_the_projection_is_rebuilt() {
    let (database, mut client, worker) = processed();
    eventually("the safe head is reported", SOON, || {
        client.query_opt("SELECT FROM orchestrator_workers WHERE safe_head = 300", &[]).unwrap()
    });
    worker.shutdown(SOON).unwrap();
    client.batch_execute(BEGIN_ANEW).unwrap();
    append_plainly(&mut client, 20, 5);
    let error = start_again(&database).unwrap_err();
    assert!(matches!(error, Error::Schema { .. }), "{error:?}");
    assert_says(&error, &["projection \"p\" is at position 300", "last position of \"public\".\"events\" is 20"]);
    let workers: i64 = client.query_one("SELECT count(*) FROM orchestrator_workers", &[]).unwrap().get(0);
    assert_eq!(workers, 1, "a refused worker is not registered");

    client
        .batch_execute(
            "DELETE FROM orchestrator_checkpoints WHERE projection = 'p';
             DELETE FROM orchestrator_projections WHERE name = 'p'",
        )
        .unwrap();
    let worker = start_again(&database).unwrap();
    await_running(&[&worker]);
    for _ in 1..=3 {
        eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
        append_plainly(&mut client, 20, 5);
    }
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn positions_handed_out_again_end_a_running_worker() {
    let (_database, mut client, worker) = processed();
    client.batch_execute(BEGIN_ANEW).unwrap();
    eventually("the worker ends by itself", SOON, || worker.assignment().is_none().then_some(()));
    let error = worker.shutdown(SOON).unwrap_err();
    assert!(matches!(error, Error::Schema { .. }), "{error:?}");
    assert_says(&error, &["the safe head is at position 300", "last position of \"public\".\"events\" is 0"]);
}

/// Removes the events and appends this many others, in one transaction.
fn import_again(client: &mut Client, events: i64) {
    let mut tx = client.transaction().unwrap();
    tx.batch_execute(BEGIN_ANEW).unwrap();
    append_plainly(&mut tx, events, 30);
    tx.commit().unwrap();
}

/// Waits until the worker ends by itself. It may have been evicted before, while its heartbeats
/// waited for the table of events.
#[track_caller]
fn await_end(worker: Handle) -> Error {
    let (ended, end) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || ended.send(worker.join()));
    end.recv_timeout(SOON).expect("the worker ends by itself").unwrap_err()
}

#[test]
fn other_events_at_the_same_positions_end_a_running_worker() {
    let (_database, mut client, worker) = processed();
    import_again(&mut client, 480);
    let error = await_end(worker);
    assert!(matches!(error, Error::Schema { .. }), "{error:?}");
    assert_says(&error, &["at position 300", "another event", "rebuild the projections"]);
    let handled: i64 = client.query_one("SELECT count(*) FROM ledger", &[]).unwrap().get(0);
    assert_eq!(handled, 0, "and none of them was handled");
}

#[test]
fn other_events_are_detected_while_events_arrive() {
    let (database, mut client, worker) = processed();
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let url = database.url().to_owned();
    let writer = std::thread::spawn(move || {
        let mut client = Client::connect(&url, NoTls).unwrap();
        while stopped.try_recv() == Err(crossbeam_channel::TryRecvError::Empty) {
            _ = client.batch_execute(&insert(ONE, &[]));
        }
    });
    eventually("events arrive", SOON, || (handled(&mut client, "p") > 600).then_some(()));
    import_again(&mut client, 20_000);
    let error = await_end(worker);
    assert_says(&error, &["another event"]);
    drop(stop);
    writer.join().unwrap();
}

#[test]
fn positions_restarted_without_a_connection_are_detected() {
    for (events, parts) in [(200, ["is at position 300", "is 200"]), (480, ["at position 300", "another event"])] {
        let (_database, mut client, worker) = processed();
        let mut tx = client.transaction().unwrap();
        tx.batch_execute(BEGIN_ANEW).unwrap();
        append_plainly(&mut tx, events, 30);
        // While the table is locked, all connections of the worker are ended. When it connects
        // again, it finds other events.
        let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid()";
        assert!(tx.query_one(cut, &[]).unwrap().get::<_, i64>(0) >= 4);
        tx.commit().unwrap();
        assert_says(&await_end(worker), &parts);
    }
}

#[test]
fn other_events_are_refused_at_the_start() {
    for projection in ["p", "other"] {
        let (database, mut client, worker) = processed();
        worker.shutdown(SOON).unwrap();
        import_again(&mut client, 480);
        let started = builder(database.url(), "set").projection(Ledger::named(projection)).build().unwrap().start();
        match (projection, started) {
            ("p", Err(error)) => assert_says(&error, &["at position 300", "another event", "projection \"p\""]),
            // It has processed none of the removed events.
            ("other", Ok(worker)) => {
                eventually("all events are handled", SOON, || is_complete(&mut client, "other").then_some(()));
                worker.shutdown(SOON).unwrap();
            }
            (name, started) => panic!("{name}: {started:?}"),
        }
    }
}

#[test]
fn other_events_halt_a_projection_that_loads_its_checkpoints() {
    let (database, mut client, worker) = processed();
    worker.shutdown(SOON).unwrap();
    let [stays, leaves] = [(); 2].map(|()| start_again(&database).unwrap());
    await_running(&[&stays, &leaves]);
    client.batch_execute("UPDATE orchestrator_checkpoints SET last_event_id = gen_random_uuid()").unwrap();
    leaves.shutdown(SOON).unwrap();
    let halted = eventually("it halts", SOON, || {
        let status = stays.status().projections["p"].clone();
        (status.state == ProjectionState::Halted).then_some(status)
    });
    assert!(halted.error.as_ref().is_some_and(|error| error.contains("another event")), "{halted:?}");
    append_plainly(&mut client, 30, 30);
    stays.shutdown(SOON).unwrap();
    assert!(!is_complete(&mut client, "p"), "it handles nothing more");
}

#[test]
fn an_unlogged_table_emptied_by_a_crash_is_detected() {
    let mut server = Postgres::start().unwrap();
    let url = server.create_database("crash").unwrap();
    let connect = || Client::connect(&url, NoTls).unwrap();
    let mut client = connect();
    Ledger::create_table(&mut client);
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    client.batch_execute("ALTER TABLE events SET UNLOGGED").unwrap();
    append_plainly(&mut client, 300, 30);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    // The server writes a checkpoint, so that it does not lose the value of the sequence.
    client.batch_execute("CHECKPOINT").unwrap();
    server.stop(StopMode::Immediate).unwrap();
    server.start_again().unwrap();
    let mut client = connect();
    // From PostgreSQL 15 on, the sequence starts again as well.
    client.batch_execute("SELECT setval('events_global_position_seq', 1, false)").unwrap();
    append_plainly(&mut client, 420, 30);
    let error = await_end(worker);
    assert!(matches!(error, Error::Schema { .. }), "{error:?}");
}

#[test]
fn events_may_be_archived_and_projections_start_after_them() {
    let (database, mut client, worker) = processed();
    client.batch_execute("TRUNCATE events, ledger").unwrap();
    append_plainly(&mut client, 20, 5);
    eventually("all events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    client.batch_execute("TRUNCATE events, ledger").unwrap();
    worker.shutdown(SOON).unwrap();

    let ahead = || Ledger { start_at: StartAt::Position(330), ..Ledger::named("ahead") };
    // Up to position 325, and then 345.
    for (events, of_those_ahead) in [(5, 0), (20, 15)] {
        let worker = start(builder(database.url(), "set"), vec![Box::new(Ledger::named("p")), Box::new(ahead())]);
        await_running(&[&worker]);
        append_plainly(&mut client, events, 5);
        eventually("all events are handled", SOON, || {
            let handled = "SELECT count(*) FROM ledger WHERE projection = 'ahead'";
            let is_handled = client.query_one(handled, &[]).unwrap().get::<_, i64>(0) == of_those_ahead;
            (is_handled && is_complete(&mut client, "p")).then_some(())
        });
        worker.shutdown(SOON).unwrap();
    }
    assert_exactly_once(&mut client, "p");
    let first = "SELECT min(global_position) FROM ledger WHERE projection = 'ahead'";
    assert_eq!(client.query_one(first, &[]).unwrap().get::<_, i64>(0), 331);
}

#[test]
fn a_missing_events_table_under_a_used_prefix_is_refused() {
    let database = database();
    let orchestrator = |names| {
        let builder = builder(database.url(), "set").projection(Ledger::named("p")).names(names);
        builder.build().unwrap()
    };
    orchestrator(Names::default()).migrate().unwrap();
    let other = orchestrator(Names::default().events_table("facts"));
    assert_says(&other.migrate().unwrap_err(), &["there is no table \"public\".\"facts\"", "prefix of their own"]);
    assert_says(&other.start().unwrap_err(), &["there is no table \"public\".\"facts\""]);
}
