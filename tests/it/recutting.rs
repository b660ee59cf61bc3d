//! Checkpoints that are cut again while workers catch up and their positions differ.

use std::time::Duration;

use pupsourcing_orchestrator::Handle;

use crate::support::cluster::{assert_keys_are_covered, newest, positions};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, await_progress, is_complete};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

/// A worker that takes this long for an event.
fn worker(database: &TestDatabase, takes: u64) -> Handle {
    let ledger = Ledger { takes: Duration::from_millis(takes), ..Ledger::named("p") };
    start(builder(database.url(), "set"), vec![Box::new(ledger)])
}

#[test]
fn workers_catch_up_while_checkpoints_are_cut_again() {
    let database = database();
    let mut client = database.client();
    Ledger::create_table(&mut client);
    // The slower one falls behind, so that their checkpoints never agree.
    let (slow, quick) = (worker(&database, 2), worker(&database, 0));
    await_running(&[&slow, &quick]);
    append_plainly(&mut client, 3_000, 200);
    await_progress(&mut client, "p", 300);
    let third = worker(&database, 1);
    await_running(&[&slow, &quick, &third]);
    let cut = positions(&mut client, "p");
    assert!(cut.len() > 3 && cut.first() < cut.last(), "nothing was apart: {cut:?}");
    await_progress(&mut client, "p", 300);
    quick.shutdown(Duration::from_secs(10)).unwrap();
    await_running(&[&slow, &third]);
    await_progress(&mut client, "p", 300);
    slow.shutdown(Duration::from_secs(10)).unwrap();
    await_running(&[&third]);
    let cut = positions(&mut client, "p");
    assert!(cut.len() > 1 && cut.first() < cut.last(), "nothing was apart: {cut:?}");
    eventually("all events are handled", Duration::from_secs(30), || {
        assert_keys_are_covered(&mut client);
        is_complete(&mut client, "p").then_some(())
    });
    assert_exactly_once(&mut client, "p");
    let head = newest(&mut client);
    eventually("one row is left, at the head", Duration::from_secs(10), || {
        (positions(&mut client, "p") == [head]).then_some(())
    });
}
