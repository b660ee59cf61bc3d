//! Appending and reading streams: versions, positions, conflicts, and whatever an event may contain.

use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::{Client, GenericClient, NoTls, Transaction};
use pupsourcing_orchestrator::{AppendError, AppendResult, Event, EventStore, ExpectedVersion, Names, NewEvent};
use uuid::Uuid;

use crate::bad_input::stranger;
use crate::support::handlers::prepared;
use crate::support::insert::{ONE, insert};
use crate::support::ledger::thing;
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

/// Inserts an event as a writer does that does not keep the heads.
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
        Err(AppendError::Conflict { bounded_context, aggregate_type, aggregate_id, expected, actual, .. }) => {
            assert_eq!((bounded_context.as_str(), aggregate_type.as_str()), ("test", "Thing"));
            assert!(!aggregate_id.is_empty());
            assert_eq!((*expected, *actual), (wanted, found));
        }
        other => panic!("not a conflict: {other:?}"),
    }
}

#[test]
fn versions_and_positions_follow_on() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let first = store.append(&mut client, NoStream, &[thing("a"), thing("a")]).unwrap();
    assert_eq!((first.positions, first.versions), (vec![1, 2], 1..=2));
    let second = store.append(&mut client, Exact(2), &[thing("a")]).unwrap();
    assert_eq!((second.positions, second.versions), (vec![3], 3..=3));
    let third = store.append(&mut client, Any, &[thing("a"), thing("a"), thing("a")]).unwrap();
    assert_eq!((third.positions, third.versions), (vec![4, 5, 6], 4..=6));
    assert_eq!(head_of(&mut client, "a"), Some(6));

    for expected in [NoStream, Exact(0), Exact(5), Exact(7)] {
        assert_conflict(&store.append(&mut client, expected, &[thing("a")]), expected, 6);
    }
    assert_conflict(&store.append(&mut client, Exact(1), &[thing("new")]), Exact(1), 0);
    assert_eq!((events(&mut client), head_of(&mut client, "a"), head_of(&mut client, "new")), (6, Some(6), None));
    let fresh = store.append(&mut client, Exact(0), &[thing("new")]).unwrap();
    assert_eq!(fresh.versions, 1..=1, "version 0 is an aggregate without events");
    let any = store.append(&mut client, Any, &[thing("newer")]).unwrap();
    assert_eq!(any.versions, 1..=1);
}

#[test]
fn an_append_commits_or_rolls_back_with_its_transaction() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let mut tx = client.transaction().unwrap();
    store.append(&mut tx, NoStream, &[thing("a")]).unwrap();
    assert_eq!(store.append(&mut tx, Exact(1), &[thing("a")]).unwrap().versions, 2..=2, "it sees its own");
    tx.rollback().unwrap();
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (0, None));

    let mut tx = client.transaction().unwrap();
    store.append(&mut tx, NoStream, &[thing("a")]).unwrap();
    assert_conflict(&store.append(&mut tx, NoStream, &[thing("a")]), NoStream, 1);
    store.append(&mut tx, Exact(1), &[thing("a")]).expect("the transaction is usable after a conflict");
    tx.commit().unwrap();
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (2, Some(2)));
}

#[test]
fn a_session_that_appends_often_appends_as_at_first() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    // More often than the server plans for the values at hand.
    for version in 0..12 {
        let expected = if version == 0 { NoStream } else { Exact(version) };
        assert_eq!(store.append(&mut client, expected, &[thing("a")]).unwrap().versions, version + 1..=version + 1);
        assert_conflict(&store.append(&mut client, expected, &[thing("a")]), expected, version + 1);
        assert_eq!(store.append(&mut client, Any, &[thing("any")]).unwrap().versions, version + 1..=version + 1);
    }
    assert_eq!((events(&mut client), head_of(&mut client, "a"), head_of(&mut client, "any")), (24, Some(12), Some(12)));
}

