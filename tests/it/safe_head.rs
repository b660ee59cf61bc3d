//! The safe head: it does not pass a position while its writer's transaction is open, and does not
//! wait for a position that was rolled back.

use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, GenericClient};
use pupsourcing_orchestrator::{Handle, HeadBlocked, HeadBlocker};

use crate::support::handlers::prepared;
use crate::support::insert::{ONE, insert, insert_into};
use crate::support::ledger::{Ledger, assert_exactly_once, handled, is_complete};
use crate::support::metrics::metric;
use crate::support::workers::{builder, start, start_ledger};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);

/// Inserts one event of an aggregate of its own and returns its position.
fn insert_one(client: &mut impl GenericClient) -> i64 {
    insert_one_into(client, "events")
}

fn insert_one_into(client: &mut impl GenericClient, table: &str) -> i64 {
    let sql = insert_into(table, ONE, &[]);
    client.query_one(&format!("{sql} RETURNING global_position"), &[]).unwrap().get(0)
}

#[track_caller]
fn await_complete(client: &mut Client) {
    eventually("all events are handled", SOON, || is_complete(client, "p").then_some(()));
    assert_exactly_once(client, "p");
}

/// Waits until the worker reports that its head is blocked by a transaction that meets this
/// condition.
#[track_caller]
fn await_blocked(handle: &Handle, by: impl Fn(&HeadBlocker) -> bool) -> HeadBlocker {
    eventually("the blocked head is reported", SOON, || {
        handle.status().head_blocked.and_then(|blocked| blocked.blockers.into_iter().find(|blocker| by(blocker)))
    })
}

#[track_caller]
fn await_unblocked(handle: &Handle) {
    eventually("the blocked head is no longer reported", SOON, || handle.status().head_blocked.is_none().then_some(()));
}

fn writer(database: &TestDatabase, application_name: &str) -> (Client, i32) {
    let mut client = database.client();
    client.execute(&format!("SET application_name = '{application_name}'"), &[]).unwrap();
    let pid = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    (client, pid)
}

/// Rolls back this many positions.
fn roll_back(client: &mut Client, positions: usize) {
    let mut tx = client.transaction().unwrap();
    insert_one(&mut tx);
    tx.execute(
        "SELECT nextval('events_global_position_seq') FROM generate_series(2, $1::bigint)",
        &[&i64::try_from(positions).unwrap()],
    )
    .unwrap();
    tx.rollback().unwrap();
}

