//! Appending and reading streams: versions, positions, conflicts, and everything that an event may
//! contain.

use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, GenericClient, NoTls, Transaction};
use pupsourcing_orchestrator::{
    AppendError, AppendResult, Event, EventStore, ExpectedVersion, Names, NewEvent, StreamId,
};
use uuid::Uuid;

use crate::bad_input::stranger;
use crate::support::handlers::prepared;
use crate::support::insert::{ONE, insert};
use crate::support::ledger::{happened, thing};
use crate::support::{TestDatabase, database, eventually};

use ExpectedVersion::{Any, Exact, NoStream};

fn events(client: &mut impl GenericClient) -> i64 {
    client.query_one("SELECT count(*) FROM events", &[]).unwrap().get(0)
}

fn head_of(client: &mut impl GenericClient, id: &str) -> Option<i64> {
    let sql = "SELECT aggregate_version FROM aggregate_heads
               WHERE bounded_context = 'test' AND aggregate_type = 'Thing' AND aggregate_id = $1";
    client.query_opt(sql, &[&id]).unwrap().map(|row| row.get(0))
}

/// Inserts an event like a writer that does not maintain the aggregate heads.
fn insert_plainly(client: &mut impl GenericClient, id: &str, version: i64) {
    let sql = insert(ONE, &[("aggregate_id", "$1::text"), ("aggregate_version", "$2::bigint")]);
    client.execute(&sql, &[&id, &version]).unwrap();
}

#[track_caller]
fn assert_conflict<T: std::fmt::Debug>(
    outcome: &Result<T, AppendError>,
    wanted: ExpectedVersion,
    found: impl Into<Option<i64>>,
) {
    let found = found.into();
    match outcome {
        Err(AppendError::Conflict { stream, expected, actual, .. }) => {
            assert_eq!(*stream, thing(&stream.aggregate_id));
            assert_eq!((*expected, *actual), (wanted, found));
        }
        other => panic!("not a conflict: {other:?}"),
    }
}

#[test]
fn versions_and_positions_are_consecutive() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let first = store.append(&mut client, &thing("a"), NoStream, &[happened(), happened()]).unwrap();
    assert_eq!((first.positions, first.versions), (vec![1, 2], 1..=2));
    let second = store.append(&mut client, &thing("a"), Exact(2), &[happened()]).unwrap();
    assert_eq!((second.positions, second.versions), (vec![3], 3..=3));
    let third = store.append(&mut client, &thing("a"), Any, &[happened(), happened(), happened()]).unwrap();
    assert_eq!((third.positions, third.versions), (vec![4, 5, 6], 4..=6));
    assert_eq!(head_of(&mut client, "a"), Some(6));

    for expected in [NoStream, Exact(0), Exact(5), Exact(7)] {
        assert_conflict(&store.append(&mut client, &thing("a"), expected, &[happened()]), expected, 6);
    }
    assert_conflict(&store.append(&mut client, &thing("new"), Exact(1), &[happened()]), Exact(1), 0);
    assert_eq!((events(&mut client), head_of(&mut client, "a"), head_of(&mut client, "new")), (6, Some(6), None));
    let fresh = store.append(&mut client, &thing("new"), Exact(0), &[happened()]).unwrap();
    assert_eq!(fresh.versions, 1..=1, "version 0 is an aggregate without events");
    let any = store.append(&mut client, &thing("newer"), Any, &[happened()]).unwrap();
    assert_eq!(any.versions, 1..=1);
}

#[test]
fn an_append_commits_or_rolls_back_with_its_transaction() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let mut tx = client.transaction().unwrap();
    store.append(&mut tx, &thing("a"), NoStream, &[happened()]).unwrap();
    assert_eq!(store.append(&mut tx, &thing("a"), Exact(1), &[happened()]).unwrap().versions, 2..=2, "its own event");
    tx.rollback().unwrap();
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (0, None));

    let mut tx = client.transaction().unwrap();
    store.append(&mut tx, &thing("a"), NoStream, &[happened()]).unwrap();
    assert_conflict(&store.append(&mut tx, &thing("a"), NoStream, &[happened()]), NoStream, 1);
    store.append(&mut tx, &thing("a"), Exact(1), &[happened()]).expect("the transaction is usable after a conflict");
    tx.commit().unwrap();
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (2, Some(2)));
}

