//! Where runners get their events from: the shared tail, reading ahead, bounds, hints and starts.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Sender, bounded, unbounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Database, Event, EventStore, ExpectedVersion, NewEvent, Orchestrator, Projection, Scope,
    StartAt, StreamId, Tx,
};

use crate::support::handlers::{Meddled, meddled, prepared};
use crate::support::ledger::{Ledger, append_plainly, assert_exactly_once, handled, is_complete};
use crate::support::metrics::{metric, projection_metric};
use crate::support::statements::{Statement, start_logging_server, statements};
use crate::support::workers::{await_running, builder, start};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(30);

fn ledger(name: &'static str, scope: Scope, start_at: StartAt) -> Box<dyn Projection> {
    Box::new(Ledger { scope, start_at, ..Ledger::named(name) })
}

fn append(client: &mut Client, context: &str, kind: &str, id: &str) {
    EventStore::default()
        .append(client, &StreamId::new(context, kind, id), ExpectedVersion::Any, &[NewEvent::new("Happened", [])])
        .unwrap();
}

fn positions(client: &mut Client, projection: &str) -> Vec<i64> {
    let rows =
        client.query("SELECT global_position FROM ledger WHERE projection = $1 ORDER BY seq", &[&projection]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[test]
fn projections_that_share_the_tail_see_their_own_events() {
    let database = database();
    let mut client = prepared(&database);
    let scopes = [
        ("everything", Scope::all(), "true"),
        ("orders", Scope::all().aggregate_types(["Order"]), "aggregate_type = 'Order'"),
        ("sales", Scope::all().bounded_contexts(["sales"]), "bounded_context = 'sales'"),
        (
            "both",
            Scope::all().aggregate_types(["Order", "Rück’gabe 😀"]).bounded_contexts(["sales", "x"]),
            "aggregate_type IN ('Order', 'Rück’gabe 😀') AND bounded_context IN ('sales', 'x')",
        ),
        ("nothing", Scope::all().aggregate_types([] as [&str; 0]), "false"),
    ];
    let append_some = |client: &mut Client| {
        for (i, kind) in ["Order", "Rück’gabe 😀", "order", "Order "].iter().cycle().take(40).enumerate() {
            let context = ["sales", "billing", "x"][i % 3];
            append(client, context, kind, &format!("{i} 😀"));
        }
    };
    append_some(&mut client);
    let ledgers = scopes.iter().map(|(name, scope, _)| ledger(name, scope.clone(), StartAt::Beginning)).collect();
    let worker = start(builder(database.url(), "set"), ledgers);
    await_running(&[&worker]);
    append_some(&mut client);
    for (name, _, condition) in &scopes {
        let sql = format!("SELECT global_position FROM events WHERE {condition} ORDER BY 1");
        let wanted: Vec<i64> = client.query(&sql, &[]).unwrap().iter().map(|row| row.get(0)).collect();
        eventually(name, SOON, || (positions(&mut client, name).len() >= wanted.len()).then_some(()));
        assert_eq!(positions(&mut client, name), wanted, "{name}");
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn live_events_are_read_once_for_all_projections() {
    const ROUNDS: usize = 20;
    let server = start_logging_server();
    let url = server.create_database("read_once").unwrap();
    let mut client = Client::connect(&url, NoTls).unwrap();
    Ledger::create_table(&mut client);
    let names = ["one", "two", "three"];
    let worker = start(
        builder(&url, "set"),
        names.map(|name| ledger(name, Scope::all(), StartAt::Beginning)).into_iter().collect(),
    );
    let append_and_await = |client: &mut Client| {
        append_plainly(client, 1, 1);
        for name in names {
            eventually(name, SOON, || is_complete(client, name).then_some(()));
        }
    };
    append_and_await(&mut client);
    let before = statements(&server).len();
    (0..ROUNDS).for_each(|_| append_and_await(&mut client));
    let readings: Vec<Statement> = statements(&server)
        .into_iter()
        .skip(before)
        .filter(|statement| {
            statement.text.contains("FROM \"public\".\"events\"") && statement.text.contains("hashtextextended")
        })
        .collect();
    let readers: BTreeSet<i32> = readings.iter().map(|reading| reading.backend).collect();
    assert_eq!((readings.len(), readers.len()), (ROUNDS, 1), "readings and connections: {readings:#?}");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn an_idle_worker_sends_few_statements() {
    let database = database();
    let mut client = prepared(&database);
    // The defaults, except for the heartbeats.
    let orchestrator = Orchestrator::builder(Database::from_url(database.url()).unwrap(), "set")
        .heartbeat_interval(Duration::from_secs(2))
        .projection(Ledger::named("p"))
        .build()
        .unwrap();
    let worker = orchestrator.start().unwrap();
    let sent = || metric(&worker, "heartbeat_latency_seconds_count", &[]).unwrap_or(0.0);
    eventually("it has become calm", SOON, || (sent() >= 2.0).then_some(()));
    // The server's count of transactions includes those of autovacuum, and is reported late. So the
    // test looks at the last statement of each session, more often than any session begins one.
    let since: SystemTime = client.query_one("SELECT clock_timestamp()", &[]).unwrap().get(0);
    let (begun, goal) = (Instant::now(), sent() + 2.0);
    let mut statements = BTreeSet::new();
    let look = crossbeam_channel::tick(Duration::from_millis(2));
    while sent() < goal {
        look.recv().unwrap();
        let sql = "SELECT pid, query_start FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
                   AND backend_type = 'client backend' AND query_start > $1";
        let seen = client.query(sql, &[&since]).unwrap();
        statements.extend(seen.iter().map(|row| (row.get::<_, i32>(0), row.get::<_, SystemTime>(1))));
    }
    let took = begun.elapsed();
    // Each second has four looks of the tailer and one or two of the coordinator. Every two seconds
    // there is a heartbeat and a look at the lag.
    let rate = f64::from(u32::try_from(statements.len()).unwrap()) / took.as_secs_f64();
    assert!((3.0..8.0).contains(&rate), "{rate} statements a second");
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_far_behind_catches_up_beside_a_live_one() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 2_000, 20);
    let (open, gate) = bounded::<()>(0);
    let late = meddled("late", move |_, event| {
        if event.global_position() == 1_000 {
            _ = gate.recv_timeout(SOON);
        }
        Ok(())
    });
    let live = ledger("live", Scope::all(), StartAt::End);
    let worker = start(builder(database.url(), "set").batch_size(100), vec![late, live]);
    await_running(&[&worker]);
    eventually("the late one is under way", SOON, || (handled(&mut client, "late") > 0).then_some(()));
    for _ in 0..10 {
        append_plainly(&mut client, 5, 5);
        eventually("the live one is up to date", SOON, || {
            (positions(&mut client, "live").last() == positions_of_events(&mut client).last()).then_some(())
        });
    }
    assert!(handled(&mut client, "late") < 1_000, "the late one has been standing still");
    drop(open);
    eventually("the late one catches up", SOON, || is_complete(&mut client, "late").then_some(()));
    assert_exactly_once(&mut client, "late");
    assert_eq!(positions(&mut client, "live"), (2_001..=2_050).collect::<Vec<_>>());
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_blocked_handler_holds_no_snapshot() {
    let database = database();
    let mut client = prepared(&database);
    // More than the network buffers of a query whose rows are not read.
    append_plainly(&mut client, 400, 20);
    client.execute("UPDATE events SET payload = convert_to(repeat('x', 80000), 'UTF8')", &[]).unwrap();
    // The handler is quick until its channel is full, so reading is the bottleneck at first.
    let (slices, seen) = bounded(10);
    let builder = builder(database.url(), "set").batch_size(20).batch_bytes(16 << 20);
    let worker = start(builder.batch_projection(Recorder { slices }), vec![]);
    eventually("the handler stands still", SOON, || seen.is_full().then_some(()));
    // The next events are being read meanwhile.
    let snapshots = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND backend_xmin IS NOT NULL AND pid <> pg_backend_pid()";
    eventually("no session holds a snapshot", Duration::from_secs(2), || {
        (client.query_one(snapshots, &[]).unwrap().get::<_, i64>(0) == 0).then_some(())
    });
    let mut events = 0;
    while events < 400 {
        events += seen.recv_timeout(SOON).expect("the events come").0;
    }
    assert_eq!(events, 400);
    worker.shutdown(SOON).unwrap();
}

fn positions_of_events(client: &mut Client) -> Vec<i64> {
    let rows = client.query("SELECT global_position FROM events ORDER BY 1", &[]).unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The bytes that count against `batch_bytes`, for an event without other columns.
fn weight(event: &Event) -> usize {
    let texts = [event.bounded_context(), event.aggregate_type(), event.aggregate_id(), event.event_type()];
    event.payload().len() + texts.map(str::len).iter().sum::<usize>()
}

/// Sends how many events it is given at once, and how many bytes.
struct Recorder {
    slices: Sender<(usize, usize)>,
}

impl BatchProjection for Recorder {
    fn name(&self) -> &str {
        "recorder"
    }

    fn handle_batch(&self, _: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.slices.send((events.len(), events.iter().map(weight).sum()))?;
        Ok(events.len())
    }
}

#[test]
fn batches_stay_within_their_limits() {
    const MIB: usize = 1 << 20;
    let database = database();
    let mut client = prepared(&database);
    let (slices, seen) = unbounded();
    let mut append = |payloads: &[usize]| {
        let events: Vec<_> = payloads.iter().map(|bytes| NewEvent::new("Happened", vec![7; bytes - 18])).collect();
        EventStore::default()
            .append(&mut client, &StreamId::new("test", "Thing", "a"), ExpectedVersion::Any, &events)
            .unwrap();
    };
    let await_events = |count: usize| {
        let mut got: Vec<(usize, usize)> = Vec::new();
        while got.iter().map(|(events, _)| events).sum::<usize>() < count {
            got.push(seen.recv_timeout(SOON).expect("the events come"));
        }
        assert_eq!(got.iter().map(|(events, _)| events).sum::<usize>(), count, "and no more: {got:?}");
        got
    };
    let check = |got: &[(usize, usize)], whence: &str| {
        for (events, bytes) in got {
            assert!(*events <= 10 && (*bytes <= 2 * MIB || *events == 1), "{whence}: {got:?}");
        }
    };
    // First read ahead, and then live.
    append(&[19; 25]);
    append(&[MIB / 2; 9]);
    append(&[MIB; 5]);
    append(&[20 * MIB]);
    let configured = builder(database.url(), "set").batch_size(10).batch_bytes(2 * MIB);
    let worker = start(configured.batch_projection(Recorder { slices }), vec![]);
    let got = await_events(40);
    check(&got, "read ahead");
    assert_eq!(got.iter().filter(|(events, _)| *events == 10).count(), 2, "full batches: {got:?}");
    assert!(got.contains(&(2, 2 * MIB)), "{got:?}");
    for payloads in [&[19; 25][..], &[MIB / 2; 9], &[MIB; 5], &[20 * MIB], &[19]] {
        append(payloads);
        check(&await_events(payloads.len()), "live");
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn hints_are_heard_but_not_needed() {
    let database = database();
    let mut client = prepared(&database);
    let store = EventStore::default();
    let slow = Duration::from_secs(60);
    let hinted = builder(database.url(), "hinted").event_poll(slow, slow);
    let polling = builder(database.url(), "polling").event_poll(Duration::from_millis(50), Duration::from_millis(50));
    append(&mut client, "test", "Thing", "a");
    let hinted = start(hinted, vec![ledger("hinted", Scope::all(), StartAt::Beginning)]);
    let polling = start(polling, vec![ledger("polling", Scope::all(), StartAt::Beginning)]);
    await_running(&[&hinted]);
    await_running(&[&polling]);
    for round in 2..=4 {
        append(&mut client, "test", "Thing", "a");
        eventually("the event is seen by a poll", SOON, || (handled(&mut client, "polling") == round).then_some(()));
        let begun = Instant::now();
        // The first hint may come before the worker listens. From then on, each hint is heard.
        eventually("the event is seen by the hint", SOON, || {
            if round == 2 || begun.elapsed() < Duration::from_millis(5) {
                store.hint(&mut client);
            }
            (handled(&mut client, "hinted") == round).then_some(())
        });
    }
    hinted.shutdown(SOON).unwrap();
    polling.shutdown(SOON).unwrap();
}

#[test]
fn start_at_applies_to_new_projections_only() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    let starts = [
        ("begin", StartAt::Beginning, 1),
        ("end", StartAt::End, 11),
        ("fourth", StartAt::Position(4), 5),
        ("later", StartAt::Position(13), 14),
    ];
    let start_all = |order: [usize; 4]| {
        let ledgers = starts.iter().zip(order).map(|(start, i)| ledger(start.0, Scope::all(), starts[i].1)).collect();
        let worker = start(builder(database.url(), "set"), ledgers);
        await_running(&[&worker]);
        worker
    };
    let worker = start_all([0, 1, 2, 3]);
    append_plainly(&mut client, 5, 2);
    for (name, _, first) in starts {
        eventually(name, SOON, || (positions(&mut client, name).last() == Some(&15)).then_some(()));
        assert_eq!(positions(&mut client, name), (first..=15).collect::<Vec<_>>(), "{name}");
    }
    worker.shutdown(SOON).unwrap();
    append_plainly(&mut client, 5, 2);
    // Another `start_at` has no effect now, because the projections have begun.
    let worker = start_all([1, 0, 0, 1]);
    for (name, _, first) in starts {
        eventually(name, SOON, || (positions(&mut client, name).last() == Some(&20)).then_some(()));
        assert_eq!(positions(&mut client, name), (first..=20).collect::<Vec<_>>(), "{name}");
    }
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_with_nothing_to_do_still_moves_its_checkpoint() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 3_000, 10);
    let idle = ledger("idle", Scope::all().aggregate_types(["Nobody"]), StartAt::Beginning);
    let worker = start(builder(database.url(), "set"), vec![idle]);
    // The checkpoint is written once a second. The first time, the worker must also start.
    for within in [SOON, Duration::from_secs(2), Duration::from_secs(2)] {
        append_plainly(&mut client, 10, 10);
        eventually("the checkpoint is at the newest event", within, || {
            let sql = "SELECT FROM orchestrator_checkpoints
                       WHERE projection = 'idle' AND position = (SELECT max(global_position) FROM events)";
            client.query_opt(sql, &[]).unwrap()
        });
    }
    let status = worker.status().projections["idle"].clone();
    assert_eq!((status.position, status.lag, status.events), (Some(3_030), Some(0), 0));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn the_lag_is_measured_at_the_first_unhandled_event() {
    let database = database();
    let mut client = prepared(&database);
    append_plainly(&mut client, 10, 2);
    for (position, age) in [(4, "2 h"), (5, "1 h")] {
        let sql = format!("UPDATE events SET created_at = now() - interval '{age}' WHERE global_position = {position}");
        client.execute(&sql, &[]).unwrap();
    }
    let (open, gate) = bounded::<()>(0);
    let late = Meddled {
        ledger: Ledger { start_at: StartAt::Position(4), ..Ledger::named("late") },
        before: Box::new(move |_, _| {
            _ = gate.recv_timeout(SOON);
            Ok(())
        }),
    };
    let worker = start(builder(database.url(), "set"), vec![Box::new(late)]);
    let lag = |seconds: RangeInclusive<f64>| {
        let told = ["checkpoint_position", "lag_events"].map(|name| projection_metric(&worker, name, "late"));
        let age = projection_metric(&worker, "lag_seconds", "late").filter(|age| seconds.contains(age));
        age.and_then(|_| told[0].zip(told[1]))
    };
    eventually("it is behind", SOON, || lag(3_600.0..=7_000.0).filter(|lag| *lag == (4.0, 6.0)));
    drop(open);
    eventually("it has caught up", SOON, || lag(0.0..=0.0).filter(|lag| *lag == (10.0, 0.0)));
    worker.shutdown(SOON).unwrap();
}

#[test]
fn a_projection_can_be_shared_with_the_application() {
    let database = database();
    let mut client = prepared(&database);
    let shared: Arc<dyn Projection> = Arc::new(Ledger::named("p"));
    let orchestrator = builder(database.url(), "set").projection(shared.clone()).build().unwrap();
    let worker = orchestrator.start().unwrap();
    append_plainly(&mut client, 10, 2);
    eventually("all events are handled", SOON, || is_complete(&mut client, shared.name()).then_some(()));
    worker.shutdown(SOON).unwrap();
    assert_eq!(Arc::strong_count(&shared), 1, "nothing of the worker is left");
}
