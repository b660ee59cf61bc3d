//! Shows the library at work, on a PostgreSQL server that this program starts and removes by
//! itself. While a shop keeps selling, one worker process builds its read models and sends mails,
//! then three, then two; one of them is killed. In the end every read model and all mails are
//! compared with the events. It takes about 20 seconds.
//!
//! `--serve` runs until Ctrl-C or SIGTERM, and compares then.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it is a show")]

use std::net::SocketAddr;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select, tick};
use pupsourcing_orchestrator::{
    BoxError, Connection, Database, Error, EventStore, ExpectedVersion, Metrics, MetricsServer, Orchestrator, testing,
};

#[path = "support/app.rs"]
mod app;
#[path = "support/mailbox.rs"]
mod mailbox;
#[path = "support/process.rs"]
mod process;
#[path = "support/shop.rs"]
mod shop;

use mailbox::Mailbox;
use process::{Process, Signal, Stream};

const USAGE: &str = "usage: quickstart [--serve]\n  --serve  runs until Ctrl-C, and serves metrics";

/// What happens after how many seconds. The numbers count the workers from 1.
const SCRIPT: [(u64, Act); 6] =
    [(0, Act::Start), (4, Act::Start), (4, Act::Start), (8, Act::Leave(2)), (12, Act::Kill(1)), (15, Act::Start)];
const SHOW_SECONDS: u64 = 18;

const WRITERS: usize = 6;

/// How long the workers may take for the last events.
const CATCH_UP: Duration = Duration::from_secs(15);

#[derive(Clone, Copy)]
enum Act {
    Start,
    Leave(usize),
    Kill(usize),
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => show(false),
        ["--serve"] => show(true),
        // How this program starts itself as a worker.
        ["worker", url] => work(url, None).map(|()| ExitCode::SUCCESS),
        ["worker", url, mailbox] => work(url, mailbox.parse().ok()).map(|()| ExitCode::SUCCESS),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("{}", app::explain(&*error));
        ExitCode::FAILURE
    })
}

