//! The content of events, with real workers: it is handled byte for byte or refused by name, and
//! memory stays within its limits.

use std::time::Duration;

use postgres::Client;
use pupsourcing_orchestrator::{
    AppendError, BoxError, Event, EventStore, ExpectedVersion, NewEvent, Projection, ProjectionState, Scope, StreamId,
    Tx,
};

use crate::support::cluster::assert_read_models_become_right;
use crate::support::handlers::prepared;
use crate::support::insert::insert;
use crate::support::ledger::{Ledger, handled};
use crate::support::metrics::total;
use crate::support::worker_process::WorkerProcess;
use crate::support::workers::{await_running, builder, start};
use crate::support::{database, eventually};

const MIB: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Stores everything that its handler is given. Of the payload it stores the length and the hash,
/// which the server computes from the bytes that the handler sends back.
struct Copies;

const COPIES: &str = "CREATE TABLE copies (
    global_position bigint, bounded_context text, aggregate_type text, aggregate_id text, aggregate_version bigint, event_id uuid,
    event_type text, event_version int, bytes int, hash bytea, trace_id text, correlation_id text, causation_id text, metadata jsonb)";

impl Projection for Copies {
    fn name(&self) -> &str {
        "copies"
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        tx.execute(
            "INSERT INTO copies VALUES ($1, $2, $3, $4, $5, $6, $7, $8, octet_length($9::bytea), sha256($9), $10, $11, $12, $13)",
            &[
                &event.global_position(),
                &event.bounded_context(),
                &event.aggregate_type(),
                &event.aggregate_id(),
                &event.aggregate_version(),
                &event.event_id(),
                &event.event_type(),
                &event.event_version(),
                &event.payload(),
                &event.trace_id(),
                &event.correlation_id(),
                &event.causation_id(),
                &event.metadata(),
            ],
        )?;
        Ok(())
    }
}

/// The first and the last code point of each of Unicode's planes, except NUL.
fn every_plane() -> Vec<String> {
    (0..=16_u32)
        .map(|plane| [(plane << 16).max(1), (plane << 16) + 0xffff].map(|code| char::from_u32(code).unwrap()))
        .map(String::from_iter)
        .collect()
}

