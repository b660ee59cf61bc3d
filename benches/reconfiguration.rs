//! For how long events are not processed while the workers of a replica set change, at default settings, against the bounds the library
//! sets itself.
//!
//! ```text
//! cargo bench --bench reconfiguration                all sizes, in about eight minutes
//! cargo bench --bench reconfiguration -- --test      two workers, once each, no SIGSTOP: does it work?
//! cargo bench --bench reconfiguration -- kill        only the faults with this in their name
//! BENCH_WORKERS=2,8 BENCH_ROUNDS=20 cargo bench …    other sizes (1,2,4,8,16,32) and rounds (5)
//! BENCH_SIGSTOP=2,8 cargo bench …                    sizes at which a worker is frozen, for half a minute each (2)
//! ```
//!
//! The workers are processes of their own, with two projections each, on a private PostgreSQL. Ten times a second 64 events are appended,
//! evenly spread, so every partition always has something to do. `workers` is their number before the fault. What is measured:
//!
//! - `join`, `leave`: the pause of each worker that stays, as it reports it in `coordination_duration_seconds`. In `leave` also that of the
//!   leaver's partition: from the order to leave until the last of the others processes again.
//! - `kill`, `sigstop`: from the signal until the last of the others processes again, which is the pause of the victim's partition.
//!   `kill, others` is the pause of those that stay.
//! - `restart`: from the moment the server accepts connections until a projection of a worker has handled an event that was appended
//!   after that moment; for each projection of each worker.
//!
//! `event` is the longest time from the append of any event to its handler, during the fault (from the server's return on, in
//! `restart`). `gen/round` counts the generations that were created: one for each change of membership is enough, and a restart needs
//! none. The last three columns say, at the median of the rounds, where the time went: until the first new generation was
//! created, from there until the last one was active, and from there until the last worker processed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking"
)]

#[path = "../examples/support/private_postgres.rs"]
mod private_postgres;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use postgres::{Client, NoTls, Transaction};
use private_postgres::{Options, PrivatePostgres, StopMode};
use pupsourcing_orchestrator::{BoxError, Database, Event, Metrics, Orchestrator, Projection};

const REPLICA_SET: &str = "bench";
const PROJECTIONS: [&str; 2] = ["first", "second"];

/// How often events are appended.
const TICK: Duration = Duration::from_millis(100);

/// How long the workers are left alone between two faults.
const REST: Duration = Duration::from_millis(500);

/// How long the workers may take to reach what is waited for.
const PATIENCE: Duration = Duration::from_secs(90);

/// The default `stale_worker_timeout`.
const STALE: Duration = Duration::from_secs(30);

const AS_WORKER: &str = "--as-worker";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // How this program starts itself as a worker.
        [AS_WORKER, url] => work(url),
        _ => run(&arguments),
    }
}

fn run(arguments: &[String]) {
    // `cargo test --benches` says neither.
    let quick = arguments.iter().any(|a| a == "--test") || !arguments.iter().any(|a| a == "--bench");
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let faults: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| filters.is_empty() || filters.iter().any(|filter| fault.name().contains(filter.as_str())))
        .collect();
    if faults.is_empty() {
        return;
    }
    let sizes = numbers("BENCH_WORKERS").unwrap_or_else(|| if quick { vec![2] } else { vec![1, 2, 4, 8, 16, 32] });
    let rounds = numbers("BENCH_ROUNDS").map_or(if quick { 1 } else { 5 }, |rounds| rounds[0]);
    let frozen = numbers("BENCH_SIGSTOP").unwrap_or_else(|| if quick { Vec::new() } else { vec![2] });

    let mut bench = Bench::new();
    for workers in sizes {
        bench.resize(workers);
        bench.print_quiet();
        let mut found: BTreeMap<Fault, Vec<Round>> = BTreeMap::new();
        for round in 0..rounds {
            for fault in &faults {
                let alone = workers == 1 && fault.takes_a_worker();
                let seldom = *fault == Fault::SigStop && (round > 0 || !frozen.contains(&workers));
                if !alone && !seldom {
                    bench.resize(workers);
                    found.entry(*fault).or_default().push(bench.inflict(*fault));
                }
            }
        }
        for (fault, rounds) in found {
            fault.print(workers, &rounds);
        }
    }
}