/// The show, from the server's start to its removal.
fn show(serve: bool) -> Result<ExitCode, BoxError> {
    let begun = Instant::now();
    let interrupt = app::shutdown_signal()?;
    let database = testing::database()?;
    let url = database.url();
    let mut client = database.client()?;
    client.batch_execute(shop::TABLES)?;
    let mailbox = Mailbox::open()?;
    let place = Place { url, mailbox: mailbox.address };
    orchestrator(url, Some(place.mailbox), Metrics::disabled()?)?.migrate()?;
    println!("PostgreSQL is ready at {url}");

    let mut writers = Writers::start(url)?;
    let mut workers = Vec::new();
    let mut table = Table::begin();
    let every_second = tick(Duration::from_secs(1));
    for second in 0.. {
        for (_, act) in SCRIPT.iter().filter(|(at, _)| *at == second) {
            perform(*act, &mut workers, place)?;
        }
        if second == SHOW_SECONDS && serve {
            println!("serving until Ctrl-C: {}", addresses(&workers));
            writers.slow_down();
        } else if second == SHOW_SECONDS {
            break;
        }
        select! {
            recv(every_second) -> _ => table.print_row(&mut client)?,
            recv(interrupt) -> _ => {
                if serve {
                    break;
                }
                return Ok(ExitCode::from(130));
            }
        }
        all_well(&mut workers)?;
    }

    println!("the writers stop; waiting for the workers to catch up");
    writers.stop()?;
    table.catch_up(&mut client)?;
    let mut differences = shop::differences(&mut client)?;
    let mails = mails(&mut client, &mailbox, &mut differences)?;
    let figures = figures(&mut client)?;
    for worker in workers.iter_mut().filter(|worker| worker.is_working()) {
        worker.leave()?;
    }
    drop((client, database));
    let took = begun.elapsed().as_secs_f64();
    if differences.is_empty() {
        println!(
            "OK: {figures}; 0 missing, 0 repeated, 0 out of order, 3 read models agree with the events; {mails}; {took:.1} s"
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!("FAILED: {figures}; {}; {took:.1} s", differences.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Where a worker finds what it needs.
#[derive(Clone, Copy)]
struct Place<'a> {
    url: &'a str,
    mailbox: SocketAddr,
}

/// Compares the mails with the events. Of a worker that is killed, one call may be repeated.
fn mails(client: &mut postgres::Client, mailbox: &Mailbox, differences: &mut Vec<String>) -> Result<String, BoxError> {
    let (received, repeated, out_of_order) = mailbox.count();
    let expected = shop::mailed(client)?;
    let missing = expected.iter().filter(|position| !received.contains(*position)).count();
    let superfluous = received.len() + missing - expected.len();
    let kills = SCRIPT.iter().filter(|(_, act)| matches!(act, Act::Kill(_))).count();
    for (count, allowed, what) in [
        (missing, 0, "mails missing"),
        (superfluous, 0, "mails about no event"),
        (out_of_order, 0, "mails out of order"),
        (repeated, kills * shop::MAILS_AT_ONCE, "mails repeated"),
    ] {
        if count > allowed {
            differences.push(format!("{count} {what}"));
        }
    }
    Ok(format!("{} mails sent, {repeated} of them again after the kill", received.len()))
}

fn perform(act: Act, workers: &mut Vec<Worker>, place: Place<'_>) -> Result<(), BoxError> {
    match act {
        Act::Start => {
            let worker = Worker::start(place)?;
            println!("worker {} starts: pid {}, {}", workers.len() + 1, worker.pid, worker.address);
            workers.push(worker);
        }
        Act::Leave(number) => {
            println!("worker {number} leaves");
            workers[number - 1].leave()?;
        }
        Act::Kill(number) => {
            let worker = &mut workers[number - 1];
            println!("worker {number} is killed: kill -9 {}", worker.pid);
            worker.kill();
        }
    }
    Ok(())
}

fn addresses(workers: &[Worker]) -> String {
    let addresses: Vec<&str> = workers.iter().filter(|w| w.is_working()).map(|w| w.address.as_str()).collect();
    addresses.join(" ")
}

fn all_well(workers: &mut [Worker]) -> Result<(), BoxError> {
    for (number, worker) in (1..).zip(workers) {
        if let Some(process) = &mut worker.process
            && let Some(status) = process.ended()?
        {
            return Err(format!("worker {number} ended by itself: {status}").into());
        }
    }
    Ok(())
}

fn orchestrator(url: &str, mailbox: Option<SocketAddr>, metrics: Metrics) -> Result<Orchestrator, Error> {
    let builder = Orchestrator::builder(Database::from_url(url)?, "shop")
        .fold(shop::RevenuePerDay)
        .projection(shop::Customers)
        .batch_projection(shop::Timeline)
        .metrics(metrics);
    match mailbox {
        Some(to) => builder.reaction(shop::Mails { to }),
        None => builder,
    }
    .build()
}

/// A worker process: leaves on SIGTERM, as in Kubernetes.
fn work(url: &str, mailbox: Option<SocketAddr>) -> Result<(), BoxError> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    let shutdown = app::shutdown_signal()?;
    let metrics = Metrics::new()?;
    let server = MetricsServer::builder(metrics.clone()).bind("127.0.0.1:0")?;
    let handle = orchestrator(url, mailbox, metrics)?.start()?;
    server.watch(handle.health());
    println!("http://{}/metrics", server.address());
    Ok(handle.run_until(&shutdown)?)
}

/// A worker process, seen from the one that started it.
struct Worker {
    pid: u32,
    address: String,
    /// None once it has left or was killed.
    process: Option<Process>,
}

impl Worker {
    /// Returns when the worker is registered.
    fn start(place: Place<'_>) -> Result<Self, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["worker", place.url, &place.mailbox.to_string()]);
        // The address is the one line that it prints.
        let (sender, lines) = bounded(1);
        let process = Process::start(command, Stream::Stdout, sender)?;
        let address = lines.recv().map_err(|_| "a worker could not start")?.text;
        Ok(Self { pid: process.pid(), address, process: Some(process) })
    }

    fn is_working(&self) -> bool {
        self.process.is_some()
    }

    fn leave(&mut self) -> Result<(), BoxError> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        process.signal(Signal::TERM)?;
        let status = process.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a worker that was to leave ended with {status}").into()) }
    }

    fn kill(&mut self) {
        self.process = None;
    }
}

/// Threads that append events. Some transactions stay open for a while and some are rolled back, so
/// events become visible in another order than that of their positions, and some positions never
/// do.
struct Writers {
    hurry: Arc<AtomicBool>,
    /// Dropped when they are to stop.
    go_on: Option<Sender<()>>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Writers {
    fn start(url: &str) -> Result<Self, BoxError> {
        let (go_on, stop) = bounded(0);
        let mut writers = Self { hurry: Arc::new(AtomicBool::new(true)), go_on: Some(go_on), threads: Vec::new() };
        for number in 0..WRITERS {
            let (client, hurry, stop) = (Database::from_url(url)?.connect()?, writers.hurry.clone(), stop.clone());
            let thread = thread::Builder::new()
                .name(format!("writer-{number}"))
                .spawn(move || write(client, &hurry, &stop).map_err(|error| app::explain(&*error)))?;
            writers.threads.push(thread);
        }
        Ok(writers)
    }

    /// So that the disk lasts.
    fn slow_down(&self) {
        self.hurry.store(false, Ordering::Relaxed);
    }

    fn stop(&mut self) -> Result<(), BoxError> {
        self.go_on = None;
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| "a writer panicked")??;
        }
        Ok(())
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        // It matters to the show alone, which is over.
        _ = self.stop();
    }
}

