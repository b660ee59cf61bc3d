//! The rows of one aggregate are rebuilt, while the projection goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use postgres::{Client, GenericClient};
use pupsourcing_orchestrator::{
    BatchProjection, BoxError, Builder, Event, Handle, OnFailure, Projection, Retry, Scope, StartAt, StreamId, Tx,
};
use serde_json::{Value, json};

use crate::support::cluster::{assert_read_models_become_right, newest, positions};
use crate::support::commands::{done, give, outcome, refused};
use crate::support::handlers::prepared;
use crate::support::insert::insert;
use crate::support::ledger::append_plainly;
use crate::support::parking::{assert_accounts, await_parked, parked};
use crate::support::rebuilds::{Model, await_exact, begin_rebuild_with, faults};
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::workers::{await_running, builder, start};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(30);

type Forgetting = dyn Fn(&mut Tx<'_>) -> Result<(), BoxError> + Send + Sync;

/// A read model that can forget an aggregate.
#[derive(Clone)]
struct Mended {
    model: Model,
    scope: Scope,
    start_at: StartAt,
    /// Called before its rows are deleted, and afterwards.
    begins: Arc<Forgetting>,
    forgetting: Arc<Forgetting>,
}

impl Mended {
    fn new(model: Model) -> Self {
        Self {
            model,
            scope: Scope::all(),
            start_at: StartAt::Beginning,
            begins: Arc::new(|_| Ok(())),
            forgetting: Arc::new(|_| Ok(())),
        }
    }

    fn forgetting(self, forgetting: impl Fn(&mut Tx<'_>) -> Result<(), BoxError> + Send + Sync + 'static) -> Self {
        Self { forgetting: Arc::new(forgetting), ..self }
    }

    fn boxed(&self) -> Box<dyn Projection> {
        Box::new(self.clone())
    }
}

impl Projection for Mended {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn scope(&self) -> Scope {
        self.scope.clone()
    }

    fn start_at(&self) -> StartAt {
        self.start_at
    }

    fn tables(&self) -> &[&str] {
        self.model.tables()
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        self.model.handle(tx, event)
    }

    fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
        assert_eq!((&*aggregate.bounded_context, &*aggregate.aggregate_type), ("test", "Thing"));
        assert!(tx.is_replay());
        (self.begins)(tx)?;
        let sql = format!("DELETE FROM {} WHERE aggregate_id = $1", self.model.name);
        tx.execute(&sql, &[&aggregate.aggregate_id])?;
        (self.forgetting)(tx)
    }

    fn reset(&self, tx: &mut Tx<'_>, to: i64) -> Result<(), BoxError> {
        self.model.reset(tx, to)
    }
}

/// Lets code of a projection wait until the test says so.
struct Gate {
    arrived: Receiver<()>,
    open: Sender<()>,
}

impl Gate {
    fn new() -> (Self, impl Fn() -> Result<(), BoxError> + Send + Sync + Clone) {
        let (comes, arrived) = bounded(100);
        let (open, opened) = bounded::<()>(100);
        let pass = move || {
            _ = comes.try_send(());
            Ok(opened.recv_timeout(SOON)?)
        };
        (Self { arrived, open }, pass)
    }

    #[track_caller]
    fn await_arrival(&self) {
        self.arrived.recv_timeout(SOON).unwrap();
    }

    fn open(&self) {
        self.open.send(()).unwrap();
    }
}

fn with_table(database: &TestDatabase) -> Client {
    let mut client = prepared(database);
    Model::named("orders").create_table(&mut client);
    client
}

/// A database with a read model of 50 aggregates, which one worker has filled.
fn filled(projection: &Mended, change: impl FnOnce(Builder) -> Builder) -> (TestDatabase, Client, Handle) {
    let database = database();
    let mut client = with_table(&database);
    let worker = start(change(builder(database.url(), "set")), vec![projection.boxed()]);
    await_running(&[&worker]);
    append_plainly(&mut client, 1_000, 50);
    await_exact(&mut client, "orders");
    (database, client, worker)
}

fn aggregate(id: &str) -> Value {
    json!({"aggregate": ["test", "Thing", id]})
}

fn rebuild(client: &mut Client, id: &str) -> i64 {
    give(client, "orders", "rebuild_aggregate", &aggregate(id))
}

/// Appends events of one aggregate.
fn append_to(client: &mut impl GenericClient, id: &str, events: i64) {
    let version = "i + coalesce((SELECT max(aggregate_version) FROM events WHERE aggregate_id = $2), 0)";
    let sql = insert("generate_series(1, $1::bigint) AS i", &[("aggregate_id", "$2"), ("aggregate_version", version)]);
    client.execute(&format!("{sql} ORDER BY i"), &[&events, &id]).unwrap();
}

/// How many rows the read model has of an aggregate.
fn rows(client: &mut Client, id: &str) -> i64 {
    client.query_one("SELECT count(*) FROM orders WHERE aggregate_id = $1", &[&id]).unwrap().get(0)
}

fn damage(client: &mut Client, id: &str) {
    let sql = "UPDATE orders SET aggregate_version = -seq WHERE aggregate_id = $1 AND seq % 2 = 0";
    client.execute(sql, &[&id]).unwrap();
    let sql = "DELETE FROM orders WHERE aggregate_id = $1 AND seq % 3 = 0";
    client.execute(sql, &[&id]).unwrap();
}

#[track_caller]
fn assert_done(client: &mut Client, id: i64) -> Value {
    let (outcome, result, error) = outcome(client, id);
    assert_eq!((outcome.as_str(), error), ("done", None));
    result.unwrap()
}

#[track_caller]
fn assert_nothing_parked(client: &mut Client) {
    eventually("nothing is parked", SOON, || parked(client, "orders").is_empty().then_some(()));
}

/// Lanes, two workers, and appends all the time.
#[test]
fn damaged_aggregate_is_right_after_one_command() {
    let database = database();
    let mut client = with_table(&database);
    let projection = Mended::new(Model::named("orders"));
    let workers = [1, 3].map(|lanes| start(builder(database.url(), "set").lanes(lanes), vec![projection.boxed()]));
    await_running(&workers.each_ref());
    append_plainly(&mut client, 5_000, 50);
    await_exact(&mut client, "orders");
    client.batch_execute("UPDATE orders SET version = 7 WHERE aggregate_id = 'thing-8'").unwrap();
    let (stops, stopped) = bounded::<()>(0);
    std::thread::scope(|scope| {
        // If the test fails, it ends the writer, too.
        let stops = stops;
        scope.spawn(|| {
            let mut writer = database.client();
            while stopped.recv_timeout(Duration::from_millis(20)) == Err(RecvTimeoutError::Timeout) {
                append_plainly(&mut writer, 50, 50);
            }
        });
        for n in [7, 17, 27, 37, 47, 7, 7] {
            let id = format!("thing-{n}");
            damage(&mut client, &id);
            let result = done(&mut client, "orders", "rebuild_aggregate", &aggregate(&id));
            assert_accounts(&mut client);
            assert_eq!(result["aggregate"], json!(["test", "Thing", id]));
            assert!(result["events"].as_i64().unwrap() >= 100, "{result}");
        }
        drop(stops);
    });
    eventually("all events are passed", 4 * SOON, || {
        let newest = newest(&mut client);
        positions(&mut client, "orders").iter().all(|position| *position == newest).then_some(())
    });
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
    let sql = "SELECT count(*) FROM orders WHERE aggregate_id = 'thing-8' AND version = 7";
    assert!(client.query_one(sql, &[]).unwrap().get::<_, i64>(0) >= 100, "others are not touched");
    drop(workers);
}

/// While its rows are being rebuilt, readers see the former ones, later events of the aggregate
/// wait, and those of all others are handled.
#[test]
fn later_events_wait_until_the_rows_are_rebuilt() {
    let (gate, pass) = Gate::new();
    let replays = Arc::new(AtomicUsize::new(0));
    let counted = replays.clone();
    let model = Model::named("orders").before(move |tx, event| {
        counted.fetch_add(usize::from(tx.is_replay() && event.aggregate_id() == "thing-7"), Ordering::SeqCst);
        Ok(())
    });
    let projection = Mended::new(model).forgetting(move |_| pass());
    let (_database, mut client, _worker) = filled(&projection, |builder| builder);
    client.batch_execute("UPDATE orders SET version = 7 WHERE aggregate_id = 'thing-7'").unwrap();
    let sevens = |client: &mut Client| -> i64 {
        client.query_one("SELECT count(*) FROM orders WHERE version = 7", &[]).unwrap().get(0)
    };
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    append_to(&mut client, "thing-7", 5);
    append_plainly(&mut client, 100, 50);
    eventually("the others are handled", SOON, || (faults(&mut client, "orders").0 == 1_098).then_some(()));
    assert_accounts(&mut client);
    assert_eq!((rows(&mut client, "thing-7"), sevens(&mut client)), (20, 20));
    let row = parked(&mut client, "orders").remove(0);
    assert!(row.error.contains("being rebuilt") && row.is_requested, "{row:?}");
    gate.open();
    let result = assert_done(&mut client, id);
    assert_accounts(&mut client);
    assert_eq!((result["events"].clone(), result["position"].clone()), (json!(20), json!(1_000)));
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_eq!((rows(&mut client, "thing-7"), sevens(&mut client)), (27, 0));
    assert_eq!(replays.load(Ordering::SeqCst), 20, "only those that were handled before");
    assert_accounts(&mut client);
}

/// A batch that has handled an event of the aggregate when the command begins must not be
/// committed: the event would be handled again.
#[test]
fn batch_begun_before_the_command_is_fenced() {
    let (gate, pass) = Gate::new();
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = is_armed.clone();
    let model = Model::named("orders").before(move |tx, event| {
        if event.aggregate_id() == "last" && !tx.is_replay() && armed.swap(false, Ordering::SeqCst) {
            pass()?;
        }
        Ok(())
    });
    let (forgotten, forgets) = Gate::new();
    let (_database, mut client, _worker) = filled(&Mended::new(model).forgetting(move |_| forgets()), |b| b);
    is_armed.store(true, Ordering::SeqCst);
    let mut both = client.transaction().unwrap();
    append_to(&mut both, "thing-7", 2);
    append_to(&mut both, "last", 1);
    both.commit().unwrap();
    gate.await_arrival();
    let id = rebuild(&mut client, "thing-7");
    forgotten.await_arrival();
    gate.open();
    eventually("the batch is handled again", SOON, || (rows(&mut client, "last") == 1).then_some(()));
    forgotten.open();
    assert_eq!(assert_done(&mut client, id)["events"], json!(20));
    await_exact(&mut client, "orders");
    assert_accounts(&mut client);
}

/// A batch that has skipped an event of the aggregate must not be committed after the command is
/// done: the event would be lost.
#[test]
fn batch_begun_before_the_end_is_fenced() {
    let (gate, pass) = Gate::new();
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = is_armed.clone();
    let model = Model::named("orders").before(move |tx, event| {
        if event.aggregate_id() == "last" && !tx.is_replay() && armed.swap(false, Ordering::SeqCst) {
            pass()?;
        }
        Ok(())
    });
    let (forgotten, forgets) = Gate::new();
    let (_database, mut client, _worker) = filled(&Mended::new(model).forgetting(move |_| forgets()), |b| b);
    let id = rebuild(&mut client, "thing-7");
    forgotten.await_arrival();
    is_armed.store(true, Ordering::SeqCst);
    let mut both = client.transaction().unwrap();
    append_to(&mut both, "thing-7", 2);
    append_to(&mut both, "last", 1);
    both.commit().unwrap();
    gate.await_arrival();
    forgotten.open();
    assert_done(&mut client, id);
    assert!(parked(&mut client, "orders").is_empty());
    gate.open();
    await_exact(&mut client, "orders");
    assert_accounts(&mut client);
}

#[test]
fn projection_without_forget_is_refused() {
    let database = database();
    let mut client = with_table(&database);
    let worker = start(builder(database.url(), "set"), vec![Model::named("orders").boxed()]);
    append_plainly(&mut client, 100, 5);
    await_exact(&mut client, "orders");
    let why = refused(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-3"));
    assert!(why.contains("has no forget()"), "{why}");
    append_plainly(&mut client, 100, 5);
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    drop(worker);
}

/// Its rows stay, and its events go on: those that came meanwhile, too.
#[test]
fn failed_attempts_leave_everything_as_it_was() {
    for (in_handler, part) in [(false, "in use"), (true, "global position 508 ")] {
        let is_broken = Arc::new(AtomicBool::new(false));
        let (broken, also) = (is_broken.clone(), is_broken.clone());
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let model = Model::named("orders").before(move |tx, event| {
            let fails = in_handler && tx.is_replay() && broken.load(Ordering::SeqCst);
            if fails && event.global_position() == 508 { Err("it is wrong".into()) } else { Ok(()) }
        });
        let projection = Mended::new(model).forgetting(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            if !in_handler && also.load(Ordering::SeqCst) { Err("the table is in use".into()) } else { Ok(()) }
        });
        let (_database, mut client, _worker) = filled(&projection, |builder| builder);
        let sum = "SELECT sum(hashtext(orders::text)) FROM orders";
        let sum = |client: &mut Client| -> i64 { client.query_one(sum, &[]).unwrap().get(0) };
        let before = sum(&mut client);
        is_broken.store(true, Ordering::SeqCst);
        let id = rebuild(&mut client, "thing-7");
        eventually("it is tried", SOON, || (calls.load(Ordering::SeqCst) > 0).then_some(()));
        let (outcome, _, error) = outcome(&mut client, id);
        let error = error.unwrap();
        assert!(outcome == "failed" && error.contains("stay as they were") && error.contains(part), "{error}");
        assert_eq!((calls.load(Ordering::SeqCst), sum(&mut client)), (3, before));
        assert_accounts(&mut client);
        append_plainly(&mut client, 100, 50);
        await_exact(&mut client, "orders");
        assert_nothing_parked(&mut client);
        is_broken.store(false, Ordering::SeqCst);
        done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-7"));
        await_exact(&mut client, "orders");
        assert_accounts(&mut client);
    }
}

/// What has come while the attempts failed is handled after that.
#[test]
fn events_that_came_before_a_failure_are_handled() {
    let (gate, pass) = Gate::new();
    let projection = Mended::new(Model::named("orders")).forgetting(move |_| {
        pass()?;
        Err("the table is in use".into())
    });
    let (_database, mut client, _worker) = filled(&projection, |builder| builder);
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    append_plainly(&mut client, 100, 50);
    eventually("the others are handled", SOON, || (faults(&mut client, "orders").0 == 1_098).then_some(()));
    (0..3).for_each(|_| gate.open());
    assert_eq!(outcome(&mut client, id).0, "failed");
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
}

/// The first worker is asked to leave while its handler is at work.
#[test]
fn another_worker_rebuilds_when_the_first_is_gone() {
    let database = database();
    let mut client = with_table(&database);
    let (gate, pass) = Gate::new();
    let projection = Mended::new(Model::named("orders")).forgetting(move |_| pass());
    let begin =
        || start(builder(database.url(), "set").leave_timeout(Duration::from_secs(1)), vec![projection.boxed()]);
    let [one, two] = [begin(), begin()];
    await_running(&[&one, &two]);
    append_plainly(&mut client, 1_000, 50);
    await_exact(&mut client, "orders");
    damage(&mut client, "thing-7");
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    let executor = "SELECT executor FROM orchestrator_commands WHERE id = $1";
    let executor: uuid::Uuid = client.query_one(executor, &[&id]).unwrap().get(0);
    let (leaves, stays) = if one.worker_id().0 == executor { (one, two) } else { (two, one) };
    std::thread::scope(|scope| {
        let leaving = scope.spawn(|| leaves.shutdown(SOON));
        eventually("the other worker begins", SOON, || {
            let sql = "SELECT attempt = 2 FROM orchestrator_commands WHERE id = $1";
            client.query_one(sql, &[&id]).unwrap().get::<_, bool>(0).then_some(())
        });
        append_plainly(&mut client, 100, 50);
        (0..4).for_each(|_| gate.open());
        _ = leaving.join().unwrap();
    });
    assert_done(&mut client, id);
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
    drop(stays);
}

/// As if this worker had been considered dead, and the next one had finished before it.
#[test]
fn former_attempt_cannot_commit() {
    let (gate, pass) = Gate::new();
    let projection = Mended::new(Model::named("orders")).forgetting(move |_| pass());
    let (_database, mut client, _worker) = filled(&projection, |builder| builder);
    client.batch_execute("UPDATE orders SET version = 7 WHERE aggregate_id = 'thing-7'").unwrap();
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    client.execute("UPDATE orchestrator_commands SET attempt = attempt + 1 WHERE id = $1", &[&id]).unwrap();
    gate.open();
    // The attempt with the new number.
    gate.await_arrival();
    let sevens = "SELECT count(*) FROM orders WHERE version = 7";
    assert_eq!(client.query_one(sevens, &[]).unwrap().get::<_, i64>(0), 20, "nothing was committed");
    gate.open();
    assert_done(&mut client, id);
    await_exact(&mut client, "orders");
    assert_accounts(&mut client);
}

/// Somebody deletes the row because of which later events wait, so they are handled.
#[test]
fn events_that_did_not_wait_are_handled_again() {
    let (gate, pass) = Gate::new();
    let projection = Mended { begins: Arc::new(move |_| pass()), ..Mended::new(Model::named("orders")) };
    let (_database, mut client, _worker) = filled(&projection, |builder| builder);
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    client
        .batch_execute("DELETE FROM orchestrator_parked; UPDATE orchestrator_projections SET deal = DEFAULT")
        .unwrap();
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    gate.open();
    gate.await_arrival();
    gate.open();
    assert_eq!(assert_done(&mut client, id)["events"], json!(22));
    await_exact(&mut client, "orders");
    assert_accounts(&mut client);
}

#[test]
fn deals_in_the_middle_change_nothing() {
    let database = database();
    let mut client = with_table(&database);
    let (gate, pass) = Gate::new();
    let projection = Mended::new(Model::named("orders")).forgetting(move |_| pass());
    let begin = |lanes| start(builder(database.url(), "set").lanes(lanes), vec![projection.boxed()]);
    let first = begin(1);
    await_running(&[&first]);
    append_plainly(&mut client, 1_000, 50);
    await_exact(&mut client, "orders");
    damage(&mut client, "thing-7");
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    append_plainly(&mut client, 100, 50);
    let second = begin(4);
    await_running(&[&first, &second]);
    append_plainly(&mut client, 100, 50);
    assert_accounts(&mut client);
    gate.open();
    assert_done(&mut client, id);
    await_exact(&mut client, "orders");
    second.shutdown(SOON).unwrap();
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
}

fn parking(builder: Builder) -> Builder {
    let retry = Retry::default().attempts(1).halted_interval(Duration::from_secs(3600));
    builder.retry(retry).on_failure(OnFailure::park(3))
}

/// An event fails because the rows of its aggregate are wrong. When they are rebuilt, it is
/// handled, and so are the events behind it.
#[test]
fn parked_aggregate_is_rebuilt_and_replayed() {
    let model = Model::named("orders").before(|tx, event| {
        let sql = "SELECT FROM orders WHERE aggregate_id = $1 AND aggregate_version < 0";
        let is_wrong = !tx.query(sql, &[&event.aggregate_id()])?.is_empty();
        if is_wrong { Err("there is a row that cannot be".into()) } else { Ok(()) }
    });
    let (_database, mut client, _worker) = filled(&Mended::new(model), parking);
    damage(&mut client, "thing-7");
    append_plainly(&mut client, 100, 50);
    let row = await_parked(&mut client, "orders", 1).remove(0);
    assert_eq!((row.aggregate.as_str(), row.position), ("thing-7", 1_008));
    append_plainly(&mut client, 100, 50);
    assert_accounts(&mut client);
    let result = done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-7"));
    assert_eq!(result["events"], json!(20), "those that were handled before");
    assert_accounts(&mut client);
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
}

/// What fails for another reason stays parked, although the rows are rebuilt. If that fails, it is
/// parked as before.
#[test]
fn parked_aggregate_may_stay_parked() {
    let is_broken = Arc::new(AtomicBool::new(true));
    let broken = is_broken.clone();
    let model = Model::named("orders").before(|_, event| match event.global_position() {
        1_008 => Err("no such customer".into()),
        _ => Ok(()),
    });
    let projection = Mended::new(model)
        .forgetting(move |_| if broken.load(Ordering::SeqCst) { Err("the table is in use".into()) } else { Ok(()) });
    let (_database, mut client, _worker) = filled(&projection, parking);
    append_plainly(&mut client, 100, 50);
    let before = await_parked(&mut client, "orders", 1);
    let id = rebuild(&mut client, "thing-7");
    assert_eq!(outcome(&mut client, id).0, "failed");
    assert_eq!(parked(&mut client, "orders"), before);
    assert_accounts(&mut client);
    is_broken.store(false, Ordering::SeqCst);
    damage(&mut client, "thing-7");
    done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-7"));
    let row = eventually("its replay has failed", SOON, || {
        parked(&mut client, "orders").into_iter().find(|row| !row.is_requested)
    });
    assert_eq!((row.position, row.attempts, row.errors.len()), (1_008, 2, 2));
    assert_eq!(rows(&mut client, "thing-7"), 20);
    assert_eq!(faults(&mut client, "orders").1, [2, 0, 0, 0]);
    assert_accounts(&mut client);
}

/// Handles all given events with one statement.
struct InBulk;

impl BatchProjection for InBulk {
    fn name(&self) -> &str {
        "orders"
    }

    fn handle_batch(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        // Not all at once.
        let events = &events[..events.len().min(7)];
        let positions: Vec<i64> = events.iter().map(Event::global_position).collect();
        tx.execute(
            "INSERT INTO orders (global_position, aggregate_id, aggregate_version, version)
             SELECT global_position, aggregate_id, aggregate_version, 1 FROM events WHERE global_position = ANY ($1) ORDER BY 1",
            &[&positions],
        )?;
        Ok(events.len())
    }

    fn forget(&self, tx: &mut Tx<'_>, aggregate: &StreamId) -> Result<(), BoxError> {
        tx.execute("DELETE FROM orders WHERE aggregate_id = $1", &[&aggregate.aggregate_id])?;
        Ok(())
    }
}

/// More events than are read at once.
#[test]
fn batch_projection_rebuilds_an_aggregate() {
    let database = database();
    let mut client = with_table(&database);
    let worker = start(builder(database.url(), "set").batch_projection(InBulk), vec![]);
    append_plainly(&mut client, 100, 5);
    append_to(&mut client, "thing-3", 1_200);
    await_exact(&mut client, "orders");
    damage(&mut client, "thing-3");
    let result = done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-3"));
    assert_eq!(result["events"], json!(1_220));
    await_exact(&mut client, "orders");
    assert_accounts(&mut client);
    drop(worker);
}

/// A command that is given explicitly is executed, and `resume` does not wait for it.
#[test]
fn paused_projection_rebuilds_an_aggregate() {
    let (_database, mut client, _worker) = filled(&Mended::new(Model::named("orders")), |builder| builder);
    damage(&mut client, "thing-7");
    done(&mut client, "orders", "pause", &json!({}));
    append_to(&mut client, "thing-7", 3);
    done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-7"));
    assert_eq!(rows(&mut client, "thing-7"), 20);
    assert_eq!(faults(&mut client, "orders"), (1_000, [3, 0, 0, 0]), "the new events wait");
    done(&mut client, "orders", "resume", &json!({}));
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
}

#[test]
fn what_cannot_be_rebuilt_is_refused() {
    let scope = Scope::all().aggregate_types(["Thing"]);
    let projection = Mended { scope, ..Mended::new(Model::named("orders")) };
    let (_database, mut client, _worker) = filled(&projection, |builder| builder);
    let columns = [("aggregate_type", "'Other'"), ("aggregate_id", "'other'"), ("aggregate_version", "i")];
    client.execute(&insert("generate_series(1, 3) AS i", &columns), &[]).unwrap();
    for (aggregate, part) in [
        (json!(["test", "Thing", "nobody"]), "has handled no event of the aggregate"),
        (json!(["test", "Other", "other"]), "has handled no event of the aggregate"),
        (json!(["test", null, "thing-7"]), "it names no aggregate"),
    ] {
        let why = refused(&mut client, "orders", "rebuild_aggregate", &json!({"aggregate": aggregate}));
        assert!(why.contains(part), "{aggregate}: {why}");
    }
    let sql =
        "SELECT orchestrator_command('orders@rebuild', 'rebuild_aggregate', '{\"aggregate\": [\"a\", \"b\", \"c\"]}')";
    begin_rebuild_with(&mut client, "orders", &json!({"rate": 1}));
    let error = client.query(sql, &[]).unwrap_err();
    assert!(error.as_db_error().unwrap().message().contains("belongs to one"), "{error:?}");
    done(&mut client, "orders", "cancel", &json!({}));
    append_plainly(&mut client, 100, 50);
    eventually("all are handled", SOON, || (faults(&mut client, "orders").0 == 1_100).then_some(()));
    assert_nothing_parked(&mut client);
}

/// Many events would keep the later ones waiting, and rows locked, for too long.
#[test]
fn aggregate_with_too_many_events_is_refused() {
    let database = database();
    let mut client = with_table(&database);
    append_to(&mut client, "thing-1", 100_001);
    append_plainly(&mut client, 10, 5);
    let at_end = Mended {
        start_at: StartAt::End,
        ..Mended::new(Model { name: "ends", tables: vec![], ..Model::named("orders") })
    };
    let worker =
        start(builder(database.url(), "set"), vec![Mended::new(Model::named("orders")).boxed(), at_end.boxed()]);
    // As if its events had been handled.
    client.batch_execute("UPDATE orchestrator_checkpoints SET position = 100011, token = DEFAULT").unwrap();
    client.batch_execute("UPDATE orchestrator_projections SET deal = DEFAULT").unwrap();
    let why = refused(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-1"));
    assert!(why.contains("more than 100000 events") && why.contains("rewind"), "{why}");
    let result = done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-2"));
    assert_eq!(result["events"], json!(2));
    let why = refused(&mut client, "ends", "rebuild_aggregate", &aggregate("thing-2"));
    assert!(why.contains("starts at the end"), "{why}");
    drop(worker);
}

/// Events below the position at which the projection started, and discarded ones, are not handled.
#[test]
fn only_what_was_handled_is_handled_again() {
    let database = database();
    let mut client = with_table(&database);
    append_plainly(&mut client, 100, 5);
    let model = Model::named("orders").before(|_, event| match event.global_position() {
        78 => Err("it is wrong".into()),
        _ => Ok(()),
    });
    let projection = Mended { start_at: StartAt::Position(50), ..Mended::new(model) };
    let worker = start(parking(builder(database.url(), "set")), vec![projection.boxed()]);
    await_parked(&mut client, "orders", 1);
    crate::support::parking::discard(&mut client, "orders", 78);
    assert_nothing_parked(&mut client);
    eventually("all are handled", SOON, || (faults(&mut client, "orders").0 == 49).then_some(()));
    damage(&mut client, "thing-2");
    let result = done(&mut client, "orders", "rebuild_aggregate", &aggregate("thing-2"));
    assert_eq!(result["events"], json!(9));
    assert_eq!(faults(&mut client, "orders"), (49, [51, 0, 0, 0]));
    assert_accounts(&mut client);
    drop(worker);
}

/// The tables are not switched while rows of the live ones are to be replaced.
#[test]
fn whole_rebuild_and_that_of_an_aggregate_go_together() {
    let (gate, pass) = Gate::new();
    let projection = Mended { begins: Arc::new(move |_| pass()), ..Mended::new(Model::named("orders")) };
    let (database, mut client, first) = filled(&projection, |builder| builder);
    // While one of them is at work for the aggregate, the other one may switch.
    let second = start(builder(database.url(), "set"), vec![projection.boxed()]);
    await_running(&[&first, &second]);
    damage(&mut client, "thing-7");
    let whole = begin_rebuild_with(&mut client, "orders", &json!({"rate": 100}));
    let id = rebuild(&mut client, "thing-7");
    gate.await_arrival();
    client
        .batch_execute(
            "UPDATE orchestrator_rebuilds SET rate = NULL, retry_at = NULL;
             UPDATE orchestrator_projections SET deal = DEFAULT WHERE name = 'orders@rebuild'",
        )
        .unwrap();
    append_plainly(&mut client, 100, 50);
    let blocked = "SELECT blocked FROM orchestrator_rebuilds WHERE blocked IS NOT NULL";
    let blocked: String =
        eventually("the switch is put off", SOON, || client.query_opt(blocked, &[]).unwrap().map(|row| row.get(0)));
    assert!(blocked.contains("an aggregate is being rebuilt"), "{blocked}");
    gate.open();
    assert_done(&mut client, id);
    assert_done(&mut client, whole);
    append_plainly(&mut client, 100, 50);
    await_exact(&mut client, "orders");
    assert_nothing_parked(&mut client);
    assert_accounts(&mut client);
}

const SHORT_WAITS: [(&str, &str); 2] = [("SESSION_LOSS_GRACE", "200ms"), ("POLL_INTERVAL", "100ms")];

/// The example's read models, and an aggregate whose row takes a while.
fn slow_processes(database: &TestDatabase) -> (Client, WorkerProcess) {
    let mut client = database.client();
    let mut worker = WorkerProcess::start(database.url(), &SHORT_WAITS);
    worker.await_processing(1);
    append_plainly(&mut client, 1_000, 50);
    assert_read_models_become_right(&mut client);
    client
        .batch_execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(1); RETURN old; END $$;
             CREATE TRIGGER slow BEFORE DELETE ON aggregate_activity FOR EACH ROW EXECUTE FUNCTION slow();
             UPDATE aggregate_activity SET events = 7000 WHERE aggregate_id = 'thing-7'",
        )
        .unwrap();
    (client, worker)
}

/// Kills the worker while it deletes the row.
fn killed_in_the_middle(client: &mut Client, worker: &mut WorkerProcess, id: i64, attempt: i32) {
    eventually("the row is being deleted", SOON, || {
        let sql = "SELECT FROM orchestrator_commands WHERE id = $1 AND attempt = $2
                   AND EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep')";
        client.query_opt(sql, &[&id, &attempt]).unwrap()
    });
    worker.signal(Signal::KILL);
    worker.await_end();
    let row = "SELECT events FROM aggregate_activity WHERE aggregate_id = 'thing-7'";
    assert_eq!(client.query_one(row, &[]).unwrap().get::<_, i64>(0), 7_000);
    assert_accounts(client);
}

#[test]
fn killed_worker_leaves_the_rest_to_another() {
    let database = database();
    let (mut client, mut worker) = slow_processes(&database);
    let id = give(&mut client, "aggregate_activity", "rebuild_aggregate", &aggregate("thing-7"));
    killed_in_the_middle(&mut client, &mut worker, id, 1);
    append_plainly(&mut client, 100, 50);
    let mut worker = WorkerProcess::start(database.url(), &SHORT_WAITS);
    killed_in_the_middle(&mut client, &mut worker, id, 2);
    let _last = WorkerProcess::start(database.url(), &SHORT_WAITS);
    assert_done(&mut client, id);
    append_plainly(&mut client, 100, 50);
    assert_read_models_become_right(&mut client);
    assert_accounts(&mut client);
}

/// It does not end every worker in turn. What waited is handled.
#[test]
fn rebuild_that_ends_every_process_is_given_up() {
    let database = database();
    let (mut client, mut worker) = slow_processes(&database);
    let id = give(&mut client, "aggregate_activity", "rebuild_aggregate", &aggregate("thing-7"));
    for attempt in 1..=3 {
        killed_in_the_middle(&mut client, &mut worker, id, attempt);
        append_plainly(&mut client, 100, 50);
        worker = WorkerProcess::start(database.url(), &SHORT_WAITS);
    }
    let (outcome, _, error) = outcome(&mut client, id);
    assert!(outcome == "failed" && error.as_ref().is_some_and(|error| error.contains("forget()")), "{error:?}");
    client
        .batch_execute("UPDATE aggregate_activity SET events = events - 6980 WHERE aggregate_id = 'thing-7'")
        .unwrap();
    assert_read_models_become_right(&mut client);
    assert!(parked(&mut client, "aggregate_activity").is_empty());
    assert_accounts(&mut client);
}