#[test]
fn plans_made_for_small_tables_serve_large_ones() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    store.append(&mut client, Any, &[thing("a")]).unwrap();
    client.batch_execute("ANALYZE events; ANALYZE aggregate_heads").unwrap();
    // A session that has done nothing else: its counts are reported late.
    let mut session = database.client();
    let mut tx = session.transaction().unwrap();
    for version in 1..10 {
        store.append(&mut tx, Exact(version), &[thing("a")]).unwrap();
        store.append(&mut tx, NoStream, &[thing(&format!("b{version}"))]).unwrap();
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
    let stream = EventStore::default().read_stream(&mut client, "test", "Thing", "a", None, None).unwrap();
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
        EventStore::new(names).unwrap().append(client, Any, &[thing("a")]).unwrap_err().with_causes()
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
        store.append(&mut theirs, Any, &[thing("a")])?;
        store.append(&mut theirs, Any, &[thing("a")])?;
        store.append(&mut theirs, NoStream, &[thing(&Uuid::new_v4().to_string())])
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
fn an_append_of_which_a_trigger_holds_something_back_is_undone() {
    let database = database();
    let mut client = prepared(&database);
    client
        .batch_execute(
            "CREATE FUNCTION hold_back() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
             CREATE TRIGGER hold_back BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.aggregate_version = 2)
             EXECUTE FUNCTION hold_back()",
        )
        .unwrap();
    let error =
        EventStore::default().append(&mut client, NoStream, &[thing("a"), thing("a")]).unwrap_err().with_causes();
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
    // Nothing is asserted in the threads: who panics would leave the others at the barrier.
    let worker = || {
        let mut client = database.client();
        let store = EventStore::default();
        let any: Vec<_> = (0..ROUNDS).map(|_| store.append(&mut client, Any, &[thing("any"), thing("any")])).collect();
        let exact = |round| {
            barrier.wait();
            store.append(&mut client, Exact(round), &[thing("exact")])
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
            let versions = appended.expect("whatever is there").versions;
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
        let stream = store.read_stream(&mut client, "test", "Thing", id, None, None).unwrap();
        let versions: Vec<i64> = stream.iter().map(Event::aggregate_version).collect();
        assert_eq!(versions, (1..=total).collect::<Vec<_>>(), "{id}: contiguous");
        assert!(stream.is_sorted_by_key(Event::global_position), "{id}: positions ascend with versions");
        assert_eq!(head_of(&mut client, id), Some(total));
    }
}

#[test]
fn many_events_are_one_statement_and_no_notification() {
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
    let many: Vec<NewEvent> = (0..1_000).map(|_| thing("a")).collect();
    let appended = store.append(&mut client, Any, &many).unwrap();
    assert_eq!((appended.positions.len(), appended.versions), (1_000, 1..=1_000));
    assert!(appended.positions.is_sorted());
    let statements: i64 = client.query_one("SELECT count(*) FROM statements", &[]).unwrap().get(0);
    assert_eq!(statements, 1);
    store.hint(&mut client);
    assert_eq!(hints(&mut client), 1, "the hint's, and none of the append's");
}

/// How many notifications have come.
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
    store.append(&mut client, Any, &[thing("a").event_id(id)]).unwrap();
    for expected in [Any, Exact(1)] {
        match store.append(&mut client, expected, &[thing("a"), thing("a").event_id(id)]) {
            Err(AppendError::Database { source, .. }) => assert_eq!(source.code(), Some(&SqlState::UNIQUE_VIOLATION)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (1, Some(1)));
}

#[test]
fn writers_that_do_not_keep_the_heads_are_followed() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    for version in 1..=3 {
        insert_plainly(&mut client, "foreign", version);
    }
    assert_conflict(&store.append(&mut client, NoStream, &[thing("foreign")]), NoStream, 3);
    assert_eq!(store.append(&mut client, Exact(3), &[thing("foreign")]).unwrap().versions, 4..=4);
    insert_plainly(&mut client, "foreign", 5);
    // Now the head is there, and behind.
    assert_conflict(&store.append(&mut client, Exact(4), &[thing("foreign")]), Exact(4), 5);
    assert_eq!(store.append(&mut client, Any, &[thing("foreign"), thing("foreign")]).unwrap().versions, 6..=7);
    assert_eq!(head_of(&mut client, "foreign"), Some(7));
    insert_plainly(&mut client, "foreign", 8);
    assert_eq!(store.append(&mut client, Exact(8), &[thing("foreign")]).unwrap().versions, 9..=9);
    assert_eq!(head_of(&mut client, "foreign"), Some(9));
}

#[test]
fn versions_go_on_where_old_events_have_been_archived() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    store.append(&mut client, NoStream, &[thing("a"), thing("a"), thing("a")]).unwrap();
    client.batch_execute("DELETE FROM events").unwrap();
    assert_conflict(&store.append(&mut client, NoStream, &[thing("a")]), NoStream, 3);
    assert_eq!(store.append(&mut client, Exact(3), &[thing("a")]).unwrap().versions, 4..=4);
    client.batch_execute("DELETE FROM events").unwrap();
    assert_eq!(store.append(&mut client, Any, &[thing("a")]).unwrap().versions, 5..=5);
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (1, Some(5)));
}

