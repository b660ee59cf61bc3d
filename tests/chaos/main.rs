//! Chaos: real worker processes on a real server, faults of every kind, and an oracle that checks
//! the results all the time.
//!
//! `cargo test` runs it for a short time. To run it longer:
//!
//! ```sh
//! CHAOS_SECONDS=3600 cargo test --release exactly_once_whatever_happens -- --nocapture
//! ```
//!
//! It prints its seed. `CHAOS_SEED` repeats a schedule of faults, but not the timing of the
//! operating system. The short run always uses the same seed, a longer run a different one each
//! time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod crew;
mod deeds;
#[allow(dead_code, reason = "the worker runs the reaction")]
mod deliveries;
#[allow(dead_code, reason = "the worker's handlers fail")]
mod faults;
#[allow(dead_code, reason = "the worker runs the folds")]
mod folds;
mod neighbour;
mod operator;
mod oracle;
mod ownership;
mod probes;
mod proxy;
mod reader;
mod receiver;
mod roles;
mod schedule;
mod server;
#[path = "../it/support/mod.rs"]
mod support;
mod writers;

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, tick};
use postgres::{Client, NoTls};

use crew::{COORDINATION, Crew};
use neighbour::{Count, Neighbour};
use operator::Operator;
use oracle::Watch;
use ownership::{Ownership, all_take_part, situation};
use proxy::Proxy;
use reader::Reader;
use receiver::Receiver;
use schedule::{AT_FIRST, Fault, SLOTS, STALE, Schedule};
use server::Server;
use writers::Writers;

/// How long the server lets a frozen worker hold the lock of the replica set, and how long a worker
/// waits for that lock. The library sets both.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// In a lull, the time until every key is owned by a worker that runs and can work. In the longest
/// case, a worker is frozen while it holds the lock of the replica set, and loses it. Then the
/// workers can be judged, and those whose heartbeats stopped are evicted. Another worker has a
/// handler that waits for rows which one of them has locked. It is excluded too, when it has not
/// become ready in time. Each step may take as long as its timeout. The last two seconds are for
/// everything else: a handler, a new connection, a slow machine.
const OWNED_IN_LULL_WITHIN: Duration =
    LOCK_PATIENCE.saturating_add(STALE).saturating_add(COORDINATION).saturating_add(Duration::from_secs(2));
/// A worker whose connections are slow can own keys. When it changes the generation, it holds the
/// lock of the replica set for this many round trips.
const ROUND_TRIPS: u32 = 20;
/// A worker that has just been started verifies the schema, migrates and opens all its connections
/// before it registers. That takes about 110 round trips.
const START_ROUND_TRIPS: u32 = 150;
/// The time from the end of a storm until every key is owned and every worker takes part. The
/// longest wait is for a worker that was frozen while it held the lock of the replica set:
/// `LOCK_PATIENCE` after `stale_worker_timeout`.
const OWNED_WITHIN: Duration = Duration::from_secs(8);
/// The time from then on until every worker says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(5);
/// The time from then on until the checkpoint that is farthest behind moves. The time to catch up
/// is not limited, because it depends on the machine.
const MOVES_WITHIN: Duration = Duration::from_secs(20);

/// After this many events, some handler must have panicked: three in a hundred calls panic.
const SOME_PANIC_WITHIN: usize = 15_000;

/// After this many events, which two projections handle, a dangerous event must have aborted a
/// process: one in 4,000 events is dangerous, and aborts one in ten calls. Most batches are handled
/// several times, because a handler panics.
const SOME_ABORT_WITHIN: usize = 40_000;

/// In a run longer than this, the neighbour must succeed at least once with each kind of deed that
/// it has tried often. Each deed occurs about once in 60 seconds, and may fail because the server
/// is away or a lock is not available.
const ALL_DEEDS_WITHIN: Duration = Duration::from_secs(150);
/// Of six attempts at a statement that waits for all transactions, such as `REINDEX CONCURRENTLY`,
/// all may be interrupted by chance: about half of them are.
const OFTEN: u32 = 12;

