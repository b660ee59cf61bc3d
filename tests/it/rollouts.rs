//! Rehearses a Deployment's rolling update: every worker process is replaced by another one while
//! events are appended.

use std::collections::{BTreeMap, VecDeque};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, Sender, bounded, tick};
use postgres::Client;

use crate::probes::assert_alive;
use crate::support::cluster::{assert_keys_are_covered, assert_read_models_become_right};
use crate::support::http::get;
use crate::support::ledger::append_plainly;
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::{TestDatabase, database, eventually};

const REPLICAS: usize = 5;

/// The Deployment's `terminationGracePeriodSeconds`.
const GRACE_PERIOD: Duration = Duration::from_secs(60);

/// The longest time for which a rollout may pause processing, summed over all its generations. A
/// machine that is busy with other tests is slow.
const MOST_PAUSED: Duration = Duration::from_secs(20);

#[test]
fn one_pod_at_a_time_costs_a_join_and_a_leave_each() {
    roll_out(1, "1s", 5);
}

#[test]
fn a_surge_of_a_quarter_costs_no_more() {
    // 25 % of 5, rounded up. On a busy machine, two pods that start together may register too far
    // apart to share a generation.
    roll_out(2, "1s", 5);
}

#[test]
fn a_full_surge_gathers_all_joins_in_one_generation() {
    roll_out(5, "10s", 1);
}

/// Replaces all workers as a Deployment does with `maxSurge: surge` and `maxUnavailable: 0`: as
/// many old pods are told to stop as new ones have become ready, and the next new ones start while
/// the old ones are still leaving. No more than `most_joins` generations may be due to new pods.
fn roll_out(surge: usize, registration_wait: &str, most_joins: i64) {
    let database = database();
    let mut client = database.client();
    let start = || WorkerProcess::start(database.url(), &[("REGISTRATION_WAIT", registration_wait)]);
    let mut old: Vec<WorkerProcess> = (0..REPLICAS).map(|_| start()).collect();
    for worker in &mut old {
        worker.await_processing(REPLICAS);
    }
    let before: i64 = client.query_one("SELECT max(number) FROM orchestrator_generations", &[]).unwrap().get(0);

    let load = Load::start(&database);
    let begun = Instant::now();
    let mut new = Vec::new();
    let mut told = Vec::new();
    while !old.is_empty() {
        let mut starting: Vec<_> = (0..surge.min(old.len())).map(|_| start()).collect();
        for worker in &mut starting {
            worker.await_line(&["processing:"]);
        }
        for mut worker in old.drain(..starting.len()) {
            worker.signal(Signal::TERM);
            told.push((worker, Instant::now()));
        }
        new.extend(starting);
    }
    let mut slowest_exit = Duration::ZERO;
    for (worker, at) in &mut told {
        let (left, _) = worker.await_line(&[" left: "]);
        assert_eq!(worker.exit_code(), Some(0), "{:#?}", worker.log());
        slowest_exit = slowest_exit.max(left - *at);
    }
    for worker in &mut new {
        worker.await_processing(REPLICAS);
    }
    let took = begun.elapsed();
    let appended = load.finish();
    assert_read_models_become_right(&mut client);
    assert_keys_are_covered(&mut client);

    let generations = generations_since(&mut client, before);
    let pauses = pauses_since(before, told.iter_mut().map(|(worker, _)| worker).chain(&mut new));
    let in_all: Duration = pauses.values().sum();
    println!(
        "surge {surge}: {REPLICAS} workers replaced in {took:.1?} while {appended} events were appended; generations {generations:?}, \
         paused for {in_all:?} in all, {:?} at most; slowest exit {slowest_exit:?}",
        pauses.values().max().unwrap()
    );
    let joins = generations.get("joined").copied().unwrap_or(0);
    assert!(joins <= most_joins, "{generations:?}");
    // A leave does not wait for others, but leaves at the same time may share a generation.
    assert!(generations.values().sum::<i64>() <= most_joins + i64::try_from(REPLICAS).unwrap(), "{generations:?}");
    assert!(in_all < MOST_PAUSED, "{pauses:?}");
    assert!(slowest_exit < GRACE_PERIOD, "{slowest_exit:?}");
}

/// For how long a new worker must have been ready before an old one is told to stop: a Deployment's
/// `minReadySeconds`, shortened.
const MIN_READY: Duration = Duration::from_secs(2);
/// Within this time a new worker must have been ready for that long: `progressDeadlineSeconds`,
/// shortened.
const PROGRESS_DEADLINE: Duration = Duration::from_secs(15);

/// Whether a worker says in time that it is ready, and stays ready.
fn becomes_available(worker: &mut WorkerProcess) -> bool {
    let address = worker.metrics_address();
    let (begun, ask) = (Instant::now(), tick(Duration::from_millis(100)));
    let mut ready_since = None;
    while begun.elapsed() < PROGRESS_DEADLINE {
        ask.recv().unwrap();
        assert_alive(&address);
        if get(&address, "/readyz").0 == 200 {
            if ready_since.get_or_insert_with(Instant::now).elapsed() > MIN_READY {
                return true;
            }
        } else {
            ready_since = None;
        }
    }
    false
}

