//! The example `async_append`: an asynchronous application beside a worker.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::worker_process::example;
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn an_asynchronous_application_appends_with_its_own_client() {
    let database = database();
    let mut program = Command::new(example("async_append"))
        .env("DATABASE_URL", database.url())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = eventually("it ends", SOON, || program.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let mut client = database.client();
    let sql = "SELECT (SELECT count(*) FROM events), (SELECT max(aggregate_version) FROM events),
                      (SELECT sum(items)::bigint FROM cart_items)";
    let row = client.query_one(sql, &[]).unwrap();
    let found: [i64; 3] = [0, 1, 2].map(|column| row.get(column));
    assert_eq!(found, [50; 3], "events, the cart's version, and items: no decision was made on an old state");
}