/// If a wait takes longer than this, the test prints the situation.
const SLOW: Duration = Duration::from_secs(4);

/// Makes handlers slow from time to time, or makes them fail: for a reason that is not the event's,
/// or for any other. It is called once for each row that they write. It is more frequent for
/// `event_type_counts`, which writes few rows, with many events each.
const HANDLER_FAULTS: &str = "
    CREATE FUNCTION meddle(probability float8) RETURNS void LANGUAGE plpgsql AS $$
        DECLARE die float8 := random() / probability;
        BEGIN
            IF die < 0.02 THEN PERFORM pg_sleep(random() * 0.05);
            ELSIF die < 0.025 THEN RAISE EXCEPTION 'it conflicts' USING ERRCODE = '40001';
            ELSIF die < 0.03 THEN RAISE EXCEPTION 'it fails';
            -- So some workers are frozen during a statement that lasts longer than their eviction.
            ELSIF die < 0.04 THEN PERFORM pg_sleep(0.5 + random() * 2);
            END IF;
        END $$";

/// How many events the reaction handles at the same time, chosen by the seed.
const IN_FLIGHT: [usize; 4] = [1, 2, 4, 8];

/// How often the test checks which workers run and which keys they own.
const LOOK_EVERY: Duration = Duration::from_millis(100);

struct Chaos {
    begun: Instant,
    server: Server,
    proxy: Proxy,
    neighbour: Neighbour,
    operator: Operator,
    crew: Crew,
    watch: Watch,
    ownership: Ownership,
    receiver: Receiver,
    lulls: Vec<Lull>,
}

/// How a lull went.
#[derive(Debug)]
struct Lull {
    /// How many workers were frozen or cut off.
    helpless: usize,
    took: Duration,
}

