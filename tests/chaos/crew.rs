//! The worker processes and their supervisor. Like Kubernetes, it restarts workers whose process
//! ends and asks their probes.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use crate::probes::Probes;
use crate::schedule::{SLOTS, STALE};
use crate::support::worker_process::{Signal, WorkerProcess};

/// How long a worker may take to leave, if nothing hinders it.
const LEAVES_WITHIN: Duration = Duration::from_secs(15);

/// In these slots, workers hold no session locks. Their peers rely on heartbeats alone and cannot
/// end the sessions of a frozen worker. So such a worker comes back with its connections alive, and
/// only the fence stops it.
const HEARTBEATS_ONLY: [usize; 2] = [2, 4];

/// The number of lanes into which the worker in each slot divides its keys.
const LANES: [&str; SLOTS] = ["1", "3", "2", "1", "1"];

/// The workers' `coordination_timeout`.
pub(crate) const COORDINATION: Duration = Duration::from_secs(3);

const OPTIONS: [(&str, &str); 11] = [
    ("HEARTBEAT_INTERVAL", "300ms"),
    ("REGISTRATION_WAIT", "100ms"),
    ("POLL_INTERVAL", "200ms"),
    // After each unclean end, the events of a batch are handled one at a time, for one projection
    // after the other.
    ("BATCH_SIZE", "200"),
    // For each call of a handler, which handles a batch.
    ("PANIC_PROBABILITY", "0.03"),
    // For each call with a dangerous event: the process ends at once. After each such end, events
    // are handled one at a time, so a higher probability would leave little time for anything else.
    ("ABORT_PROBABILITY", "0.1"),
    ("BAD_EVENTS", "true"),
    ("MEDDLES", "true"),
    // Few attempts, so that also good events are parked now and then.
    ("RETRY_ATTEMPTS", "3"),
    ("RETRY_FIRST_DELAY", "20ms"),
    ("ON_FAILURE", "park:100000"),
];

pub(crate) struct Crew {
    /// How the worker in each slot reaches the server.
    urls: [String; SLOTS],
    /// How the owner of the read models reaches it.
    owner: String,
    /// Where the workers deliver events, and how many at the same time.
    deliveries: (PathBuf, usize),
    slots: [Option<Member>; SLOTS],
    leaving: Vec<Member>,
    started: usize,
    could_not_start: usize,
    aborted: usize,
    killed: usize,
    frozen: usize,
    /// The names and logs of the workers that have ended.
    logs: Vec<(String, Vec<String>)>,
}

struct Member {
    name: String,
    process: WorkerProcess,
    probes: Probes,
    frozen: bool,
}

impl Crew {
    pub(crate) fn new(urls: [String; SLOTS], owner: String, deliveries: (PathBuf, usize)) -> Self {
        Self {
            urls,
            owner,
            deliveries,
            slots: Default::default(),
            leaving: Vec::new(),
            started: 0,
            could_not_start: 0,
            aborted: 0,
            killed: 0,
            frozen: 0,
            logs: Vec::new(),
        }
    }

    pub(crate) fn join(&mut self, slot: usize) {
        self.started += 1;
        let [stale, coordination] = [STALE, COORDINATION].map(|timeout| format!("{}ms", timeout.as_millis()));
        let grace = if HEARTBEATS_ONLY.contains(&slot) { "off" } else { "300ms" };
        let (deliveries, in_flight) = (self.deliveries.0.to_str().unwrap(), self.deliveries.1.to_string());
        let mut options = OPTIONS.to_vec();
        options.extend([
            ("STALE_WORKER_TIMEOUT", stale.as_str()),
            ("COORDINATION_TIMEOUT", &coordination),
            ("SESSION_LOSS_GRACE", grace),
            ("LANES", LANES[slot]),
            ("OWNER_URL", &self.owner),
            ("DELIVERIES", deliveries),
            ("DELIVERIES_IN_FLIGHT", &in_flight),
        ]);
        let process = WorkerProcess::start_program("chaos_worker", &self.urls[slot], &options);
        let name = format!("{}-slot-{slot}-pid-{}", self.started, process.pid());
        self.slots[slot] = Some(Member { name, process, probes: Probes::default(), frozen: false });
    }

    pub(crate) fn terminate(&mut self, slot: usize) {
        if let Some(mut member) = self.slots[slot].take() {
            member.process.signal(Signal::TERM);
            self.leaving.push(member);
        }
    }

    pub(crate) fn kill(&mut self, slot: usize) {
        if let Some(mut member) = self.slots[slot].take() {
            self.killed += 1;
            member.process.signal(Signal::KILL);
            self.bury(member);
        }
    }

    /// Freezes or resumes the worker.
    pub(crate) fn freeze(&mut self, slot: usize, frozen: bool) {
        if let Some(member) = &mut self.slots[slot] {
            self.frozen += usize::from(frozen);
            member.freeze(frozen);
        }
    }

    /// Resumes all frozen workers, also those that were told to leave.
    pub(crate) fn thaw(&mut self) {
        _ = self.look();
        for member in self.slots.iter_mut().flatten().chain(&mut self.leaving) {
            member.freeze(false);
        }
    }

    pub(crate) fn await_processing(&mut self, slot: usize) {
        self.slots[slot].as_mut().unwrap().process.await_processing(1);
    }