/// A list of numbers in the environment: `1,2,4`.
fn numbers(variable: &str) -> Option<Vec<usize>> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    let parse =
        |number: &str| number.trim().parse().unwrap_or_else(|_| panic!("{variable}={text}: numbers, such as 2,8"));
    Some(text.split(',').map(parse).collect())
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Fault {
    Join,
    Leave,
    Kill,
    SigStop,
    Restart,
}

/// What was seen of one fault.
#[derive(Debug, Default)]
struct Round {
    /// What the bound is for.
    pauses: Vec<Duration>,
    /// The pauses of the workers that a fault does not hit.
    others: Vec<Duration>,
    longest_wait: Duration,
    generations: i64,
    until_created: Duration,
    until_active: Duration,
    until_resumed: Duration,
}

impl Fault {
    const ALL: [Self; 5] = [Self::Join, Self::Leave, Self::Kill, Self::SigStop, Self::Restart];

    fn name(self) -> &'static str {
        match self {
            Self::Join => "join",
            Self::Leave => "leave",
            Self::Kill => "kill",
            Self::SigStop => "sigstop",
            Self::Restart => "restart",
        }
    }

    fn takes_a_worker(self) -> bool {
        matches!(self, Self::Leave | Self::Kill | Self::SigStop)
    }

    /// The bound, and which of the pauses it is for.
    fn bound(self) -> (&'static str, Duration) {
        match self {
            Self::Join | Self::Leave => ("p50", Duration::from_millis(50)),
            Self::Kill | Self::Restart => ("worst", Duration::from_secs(2)),
            Self::SigStop => ("worst", STALE + Duration::from_secs(2)),
        }
    }

    fn print(self, workers: usize, rounds: &[Round]) {
        let all =
            |pauses: fn(&Round) -> &[Duration]| -> Vec<Duration> { rounds.iter().flat_map(pauses).copied().collect() };
        let figure =
            |of: fn(&Round) -> Duration, share| seconds(percentile(&rounds.iter().map(of).collect::<Vec<_>>(), share));
        let step = |of| if self == Self::Restart { "-".to_owned() } else { figure(of, 50) };
        let pauses = all(|round| &round.pauses);
        let (which, bound) = self.bound();
        let held = if which == "p50" { percentile(&pauses, 50) } else { percentile(&pauses, 100) };
        let generations: i64 = rounds.iter().map(|round| round.generations).sum();
        println!(
            "{workers:>7} {:<13}{} {:>10} {:>5}/{:<3} {which:>6} < {:<8} {:<5}{:>10} {:>10} {:>10}",
            self.name(),
            spread(&pauses),
            figure(|round| round.longest_wait, 100),
            generations,
            rounds.len(),
            seconds(bound),
            if held < bound { "holds" } else { "OVER" },
            step(|round| round.until_created),
            step(|round| round.until_active),
            step(|round| round.until_resumed),
        );
        let others = all(|round| &round.others);
        if !others.is_empty() {
            println!("{workers:>7} {:<13}{}", format!("{}, others", self.name()), spread(&others));
        }
    }
}

fn print_header() {
    println!(
        "{:>7} {:<13}{:>5} {:>10} {:>10} {:>10} {:>10} {:>9} {:>17} {:<5}{:>10} {:>10} {:>10}",
        "workers",
        "fault",
        "n",
        "p50",
        "p99",
        "worst",
        "event",
        "gen/round",
        "bound",
        " ",
        "created",
        "active",
        "resumed"
    );
}