#[test]
fn exactly_once_whatever_happens() {
    let setting = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = setting("CHAOS_SECONDS");
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| seconds.map_or(1, |_| fastrand::u64(..)));
    let lasts = Duration::from_secs(seconds.unwrap_or(35));
    println!("CHAOS_SEED={seed}");

    let server = Server::start();
    let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into());
    roles::create(server.url());
    let url = format!("{}?application_name=chaos-worker", roles::url_of(server.url(), roles::WORKER));
    let mut urls: [String; SLOTS] = std::array::from_fn(|_| url.clone());
    urls[0] = url.replace(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()));
    Client::connect(server.url(), NoTls).unwrap().batch_execute(HANDLER_FAULTS).unwrap();
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    let deliveries = logs.with_extension("deliveries");
    _ = std::fs::remove_file(&deliveries);
    let in_flight = IN_FLIGHT[usize::try_from(seed % 4).unwrap()];
    println!("the reaction handles {in_flight} events at the same time");
    let owner = roles::url_of(server.url(), roles::OWNER);
    let mut crew = Crew::new(urls, owner, (deliveries.clone(), in_flight));
    crew.join(0);
    crew.await_processing(0);
    (1..AT_FIRST).for_each(|slot| crew.join(slot));
    let writers = Writers::start(&roles::url_of(server.url(), roles::APPENDER), seed);
    let neighbour = Neighbour::start(server.url());
    let operator = Operator::start(&roles::url_of(server.url(), roles::OPERATOR));
    let watch = Watch::start(server.url());
    let reader = Reader::start(server.url());
    let ownership = Ownership::new(server.url());

    let mut chaos = Chaos {
        begun: Instant::now(),
        server,
        proxy,
        neighbour,
        operator,
        crew,
        watch,
        ownership,
        receiver: Receiver::new(&deliveries),
        lulls: Vec::new(),
    };
    let outcome = chaos.run(&mut Schedule::new(seed), lasts);
    let tally = writers.finish();
    let outcome = outcome.and_then(|storms| {
        chaos.verify_all(&tally)?;
        Ok(storms)
    });
    chaos.crew.write_logs(&logs);
    println!("the workers' logs are in {}", logs.display());
    match outcome {
        Ok(storms) => {
            let (looks, pauses) = chaos.watch.finish();
            println!("{} reads with old snapshots, none of which went back", reader.finish());
            println!("{storms} storms, {looks} looks, {pauses} pauses seen");
            println!(
                "{} lulls, {} with a helpless worker, the longest took {:?}; no key was seen unowned for longer than {:?}",
                chaos.lulls.len(),
                chaos.lulls.iter().filter(|lull| lull.helpless > 0).count(),
                chaos.lulls.iter().map(|lull| lull.took).max().unwrap_or_default(),
                chaos.ownership.longest()
            );
            println!(
                "{} events, {} transactions rolled back, {} conflicts, {} failed",
                tally.acknowledged.len(),
                tally.rolled_back,
                tally.conflicts,
                tally.failed
            );
            let crew = &chaos.crew;
            let (started, could_not, aborted) = crew.started();
            let [fenced, evicted, refused, retried] =
                ["fenced:", "registering again", "handler failed", "batch failed"].map(|part| crew.said(part));
            let panics = crew.panics();
            println!(
                "{started} workers, {could_not} of which could not start and {aborted} were aborted, {fenced} times fenced, {evicted} back after \
                 eviction, {panics} panics of handlers, {refused} failures of theirs, {retried} of transactions"
            );
            let receipt = chaos.receiver.receipt(&mut Client::connect(chaos.server.url(), NoTls).unwrap()).unwrap();
            let interruptions = crew.interruptions(deliveries::NAME);
            println!(
                "{} deliveries, {} of them repeated; {interruptions} interruptions, {} forced rewinds",
                receipt.deliveries, receipt.repeated, receipt.rewinds
            );
            println!("the operator's commands, and their outcomes:");
            for ((command, outcome), count) in chaos.operator.finish() {
                println!("{count:>5} {command} {outcome}");
            }
            let deeds = chaos.neighbour.finish();
            println!("the neighbour, how often it succeeded and how often it tried:");
            for (kind, Count { done, tried }) in &deeds {
                println!("{done:>5} of {tried:>3} {kind}");
            }
            let never: Vec<_> = deeds.iter().filter(|(_, count)| count.done == 0 && count.tried >= OFTEN).collect();
            assert!(never.is_empty() || lasts <= ALL_DEEDS_WITHIN, "the neighbour never succeeded: {never:?}");
            let most = interruptions * receiver::most_unrecorded(in_flight);
            assert!(receipt.repeated <= most, "{} deliveries were repeated, not {most} at most", receipt.repeated);
            assert!(panics > 0 || tally.acknowledged.len() < SOME_PANIC_WITHIN, "no handler has panicked");
            assert!(aborted > 0 || tally.acknowledged.len() < SOME_ABORT_WITHIN, "no event has aborted a process");
        }
        Err(why) => panic!("{why}\nCHAOS_SEED={seed}; the faults are above"),
    }
}

impl Chaos {
    /// Runs one storm after the other. Returns the number of storms.
    fn run(&mut self, schedule: &mut Schedule, lasts: Duration) -> Result<u32, String> {
        let mut storms = 0;
        while self.begun.elapsed() < lasts {
            storms += 1;
            let storm = schedule.storm();
            println!("storm {storms}, as planned: {storm:?}");
            self.storm(&storm)?;
            self.recover()?;
        }
        Ok(storms)
    }

    fn storm(&mut self, storm: &[(Duration, Fault)]) -> Result<(), String> {
        let mut begun = Instant::now();
        let look = tick(LOOK_EVERY);
        for (at, fault) in storm {
            let due = after(at.saturating_sub(begun.elapsed()));
            loop {
                crossbeam_channel::select! {
                    recv(due) -> _ => break,
                    recv(look) -> _ => self.look()?,
                    recv(self.watch.wrong()) -> wrong => return Err(describe(wrong.ok())),
                }
            }
            self.say(&format!("{fault:?}"));
            let since = Instant::now();
            self.inflict(*fault)?;
            if *fault == Fault::Lull {
                begun += since.elapsed();
            }
        }
        Ok(())
    }

