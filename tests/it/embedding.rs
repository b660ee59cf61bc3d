//! The library within another program: it does no harm there, and the program sees when the worker
//! ends.

use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::{
    BoxError, Error, Event, Handle, Metrics, MetricsServer, Names, Orchestrator, Projection, Scope, StartAt, Tx,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::alone::alone;
use crate::support::cluster::state_of;
use crate::support::handlers::prepared;
use crate::support::http::get;
use crate::support::ledger::{Ledger, append_plainly};
use crate::support::metrics::metric;
use crate::support::workers::{await_running, builder, start};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(10);

/// Once it is `ARMED`, it panics with each line, like a logger that prints to a closed pipe.
struct BrokenLogger;

static ARMED: AtomicBool = AtomicBool::new(false);

impl log::Log for BrokenLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, _: &log::Record<'_>) {
        assert!(!ARMED.load(Ordering::SeqCst), "failed printing to stderr: Broken pipe");
    }

    fn flush(&self) {}
}

fn client(url: &str) -> Client {
    let mut client = Client::connect(url, NoTls).unwrap();
    client.batch_execute(&Names::default().schema_sql()).unwrap();
    Ledger::create_table(&mut client);
    client
}

fn ledger_worker(url: &str) -> Orchestrator {
    builder(url, "set").projection(Ledger::named("p")).build().unwrap()
}

fn workers(client: &mut Client) -> i64 {
    client.query_one("SELECT count(*) FROM orchestrator_workers", &[]).unwrap().get(0)
}

#[test]
fn a_worker_whose_logger_panics_ends_and_reports_it() {
    alone(|url| {
        log::set_logger(&BrokenLogger).unwrap();
        log::set_max_level(log::LevelFilter::Info);
        let mut client = client(url);
        let worker = ledger_worker(url).start().unwrap();
        let server = MetricsServer::builder(worker.metrics().clone()).bind("127.0.0.1:0").unwrap();
        server.watch(worker.health());
        await_running(&[&worker]);
        let address = server.address().to_string();
        assert_eq!((get(&address, "/livez").0, get(&address, "/readyz").0), (200, 200));

        ARMED.store(true, Ordering::SeqCst);
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        client.execute(others, &[]).unwrap();
        eventually("both probes fail", SOON, || {
            (get(&address, "/livez").0 == 503 && get(&address, "/readyz").0 == 503).then_some(())
        });
        assert!(get(&address, "/readyz").1.contains("the worker is stopping"));
        eventually("the metric has the reason", SOON, || metric(&worker, "not_ready", &[("reason", "stopping")]));
        drop(MetricsServer::builder(worker.metrics().clone()).bind("127.0.0.1:0").unwrap());
        let next = ledger_worker(url).start().expect("the worker is registered before anything is logged");
        for error in [worker.shutdown(SOON).unwrap_err(), next.join().unwrap_err()] {
            let text = error.with_causes();
            assert!(matches!(error, Error::ThreadPanicked { .. }) && text.contains("Broken pipe"), "{text}");
        }
    });
}

/// Panics in one of the methods that are called before it handles anything, and records the calls.
struct Panics(&'static str, Arc<Mutex<Vec<&'static str>>>);

impl Panics {
    fn now(&self, method: &'static str) {
        self.1.lock().unwrap().push(method);
        assert!(self.0 != method, "the tests say so");
    }
}

impl Projection for Panics {
    fn name(&self) -> &str {
        self.now("name");
        "p"
    }

    fn scope(&self) -> Scope {
        self.now("scope");
        Scope::all()
    }

    fn start_at(&self) -> StartAt {
        self.now("start_at");
        StartAt::Beginning
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        Ok(())
    }
}

#[test]
fn a_projection_is_asked_once_for_name_scope_and_start_at() {
    let database = database();
    let mut client = prepared(&database);
    let asked = Arc::default();
    let worker = start(builder(database.url(), "set").projection(Panics("", Arc::clone(&asked))), vec![]);
    append_plainly(&mut client, 10, 2);
    eventually("the events are handled", SOON, || (worker.status().projections["p"].events == 10).then_some(()));
    worker.shutdown(SOON).unwrap();
    assert_eq!(*asked.lock().unwrap(), ["name", "start_at", "scope"]);
}

#[test]
fn a_panic_in_name_scope_or_start_at_is_an_error_of_build() {
    let database = database();
    let mut client = prepared(&database);
    for method in ["name", "scope", "start_at"] {
        // If the worker failed only in `start()`, this would be another error.
        let started = builder(database.url(), "set")
            .projection(Panics(method, Arc::default()))
            .build()
            .and_then(Orchestrator::start);
        let error = started.unwrap_err();
        assert!(matches!(error, Error::InvalidConfig { .. }), "{error:?}");
        let text = error.with_causes();
        assert!(text.contains(&format!("{method}() of")) && text.contains("the tests say so"), "{text}");
    }
    assert_eq!(workers(&mut client), 0);
}