fn spread(pauses: &[Duration]) -> String {
    let [p50, p99, worst] = [50, 99, 100].map(|share| seconds(percentile(pauses, share)));
    format!("{:>5} {p50:>10} {p99:>10} {worst:>10}", pauses.len())
}

fn seconds(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}

/// The smallest value that so many percent of all do not exceed.
fn percentile(values: &[Duration], percent: usize) -> Duration {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

struct Bench {
    // Those who use the server go before it.
    workers: Vec<Worker>,
    _writer: Writer,
    client: Client,
    url: String,
    server: PrivatePostgres,
    reports: Receiver<Report>,
    reporter: Sender<Report>,
    /// What each worker said last, by its process id.
    running: BTreeMap<u32, Report>,
}

/// A worker processes, and says so.
#[derive(Clone, Copy, Debug)]
struct Report {
    pid: u32,
    at: Instant,
    generation: i64,
    partitions: usize,
    /// For how long it has been paused in all its life.
    paused: Duration,
}

impl Bench {
    fn new() -> Self {
        let settings = vec![("max_connections".into(), "500".into())];
        let server =
            PrivatePostgres::start(Options { settings, ..Options::default() }).unwrap_or_else(|e| panic!("{e}"));
        let url = server.url("postgres");
        orchestrator(&url, Metrics::disabled().unwrap()).migrate().unwrap();
        let mut client = Client::connect(&url, NoTls).unwrap();
        client
            .batch_execute(
                "CREATE TABLE handled (pid int, projection text, appended_at timestamptz, handled_at timestamptz);
                 CREATE INDEX ON handled (handled_at)",
            )
            .unwrap();
        let writer = Writer::start(&mut client, &url);
        let (reporter, reports) = unbounded();
        print_header();
        Self { workers: Vec::new(), _writer: writer, client, url, server, reports, reporter, running: BTreeMap::new() }
    }

    /// Lets workers join or leave until there are so many, and all process.
    fn resize(&mut self, workers: usize) {
        while self.workers.len() < workers {
            self.start_worker();
        }
        while self.workers.len() > workers {
            let worker = self.workers.pop().unwrap();
            self.running.remove(&worker.pid());
            worker.leave();
        }
        self.await_processing();
        thread::sleep(REST);
    }

    fn start_worker(&mut self) {
        self.workers.push(Worker::start(&self.url, self.reporter.clone()));
    }

    /// Waits until all workers process in one generation, which has no partition of anybody else. Returns since when.
    fn await_processing(&mut self) -> Instant {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reports: Option<Vec<&Report>> = self.workers.iter().map(|w| self.running.get(&w.pid())).collect();
            if let Some(reports) = reports
                && reports.iter().all(|r| r.partitions == reports.len() && r.generation == reports[0].generation)
            {
                return reports.iter().map(|report| report.at).max().expect("there is a worker");
            }
            let report = self.reports.recv_deadline(deadline).unwrap_or_else(|_| {
                panic!("{} workers do not process together after {PATIENCE:?}: {:?}", self.workers.len(), self.running)
            });
            if self.workers.iter().any(|worker| worker.pid() == report.pid) {
                self.running.insert(report.pid, report);
            }
        }
    }

    fn inflict(&mut self, fault: Fault) -> Round {
        let victim = fastrand::usize(..self.workers.len());
        match fault {
            Fault::Join => {
                let mut round = self.change(Self::start_worker);
                round.pauses = std::mem::take(&mut round.others);
                round
            }
            Fault::Leave => {
                let mut leaver = None;
                let mut round = self.change(|bench| {
                    let worker = leaver.insert(bench.remove(victim));
                    worker.order_to_leave();
                });
                round.pauses.append(&mut round.others);
                if let Some(leaver) = leaver {
                    leaver.leave();
                }
                round
            }
            Fault::Kill => self.change(|bench| bench.remove(victim).kill()),
            Fault::SigStop => {
                let mut frozen = None;
                self.change(|bench| frozen = Some(bench.remove(victim).freeze()))
            }
            Fault::Restart => self.restart(),
        }
    }

    fn remove(&mut self, index: usize) -> Worker {
        let worker = self.workers.remove(index);
        self.running.remove(&worker.pid());
        worker
    }

    /// A change of membership, and what it does to those that stay.
    fn change(&mut self, act: impl FnOnce(&mut Self)) -> Round {
        let before = self.running.clone();
        let since = self.server_time();
        let begun = Instant::now();
        act(self);
        let pause = self.await_processing().duration_since(begun);
        let others = self
            .running
            .iter()
            .filter_map(|(pid, now)| before.get(pid).map(|then| now.paused.saturating_sub(then.paused)));
        let mut round = Round { pauses: vec![pause], others: others.collect(), ..Round::default() };
        thread::sleep(REST);
        self.look_back(&mut round, since);
        round.until_resumed = pause.saturating_sub(round.until_created + round.until_active);
        round
    }

    fn restart(&mut self) -> Round {
        let since = self.server_time();
        self.server.stop(StopMode::Fast).unwrap();
        self.server.start_again().unwrap();
        // The server's clock is that of this machine.
        let ready = SystemTime::now();
        self.client = Client::connect(&self.url, NoTls).unwrap();
        let pids: Vec<i32> = self.workers.iter().map(|worker| worker.pid().try_into().unwrap()).collect();
        let sql = "SELECT extract(epoch FROM min(handled_at) - $1)::float8 FROM handled
                   WHERE handled_at > $1 AND appended_at > $1 AND pid = ANY ($2) GROUP BY pid, projection";
        let deadline = Instant::now() + PATIENCE;
        let pauses = loop {
            let rows = self.client.query(sql, &[&ready, &pids]).unwrap();
            if rows.len() == pids.len() * PROJECTIONS.len() {
                break rows.iter().map(|row| Duration::from_secs_f64(row.get(0))).collect();
            }
            assert!(Instant::now() < deadline, "{} of {} workers process after a restart", rows.len() / 2, pids.len());
            thread::sleep(Duration::from_millis(50));
        };
        let mut round = Round { pauses, ..Round::default() };
        // Whoever is taken for dead by mistake would be so soon.
        thread::sleep(Duration::from_secs(2));
        self.await_processing();
        self.look_back(&mut round, since);
        round.longest_wait = self.longest_wait(ready);
        round
    }

    /// What the database knows of the time since then.
    fn look_back(&mut self, round: &mut Round, since: SystemTime) {
        let row = self
            .client
            .query_one(
                "SELECT count(*), coalesce(extract(epoch FROM min(created_at) - $1), 0)::float8,
                        coalesce(extract(epoch FROM max(activated_at) - min(created_at)), 0)::float8
                 FROM orchestrator_generations WHERE replica_set = $2 AND created_at > $1",
                &[&since, &REPLICA_SET],
            )
            .unwrap();
        round.generations = row.get(0);
        round.until_created = Duration::from_secs_f64(row.get(1));
        round.until_active = Duration::from_secs_f64(row.get(2));
        round.longest_wait = self.longest_wait(since);
    }

    fn longest_wait(&mut self, since: SystemTime) -> Duration {
        let sql = "SELECT coalesce(extract(epoch FROM max(handled_at - greatest(appended_at, $1))), 0)::float8
                   FROM handled WHERE handled_at > $1";
        Duration::from_secs_f64(self.client.query_one(sql, &[&since]).unwrap().get(0))
    }

    fn server_time(&mut self) -> SystemTime {
        self.client.query_one("SELECT clock_timestamp()", &[]).unwrap().get(0)
    }

    /// How long events wait, and how busy the machine is, while nothing happens: what the pauses are to be read against.
    fn print_quiet(&mut self) {
        let (since, before) = (self.server_time(), processor_time());
        thread::sleep(Duration::from_secs(2));
        let busy = before.zip(processor_time()).map(|(then, now)| {
            let (busy, all) = (now.0 - then.0, now.1 - then.1);
            format!(", processors {:.0} % busy", 100.0 * busy / all)
        });
        let row = self
            .client
            .query_one(
                "SELECT coalesce(percentile_cont(0.5) WITHIN GROUP (ORDER BY wait), 0), coalesce(max(wait), 0) FROM (
                     SELECT extract(epoch FROM handled_at - appended_at)::float8 AS wait FROM handled WHERE handled_at > $1) AS waits",
                &[&since],
            )
            .unwrap();
        let [median, worst] = [0, 1].map(|column| seconds(Duration::from_secs_f64(row.get(column))));
        println!(
            "{:>7} at rest: an event waits {median} at the median, {worst} at most{}",
            self.workers.len(),
            busy.unwrap_or_default()
        );
    }
}