    fn look(&mut self) -> Result<(), String> {
        self.crew.look()?;
        self.ownership.look(&self.capable());
        Ok(())
    }

    /// The workers that can own keys: those that are not frozen, cut off or leaving. A worker whose
    /// connections are slow can own keys, and a worker whose connections have just been ended must
    /// be able to.
    fn capable(&self) -> Vec<i32> {
        let cut_off = |slot| slot == 0 && self.proxy.is_holding();
        let capable = |(slot, _): &(usize, i32)| !self.crew.is_frozen(*slot) && !cut_off(*slot);
        self.crew.pids().filter(capable).map(|(_, pid)| pid).collect()
    }

    /// Waits, while the current faults continue and no new ones begin, until every key has an owner
    /// that can work.
    fn lull(&mut self) -> Result<(), String> {
        // Nothing is guaranteed while the server is away, or while the neighbour keeps the tables
        // locked or hidden.
        self.server.await_ready();
        self.neighbour.calm();
        self.calm_operator()?;
        let helpless = self.crew.pids().count() - self.capable().len();
        let otherwise = "not every key is owned by a worker that runs and can work";
        let within = OWNED_IN_LULL_WITHIN + 2 * self.proxy.delayed_by() * ROUND_TRIPS;
        let took = self.until(within, otherwise, Self::is_owned)?;
        self.say(&format!("all owned after {took:?}, {helpless} helpless"));
        self.lulls.push(Lull { helpless, took });
        let within = READY_WITHIN + within + 2 * self.proxy.delayed_by() * START_ROUND_TRIPS;
        let ready = self.until(within, "not every worker that can work is ready", Self::are_all_ready)?;
        self.say(&format!("all ready after {ready:?} more"));
        Ok(())
    }

    /// Waits until every command of the operator has an outcome.
    fn calm_operator(&mut self) -> Result<(), String> {
        self.operator.calm(&mut || self.crew.look()).map_err(|why| format!("{why}\n{}", self.situation()))
    }

    /// Whether all workers that can work say that they are ready.
    fn are_all_ready(&mut self) -> bool {
        self.crew.are_ready(&self.capable())
    }

    fn is_owned(&mut self) -> bool {
        self.ownership.look(&self.capable()).is_some_and(|unowned| unowned.is_empty())
    }