#[test]
fn an_open_transaction_holds_the_head_back_and_is_named() {
    let database = database();
    let mut client = prepared(&database);
    let (mut slow, pid) = writer(&database, "slow writer");
    for _ in 0..3 {
        insert_one(&mut client);
    }
    let mut open = slow.transaction().unwrap();
    insert_one(&mut open);
    for _ in 0..3 {
        insert_one(&mut client);
    }
    let worker = start_ledger(&database, "p");
    eventually("the events below the hole are handled", SOON, || (handled(&mut client, "p") == 3).then_some(()));
    let blocker = await_blocked(&worker, |_| true);
    assert_eq!((blocker.pid, blocker.name.as_str()), (Some(pid), "slow writer"));
    let age = metric(&worker, "head_blocker_age_seconds", &[]);
    assert!(age.is_some_and(|age| age >= 1.0), "{age:?}");
    assert!(metric(&worker, "head_blocked_seconds", &[]).is_some_and(|since| since >= 1.0));
    let HeadBlocked { duration: since, blockers, .. } = worker.status().head_blocked.unwrap();
    assert!(since < SOON && blockers.len() == 1 && blockers[0].age >= since, "{since:?} {blockers:?}");
    // A transaction that begins to write now does not hold the head back any longer than the first
    // one.
    let mut second = database.client();
    let mut later = second.transaction().unwrap();
    insert_one(&mut later);
    assert_eq!((handled(&mut client, "p"), worker.status().safe_head), (3, Some(3)), "nothing above the hole");

    open.commit().unwrap();
    eventually("the events above the hole are handled", SOON, || (handled(&mut client, "p") == 7).then_some(()));
    await_unblocked(&worker);
    assert_eq!(metric(&worker, "head_blocker_age_seconds", &[]), Some(0.0));
    assert_eq!(metric(&worker, "head_blocked_seconds", &[]), Some(0.0));
    later.commit().unwrap();
    await_complete(&mut client);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn each_blocking_writer_is_blamed_only_for_its_own_time() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    let [(mut first, first_pid), (mut second, second_pid)] = [writer(&database, "first"), writer(&database, "second")];
    let (mut one, mut other) = (first.transaction().unwrap(), second.transaction().unwrap());
    insert_one(&mut one);
    insert_one(&mut client);
    await_blocked(&worker, |blocker| blocker.pid == Some(first_pid));
    insert_one(&mut other);
    insert_one(&mut client);
    let begun = Instant::now();
    one.commit().unwrap();
    await_blocked(&worker, |blocker| blocker.pid == Some(second_pid));
    let since = worker.status().head_blocked.unwrap().duration;
    assert!(since <= begun.elapsed(), "{since:?}, and its turn began {:?} ago", begun.elapsed());
    other.commit().unwrap();
    await_complete(&mut client);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_head_that_moves_is_reported_in_the_table_of_workers() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    // The second time, the head has not moved for longer than the time between two reports. Each
    // heartbeat sends one.
    for _ in 0..2 {
        let newest = insert_one(&mut client);
        eventually("the head is reported", SOON, || {
            let sql = "SELECT FROM orchestrator_workers WHERE id = $1 AND safe_head = $2";
            client.query_opt(sql, &[&worker.worker_id().0, &newest]).unwrap()
        });
        let sent = || metric(&worker, "heartbeat_latency_seconds_count", &[]).unwrap_or(0.0);
        let before = sent();
        eventually("two heartbeats are sent", SOON, || (sent() >= before + 2.0).then_some(()));
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn the_head_does_not_wait_for_rolled_back_positions() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    for gap in [1, 1, 5_000] {
        roll_back(&mut client, gap);
        insert_one(&mut client);
        await_complete(&mut client);
    }
    // Gaps one after the other within one look, and one at the end.
    let gaps = [
        ("global_position", "2 * nextval('events_global_position_seq')"),
        ("aggregate_id", "'gaps'"),
        ("aggregate_version", "n"),
    ];
    client.execute(&insert("generate_series(1, 2100) n", &gaps), &[]).unwrap();
    client
        .execute("SELECT setval('events_global_position_seq', (SELECT max(global_position) FROM events))", &[])
        .unwrap();
    await_complete(&mut client);
    roll_back(&mut client, 3);
    let newest = insert_one(&mut client);
    roll_back(&mut client, 3);
    await_complete(&mut client);
    eventually("the head is at the newest event", SOON, || (worker.status().safe_head? == newest).then_some(()));
    assert_eq!(worker.status().head_blocked, None);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_prepared_transaction_blocks_the_head_until_its_end() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    insert_one(&mut client);
    await_complete(&mut client);
    for end in ["COMMIT", "ROLLBACK"] {
        let before = handled(&mut client, "p");
        let gid = format!("{end} {}", database.name());
        let mut theirs = database.client();
        theirs.batch_execute("BEGIN").unwrap();
        insert_one(&mut theirs);
        theirs.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).unwrap();
        insert_one(&mut client);
        let blocker = await_blocked(&worker, |_| true);
        assert_eq!((blocker.pid, &blocker.name), (None, &gid));
        assert!(metric(&worker, "head_blocker_age_seconds", &[]).is_some_and(|age| age > 0.0));
        assert_eq!(handled(&mut client, "p"), before);
        client.batch_execute(&format!("{end} PREPARED '{gid}'")).unwrap();
        await_complete(&mut client);
        await_unblocked(&worker);
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_writer_that_is_prepared_still_blocks_the_head() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    let (mut theirs, pid) = writer(&database, "coordinator of two phases");
    theirs.batch_execute("BEGIN").unwrap();
    insert_one(&mut theirs);
    insert_one(&mut client);
    await_blocked(&worker, |blocker| blocker.pid == Some(pid));
    // The lock moves to the prepared transaction while the head waits for it.
    let gid = format!("prepared {}", database.name());
    theirs.batch_execute(&format!("PREPARE TRANSACTION '{gid}'")).unwrap();
    await_blocked(&worker, |blocker| blocker.pid.is_none() && blocker.name == gid);
    assert_eq!(handled(&mut client, "p"), 0, "nothing above the hole");
    client.batch_execute(&format!("COMMIT PREPARED '{gid}'")).unwrap();
    await_complete(&mut client);
    assert_eq!(handled(&mut client, "p"), 2);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_writer_of_another_user_is_named() {
    let database = database();
    let mut client = prepared(&database);
    let role = format!("reader_of_{}", database.name());
    client
        .batch_execute(&format!(
            "CREATE ROLE \"{role}\" LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO \"{role}\";
             GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO \"{role}\"; GRANT ALL ON SCHEMA public TO \"{role}\""
        ))
        .unwrap();
    let url = database.url().replace("postgres@", &format!("{role}@"));
    let worker = start(builder(&url, "set"), vec![Box::new(Ledger::named("p"))]);
    let (mut slow, pid) = writer(&database, "writer of the owner");
    let mut open = slow.transaction().unwrap();
    insert_one(&mut open);
    insert_one(&mut client);
    let blocker = await_blocked(&worker, |_| true);
    assert_eq!((blocker.pid, blocker.name.as_str()), (Some(pid), "writer of the owner"));
    open.rollback().unwrap();
    await_complete(&mut client);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn writers_of_a_partition_hold_the_head_back_as_well() {
    let database = database();
    let mut client = database.client();
    client
        .batch_execute(
            "CREATE TABLE events (
                 global_position BIGSERIAL PRIMARY KEY, bounded_context TEXT NOT NULL, aggregate_type TEXT NOT NULL,
                 aggregate_id TEXT NOT NULL, aggregate_version BIGINT NOT NULL, event_id UUID NOT NULL,
                 event_type TEXT NOT NULL, event_version INT NOT NULL DEFAULT 1, payload BYTEA NOT NULL, trace_id TEXT,
                 correlation_id TEXT, causation_id TEXT, metadata JSONB, created_at TIMESTAMPTZ NOT NULL DEFAULT now()
             ) PARTITION BY RANGE (global_position);
             CREATE TABLE events_low PARTITION OF events FOR VALUES FROM (MINVALUE) TO (4);
             CREATE TABLE events_high PARTITION OF events FOR VALUES FROM (4) TO (MAXVALUE) PARTITION BY RANGE (global_position);
             CREATE TABLE events_highest PARTITION OF events_high DEFAULT",
        )
        .unwrap();
    let worker = start_ledger(&database, "p");
    for table in ["events", "events_low", "events", "events_highest", "events"] {
        insert_one_into(&mut client, table);
    }
    await_complete(&mut client);
    let (mut slow, pid) = writer(&database, "writer of a partition");
    let mut open = slow.transaction().unwrap();
    insert_one_into(&mut open, "events_highest");
    insert_one(&mut client);
    await_blocked(&worker, |blocker| blocker.pid == Some(pid));
    assert_eq!(handled(&mut client, "p"), 5, "nothing above the hole");
    open.commit().unwrap();
    await_complete(&mut client);
    assert_eq!(handled(&mut client, "p"), 7);
    worker.shutdown(SOON).unwrap();
}

#[test]
fn locks_that_writers_do_not_take_do_not_block_the_head() {
    let database = database();
    let mut client = prepared(&database);
    let mut other = database.client();
    for lock in [
        "SELECT FROM events FOR UPDATE",
        "LOCK TABLE events IN SHARE UPDATE EXCLUSIVE MODE",
        "LOCK TABLE events IN SHARE MODE",
        "LOCK TABLE events IN EXCLUSIVE MODE",
    ] {
        // The worker that looks at the hole starts after the lock was taken, because no writer
        // could pass some of these locks.
        insert_one(&mut client);
        roll_back(&mut client, 1);
        insert_one(&mut client);
        let mut tx = other.transaction().unwrap();
        tx.batch_execute(lock).unwrap();
        let worker = start_ledger(&database, "p");
        await_complete(&mut client);
        worker.shutdown(SOON).unwrap();
        tx.rollback().unwrap();
    }
}

#[test]
fn the_head_does_not_wait_for_a_writer_without_its_lock() {
    let database = database();
    let mut client = prepared(&database);
    insert_one(&mut client);
    roll_back(&mut client, 1);
    insert_one(&mut client);
    let (mut other, mut writer) = (database.client(), database.client());
    thread::scope(|scope| {
        let mut tx = other.transaction().unwrap();
        tx.batch_execute("LOCK TABLE events IN SHARE MODE").unwrap();
        scope.spawn(move || insert_one(&mut writer));
        eventually("the writer waits", SOON, || {
            let sql = "SELECT FROM pg_locks WHERE relation = 'events'::regclass AND NOT granted";
            client.query_opt(sql, &[]).unwrap()
        });
        let worker = start_ledger(&database, "p");
        await_complete(&mut client);
        tx.rollback().unwrap();
        eventually("its event is handled", SOON, || (handled(&mut client, "p") == 3).then_some(()));
        worker.shutdown(SOON).unwrap();
    });
}

#[test]
fn the_head_does_not_wait_for_an_index_build() {
    let database = database();
    let mut client = prepared(&database);
    let worker = start_ledger(&database, "p");
    insert_one(&mut client);
    // The build waits for the end of this snapshot.
    let mut old = database.client();
    let mut snapshot =
        old.build_transaction().isolation_level(postgres::IsolationLevel::RepeatableRead).start().unwrap();
    insert_count(&mut snapshot);
    thread::scope(|scope| {
        let mut builder = database.client();
        let build = scope.spawn(move || builder.batch_execute("CREATE INDEX CONCURRENTLY ON events (event_type)"));
        eventually("the build waits", SOON, || {
            let sql = "SELECT FROM pg_stat_progress_create_index
                       WHERE datname = current_database() AND phase = 'waiting for old snapshots'";
            client.query_opt(sql, &[]).unwrap()
        });
        roll_back(&mut client, 3);
        insert_one(&mut client);
        await_complete(&mut client);
        assert!(!build.is_finished());
        snapshot.rollback().unwrap();
        build.join().unwrap().unwrap();
    });
    worker.shutdown(SOON).unwrap();
}

fn insert_count(client: &mut impl GenericClient) -> i64 {
    client.query_one("SELECT count(*) FROM events", &[]).unwrap().get(0)
}

#[test]
fn positions_need_not_come_from_a_sequence() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "ALTER TABLE events ALTER global_position DROP DEFAULT; DROP SEQUENCE events_global_position_seq",
        )
        .unwrap();
    let worker = start_ledger(&database, "p");
    for positions in ["(10), (20)", "(21)", "(1000000), (1000007)", "(9000000000000)", "(9000000000001)"] {
        let columns = [("global_position", "p"), ("aggregate_id", "'one'"), ("aggregate_version", "p")];
        client.execute(&insert(&format!("(VALUES {positions}) v (p)"), &columns), &[]).unwrap();
        await_complete(&mut client);
    }
    assert_eq!(handled(&mut client, "p"), 7);
    worker.shutdown(SOON).unwrap();
}
