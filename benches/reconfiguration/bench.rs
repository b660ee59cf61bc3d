//! The measured replica set: the faults that it suffers, and what is observed of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, unbounded};
use postgres::{Client, NoTls};
use pupsourcing_orchestrator::Metrics;
use pupsourcing_orchestrator::testing::{Postgres, StopMode};

use crate::fault::{Fault, Round, print_header};
use crate::reports::Report;
use crate::support::pause;
use crate::support::proc::processor_time;
use crate::support::units::duration;
use crate::support::worker_process::{Line, Process, Signal, await_left, order_to_leave, start_worker};
use crate::worker::{PROJECTIONS, REPLICA_SET, orchestrator};
use crate::writer::Writer;

/// How long the workers are left alone between two faults.
const REST: Duration = Duration::from_millis(500);

/// How long the bench waits for the workers.
const PATIENCE: Duration = Duration::from_secs(90);

/// A replica set on a server of its own, and a writer that appends events.
pub(crate) struct Bench {
    // The users of the server are declared, and so dropped, before the server.
    workers: Vec<Process>,
    _writer: Writer,
    client: Client,
    url: String,
    server: Postgres,
    said: Receiver<Line>,
    say: Sender<Line>,
    /// The last report of each worker, by its process id.
    running: BTreeMap<u32, Report>,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let server = Postgres::options().setting("max_connections", "500").start().unwrap();
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
        let (say, said) = unbounded();
        print_header();
        Self { workers: Vec::new(), _writer: writer, client, url, server, said, say, running: BTreeMap::new() }
    }

    /// Lets workers join or leave until there are this many, and all of them process.
    pub(crate) fn resize(&mut self, workers: usize) {
        while self.workers.len() < workers {
            self.start_worker();
        }
        while self.workers.len() > workers {
            let mut worker = self.remove(self.workers.len() - 1);
            order_to_leave(&mut worker);
            await_left(worker);
        }
        self.await_processing();
        pause(REST);
    }

    fn start_worker(&mut self) {
        self.workers.push(start_worker(&[&self.url], &self.say));
    }

    /// Waits until all workers process in one generation that has no other workers. Returns when
    /// the last one began.
    fn await_processing(&mut self) -> Instant {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let reports: Option<Vec<&Report>> = self.workers.iter().map(|w| self.running.get(&w.pid())).collect();
            if let Some(reports) = reports
                && reports.iter().all(|r| r.partitions == reports.len() && r.generation == reports[0].generation)
            {
                return reports.iter().map(|report| report.at).max().expect("there is a worker");
            }
            let line = self.said.recv_deadline(deadline).unwrap_or_else(|_| {
                panic!("{} workers do not process together after {PATIENCE:?}: {:?}", self.workers.len(), self.running)
            });
            let report = Report::from(line);
            if self.workers.iter().any(|worker| worker.pid() == report.pid) {
                self.running.insert(report.pid, report);
            }
        }
    }

    pub(crate) fn inflict(&mut self, fault: Fault) -> Round {
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
                    order_to_leave(worker);
                });
                round.pauses.append(&mut round.others);
                if let Some(leaver) = leaver {
                    await_left(leaver);
                }
                round
            }
            Fault::Kill => self.strike(victim, Signal::KILL),
            Fault::SigStop => self.strike(victim, Signal::STOP),
            Fault::Restart => self.restart(),
        }
    }

    /// Sends the signal to a worker. After the others process without it, the worker is killed.
    fn strike(&mut self, victim: usize, signal: Signal) -> Round {
        let mut struck = None;
        self.change(|bench| {
            let worker = struck.insert(bench.remove(victim));
            worker.signal(signal).unwrap();
        })
    }

    fn remove(&mut self, index: usize) -> Process {
        let worker = self.workers.remove(index);
        self.running.remove(&worker.pid());
        worker
    }

    /// Changes the membership, and measures how this affects the workers that stay.
    fn change(&mut self, act: impl FnOnce(&mut Self)) -> Round {
        let before = self.running.clone();
        let since = self.server_time();
        let begun = Instant::now();
        act(self);
        let paused = self.await_processing().duration_since(begun);
        let others = self
            .running
            .iter()
            .filter_map(|(pid, now)| before.get(pid).map(|then| now.paused.saturating_sub(then.paused)));
        let mut round = Round { pauses: vec![paused], others: others.collect(), ..Round::default() };
        pause(REST);
        self.look_back(&mut round, since);
        round.until_resumed = paused.saturating_sub(round.until_created + round.until_active);
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
            pause(Duration::from_millis(50));
        };
        let mut round = Round { pauses, ..Round::default() };
        // A worker that is evicted by mistake would be evicted within this time.
        pause(Duration::from_secs(2));
        self.await_processing();
        self.look_back(&mut round, since);
        round.longest_wait = self.longest_wait(ready);
        round
    }

    /// Adds what the database recorded since then.
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

    /// Prints how long events wait, and how busy the machine is, without any fault. The pauses have
    /// to be compared with this.
    pub(crate) fn print_quiet(&mut self) {
        let (since, before) = (self.server_time(), processor_time());
        pause(Duration::from_secs(2));
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
        let [median, worst] = [0, 1].map(|column| duration(Duration::from_secs_f64(row.get(column))));
        println!(
            "{:>7} at rest: an event waits {median} at the median, {worst} at most{}",
            self.workers.len(),
            busy.unwrap_or_default()
        );
    }
}
