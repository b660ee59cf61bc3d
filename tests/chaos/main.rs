//! Chaos: real worker processes on a real server, with everything going wrong that can, and an oracle that looks all the time.
//!
//! `cargo test` runs it for a short while. For as long as wanted:
//!
//! ```sh
//! CHAOS_SECONDS=3600 cargo test --release exactly_once_whatever_happens -- --nocapture
//! ```
//!
//! (By its name, since `cargo test --test chaos` would not build the example `chaos_worker`, the worker.)
//! It prints its seed. `CHAOS_SEED` repeats a schedule of faults, though not what the operating system makes of it. The short run always
//! has the same one, a longer one another each time.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod crew;
mod oracle;
mod proxy;
mod schedule;
mod server;
#[path = "../it/support/mod.rs"]
mod support;
mod writers;

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{after, tick};
use postgres::{Client, NoTls};

use crew::Crew;
use oracle::Watch;
use proxy::Proxy;
use schedule::{AT_FIRST, Fault, SLOTS, Schedule};
use server::Server;
use writers::Writers;

/// From the end of a storm until every key is owned by a worker that lives and runs. A worker that was frozen while it held the lock of
/// the replica set is waited for longest: `LOCK_PATIENCE`, after `stale_worker_timeout`.
const OWNED_WITHIN: Duration = Duration::from_secs(8);
/// From then on until what was there at the end of the storm is processed.
const CAUGHT_UP_WITHIN: Duration = Duration::from_secs(60);

/// When so many events have been handled, each with a chance of one in a thousand, some handler has panicked.
const SOME_PANIC_WITHIN: usize = 15_000;

/// Something that takes longer is looked at.
const SLOW: Duration = Duration::from_secs(4);

/// Handlers that are slow now and then, that fail for a reason which says nothing about the event, or that just fail. Not so often that
/// one event fails until its projection halts. `event_type_counts` has few statements, with many events each.
const HANDLER_FAULTS: &str = "
    CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
        DECLARE die float8 := random() / tg_argv[0]::float8;
        BEGIN
            IF die < 0.02 THEN PERFORM pg_sleep(random() * 0.05);
            ELSIF die < 0.025 THEN RAISE EXCEPTION 'it conflicts' USING ERRCODE = '40001';
            ELSIF die < 0.03 THEN RAISE EXCEPTION 'it fails';
            -- So that many a worker is frozen in the middle of a statement that outlasts its eviction.
            ELSIF die < 0.04 THEN PERFORM pg_sleep(0.5 + random() * 2);
            END IF;
            RETURN NEW;
        END $$;
    CREATE TRIGGER meddle BEFORE INSERT ON aggregate_activity FOR EACH ROW EXECUTE FUNCTION meddle(0.05);
    CREATE TRIGGER meddle BEFORE INSERT ON event_type_counts FOR EACH ROW EXECUTE FUNCTION meddle(0.3);";

struct Chaos {
    begun: Instant,
    server: Server,
    proxy: Proxy,
    crew: Crew,
    watch: Watch,
}

#[test]
fn exactly_once_whatever_happens() {
    let setting = |name| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
    let seconds = setting("CHAOS_SECONDS");
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| seconds.map_or(1, |_| fastrand::u64(..)));
    let lasts = Duration::from_secs(seconds.unwrap_or(40));
    println!("CHAOS_SEED={seed}");

    let server = Server::start();
    let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into());
    let url = format!("{}?application_name=chaos-worker", server.url());
    let mut urls: [String; SLOTS] = std::array::from_fn(|_| url.clone());
    urls[0] = url.replace(&format!(":{}/", server.port()), &format!(":{}/", proxy.port()));
    let mut crew = Crew::new(urls);
    crew.join(0);
    crew.await_processing(0);
    Client::connect(server.url(), NoTls).unwrap().batch_execute(HANDLER_FAULTS).unwrap();
    (1..AT_FIRST).for_each(|slot| crew.join(slot));
    let writers = Writers::start(server.url(), seed);
    let watch = Watch::start(server.url());

    let mut chaos = Chaos { begun: Instant::now(), server, proxy, crew, watch };
    let outcome = chaos.run(&mut Schedule::new(seed), lasts);
    let tally = writers.finish();
    let outcome = outcome.and_then(|storms| {
        chaos.verify_all(&tally)?;
        Ok(storms)
    });
    let logs = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos");
    chaos.crew.write_logs(&logs);
    println!("the workers' logs are in {}", logs.display());
    match outcome {
        Ok(storms) => {
            println!("{storms} storms, {} looks", chaos.watch.finish());
            println!(
                "{} events, {} transactions rolled back, {} conflicts, {} failed",
                tally.acknowledged.len(),
                tally.rolled_back,
                tally.conflicts,
                tally.failed
            );
            let crew = &chaos.crew;
            let (started, could_not) = crew.started();
            let [fenced, evicted, refused, retried] =
                ["fenced:", "registering again", "handler failed", "batch failed"].map(|part| crew.said(part));
            let panics = crew.panics();
            println!(
                "{started} workers, {could_not} of which could not start, {fenced} times fenced, {evicted} back after \
                 eviction, {panics} panics of handlers, {refused} failures of theirs, {retried} of transactions"
            );
            assert!(panics > 0 || tally.acknowledged.len() < SOME_PANIC_WITHIN, "no handler has panicked");
        }
        Err(why) => panic!("{why}\nCHAOS_SEED={seed}; the faults are above"),
    }
}

