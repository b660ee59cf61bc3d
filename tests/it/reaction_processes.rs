//! A reaction in worker processes that are killed, with a receiver that fails, hangs and restarts.

use std::time::{Duration, Instant};

use fastrand::Rng;
use postgres::Client;
use pupsourcing_orchestrator::{EventStore, ExpectedVersion, NewEvent, StreamId};

use crate::support::handlers::prepared;
use crate::support::ledger::happened;
use crate::support::parking::assert_accounts;
use crate::support::reactions::pass_time;
use crate::support::receiver::{Findings, Mood, Receiver, events, findings};
use crate::support::worker_process::{Signal, WorkerProcess, command};
use crate::support::{TestDatabase, database, eventually};

const SOON: Duration = Duration::from_secs(60);

/// How many events a worker of the example sends at once.
const IN_FLIGHT: usize = 8;

/// How many events, for each in flight, may be done before one that is not.
const WINDOW: usize = 16;

/// Starts a worker of the example, with a receiver. It waits so long for an answer that it never
/// gives up one that was accepted.
fn worker(database: &TestDatabase, receiver: &Receiver) -> WorkerProcess {
    let mut command = command("reactions");
    command
        .args(["worker", database.url(), &receiver.address(), "50"])
        .env("RUST_LOG", "pupsourcing_orchestrator=info")
        .env("ORCHESTRATOR_COORDINATION_TIMEOUT", "60s")
        .env("ORCHESTRATOR_SESSION_LOSS_GRACE", "200ms")
        .env("ORCHESTRATOR_POLL_INTERVAL", "100ms");
    WorkerProcess::start_command(command)
}

/// A replica set, its receiver and its writer.
struct Show {
    rng: Rng,
    database: TestDatabase,
    client: Client,
    receiver: Receiver,
    workers: Vec<WorkerProcess>,
    /// How the receiver may be.
    moods: &'static [Mood],
    /// When the receiver is well again.
    well_at: Option<Instant>,
}

impl Show {
    /// Starts with this many workers, before the first event.
    fn begin(workers: usize, moods: &'static [Mood]) -> Self {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let database = database();
        let client = prepared(&database);
        let receiver = Receiver::start().unwrap();
        let rng = Rng::with_seed(seed);
        let mut show = Self { rng, database, client, receiver, workers: Vec::new(), moods, well_at: None };
        for _ in 0..workers {
            show.join();
        }
        // The reaction starts at the end.
        show.workers[0].await_line(&["processing:"]);
        show
    }

    fn join(&mut self) {
        self.workers.push(worker(&self.database, &self.receiver));
    }

    fn any_worker(&mut self) -> WorkerProcess {
        let index = self.rng.usize(..self.workers.len());
        self.workers.swap_remove(index)
    }

    fn kill_one(&mut self) {
        let mut worker = self.any_worker();
        worker.signal(Signal::KILL);
        worker.await_end();
    }

    /// Waits for the end of a worker that leaves. The receiver is well meanwhile, so that it can.
    fn leave_one(&mut self) {
        self.recover();
        let mut worker = self.any_worker();
        worker.signal(Signal::TERM);
        assert_eq!(worker.exit_code(), Some(0));
    }

    /// Appends some events, and now and then changes how the receiver is.
    fn go_on(&mut self) {
        for _ in 0..self.rng.usize(1..12) {
            let order = StreamId::new("shop", "Order", format!("order-{}", self.rng.u8(..40)));
            let events: Vec<NewEvent> = std::iter::repeat_with(happened).take(self.rng.usize(1..4)).collect();
            EventStore::default().append(&mut self.client, &order, ExpectedVersion::Any, &events).unwrap();
        }
        pass_time(Duration::from_millis(self.rng.u64(5..25)));
        match self.well_at {
            Some(at) if Instant::now() >= at => self.recover(),
            None if self.rng.u8(..15) == 0 => {
                self.receiver.be(self.moods[self.rng.usize(..self.moods.len())]);
                self.well_at = Some(Instant::now() + Duration::from_millis(self.rng.u64(50..500)));
            }
            _ => {}
        }
    }

    fn recover(&mut self) {
        self.receiver.be(Mood::Well);
        self.well_at = None;
    }

    /// Waits until everything is delivered and recorded, and compares.
    #[track_caller]
    fn end(&mut self) -> Findings {
        self.recover();
        let events = events(&mut self.client).unwrap();
        assert!(events.len() > 300, "{}", events.len());
        eventually("all events are delivered", SOON, || (self.receiver.events() == events.len()).then_some(()));
        let sql = "SELECT bool_and(position = (SELECT max(global_position) FROM events)) FROM orchestrator_checkpoints";
        eventually("it is recorded", SOON, || self.client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(()));
        assert_accounts(&mut self.client);
        findings(&events, &self.receiver.accepted())
    }
}

/// Kills a worker now and then, and starts another. Returns how many were killed, and what the
/// receiver has found.
fn kill_workers(moods: &'static [Mood]) -> (usize, Findings) {
    let mut show = Show::begin(3, moods);
    let mut kills = 0;
    for round in 1..=300 {
        show.go_on();
        if round % 40 == 0 {
            show.kill_one();
            show.join();
            kills += 1;
        }
    }
    let found = show.end();
    println!("{kills} kills: {found:?}");
    (kills, found)
}

#[test]
fn a_killed_worker_repeats_only_what_was_in_flight() {
    let (kills, found) = kill_workers(&[Mood::Hangs]);
    assert_eq!(found, Findings { repeated: found.repeated, ..Findings::default() });
    // What was in flight, and what was done behind it.
    let most = kills * IN_FLIGHT * WINDOW;
    assert!(found.repeated <= most, "{found:?}, and at most {most} can have been repeated");
}

#[test]
fn nothing_is_lost_while_workers_are_killed_and_calls_fail() {
    let (_, found) = kill_workers(&[Mood::Answers(500), Mood::Answers(429), Mood::Hangs, Mood::Away]);
    assert_eq!(found, Findings { repeated: found.repeated, ..Findings::default() });
}

#[test]
fn workers_that_join_and_leave_repeat_nothing() {
    let mut show = Show::begin(2, &[Mood::Hangs]);
    for round in 1..=200 {
        show.go_on();
        match round % 60 {
            20 => show.join(),
            50 => show.leave_one(),
            _ => {}
        }
    }
    assert_eq!(show.end(), Findings::default());
}