/// Busy and all time of all processors, in some unit, where the system tells.
fn processor_time() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let times: Vec<f64> =
        stat.lines().next()?.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: f64 = times.iter().sum();
    Some((all - times.get(3)? - times.get(4)?, all))
}

/// Appends events to every partition, whatever their number, also across restarts of the server.
struct Writer {
    go_on: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    fn start(client: &mut Client, url: &str) -> Self {
        // One aggregate in the middle of each 64th of the key space.
        let rows = client
            .query(
                "SELECT DISTINCT ON (key / 1024) id FROM (
                     SELECT 'thing-' || i AS id, (hashtextextended('thing-' || i, 0) & 65535)::int AS key
                     FROM generate_series(1, 10000) AS i) AS things
                 ORDER BY key / 1024, abs(key % 1024 - 512)",
                &[],
            )
            .unwrap();
        let things: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        assert_eq!(things.len(), 64);
        let (go_on, stop) = bounded(0);
        let url = url.to_owned();
        let thread = thread::Builder::new().name("writer".into()).spawn(move || {
            let mut version = 0;
            // Nothing is ever sent.
            while stop.recv_timeout(Duration::from_millis(10)) == Err(RecvTimeoutError::Timeout) {
                // Fails while the server is down.
                if let Ok(client) = Client::connect(&url, NoTls) {
                    _ = write(client, &things, &mut version, &stop);
                }
            }
        });
        Self { go_on: Some(go_on), thread: Some(thread.unwrap()) }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.go_on = None;
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

fn write(mut client: Client, things: &[String], version: &mut i64, stop: &Receiver<()>) -> Result<(), postgres::Error> {
    let store = pupsourcing_orchestrator::EventStore::default();
    loop {
        *version += 1;
        client.execute(
            "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
             SELECT 'bench', 'Thing', id, $2, gen_random_uuid(), 'Ticked', '{}' FROM unnest($1::text[]) AS id",
            &[&things, &*version],
        )?;
        store.hint(&mut client);
        if stop.recv_timeout(TICK) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
}

/// A worker process, seen from here. Dropping it kills it; so does the end of this process.
struct Worker {
    process: Child,
    orders: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(url: &str, reporter: Sender<Report>) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([AS_WORKER, url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the one who started it.
            .process_group(0)
            .spawn()
            .unwrap();
        let (pid, orders) = (process.id(), process.stdin.take());
        let output = BufReader::new(process.stdout.take().unwrap());
        let reader = thread::Builder::new().name("reader".into()).spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let at = Instant::now();
                let fields: Vec<&str> = line.split(' ').collect();
                let [generation, partitions, paused] = fields[..] else { panic!("a worker said {line:?}") };
                _ = reporter.send(Report {
                    pid,
                    at,
                    generation: generation.parse().unwrap(),
                    partitions: partitions.parse().unwrap(),
                    paused: Duration::from_secs_f64(paused.parse().unwrap()),
                });
            }
        });
        Self { process, orders, reader: Some(reader.unwrap()) }
    }

    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn order_to_leave(&mut self) {
        if let Some(mut orders) = self.orders.take() {
            orders.write_all(b"leave\n").unwrap();
        }
    }