fn write(mut client: Connection, hurry: &AtomicBool, stop: &Receiver<()>) -> Result<(), BoxError> {
    let store = EventStore::default();
    let rest = || Duration::from_millis(if hurry.load(Ordering::Relaxed) { 5 } else { 100 });
    // Nothing is ever sent.
    while stop.recv_timeout(rest()) == Err(RecvTimeoutError::Timeout) {
        let mut tx = client.transaction()?;
        let (stream, events) = shop::next_events()?;
        store.append(&mut tx, &stream, ExpectedVersion::Any, &events)?;
        if fastrand::u8(..5) == 0 {
            thread::sleep(Duration::from_millis(fastrand::u64(1..30)));
        }
        if fastrand::u8(..10) == 0 {
            tx.rollback()?;
        } else {
            tx.commit()?;
            store.hint(&mut client);
        }
    }
    Ok(())
}

/// A row for every second.
struct Table {
    begun: Instant,
    last_row: Instant,
    /// Up to here all projections had handled all events at the last row.
    position: i64,
}

impl Table {
    fn begin() -> Self {
        println!("   time  generation  workers  partitions  events/s    lag  longest wait");
        let now = Instant::now();
        Self { begun: now, last_row: now, position: 0 }
    }

    fn print_row(&mut self, client: &mut postgres::Client) -> Result<(), postgres::Error> {
        let row = client.query_one(
            "SELECT g.number, (SELECT count(*) FROM orchestrator_workers WHERE replica_set = 'shop' AND state <> 'stopped'),
                    g.total_partitions, c.position,
                    (SELECT count(*) FROM events WHERE global_position > c.position) AS lag, count(e),
                    coalesce(extract(epoch FROM max(t.shown_at - e.created_at)), 0)::float8 AS wait
             FROM (SELECT min(position) AS position FROM orchestrator_checkpoints WHERE projection = ANY ($2)) c
             LEFT JOIN orchestrator_generations g ON g.replica_set = 'shop' AND g.state = 'active'
             LEFT JOIN events e ON e.global_position > $1 AND e.global_position <= c.position
             LEFT JOIN timeline t USING (global_position)
             GROUP BY g.number, g.total_partitions, c.position",
            &[&self.position, &shop::PROJECTIONS.as_slice()],
        )?;
        let (generation, partitions): (Option<i64>, Option<i32>) = (row.get(0), row.get(2));
        let (workers, lag, events, wait): (i64, i64, i64, f64) = (row.get(1), row.get(4), row.get(5), row.get(6));
        // There is none while the partitions are dealt out.
        let or_dash = |number: Option<String>| number.unwrap_or_else(|| "-".into());
        println!(
            "{:5.0} s {:>11} {workers:>8} {:>11} {:>9.0} {lag:>6} {:>10.0} ms",
            self.begun.elapsed().as_secs_f64(),
            or_dash(generation.map(|number| number.to_string())),
            or_dash(partitions.map(|number| number.to_string())),
            f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / self.last_row.elapsed().as_secs_f64(),
            wait * 1e3,
        );
        self.last_row = Instant::now();
        self.position = row.get(3);
        Ok(())
    }

    /// Waits until every projection has handled every event.
    fn catch_up(&mut self, client: &mut postgres::Client) -> Result<(), BoxError> {
        let sql = "SELECT min(position) >= (SELECT coalesce(max(global_position), 0) FROM events)
                   FROM orchestrator_checkpoints WHERE projection = ANY ($1)";
        let deadline = Instant::now() + CATCH_UP;
        while !client.query_one(sql, &[&shop::PROJECTIONS.as_slice()])?.get::<_, bool>(0) {
            if Instant::now() > deadline {
                self.print_row(client)?;
                return Err(format!("the workers have not caught up after {CATCH_UP:?}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(self.print_row(client)?)
    }
}

/// What the show amounted to.
fn figures(client: &mut postgres::Client) -> Result<String, postgres::Error> {
    let row = client.query_one(
        "SELECT (SELECT count(*) FROM events), (SELECT count(DISTINCT (aggregate_type, aggregate_id)) FROM events),
                (SELECT coalesce(max(global_position), 0) - count(*) FROM events),
                (SELECT count(*) FROM orchestrator_workers WHERE replica_set = 'shop'),
                (SELECT count(*) FROM orchestrator_generations WHERE replica_set = 'shop'),
                coalesce(extract(epoch FROM percentile_cont(0.5) WITHIN GROUP (ORDER BY waited)), 0)::float8,
                coalesce(extract(epoch FROM max(waited)), 0)::float8
         FROM (SELECT shown_at - created_at AS waited FROM timeline JOIN events USING (global_position)) AS waits",
        &[],
    )?;
    let counts: Vec<i64> = (0..5).map(|column| row.get(column)).collect();
    let (median, longest): (f64, f64) = (row.get(5), row.get(6));
    Ok(format!(
        "{} events of {} aggregates ({} positions rolled back), {} workers, {} generations, from append to read model \
         {:.0} ms at the median and {:.0} ms at most",
        counts[0],
        counts[1],
        counts[2],
        counts[3],
        counts[4],
        median * 1e3,
        longest * 1e3
    ))
}
