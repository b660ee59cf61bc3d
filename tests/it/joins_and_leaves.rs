//! Workers that join and leave while events are appended.

use std::time::Duration;

use crate::support::ledger::{append_plainly, assert_exactly_once, is_complete};
use crate::support::workers::{await_running, start_ledger};
use crate::support::{database, eventually};

#[test]
fn one_two_three_two_one_workers_handle_every_event_once() {
    let database = database();
    let mut client = database.client();
    let first = start_ledger(&database, "p");
    append_plainly(&mut client, 3_000, 100);
    await_running(&[&first]);
    let second = start_ledger(&database, "p");
    append_plainly(&mut client, 3_000, 100);
    await_running(&[&first, &second]);
    let third = start_ledger(&database, "p");
    append_plainly(&mut client, 3_000, 100);
    await_running(&[&first, &second, &third]);
    first.shutdown(Duration::from_secs(5)).unwrap();
    append_plainly(&mut client, 3_000, 100);
    await_running(&[&second, &third]);
    third.shutdown(Duration::from_secs(5)).unwrap();
    append_plainly(&mut client, 3_000, 100);
    await_running(&[&second]);
    eventually("all events are handled", Duration::from_secs(20), || is_complete(&mut client, "p").then_some(()));
    assert_exactly_once(&mut client, "p");
    second.shutdown(Duration::from_secs(5)).unwrap();
}