/// What becomes of an append to `a` that begins while another transaction writes to it, which is committed then.
fn append_behind(
    database: &TestDatabase,
    theirs: Transaction<'_>,
    expected: ExpectedVersion,
) -> Result<AppendResult, AppendError> {
    thread::scope(|scope| {
        let mut ours = database.client();
        let appending = scope.spawn(move || EventStore::default().append(&mut ours, expected, &[thing("a")]));
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
fn a_head_that_is_made_or_moved_in_between_counts() {
    for before in [0, 1] {
        for expected in [Any, Exact(before)] {
            let database = database();
            let mut client = prepared(&database);
            for version in 1..=before {
                EventStore::default().append(&mut client, Exact(version - 1), &[thing("a")]).unwrap();
            }
            let mut theirs = client.transaction().unwrap();
            EventStore::default().append(&mut theirs, Any, &[thing("a"), thing("a")]).unwrap();
            let ours = append_behind(&database, theirs, expected);
            match expected {
                Any => assert_eq!(ours.unwrap().versions, before + 3..=before + 3),
                _ => assert_conflict(&ours, expected, before + 2),
            }
        }
    }
}

#[test]
fn a_conflict_that_the_unique_constraint_reports_is_a_conflict() {
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
    // One character of each plane in use: the basic one, the supplementary ones, the private ones, the last code point.
    let ids =
        ["order-7", "é", "漢字", "😀", "𠀀", "\u{30000}", "\u{e0001}", "\u{f0000}", "\u{10ffff}", " ", "a'b\"c\\d%s$1"];
    let payloads = [vec![], vec![0, 0xff, 0xfe, b'\\', b'x'], (0..=255).cycle().take(1 << 20).collect::<Vec<u8>>()];
    for id in ids {
        let mut sent: Vec<NewEvent> = payloads
            .iter()
            .map(|payload| NewEvent::new("ctx 😀", "Typ\u{10fffd}", id, "Geschah’s", payload.clone()).event_version(-3))
            .collect();
        let metadata = serde_json::json!({"user": id, "n": [1, 2.5, null, {"deep": "😀"}]});
        let event_id = Uuid::new_v4();
        let full = sent.pop().unwrap().event_id(event_id);
        sent.push(full.trace_id("t 漢").correlation_id("").causation_id("c").metadata(metadata.clone()));
        store.append(&mut client, NoStream, &sent).unwrap();
        let stream = store.read_stream(&mut client, "ctx 😀", "Typ\u{10fffd}", id, None, None).unwrap();
        assert_eq!(stream.len(), 3);
        for (event, payload) in stream.iter().zip(&payloads) {
            assert!(event.payload() == payload);
            assert_eq!((event.aggregate_id(), event.event_type(), event.event_version()), (id, "Geschah’s", -3));
            assert_eq!((event.bounded_context(), event.aggregate_type()), ("ctx 😀", "Typ\u{10fffd}"));
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
    let five: Vec<NewEvent> = (0..5).map(|_| thing("a")).collect();
    store.append(&mut client, Any, &five).unwrap();
    for (context, kind, id) in [("other", "Thing", "a"), ("test", "Other", "a"), ("test", "Thing", "b")] {
        store.append(&mut client, Any, &[NewEvent::new(context, kind, id, "Happened", [])]).unwrap();
    }
    let mut read = |id: &str, from, to| -> Vec<i64> {
        let stream = store.read_stream(&mut client, "test", "Thing", id, from, to).unwrap();
        stream.iter().map(Event::aggregate_version).collect()
    };
    assert_eq!(read("a", None, None), [1, 2, 3, 4, 5]);
    assert_eq!(read("a", Some(2), None), [2, 3, 4, 5]);
    assert_eq!(read("a", None, Some(2)), [1, 2]);
    assert_eq!(read("a", Some(2), Some(4)), [2, 3, 4]);
    assert_eq!(read("a", Some(4), Some(4)), [4]);
    assert!(read("a", Some(4), Some(3)).is_empty());
    assert!(read("a", Some(6), None).is_empty());
    assert!(read("nobody", None, None).is_empty());
}

#[test]
fn events_that_cannot_be_stored_are_refused_as_a_whole() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    for (events, part) in [
        (vec![], "there are none"),
        (vec![thing("a"), thing("b")], "event 1 belongs to aggregate test/Thing/b, event 0 to test/Thing/a"),
        // The same words, cut differently.
        (vec![NewEvent::new("a/b", "c", "d", "E", []), NewEvent::new("a", "b/c", "d", "E", [])], "event 1 belongs to"),
        (vec![thing("a"), thing("a").causation_id("x\0y")], "event 1 has a NUL character in causation_id"),
        (vec![thing("a\0")], "NUL character in aggregate_id"),
        (vec![NewEvent::new("test", "Thing", "a", "", [])], "empty event_type"),
    ] {
        let error = store.append(&mut client, Any, &events).unwrap_err();
        assert!(matches!(error, AppendError::Invalid { .. }) && error.with_causes().contains(part), "{error}: {part}");
    }
    let nul_in_json = thing("a").metadata(serde_json::json!({"x": "\0"}));
    let error = store.append(&mut client, Any, &[thing("a"), nul_in_json]).unwrap_err();
    assert!(matches!(error, AppendError::Database { .. }), "{error}");
    assert_eq!((events(&mut client), head_of(&mut client, "a")), (0, None));
    assert_eq!(store.append(&mut client, Any, &[thing("a")]).unwrap().versions, 1..=1);
}