/// Replaces the workers one after the other, as a Deployment does with `maxSurge: 1` and
/// `maxUnavailable: 0`. Stops at the first new one that does not become available, and returns it.
fn roll_over(workers: &mut VecDeque<WorkerProcess>, start: impl Fn() -> WorkerProcess) -> Option<WorkerProcess> {
    for _ in 0..workers.len() {
        let mut new = start();
        if !becomes_available(&mut new) {
            return Some(new);
        }
        let mut old = workers.pop_front().unwrap();
        old.signal(Signal::TERM);
        assert_eq!(old.exit_code(), Some(0), "{:#?}", old.log());
        workers.push_back(new);
    }
    None
}

#[test]
fn a_version_that_panics_stops_a_rollout_at_its_first_pod() {
    let database = database();
    let mut client = database.client();
    let start = |panics| {
        let options = [("RETRY_ATTEMPTS", "2"), ("RETRY_FIRST_DELAY", "10ms"), ("PANIC_PROBABILITY", panics)];
        WorkerProcess::start_program("chaos_worker", database.url(), &options)
    };
    let mut workers: VecDeque<_> = (0..3).map(|_| start("0")).collect();
    for worker in &mut workers {
        worker.await_processing(3);
    }
    let load = Load::start(&database);
    let before: Vec<i32> = workers.iter().map(WorkerProcess::pid).collect();
    assert!(roll_over(&mut workers, || start("0")).is_none(), "a sound version replaces all");
    let sound: Vec<i32> = workers.iter().map(WorkerProcess::pid).collect();
    assert!(!sound.iter().any(|pid| before.contains(pid)));

    let mut stopped_at = roll_over(&mut workers, || start("1")).expect("it is never ready for long enough");
    assert_eq!(workers.iter().map(WorkerProcess::pid).collect::<Vec<_>>(), sound, "none was told to stop");
    let (status, reason) = get(&stopped_at.metrics_address(), "/readyz");
    assert!(status == 503 && reason.contains("halted on this worker: "), "{status} {reason}");
    stopped_at.await_logged(&["ERROR", "projection halted: replica_set=chaos worker=", " attempts=2 "]);
    let handled = |client: &mut Client| -> i64 {
        let sql = "SELECT coalesce(sum(events), 0)::bigint FROM event_type_counts";
        client.query_one(sql, &[]).unwrap().get(0)
    };
    let seen = handled(&mut client);
    eventually("the old ones continue", Duration::from_secs(10), || (handled(&mut client) > seen).then_some(()));
    for worker in &mut workers {
        let address = worker.metrics_address();
        assert_alive(&address);
        assert_eq!(get(&address, "/readyz").0, 200);
    }

    // The rollout is undone.
    stopped_at.signal(Signal::TERM);
    assert_eq!(stopped_at.exit_code(), Some(0), "{:#?}", stopped_at.log());
    load.finish();
    assert_read_models_become_right(&mut client);
    assert_keys_are_covered(&mut client);
}

/// The number of generations since then, by reason.
fn generations_since(client: &mut Client, number: i64) -> BTreeMap<String, i64> {
    let sql = "SELECT reason, count(*) FROM orchestrator_generations WHERE number > $1 GROUP BY 1";
    client.query(sql, &[&number]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// For each generation, the longest pause of a worker. The first line of a new worker is not a
/// pause.
fn pauses_since<'a>(number: i64, workers: impl Iterator<Item = &'a mut WorkerProcess>) -> BTreeMap<i64, Duration> {
    let mut longest = BTreeMap::new();
    for worker in workers {
        for line in worker.log().iter().filter(|line| line.contains(" processing: ")).skip(1) {
            let generation: i64 = value(line, "generation=").parse().unwrap();
            if generation > number {
                let pause: &mut Duration = longest.entry(generation).or_default();
                *pause = duration(value(line, "pause=")).max(*pause);
            }
        }
    }
    longest
}

fn value<'a>(line: &'a str, name: &str) -> &'a str {
    line.split(name).nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// Parses a duration that `Debug` has printed.
fn duration(text: &str) -> Duration {
    let unit = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap();
    let (number, unit) = text.split_at(unit);
    let seconds = match unit {
        "s" => 1.0,
        "ms" => 1e-3,
        "µs" => 1e-6,
        _ => panic!("{text}"),
    };
    Duration::from_secs_f64(number.parse::<f64>().unwrap() * seconds)
}

/// Appends about two hundred events a second. Workers keep up with that even on a busy machine.
struct Load {
    stop: Sender<()>,
    thread: JoinHandle<i64>,
}

impl Load {
    fn start(database: &TestDatabase) -> Self {
        let mut client = database.client();
        let (stop, stopped) = bounded(0);
        let thread = thread::Builder::new().name("load".into()).spawn(move || {
            let mut appended = 0;
            while stopped.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
                append_plainly(&mut client, 10, 10);
                appended += 10;
            }
            appended
        });
        Self { stop, thread: thread.unwrap() }
    }

    /// Returns how many events it has appended.
    fn finish(self) -> i64 {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}
