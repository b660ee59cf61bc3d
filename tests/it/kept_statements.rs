//! The statements that a handler's transaction keeps prepared.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{BoxError, Builder, Event, Handle, ProjectionState, Retry, Tx};

use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A worker that halts at the first attempt that counts.
fn strict(database: &TestDatabase) -> Builder {
    builder(database.url(), "set").retry(Retry::default().attempts(1))
}

/// Processes some events, executes `between`, and processes some more events. No attempt may be
/// counted.
fn outlives(
    setup: &str,
    between: &str,
    handler: impl Fn(&mut Tx<'_>, &Event) -> Result<(), BoxError> + Send + Sync + 'static,
) -> TestDatabase {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute(setup).unwrap();
    append_plainly(&mut client, 20, 4);
    let worker = start(strict(&database), vec![meddled("p", handler)]);
    await_complete(&worker, &mut client);
    client.batch_execute(between).unwrap();
    append_plainly(&mut client, 20, 4);
    await_complete(&worker, &mut client);
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
    database
}

/// Waits until all events are handled, without a halt.
#[track_caller]
fn await_complete(worker: &Handle, client: &mut Client) {
    eventually("all events are handled", SOON, || {
        let projection = &worker.status().projections["p"];
        assert_ne!(projection.state, ProjectionState::Halted, "{projection:?}");
        is_complete(client, "p").then_some(())
    });
}

/// Waits until the projection has halted, and returns its error.
#[track_caller]
fn await_halted(worker: &Handle) -> String {
    eventually("it halts", SOON, || {
        let projection = worker.status().projections["p"].clone();
        (projection.state == ProjectionState::Halted).then_some(projection.error).flatten()
    })
}

#[test]
fn a_text_is_prepared_once_on_a_connection() {
    outlives("", "", |tx, event| {
        let text = "SELECT $1::bigint";
        let position = event.global_position();
        assert_eq!(tx.query_one(text, &[&position])?.get::<_, i64>(0), position);
        assert_eq!(tx.query_opt(&text.to_owned(), &[&position])?.map(|row| row.get::<_, i64>(0)), Some(position));
        let mut nested = tx.savepoint("nested")?;
        assert_eq!(nested.query(text, &[&position])?.len(), 1);
        nested.commit()?;
        let kept: i64 =
            tx.query_one("SELECT count(*) FROM pg_prepared_statements WHERE statement = $1", &[&text])?.get(0);
        if kept == 1 { Ok(()) } else { Err(format!("the text is prepared {kept} times").into()) }
    });
}

#[test]
fn a_table_that_is_altered_costs_no_attempt() {
    outlives("CREATE TABLE altered AS SELECT 1 AS a", "ALTER TABLE altered ADD b int", |tx, _| {
        tx.query("SELECT * FROM altered", &[])?;
        Ok(())
    });
}

/// Every text becomes outdated immediately, in each attempt.
#[test]
fn a_handler_that_alters_its_own_table_makes_progress() {
    outlives("CREATE TABLE altered (a int)", "", |tx, event| {
        tx.query("SELECT * FROM altered", &[])?;
        tx.batch_execute(&format!("ALTER TABLE altered ADD IF NOT EXISTS c{} int", event.global_position()))?;
        tx.query("SELECT * FROM altered", &[])?;
        Ok(())
    });
}

#[test]
fn a_handler_that_swallows_the_error_makes_progress() {
    outlives("CREATE TABLE altered AS SELECT 1 AS a", "ALTER TABLE altered ADD b int", |tx, _| {
        _ = tx.query("SELECT * FROM altered", &[]);
        Ok(())
    });
}

/// Otherwise the writes in the savepoint would be missing, and no error would report it.
#[test]
fn a_handler_that_recovers_in_a_savepoint_loses_nothing() {
    let setup = "CREATE TABLE altered AS SELECT 1 AS a; CREATE TABLE noted (at bigint PRIMARY KEY)";
    let note = |tx: &mut Tx<'_>, event: &Event| -> Result<(), BoxError> {
        tx.query("SELECT * FROM altered", &[])?;
        tx.execute("INSERT INTO noted VALUES ($1)", &[&event.global_position()])?;
        Ok(())
    };
    let database = outlives(setup, "ALTER TABLE altered ADD b int", move |tx, event| {
        let mut attempt = tx.transaction()?;
        match note(&mut attempt, event) {
            Ok(()) => attempt.commit()?,
            Err(_) => attempt.rollback()?,
        }
        Ok(())
    });
    let noted: i64 = database.client().query_one("SELECT count(*) FROM noted", &[]).unwrap().get(0);
    assert_eq!(noted, 40);
}