#[test]
fn every_payload_is_handled_byte_for_byte() {
    let database = database();
    let mut client = prepared(&database);
    client.batch_execute(COPIES).unwrap();
    let store = EventStore::default();
    let bytes = |count: usize| (0..=255_u8).rev().cycle().take(count).collect::<Vec<u8>>();
    let append = |client: &mut Client| {
        for payload in [vec![], vec![0], bytes(256), bytes(MIB), bytes(64 * MIB)] {
            let stream = StreamId::new("c", "Sized", "a");
            store.append(client, &stream, ExpectedVersion::Any, &[NewEvent::new("Sized", payload)]).unwrap();
        }
        for text in &every_plane() {
            let event = NewEvent::new(text, text.as_bytes())
                .trace_id(text)
                .correlation_id(text)
                .causation_id(text)
                .metadata(serde_json::json!({text: [text, {text: null}]}));
            store.append(client, &StreamId::new(text, text, text), ExpectedVersion::Any, &[event]).unwrap();
        }
    };
    // First read ahead, and then live.
    append(&mut client);
    let workers =
        [(); 2].map(|()| start(builder(database.url(), "set").max_event_bytes(65 * MIB), vec![Box::new(Copies)]));
    await_running(&workers.each_ref());
    append(&mut client);
    eventually("all events are handled", PATIENCE, || {
        let handled: i64 = client.query_one("SELECT count(*) FROM copies", &[]).unwrap().get(0);
        (handled == 2 * (5 + 17)).then_some(())
    });
    let differ = "
        SELECT coalesce(e.global_position, c.global_position)
        FROM (SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, event_version,
                     octet_length(payload) AS bytes, sha256(payload) AS hash, trace_id, correlation_id, causation_id, metadata
              FROM events) e
        FULL JOIN copies c USING (global_position) WHERE (e.*) IS DISTINCT FROM (c.*)";
    let differ: Vec<i64> = client.query(differ, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(differ, [0_i64; 0], "positions of events that are not as they were handled");
}

#[test]
fn a_nul_character_is_refused_by_the_name_of_its_field() {
    let database = database();
    let mut client = prepared(&database);
    let event = |field: &str| {
        let text = |name| if name == field { "a\0b" } else { "ab" };
        let event = NewEvent::new(text("event_type"), b"\0".as_slice())
            .trace_id(text("trace_id"))
            .correlation_id(text("correlation_id"))
            .causation_id(text("causation_id"));
        (StreamId::new(text("bounded_context"), text("aggregate_type"), text("aggregate_id")), event)
    };
    let fields = [
        "bounded_context",
        "aggregate_type",
        "aggregate_id",
        "event_type",
        "trace_id",
        "correlation_id",
        "causation_id",
    ];
    let mut append =
        |(stream, event)| EventStore::default().append(&mut client, &stream, ExpectedVersion::Any, &[event]);
    for field in fields {
        let error = append(event(field)).unwrap_err();
        assert!(matches!(error, AppendError::Invalid { .. }), "{field}: {error}");
        assert!(error.with_causes().contains(&format!("NUL character in {field}")), "{field}: {error}");
    }
    assert_eq!(append(event("none of them")).unwrap().versions, 1..=1, "in a payload it is a byte like any other");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_by_the_bytes_of_a_batch() {
    assert_memory_is_bounded(300, MIB, 8 * MIB, "payload");
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_for_large_values_in_any_column() {
    for column in ["trace_id", "metadata"] {
        assert_memory_is_bounded(150, MIB, 8 * MIB, column);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_by_the_largest_event() {
    assert_memory_is_bounded(4, 64 * MIB, MIB, "payload");
}

/// Lets the example `worker` process `count` events of `bytes` bytes each, and then half as many
/// more, which it reads live.
#[cfg(target_os = "linux")]
#[track_caller]
fn assert_memory_is_bounded(count: i64, bytes: usize, batch_bytes: usize, column: &str) {
    const RUNNERS: usize = 2;
    // Code, connections, threads, and what the allocator keeps.
    let without_events = 64 * MIB;
    // Each runner's reader and the tailer have one batch that is in use, and one that is being
    // read, as rows and as events. If an event is larger than `batch_bytes`, it is a batch of its
    // own.
    let bound = without_events + (RUNNERS + 1) * 3 * batch_bytes.max(bytes);

    let database = database();
    let mut client = prepared(&database);
    append_large(&mut client, count, bytes, column);
    let mut worker = WorkerProcess::start(
        database.url(),
        &[("BATCH_BYTES", &batch_bytes.to_string()), ("MAX_EVENT_BYTES", &(65 * MIB).to_string())],
    );
    worker.await_processing(1);
    await_counts(&mut client, count);
    let read_ahead = peak_of(&worker);
    append_large(&mut client, count / 2, bytes, column);
    await_counts(&mut client, count + count / 2);
    let live = peak_of(&worker);
    assert_read_models_become_right(&mut client);
    println!(
        "events of {} MiB in {column}: {} MiB read ahead, {} MiB live, of {}",
        bytes / MIB,
        read_ahead / MIB,
        live / MIB,
        bound / MIB
    );
    assert!(live <= bound, "{read_ahead} read ahead, {live} live, of {bound}");
}

/// Appends `count` events with `bytes` bytes each in this column.
#[cfg(target_os = "linux")]
fn append_large(client: &mut Client, count: i64, bytes: usize, column: &str) {
    let large = match column {
        "payload" => "convert_to(large, 'UTF8')",
        "metadata" => "jsonb_build_object('large', large)",
        _ => "large",
    };
    let rows = "repeat('0123456789abcdef', $2) AS large, generate_series(1, $1::bigint)";
    let sql = insert(rows, &[("aggregate_type", "'Large'"), (column, large)]);
    client.execute(&sql, &[&count, &i32::try_from(bytes / 16).unwrap()]).unwrap();
}

/// Waits until both read models have counted this many events.
#[cfg(target_os = "linux")]
#[track_caller]
fn await_counts(client: &mut Client, count: i64) {
    let sql = "SELECT (SELECT sum(events) FROM event_type_counts) = $1::bigint AND (SELECT sum(events) FROM aggregate_activity) = $1";
    eventually("all events are counted", PATIENCE, || {
        let counted: Option<bool> = client.query_one(sql, &[&count]).unwrap().get(0);
        (counted == Some(true)).then_some(())
    });
}

/// The peak memory of the process so far.
#[cfg(target_os = "linux")]
fn peak_of(process: &WorkerProcess) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

#[test]
fn an_oversized_event_halts_the_projections_that_want_it() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let ledger = |name, types: &[&str]| {
        Box::new(Ledger { scope: Scope::all().aggregate_types(types.to_vec()), ..Ledger::named(name) })
    };
    let append = |client: &mut Client, aggregate_type: &str, bytes: usize| {
        let stream = StreamId::new("test", aggregate_type, "a");
        store.append(client, &stream, ExpectedVersion::Any, &[NewEvent::new("Happened", vec![7; bytes])]).unwrap()
    };
    append(&mut client, "Small", 10);
    append(&mut client, "Large", 10);
    let position = append(&mut client, "Large", 3 * MIB).positions[0];
    append(&mut client, "Small", 10);
    append(&mut client, "Large", 10);
    let configured = builder(database.url(), "set").max_event_bytes(MIB);
    let worker = start(
        configured,
        vec![ledger("small", &["Small"]), ledger("large", &["Large"]), ledger("all", &["Large", "Small"])],
    );
    for (projection, events) in [("large", 1), ("all", 2)] {
        let error = eventually("it halts", PATIENCE, || {
            let status = worker.status().projections[projection].clone();
            (status.state == ProjectionState::Halted).then_some(status.error.unwrap_or_default())
        });
        for part in [
            format!("global position {position}"),
            format!("{} bytes", 3 * MIB + 18),
            format!("max_event_bytes is {MIB}"),
        ] {
            assert!(error.contains(&part), "{error:?} should contain {part:?}");
        }
        eventually("what is before it is handled", PATIENCE, || {
            (handled(&mut client, projection) == events).then_some(())
        });
    }
    eventually("the other one handles its own", PATIENCE, || (handled(&mut client, "small") == 2).then_some(()));
    // The same with live events.
    append(&mut client, "Large", 3 * MIB);
    append(&mut client, "Small", 10);
    eventually("the other one handles its own", PATIENCE, || (handled(&mut client, "small") == 3).then_some(()));
    assert_eq!(total(&worker, "reconnects_total"), 0, "the tailer does not fail at it");
}

#[test]
fn an_event_that_cannot_be_read_halts_and_is_not_skipped() {
    let database = database();
    let mut client = prepared(&database);
    crate::support::ledger::append_plainly(&mut client, 3_000, 30);
    let (entered, was_entered) = crossbeam_channel::bounded(1);
    let (let_go, go_on) = crossbeam_channel::bounded::<()>(0);
    let waits = crate::support::handlers::meddled("p", move |_, _| {
        _ = entered.try_send(());
        _ = go_on.recv();
        Ok(())
    });
    let worker = start(builder(database.url(), "set").batch_size(50), vec![waits]);
    // The table changes while the worker runs. A start would refuse the change, and so would the
    // worker's tailer when it connects.
    was_entered.recv_timeout(PATIENCE).unwrap();
    client.batch_execute("ALTER TABLE events ALTER payload DROP NOT NULL; UPDATE events SET payload = NULL WHERE global_position = 2025").unwrap();
    drop(let_go);
    let error = eventually("it halts", PATIENCE, || {
        let status = worker.status().projections["p"].clone();
        (status.state == ProjectionState::Halted).then_some(status.error.unwrap_or_default())
    });
    assert!(error.contains("the event at global position 2025 cannot be read"), "{error}");
    assert_eq!(handled(&mut client, "p"), 2_024);
}