#[test]
fn later_appends_of_a_session_behave_like_the_first() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    // More often than the server makes a plan for the given values.
    for version in 0..12 {
        let expected = if version == 0 { NoStream } else { Exact(version) };
        assert_eq!(
            store.append(&mut client, &thing("a"), expected, &[happened()]).unwrap().versions,
            version + 1..=version + 1
        );
        assert_conflict(&store.append(&mut client, &thing("a"), expected, &[happened()]), expected, version + 1);
        assert_eq!(
            store.append(&mut client, &thing("any"), Any, &[happened()]).unwrap().versions,
            version + 1..=version + 1
        );
    }
    assert_eq!((events(&mut client), head_of(&mut client, "a"), head_of(&mut client, "any")), (24, Some(12), Some(12)));
}

#[test]
fn plans_made_for_small_tables_serve_large_ones() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    store.append(&mut client, &thing("a"), Any, &[happened()]).unwrap();
    client.batch_execute("ANALYZE events; ANALYZE aggregate_heads").unwrap();
    // A new session, because the counts of earlier statements would be included: a session reports
    // them late.
    let mut session = database.client();
    let mut tx = session.transaction().unwrap();
    for version in 1..10 {
        store.append(&mut tx, &thing("a"), Exact(version), &[happened()]).unwrap();
        store.append(&mut tx, &thing(&format!("b{version}")), NoStream, &[happened()]).unwrap();
    }
    let scans = "SELECT sum(seq_scan)::bigint, sum(idx_scan)::bigint FROM pg_stat_xact_user_tables
                 WHERE relname IN ('events', 'aggregate_heads')";
    let row = tx.query_one(scans, &[]).unwrap();
    let (whole, by_index): (i64, i64) = (row.get(0), row.get(1));
    assert!(whole == 0 && by_index >= 18, "whole tables {whole} times, by an index {by_index} times");
}

#[test]
fn the_function_can_be_called_from_any_language() {
    let database = database();
    let mut client = prepared(&database);
    let call =
        "SELECT * FROM orchestrator_append('test', 'Thing', 'a', $1, array[gen_random_uuid(), gen_random_uuid()],
                    '{Happened,Happened}', '{1,1}', array['\\x01'::bytea, '\\x02'], correlation_ids => '{c,d}')";
    let mut append = |expected: Option<i64>| -> Vec<(Option<i64>, i64)> {
        let rows = client.query(call, &[&expected]).unwrap();
        rows.iter().map(|row| (row.get("global_position"), row.get("aggregate_version"))).collect()
    };
    assert_eq!(append(Some(0)), [(Some(1), 1), (Some(2), 2)]);
    assert_eq!(append(Some(0)), [(None, 2)], "a conflict, and the version");
    assert_eq!(append(None), [(Some(3), 3), (Some(4), 4)]);
    let stream = EventStore::default().read_stream(&mut client, &thing("a"), ..).unwrap();
    let told: Vec<_> = stream.iter().map(|event| (event.payload(), event.correlation_id(), event.trace_id())).collect();
    let pair = [(&[1][..], Some("c"), None), (&[2][..], Some("d"), None)];
    assert_eq!(told, [pair, pair].concat());
}

#[test]
fn an_append_without_its_function_says_what_to_do() {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute("CREATE TABLE others (LIKE events INCLUDING ALL)").unwrap();
    let refused = |client: &mut Client, names: Names| {
        EventStore::new(names).unwrap().append(client, &thing("a"), Any, &[happened()]).unwrap_err().with_causes()
    };
    let elsewhere = refused(&mut client, Names::default().events_table("others"));
    for part in ["\"public\".\"events\"", "not to \"public\".\"others\"", "prefix of their own"] {
        assert!(elsewhere.contains(part), "{elsewhere}: {part}");
    }
    let unmigrated = refused(&mut client, Names::default().prefix("new_"));
    for part in ["no function \"public\".\"new_append\"", "Orchestrator::migrate()"] {
        assert!(unmigrated.contains(part), "{unmigrated}: {part}");
    }
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (0, None));
}