    fn inflict(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Join(slot) => self.crew.join(slot),
            Fault::Terminate(slot) => self.crew.terminate(slot),
            Fault::Kill(slot) => self.crew.kill(slot),
            Fault::Freeze(slot) => self.crew.freeze(slot, true),
            Fault::Continue(slot) => self.crew.freeze(slot, false),
            Fault::EndSessions(count) => {
                let sql = "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
                           WHERE application_name = 'chaos-worker' ORDER BY random() LIMIT $1) AS victim";
                // If the server is away, there are no sessions.
                let ended =
                    Client::connect(self.server.url(), NoTls).and_then(|mut client| client.query(sql, &[&count]));
                self.say(&format!("ended: {:?}", ended.map(|rows| rows.len()).ok()));
            }
            Fault::Restart(mode, away) => self.server.restart(mode, away),
            Fault::Cut => self.proxy.cut(),
            Fault::Hold { requests, answers } => self.proxy.hold(requests, answers),
            Fault::Delay(delay) => self.proxy.delay(delay),
            Fault::Linger(later) => self.proxy.linger(later),
            Fault::HalfClose { requests } => self.proxy.half_close(requests),
            Fault::Heal => self.proxy.heal(),
            Fault::Neighbour(deed) => self.neighbour.order(deed),
            Fault::Undo(deed) => self.neighbour.undo(deed),
            Fault::Command(order) => self.operator.order(order),
            Fault::Lull => return self.lull(),
        }
        Ok(())
    }

    /// Ends all faults, and waits until the workers have recovered.
    fn recover(&mut self) -> Result<(), String> {
        self.proxy.heal();
        self.crew.thaw();
        self.server.await_ready();
        self.neighbour.calm();
        self.calm_operator()?;
        let begun = Instant::now();
        let mut client = Client::connect(self.server.url(), NoTls).unwrap();
        let newest: i64 = client.query_one("SELECT coalesce(max(global_position), 0) FROM events", &[]).unwrap().get(0);
        self.say("calm");
        let owned = self.until(OWNED_WITHIN, "not every key is owned by a worker that runs", |chaos| {
            let pids: Vec<i32> = chaos.crew.pids().map(|(_, pid)| pid).collect();
            chaos.is_owned() && all_take_part(&mut client, &pids)
        })?;
        let ready = self.until(READY_WITHIN, "not every worker says that it is ready", Self::are_all_ready)?;
        self.crew.await_leavers()?;
        let calm = Instant::now();
        let mut position = -1;
        while position < newest {
            let before = position;
            self.until(MOVES_WITHIN, "not everything is processed, and nothing moves", |_| {
                let sql = "SELECT min(position) FROM orchestrator_checkpoints c JOIN orchestrator_projections p ON p.name = c.projection
                           WHERE p.kind <> 'old'";
                position = client.query_one(sql, &[]).unwrap().get(0);
                position > before
            })?;
        }
        let caught_up = calm.elapsed();
        let wrong = self.receiver.look(&mut client, false).unwrap();
        if !wrong.is_empty() {
            return Err(describe(Some(wrong)));
        }
        self.say(&format!(
            "all owned after {owned:?}, ready after {ready:?} more, processed after {caught_up:?} more, {:?} in all, position {newest}",
            begun.elapsed()
        ));
        Ok(())
    }

    /// Waits for a condition. Returns how long it took.
    fn until(
        &mut self,
        within: Duration,
        otherwise: &str,
        mut condition: impl FnMut(&mut Self) -> bool,
    ) -> Result<Duration, String> {
        let begun = Instant::now();
        let look = tick(LOOK_EVERY / 2);
        let slow = after(SLOW);
        while !condition(self) {
            if begun.elapsed() > within {
                return Err(format!("{otherwise} after {within:?}:\n{}", self.situation()));
            }
            crossbeam_channel::select! {
                recv(look) -> _ => self.look()?,
                recv(slow) -> _ => println!("{otherwise} after {SLOW:?}:\n{}", self.situation()),
                recv(self.watch.wrong()) -> wrong => return Err(describe(wrong.ok())),
            }
        }
        Ok(begun.elapsed())
    }

    /// Describes the state, for when nothing progresses.
    fn situation(&mut self) -> String {
        let capable = self.capable();
        let unowned = self.ownership.look(&capable);
        let seen = Client::connect(self.server.url(), NoTls).map(|mut client| situation(&mut client));
        format!(
            "capable {capable:?}, unowned {unowned:?}\n{}",
            seen.unwrap_or_else(|error| format!("the server does not answer: {error}"))
        )
    }

    /// Checks, after the last write, that everything is processed, that it is right, and that all
    /// acknowledged events are there.
    fn verify_all(&mut self, tally: &writers::Tally) -> Result<(), String> {
        self.recover()?;
        self.operator.release(&mut || self.crew.look())?;
        self.operator.end_rebuilds(&mut || self.crew.look())?;
        let mut client = Client::connect(self.server.url(), NoTls).unwrap();
        let mut wrong = oracle::Oracle::default().look(&mut client).unwrap();
        wrong.extend(self.receiver.look(&mut client, true).unwrap());
        if !wrong.is_empty() {
            return Err(describe(Some(wrong)));
        }
        let lost = oracle::lost(&mut client, &tally.acknowledged).unwrap();
        if lost.is_empty() { Ok(()) } else { Err(format!("acknowledged but not there: {lost:?}")) }
    }

    fn say(&self, what: &str) {
        println!("{:>8.3} {what}", self.begun.elapsed().as_secs_f64());
    }
}

fn describe(wrong: Option<Vec<String>>) -> String {
    wrong
        .map_or_else(|| "the oracle has ended".into(), |wrong| format!("wrong, in one snapshot:\n{}", wrong.join("\n")))
}