impl Chaos {
    /// One storm after the other. Returns how many there were.
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
        let begun = Instant::now();
        let look = tick(Duration::from_millis(200));
        for (at, fault) in storm {
            let due = after(at.saturating_sub(begun.elapsed()));
            loop {
                crossbeam_channel::select! {
                    recv(due) -> _ => break,
                    recv(look) -> _ => self.crew.look()?,
                    recv(self.watch.wrong()) -> wrong => return Err(describe(wrong.ok())),
                }
            }
            self.say(&format!("{fault:?}"));
            self.inflict(*fault);
        }
        Ok(())
    }

    fn inflict(&mut self, fault: Fault) {
        match fault {
            Fault::Join(slot) => self.crew.join(slot),
            Fault::Terminate(slot) => self.crew.terminate(slot),
            Fault::Kill(slot) => self.crew.kill(slot),
            Fault::Freeze(slot) => self.crew.signal(slot, "STOP"),
            Fault::Continue(slot) => self.crew.signal(slot, "CONT"),
            Fault::EndSessions(count) => {
                let sql = "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity
                           WHERE application_name = 'chaos-worker' ORDER BY random() LIMIT $1) AS victim";
                // If the server is away, so are the sessions.
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
        }
    }

    /// Ends what is still wrong, and waits until all is well.
    fn recover(&mut self) -> Result<(), String> {
        self.proxy.heal();
        self.crew.thaw();
        self.server.await_ready();
        let begun = Instant::now();
        let mut client = Client::connect(self.server.url(), NoTls).unwrap();
        let newest: i64 = client.query_one("SELECT coalesce(max(global_position), 0) FROM events", &[]).unwrap().get(0);
        self.say("calm");
        let owned = self.until(OWNED_WITHIN, "not every key is owned by a worker that runs", &mut client, is_owned)?;
        self.crew.await_leavers()?;
        let caught_up = self.until(CAUGHT_UP_WITHIN, "not everything is processed", &mut client, |client, _| {
            client.query_one("SELECT min(position) FROM orchestrator_checkpoints", &[]).unwrap().get::<_, i64>(0)
                >= newest
        })?;
        self.say(&format!(
            "all owned after {owned:?}, processed after {caught_up:?} more, {:?} in all, position {newest}",
            begun.elapsed()
        ));
        Ok(())
    }

    /// Waits for a condition. Returns how long it took.
    fn until(
        &mut self,
        within: Duration,
        otherwise: &str,
        client: &mut Client,
        condition: impl Fn(&mut Client, &[i32]) -> bool,
    ) -> Result<Duration, String> {
        let begun = Instant::now();
        let look = tick(Duration::from_millis(50));
        let slow = after(SLOW);
        while !condition(client, &self.crew.pids()) {
            if begun.elapsed() > within {
                return Err(format!("{otherwise} after {within:?}:\n{}", situation(client)));
            }
            crossbeam_channel::select! {
                recv(look) -> _ => self.crew.look()?,
                recv(slow) -> _ => println!("{otherwise} after {SLOW:?}:\n{}", situation(client)),
                recv(self.watch.wrong()) -> wrong => return Err(describe(wrong.ok())),
            }
        }
        Ok(begun.elapsed())
    }

    /// When nothing is written any more: everything is processed, and right, and what was acknowledged is there.
    fn verify_all(&mut self, tally: &writers::Tally) -> Result<(), String> {
        self.recover()?;
        let mut client = Client::connect(self.server.url(), NoTls).unwrap();
        let wrong = oracle::look(&mut client).unwrap();
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

/// Every checkpoint belongs to one of these processes, and they run, together and alone.
fn is_owned(client: &mut Client, pids: &[i32]) -> bool {
    let sql = "WITH g AS (SELECT * FROM orchestrator_generations ORDER BY number DESC LIMIT 1)
               SELECT bool_and(coalesce(w.state = 'running' AND w.pid = ANY ($1) AND c.generation = g.number, false))
                      AND bool_and(g.state = 'active' AND g.total_partitions = cardinality($1))
               FROM g CROSS JOIN orchestrator_checkpoints c LEFT JOIN orchestrator_workers w ON w.id = c.worker_id";
    client.query_one(sql, &[&pids]).unwrap().get(0)
}

/// What there is to be seen when nothing goes on.
fn situation(client: &mut Client) -> String {
    let sql = "SELECT format('worker %s', w) FROM orchestrator_workers w WHERE state <> 'stopped'
               UNION ALL (SELECT format('generation %s', g) FROM orchestrator_generations g ORDER BY number DESC LIMIT 3)
               UNION ALL SELECT format('checkpoint %s', c) FROM orchestrator_checkpoints c
               UNION ALL SELECT format('session %s %s %s blocked by %s: %s %s', pid, application_name, state, pg_blocking_pids(pid), xact_start, left(query, 150))
                         FROM pg_stat_activity WHERE datname = current_database()";
    let lines: Vec<String> = client.query(sql, &[]).unwrap().iter().map(|row| row.get(0)).collect();
    lines.join("\n")
}

fn describe(wrong: Option<Vec<String>>) -> String {
    wrong
        .map_or_else(|| "the oracle has ended".into(), |wrong| format!("wrong, in one snapshot:\n{}", wrong.join("\n")))
}