#[test]
fn an_appender_needs_exactly_the_documented_privileges() {
    let database = database();
    let mut client = prepared(&database);
    let (role, url) = stranger(&database, &mut client);
    let privileges = [
        "USAGE ON SEQUENCE events_global_position_seq",
        "SELECT ON events",
        "INSERT ON events",
        "SELECT ON aggregate_heads",
        "INSERT ON aggregate_heads",
        "UPDATE ON aggregate_heads",
    ];
    for privilege in privileges {
        client.batch_execute(&format!("GRANT {privilege} TO {role}")).unwrap();
    }
    let mut theirs = Client::connect(&url, NoTls).unwrap();
    let store = EventStore::default();
    let mut append_in_every_way = || {
        store.append(&mut theirs, &thing("a"), Any, &[happened()])?;
        store.append(&mut theirs, &thing("a"), Any, &[happened()])?;
        store.append(&mut theirs, &thing(&Uuid::new_v4().to_string()), NoStream, &[happened()])
    };
    append_in_every_way().unwrap();
    for privilege in privileges {
        client.batch_execute(&format!("REVOKE {privilege} FROM {role}")).unwrap();
        let error = append_in_every_way().unwrap_err();
        assert!(error.with_causes().contains("permission denied"), "without {privilege}: {error}");
        client.batch_execute(&format!("GRANT {privilege} TO {role}")).unwrap();
    }
    append_in_every_way().unwrap();
}

#[test]
fn an_append_is_undone_if_a_trigger_suppresses_an_event() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "CREATE FUNCTION hold_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER hold_back BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.aggregate_version = 2)
             EXECUTE FUNCTION hold_back()",
        )
        .unwrap();
    let error = EventStore::default()
        .append(&mut client, &thing("a"), NoStream, &[happened(), happened()])
        .unwrap_err()
        .with_causes();
    assert!(error.contains("1 of 2 events were stored") && error.contains("trigger"), "{error}");
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (0, None));
}

#[test]
fn appends_of_many_threads_to_one_aggregate_take_turns() {
    const THREADS: usize = 8;
    const ROUNDS: i64 = 15;
    let database = database();
    let mut client = prepared(&database);
    let barrier = Barrier::new(THREADS);
    // The threads assert nothing: a thread that panics would leave the others at the barrier.
    let worker = || {
        let mut client = database.client();
        let store = EventStore::default();
        let any: Vec<_> =
            (0..ROUNDS).map(|_| store.append(&mut client, &thing("any"), Any, &[happened(), happened()])).collect();
        let exact = |round| {
            barrier.wait();
            store.append(&mut client, &thing("exact"), Exact(round), &[happened()])
        };
        (any, (0..ROUNDS).map(exact).collect::<Vec<_>>())
    };
    let outcomes: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(worker)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut won = 0;
    for (any, exact) in outcomes {
        for appended in any {
            let versions = appended.expect("any version is accepted").versions;
            assert_eq!(versions.end() - versions.start(), 1);
        }
        for (round, outcome) in (0..).zip(exact) {
            match outcome {
                Ok(appended) => {
                    assert_eq!(appended.versions, round + 1..=round + 1);
                    won += 1;
                }
                lost => assert_conflict(&lost, Exact(round), round + 1),
            }
        }
    }
    assert_eq!(won, ROUNDS, "exactly one wins each round");
    let store = EventStore::default();
    let total = i64::try_from(THREADS).unwrap() * ROUNDS * 2;
    for (id, total) in [("any", total), ("exact", ROUNDS)] {
        let stream = store.read_stream(&mut client, &thing(id), ..).unwrap();
        let versions: Vec<i64> = stream.iter().map(Event::aggregate_version).collect();
        assert_eq!(versions, (1..=total).collect::<Vec<_>>(), "{id}: contiguous");
        assert!(stream.is_sorted_by_key(Event::global_position), "{id}: positions ascend with versions");
        assert_eq!(head_of(&mut client, id), Some(total));
    }
}

#[test]
fn many_events_need_one_statement_and_no_notification() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "CREATE TABLE statements (seen text); LISTEN pupsourcing_events;
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
                 $$ BEGIN INSERT INTO statements VALUES (TG_TABLE_NAME); RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION note()",
        )
        .unwrap();
    let store = EventStore::default();
    let many: Vec<NewEvent> = (0..1_000).map(|_| happened()).collect();
    let appended = store.append(&mut client, &thing("a"), Any, &many).unwrap();
    assert_eq!((appended.positions.len(), appended.versions), (1_000, 1..=1_000));
    assert!(appended.positions.is_sorted());
    let statements: i64 = client.query_one("SELECT count(*) FROM statements", &[]).unwrap().get(0);
    assert_eq!(statements, 1);
    store.hint(&mut client);
    assert_eq!(hints(&mut client), 1, "one from the hint, and none from the append");
}

/// The number of notifications that have arrived.
fn hints(client: &mut Client) -> usize {
    use postgres::fallible_iterator::FallibleIterator as _;
    client.execute("SELECT", &[]).unwrap();
    client.notifications().iter().count().unwrap()
}