#[test]
fn a_statement_that_a_handler_holds_is_prepared_again() {
    outlives("CREATE TABLE altered AS SELECT 1 AS a", "ALTER TABLE altered ADD b int", |tx, _| {
        let statement = tx.prepare("SELECT * FROM altered")?;
        tx.query(&statement, &[])?;
        Ok(())
    });
}

/// The server's error has no code of its own in this case, so the failure counts once.
#[test]
fn a_type_that_is_replaced_does_not_halt_a_projection() {
    let setup = "CREATE TYPE status AS ENUM ('a'); CREATE TABLE typed (at bigint, status status)";
    let replace = "ALTER TYPE status RENAME TO former; CREATE TYPE status AS ENUM ('a', 'b');
                   ALTER TABLE typed ALTER status TYPE status USING status::text::status; DROP TYPE former";
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute(setup).unwrap();
    append_plainly(&mut client, 20, 4);
    let insert = meddled("p", |tx, event| {
        tx.execute("INSERT INTO typed SELECT $1, 'a'::status", &[&event.global_position()])?;
        Ok(())
    });
    let retry = Retry::default().attempts(2).first_delay(Duration::from_millis(20));
    let worker = start(builder(database.url(), "set").retry(retry), vec![insert]);
    await_complete(&worker, &mut client);
    client.batch_execute(replace).unwrap();
    append_plainly(&mut client, 20, 4);
    await_complete(&worker, &mut client);
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
}

/// No text occurs twice, so none is known to be outdated.
#[test]
fn a_handler_that_always_makes_its_statements_outdated_halts() {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute("CREATE TABLE altered (a int)").unwrap();
    append_plainly(&mut client, 4, 1);
    let columns = AtomicUsize::new(0);
    let handler = meddled("p", move |tx, _| {
        let number = columns.fetch_add(1, Ordering::Relaxed);
        let text = format!("SELECT * FROM altered /* {number} */");
        tx.query(&text, &[])?;
        tx.batch_execute(&format!("ALTER TABLE altered ADD b{number} int"))?;
        tx.query(&text, &[])?;
        Ok(())
    });
    let worker = start(strict(&database), vec![handler]);
    let error = await_halted(&worker);
    assert!(error.contains("cached plan must not change result type"), "{error}");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn statements_that_the_session_lost_are_prepared_again() {
    let is_due = AtomicBool::new(true);
    outlives("", "", move |tx, _| {
        tx.execute("SELECT 1", &[])?;
        // The library's own statements are lost as well.
        if is_due.swap(false, Ordering::Relaxed) {
            tx.batch_execute("DEALLOCATE ALL")?;
        }
        tx.execute("SELECT 1", &[])?;
        Ok(())
    });
}

#[test]
fn a_handler_that_drops_the_librarys_statements_halts() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 20, 4);
    let handler = meddled("p", |tx, _| Ok(tx.batch_execute("DEALLOCATE ALL")?));
    let worker = start(strict(&database), vec![handler]);
    let error = await_halted(&worker);
    assert!(error.contains("Happened of test/Thing/thing-0 at global position 1"), "{error}");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_handler_can_ask_for_projection_generation_and_pause() {
    outlives("", "", |tx, _| {
        if tx.projection() != "p" || tx.generation() < 1 || tx.is_pause_requested() {
            return Err(format!("{tx:?}").into());
        }
        Ok(())
    });
}