#[test]
fn a_start_without_enough_threads_registers_nothing() {
    alone(|url| {
        let mut client = client(url);
        let many = builder(url, "set").lanes(64).projection(Ledger::named("p")).build().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        // Memory that is freed below another allocation stays with the process. So the heap does
        // not run out when the address space for stacks does.
        let heap: Vec<Box<[u8; 1024]>> = (0..16 << 10).map(|_| Box::new([1; 1024])).collect();
        let above = Box::new([1_u8; 1024]);
        drop(heap);
        let limit = getrlimit(Resource::As);
        // Enough for some threads, each of which has a stack of 2 MiB.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("VmSize:")).unwrap();
        let kibibytes: u64 = size.trim().trim_end_matches(" kB").parse().unwrap();
        let enough_for_some = (kibibytes + (48 << 10)) << 10;
        setrlimit(Resource::As, Rlimit { current: Some(enough_for_some), ..limit }).unwrap();
        let started = runtime.block_on(async { many.start() });
        setrlimit(Resource::As, limit).unwrap();
        drop(above);
        let error = started.unwrap_err();
        assert!(matches!(&error, Error::Spawn { thread, .. } if thread != "pup-start"), "{error:?}");
        assert_eq!(workers(&mut client), 0);
        let worker = ledger_worker(url).start().unwrap();
        await_running(&[&worker]);
    });
}

#[test]
fn workers_that_have_ended_leave_no_threads() {
    alone(|url| {
        let _client = client(url);
        let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
        let before = threads();
        for _ in 0..20 {
            ledger_worker(url).start().unwrap().shutdown(SOON).unwrap();
        }
        eventually("no thread is left", SOON, || (threads() <= before).then_some(()));
    });
}

#[test]
fn replica_sets_with_the_same_name_do_not_share_metrics() {
    let (here, there) = (database(), database());
    let (mut first_client, mut second_client) = (prepared(&here), prepared(&there));
    let metrics = Metrics::new().unwrap();
    let start = |url: &str, set: &str| {
        let builder = builder(url, set).projection(Ledger::named("p")).metrics(metrics.clone());
        builder.build().unwrap().start()
    };
    let (first, second) = (start(here.url(), "set").unwrap(), start(here.url(), "set").unwrap());
    let error = start(there.url(), "set").unwrap_err().with_causes();
    for part in ["metrics is shared with replica set \"set\"", here.name(), there.name(), "of their own"] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!((workers(&mut first_client), workers(&mut second_client)), (2, 0));
    let other = start(there.url(), "other").unwrap();
    await_running(&[&other]);
    other.shutdown(SOON).unwrap();
    first.shutdown(SOON).unwrap();
    second.shutdown(SOON).unwrap();
    // As when a component moves to another database.
    await_running(&[&start(there.url(), "set").unwrap_or_else(|error| panic!("{error}"))]);
}

#[test]
fn run_ends_at_once_while_the_server_does_not_answer() {
    // The kernel completes connections, but nothing ever answers on them.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("postgres://u@{}/d", silent.local_addr().unwrap());
    let orchestrator = ledger_worker(&url);
    let (stop, shutdown) = bounded(1);
    let runs = std::thread::spawn(move || orchestrator.run(&shutdown));
    let _connected = silent.accept().unwrap();
    let begun = Instant::now();
    stop.send(()).unwrap();
    runs.join().unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "took {:?}", begun.elapsed());
}

type OwnHandle = Arc<Mutex<Option<Handle>>>;
/// Ends a worker. Returns the error that the caller gets.
type End = fn(Handle) -> Option<Error>;

/// Ends the worker that runs it.
struct EndsItself {
    ledger: Ledger,
    handle: OwnHandle,
    end: End,
    ended: Sender<Option<Error>>,
}

impl Projection for EndsItself {
    fn name(&self) -> &str {
        self.ledger.name
    }

    fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
        if let Some(handle) = self.handle.lock().unwrap().take() {
            self.ended.send((self.end)(handle)).unwrap();
        }
        self.ledger.handle(tx, event)
    }
}

#[test]
fn a_worker_can_be_ended_by_its_own_handler() {
    let dropped: End = |handle| {
        drop(handle);
        None
    };
    let ends: [(End, bool); 3] =
        [(|handle| handle.join().err(), true), (|handle| handle.shutdown(3 * SOON).err(), true), (dropped, false)];
    for (end, is_told) in ends {
        let database = database();
        let mut client = prepared(&database);
        let (handle, (sender, ended)) = (OwnHandle::default(), bounded(1));
        let projection = EndsItself { ledger: Ledger::named("p"), handle: handle.clone(), end, ended: sender };
        let worker = builder(database.url(), "set").projection(projection).build().unwrap().start().unwrap();
        await_running(&[&worker]);
        let id = worker.worker_id();
        *handle.lock().unwrap() = Some(worker);
        append_plainly(&mut client, 1, 1);
        let outcome = ended.recv_timeout(SOON / 2).expect("it does not wait for itself");
        let is_refused = matches!(&outcome, Some(Error::OwnThread { thread, .. }) if thread == "pup-run-00");
        assert_eq!((is_refused, outcome.is_some()), (is_told, is_told), "{outcome:?}");
        eventually("it has left", SOON, || (state_of(&mut client, id).1.as_deref() == Some("left")).then_some(()));
    }
}
