//! The statements that a handler's transaction keeps prepared.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pupsourcing_orchestrator::{BoxError, Builder, Event, ProjectionState, Retry, Tx};

use crate::support::handlers::{meddled, prepared};
use crate::support::ledger::{append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A worker that halts at the first attempt that counts.
fn strict(database: &TestDatabase) -> Builder {
    builder(database.url(), "set").retry(Retry::default().attempts(1))
}

/// Processes some events, has something happen in between, and processes some more. No attempt may
/// be counted.
fn outlives(
    setup: &str,
    between: &str,
    handler: impl Fn(&mut Tx<'_>, &Event) -> Result<(), BoxError> + Send + Sync + 'static,
) {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute(setup).unwrap();
    append_plainly(&mut client, 20, 4);
    let worker = start(strict(&database), vec![meddled("p", handler)]);
    eventually("the first events are handled", SOON, || is_complete(&mut client, "p").then_some(()));
    client.batch_execute(between).unwrap();
    append_plainly(&mut client, 20, 4);
    eventually("the others are handled", SOON, || {
        let status = worker.status();
        let projection = &status.projections["p"];
        assert_ne!(projection.state, ProjectionState::Halted, "{projection:?}");
        is_complete(&mut client, "p").then_some(())
    });
    assert_exactly_once(&mut client, "p");
    worker.shutdown(SOON).unwrap();
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

/// Every text becomes outdated at once, and with each attempt.
#[test]
fn a_handler_that_alters_its_own_table_gets_on() {
    outlives("CREATE TABLE altered (a int)", "", |tx, event| {
        tx.query("SELECT * FROM altered", &[])?;
        tx.batch_execute(&format!("ALTER TABLE altered ADD IF NOT EXISTS c{} int", event.global_position()))?;
        tx.query("SELECT * FROM altered", &[])?;
        Ok(())
    });
}

#[test]
fn a_handler_that_swallows_the_error_gets_on() {
    outlives("CREATE TABLE altered AS SELECT 1 AS a", "ALTER TABLE altered ADD b int", |tx, _| {
        _ = tx.query("SELECT * FROM altered", &[]);
        Ok(())
    });
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
    let error = eventually("it halts", SOON, || {
        let projection = worker.status().projections["p"].clone();
        (projection.state == ProjectionState::Halted).then_some(projection.error).flatten()
    });
    assert!(error.contains("Happened of test/Thing/thing-0 at global position 1"), "{error}");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_handler_is_told_what_it_may_ask() {
    outlives("", "", |tx, _| {
        if tx.projection() != "p" || tx.generation() < 1 || tx.is_pause_requested() {
            return Err(format!("{tx:?}").into());
        }
        Ok(())
    });
}