#[test]
fn a_duplicate_event_id_is_not_a_conflict() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let id = Uuid::new_v4();
    store.append(&mut client, &thing("a"), Any, &[happened().event_id(id)]).unwrap();
    for expected in [Any, Exact(1)] {
        match store.append(&mut client, &thing("a"), expected, &[happened(), happened().event_id(id)]) {
            Err(AppendError::Database { source, .. }) => assert_eq!(source.code(), Some(&SqlState::UNIQUE_VIOLATION)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (1, Some(1)));
}

#[test]
fn versions_continue_after_writers_that_ignore_the_heads() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    for version in 1..=3 {
        insert_plainly(&mut client, "foreign", version);
    }
    assert_conflict(&store.append(&mut client, &thing("foreign"), NoStream, &[happened()]), NoStream, 3);
    assert_eq!(store.append(&mut client, &thing("foreign"), Exact(3), &[happened()]).unwrap().versions, 4..=4);
    insert_plainly(&mut client, "foreign", 5);
    // Now the head exists, but it is behind.
    assert_conflict(&store.append(&mut client, &thing("foreign"), Exact(4), &[happened()]), Exact(4), 5);
    assert_eq!(store.append(&mut client, &thing("foreign"), Any, &[happened(), happened()]).unwrap().versions, 6..=7);
    assert_eq!(head_of(&mut client, "foreign"), Some(7));
    insert_plainly(&mut client, "foreign", 8);
    assert_eq!(store.append(&mut client, &thing("foreign"), Exact(8), &[happened()]).unwrap().versions, 9..=9);
    assert_eq!(head_of(&mut client, "foreign"), Some(9));
}

#[test]
fn versions_continue_after_old_events_were_archived() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    store.append(&mut client, &thing("a"), NoStream, &[happened(), happened(), happened()]).unwrap();
    client.batch_execute("DELETE FROM events").unwrap();
    assert_conflict(&store.append(&mut client, &thing("a"), NoStream, &[happened()]), NoStream, 3);
    assert_eq!(store.append(&mut client, &thing("a"), Exact(3), &[happened()]).unwrap().versions, 4..=4);
    client.batch_execute("DELETE FROM events").unwrap();
    assert_eq!(store.append(&mut client, &thing("a"), Any, &[happened()]).unwrap().versions, 5..=5);
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (1, Some(5)));
}

/// The outcome of an append to `a` that waits for another transaction, which writes to `a` and then
/// commits.
fn append_behind(
    database: &TestDatabase,
    theirs: Transaction<'_>,
    expected: ExpectedVersion,
) -> Result<AppendResult, AppendError> {
    thread::scope(|scope| {
        let mut ours = database.client();
        let appending =
            scope.spawn(move || EventStore::default().append(&mut ours, &thing("a"), expected, &[happened()]));
        let mut client = database.client();
        eventually("the append waits for the other writer", Duration::from_secs(10), || {
            let sql = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            client.query_opt(sql, &[]).unwrap()
        });
        theirs.commit().unwrap();
        appending.join().unwrap()
    })
}

#[test]
fn a_head_created_or_moved_meanwhile_is_respected() {
    for before in [0, 1] {
        for expected in [Any, Exact(before)] {
            let database = database();
            let mut client = prepared(&database);
            for version in 1..=before {
                EventStore::default().append(&mut client, &thing("a"), Exact(version - 1), &[happened()]).unwrap();
            }
            let mut theirs = client.transaction().unwrap();
            EventStore::default().append(&mut theirs, &thing("a"), Any, &[happened(), happened()]).unwrap();
            let ours = append_behind(&database, theirs, expected);
            match expected {
                Any => assert_eq!(ours.unwrap().versions, before + 3..=before + 3),
                _ => assert_conflict(&ours, expected, before + 2),
            }
        }
    }
}

#[test]
fn a_violation_of_the_unique_constraint_is_a_conflict() {
    let database = database();
    let mut client = prepared(&database);
    let mut foreign = database.client();
    let mut theirs = foreign.transaction().unwrap();
    insert_plainly(&mut theirs, "a", 1);
    let outcome = append_behind(&database, theirs, NoStream);
    assert_conflict(&outcome, NoStream, None);
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (1, None));
}