    fn leave(mut self) {
        self.order_to_leave();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "a worker that was to leave ended with {status}");
    }

    fn kill(mut self) {
        self.process.kill().unwrap();
    }

    /// Stops the process. Frozen, it would not hear that this one has ended; so somebody else does, and kills it.
    fn freeze(self) -> Frozen {
        let guard = Command::new("sh")
            .args(["-c", "kill -s STOP \"$1\"; read -r _; kill -s KILL \"$1\"", "guard", &self.pid().to_string()])
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Frozen { guard, worker: self }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // An error says that it has ended already.
        _ = self.process.kill();
        _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }
}

struct Frozen {
    guard: Child,
    worker: Worker,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // First of all: once the worker has been waited for, its process id may be another's.
        drop(self.guard.stdin.take());
        _ = self.guard.wait();
        _ = self.worker.process.kill();
    }
}

/// The worker process: it leaves when it is told to, and ends at once with the process that started it.
fn work(url: &str) {
    let metrics = Metrics::new().unwrap();
    let errors = env_logger::Builder::from_default_env().build();
    log::set_max_level(log::LevelFilter::Info);
    log::set_boxed_logger(Box::new(Reporter { metrics: metrics.clone(), errors })).unwrap();
    let (sender, leave) = bounded(1);
    let orders = thread::Builder::new().name("orders".into()).spawn(move || match std::io::stdin().lines().next() {
        Some(Ok(_)) => _ = sender.send(()),
        _ => std::process::exit(1),
    });
    orders.unwrap();
    orchestrator(url, metrics).run(&leave).unwrap();
}

