//! The example `async_append`: an asynchronous application beside a worker.

use std::process::{Command, Stdio};
use std::time::Duration;

use pupsourcing_orchestrator::{EventStore, ExpectedVersion, Names, NewEvent, StreamId};

use crate::support::worker_process::example;
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn an_asynchronous_application_never_decides_on_old_state() {
    let database = database();
    let (mut client, mut writer) = (database.client(), database.client());
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    let item = || NewEvent::new("ItemAdded", br#"{"sku":"first"}"#.as_slice());
    let items: Vec<NewEvent> = std::iter::repeat_with(item).take(49).collect();
    let cart = StreamId::new("shop", "Cart", "cart-7");
    EventStore::default().append(&mut client, &cart, ExpectedVersion::NoStream, &items).unwrap();

    // All visitors read that there is room for one more, before any of them can append.
    let mut append = writer.transaction().unwrap();
    append.execute("SELECT FROM aggregate_heads WHERE aggregate_id = 'cart-7' FOR UPDATE", &[]).unwrap();
    let mut program = Command::new(example("async_append"))
        .env("DATABASE_URL", database.url())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("all visitors have decided", SOON, || {
        let sql = "SELECT count(*) FROM pg_stat_activity
                   WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%orchestrator_append%'";
        (client.query_one(sql, &[]).unwrap().get::<_, i64>(0) == 8).then_some(())
    });
    append.rollback().unwrap();

    let status = eventually("it ends", SOON, || program.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let sql = "SELECT (SELECT count(*) FROM events), (SELECT max(aggregate_version) FROM events),
                      (SELECT sum(items)::bigint FROM cart_items)";
    let row = client.query_one(sql, &[]).unwrap();
    let found: [i64; 3] = [0, 1, 2].map(|column| row.get(column));
    assert_eq!(found, [50; 3], "events, the cart's version, and the items of the read model");
}