#[test]
fn every_field_of_an_event_is_read_back() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    // One character of each plane in use: the basic one, the supplementary ones, the private ones,
    // the last code point.
    let ids =
        ["order-7", "é", "漢字", "😀", "𠀀", "\u{30000}", "\u{e0001}", "\u{f0000}", "\u{10ffff}", " ", "a'b\"c\\d%s$1"];
    let payloads = [vec![], vec![0, 0xff, 0xfe, b'\\', b'x'], (0..=255).cycle().take(1 << 20).collect::<Vec<u8>>()];
    for id in ids {
        let mut sent: Vec<NewEvent> =
            payloads.iter().map(|payload| NewEvent::new("Geschah’s", payload.clone()).event_version(-3)).collect();
        let metadata = serde_json::json!({"user": id, "n": [1, 2.5, null, {"deep": "😀"}]});
        let event_id = Uuid::new_v4();
        let full = sent.pop().unwrap().event_id(event_id);
        sent.push(full.trace_id("t 漢").correlation_id("").causation_id("c").metadata(metadata.clone()));
        let name = StreamId::new("ctx 😀", "Typ\u{10fffd}", id);
        store.append(&mut client, &name, NoStream, &sent).unwrap();
        let stream = store.read_stream(&mut client, &name, ..).unwrap();
        assert_eq!(stream.len(), 3);
        for (event, payload) in stream.iter().zip(&payloads) {
            assert!(event.payload() == payload);
            assert_eq!((event.aggregate_id(), event.event_type(), event.event_version()), (id, "Geschah’s", -3));
            assert_eq!((event.bounded_context(), event.aggregate_type()), ("ctx 😀", "Typ\u{10fffd}"));
            assert_eq!(event.stream(), name);
        }
        let (bare, full) = (&stream[0], &stream[2]);
        assert_eq!(
            (bare.trace_id(), bare.correlation_id(), bare.causation_id(), bare.metadata()),
            (None, None, None, None)
        );
        assert_eq!((full.trace_id(), full.correlation_id(), full.causation_id()), (Some("t 漢"), Some(""), Some("c")));
        assert_eq!((full.metadata(), full.event_id()), (Some(metadata), event_id));
        assert_ne!(bare.event_id(), stream[1].event_id());
        assert!(bare.created_at().elapsed().unwrap() < Duration::from_secs(60));
    }
}

#[test]
fn a_stream_is_read_within_its_bounds() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let five: Vec<NewEvent> = (0..5).map(|_| happened()).collect();
    store.append(&mut client, &thing("a"), Any, &five).unwrap();
    for (context, kind, id) in [("other", "Thing", "a"), ("test", "Other", "a"), ("test", "Thing", "b")] {
        store.append(&mut client, &StreamId::new(context, kind, id), Any, &[happened()]).unwrap();
    }
    for (id, versions, found) in [
        ("a", (Unbounded, Unbounded), &[1, 2, 3, 4, 5][..]),
        ("a", (Included(2), Unbounded), &[2, 3, 4, 5]),
        ("a", (Unbounded, Included(2)), &[1, 2]),
        ("a", (Included(2), Included(4)), &[2, 3, 4]),
        ("a", (Excluded(2), Excluded(4)), &[3]),
        ("a", (Included(4), Included(4)), &[4]),
        ("a", (Included(4), Included(3)), &[]),
        ("a", (Included(6), Unbounded), &[]),
        ("nobody", (Unbounded, Unbounded), &[]),
    ] {
        let stream = store.read_stream(&mut client, &thing(id), versions).unwrap();
        assert_eq!(stream.iter().map(Event::aggregate_version).collect::<Vec<_>>(), found, "{id} {versions:?}");
    }
}

#[test]
fn events_that_cannot_be_stored_are_refused_as_a_whole() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    for (stream, events, part) in [
        (thing("a"), vec![], "there are none"),
        (thing("a"), vec![happened(), happened().causation_id("x\0y")], "event 1 has a NUL character in causation_id"),
        (thing("a\0"), vec![happened()], "NUL character in aggregate_id"),
        (thing("a"), vec![NewEvent::new("", [])], "empty event_type"),
    ] {
        let error = store.append(&mut client, &stream, Any, &events).unwrap_err();
        assert!(matches!(error, AppendError::Invalid { .. }) && error.with_causes().contains(part), "{error}: {part}");
    }
    let nul_in_json = happened().metadata(serde_json::json!({"x": "\0"}));
    let error = store.append(&mut client, &thing("a"), Any, &[happened(), nul_in_json]).unwrap_err();
    assert!(matches!(error, AppendError::Database { .. }), "{error}");
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (0, None));
    assert_eq!(store.append(&mut client, &thing("a"), Any, &[happened()]).unwrap().versions, 1..=1);
}