/// Says at once when the worker processes again: a log that hears it from the library.
struct Reporter {
    metrics: Metrics,
    /// Shows what `RUST_LOG` asks for, or errors.
    errors: env_logger::Logger,
}

impl log::Log for Reporter {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Info
    }

    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        if text.starts_with("processing: ") {
            let field =
                |name| text.split(' ').find_map(|field| field.strip_prefix(name)).expect("it is in the message");
            println!("{} {} {}", field("generation="), field("of="), self.paused());
        }
        if self.errors.matches(record) {
            self.errors.log(record);
        }
    }

    fn flush(&self) {
        self.errors.flush();
    }
}

impl Reporter {
    /// The sum of all pauses, in seconds.
    fn paused(&self) -> f64 {
        let families = self.metrics.registry().expect("metrics are on").gather();
        let text = prometheus::TextEncoder::new().encode_to_string(&families).unwrap();
        let sum =
            text.lines().find(|line| line.starts_with("pupsourcing_orchestrator_coordination_duration_seconds_sum"));
        sum.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("the pause has been measured")
    }
}

fn orchestrator(url: &str, metrics: Metrics) -> Orchestrator {
    let builder = Orchestrator::builder(Database::from_url(url).unwrap(), REPLICA_SET).metrics(metrics);
    PROJECTIONS.into_iter().fold(builder, |builder, name| builder.projection(Arrivals(name))).build().unwrap()
}

/// Notes, for the first event of each transaction, when it was appended and when it arrived.
struct Arrivals(&'static str);

impl Projection for Arrivals {
    fn name(&self) -> &str {
        self.0
    }

    fn handle(&self, tx: &mut Transaction<'_>, event: &Event) -> Result<(), BoxError> {
        self.handle_batch(tx, std::slice::from_ref(event)).map(|_| ())
    }

    fn handle_batch(&self, tx: &mut Transaction<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let pid = i32::try_from(std::process::id())?;
        tx.execute(
            "INSERT INTO handled VALUES ($1, $2, $3, clock_timestamp())",
            &[&pid, &self.0, &events.first().map(Event::created_at)],
        )?;
        Ok(events.len())
    }
}