    /// The slots and process ids of the workers that are expected to work.
    pub(crate) fn pids(&self) -> impl Iterator<Item = (usize, i32)> {
        let member = |(slot, member): (usize, &Option<Member>)| Some((slot, member.as_ref()?.process.pid()));
        self.slots.iter().enumerate().filter_map(member)
    }

    pub(crate) fn is_frozen(&self, slot: usize) -> bool {
        self.slots[slot].as_ref().is_some_and(|member| member.frozen)
    }

    /// Checks which workers have ended. A worker is started again, as Kubernetes would do, if it
    /// could not start (for example, because the server was away) or if its handler aborted it. Any
    /// other end is an error. So is a liveness probe that would restart a worker, because a restart
    /// solves nothing that happens here.
    pub(crate) fn look(&mut self) -> Result<(), String> {
        for slot in 0..SLOTS {
            let Some(status) = self.slots[slot].as_mut().and_then(|member| member.process.ended()) else { continue };
            let mut member = self.slots[slot].take().unwrap();
            let (had_started, end) = member.end(status);
            self.bury(member);
            match (had_started, is_aborted(status)) {
                (_, true) => self.aborted += 1,
                (true, false) => return Err(format!("ended by itself: {end}")),
                (false, false) => self.could_not_start += 1,
            }
            self.join(slot);
        }
        for member in self.slots.iter_mut().flatten() {
            member.ask().map_err(|problem| format!("{} would be restarted: {problem}", member.name))?;
        }
        let mut index = 0;
        while let Some(member) = self.leaving.get_mut(index) {
            match member.process.ended() {
                None => {
                    member.ask().map_err(|problem| format!("{} would not leave in peace: {problem}", member.name))?;
                    index += 1;
                }
                Some(status) => {
                    let mut member = self.leaving.remove(index);
                    let (had_started, end) = member.end(status);
                    self.bury(member);
                    self.aborted += usize::from(is_aborted(status));
                    // A worker that had not started may not have listened for the signal yet.
                    if had_started && !status.success() && !is_aborted(status) {
                        return Err(format!("did not leave gracefully: {end}"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until the workers that were told to leave have left.
    pub(crate) fn await_leavers(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + LEAVES_WITHIN;
        let tick = crossbeam_channel::tick(Duration::from_millis(20));
        loop {
            self.look()?;
            let Some(member) = self.leaving.first() else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(format!("{} has not left after {LEAVES_WITHIN:?}", member.name));
            }
            tick.recv().unwrap();
        }
    }

    /// Whether all of these processes say that they are ready.
    pub(crate) fn are_ready(&self, pids: &[i32]) -> bool {
        let members = self.slots.iter().flatten().filter(|member| pids.contains(&member.process.pid()));
        members.into_iter().all(|member| member.probes.is_ready())
    }

    /// How many workers were started, how many of them ended before they could process anything,
    /// and how many were aborted.
    pub(crate) fn started(&self) -> (usize, usize, usize) {
        (self.started, self.could_not_start, self.aborted)
    }

    /// How many lines with this text the workers have logged, once their logs are written.
    pub(crate) fn said(&self, text: &str) -> usize {
        self.logs.iter().flat_map(|(_, lines)| lines).filter(|line| line.contains(text)).count()
    }

    /// How often a worker may have lost what it was doing, so that another one, or itself, did it
    /// again, once their logs are written. When a worker loses its part, each of its lanes does.
    pub(crate) fn interruptions(&self, projection: &str) -> usize {
        let lanes = LANES.iter().filter_map(|lanes| lanes.parse::<usize>().ok()).max().unwrap();
        let fenced = self.said_of("fenced:", projection);
        (self.killed + self.aborted + self.frozen + self.said("registering again")) * lanes + fenced
    }

    fn said_of(&self, text: &str, projection: &str) -> usize {
        let projection = format!(" projection={projection} ");
        let lines = self.logs.iter().flat_map(|(_, lines)| lines);
        lines.filter(|line| line.contains(text) && line.contains(&projection)).count()
    }

    /// How often a handler has panicked, once their logs are written.
    pub(crate) fn panics(&self) -> usize {
        self.said("panicked at tests/chaos/worker.rs")
    }

    /// Ends all workers and writes their logs into files, which replace those of the previous run.
    pub(crate) fn write_logs(&mut self, dir: &Path) {
        _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir).unwrap();
        let slots = self.slots.iter_mut().filter_map(Option::take);
        for member in slots.chain(self.leaving.drain(..)).collect::<Vec<_>>() {
            self.bury(member);
        }
        for (name, lines) in &self.logs {
            std::fs::write(dir.join(name), lines.join("\n")).unwrap();
        }
    }

    fn bury(&mut self, mut member: Member) {
        self.logs.push((std::mem::take(&mut member.name), member.process.log().to_vec()));
    }
}

impl Member {
    fn freeze(&mut self, frozen: bool) {
        self.process.signal(if frozen { Signal::STOP } else { Signal::CONT });
        self.frozen = frozen;
    }

    fn ask(&mut self) -> Result<(), String> {
        if self.frozen {
            self.probes.skip();
            return Ok(());
        }
        self.probes.ask(self.process.log())
    }

    /// Whether the worker had begun to process, and a description of its end.
    fn end(&mut self, status: ExitStatus) -> (bool, String) {
        let log = self.process.log();
        let had_started = log.iter().any(|line| line.contains("processing:"));
        let last = log.last().cloned().unwrap_or_default();
        (had_started, format!("{}, {status}, last said: {last}", self.name))
    }
}

fn is_aborted(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::ABORT.as_raw())
}
