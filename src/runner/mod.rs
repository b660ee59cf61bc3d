//! A runner: the thread that moves one projection, or one lane of it, through its events.
//!
//! It obeys two commands of the coordinator: *run* as the owner of this worker's checkpoints in a
//! generation, and *pause*, which it acknowledges once it has stopped at an event boundary and
//! committed what it handled. In between it decides nothing about ownership: the fence does, with
//! every commit.
//!
//! With several checkpoints it always advances the one with the lowest position, up to the next
//! one's position, and merges the two when they meet. It advances one at a time, so events of one
//! aggregate stay in order, and after the catch-up only one checkpoint is left.
//!
//! When it fails, the [verdict] decides whether it retries the batch, reloads its checkpoints, or
//! stops. A panic of the handler counts as the handler's error. The thread ends when the
//! coordinator drops the sender of its commands.

mod batch;
mod connection;
mod failure;
mod journal;
mod loaded;
mod rows;
mod trouble;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, select};

use crate::config::Retry;
use crate::context::Context;
use crate::database::Pool;
use crate::feed::prefetch::{Answer, Reading, Request, ask};
use crate::feed::{Feed, Follower, Standing};
use crate::metrics::{ProjectionMetrics, WorkerProjectionMetrics};
use crate::projection::Projection;
use crate::scope::Scope;
use crate::store::events::{Batch, Range};
use crate::store::fence::Owner;
use crate::threads::Pulse;
use crate::trust::Trust;
use batch::{Committed, Job};
use connection::{Connection, Kept};
use failure::Failure;
use journal::Journal;
use loaded::Loaded;
use trouble::Trouble;
use verdict::Verdict;

/// How often a runner that waits for a look of the tailer checks again. It is woken when the head
/// moves.
const AWAIT_LOOK: Duration = Duration::from_millis(2);
/// How often a runner whose worker is cut off checks whether it may continue.
const TRUST_CHECK: Duration = Duration::from_millis(100);
/// How long a runner with nothing to do waits at most. It is woken when there is something to do.
const IDLE: Duration = Duration::from_secs(10);

/// What a runner is told to process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) owner: Owner,
    /// The number of the deal that gave the owner its checkpoints. If it changes, the runner has to
    /// reload them.
    pub(crate) deal: i64,
}

/// What the coordinator asks of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Load the checkpoints of this owner and process them, instead of what it processes now.
    Run(Task),
    /// Stop at the next event boundary and report it.
    Pause,
}

/// What a runner tells the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// It has stopped processing, as asked, or has ended.
    Paused(usize),
    /// It found that its worker no longer owns the checkpoints, and has stopped processing this.
    Fenced(usize, Task),
}

/// Everything a runner works with.
pub(crate) struct Runner {
    pub(crate) context: Context,
    pub(crate) index: usize,
    pub(crate) lane: usize,
    pub(crate) projection: Arc<dyn Projection>,
    pub(crate) scope: Scope,
    pub(crate) pool: Pool,
    pub(crate) feed: Feed,
    pub(crate) follower: Follower,
    /// Sends requests to its reader.
    pub(crate) requests: Sender<Request>,
    pub(crate) retry: Retry,
    /// See [`mark`](crate::store::fence::mark).
    pub(crate) idle_limit: Duration,
    pub(crate) trust: Trust,
    pub(crate) metrics: ProjectionMetrics,
    pub(crate) own_metrics: WorkerProjectionMetrics,
    pub(crate) commands: Receiver<Command>,
    pub(crate) reports: Sender<Report>,
}

/// The state of a runner between a command to run and the next command.
struct Work<'a> {
    owner: Owner,
    /// `None` if the checkpoints are not loaded yet, or have to be reloaded.
    loaded: Option<Loaded>,
    trouble: Trouble,
    journal: Journal<'a>,
}

/// How a step of work ended.
enum Step {
    /// There may be more to do at once.
    Again,
    /// There is nothing to do until the feed moves, or this time has passed.
    Idle(Option<Duration>),
    /// The reader has to be asked.
    Ask(Request),
    /// The reader has been asked, and its answer is awaited.
    Read(Reading),
    /// Continue after this delay.
    Delay(Duration),
    /// Stop until the next command.
    Halt,
    /// Stop until the next command: the worker is no longer the owner.
    Fenced,
}

/// Reports that the runner has stopped processing when its thread ends, also by a panic: the
/// coordinator may be waiting for it to pause.
struct SaysEnded {
    index: usize,
    reports: Sender<Report>,
}

impl Drop for SaysEnded {
    fn drop(&mut self) {
        _ = self.reports.try_send(Report::Paused(self.index));
    }
}

impl Runner {
    /// Runs until the coordinator drops the sender of the commands.
    pub(crate) fn run(self, pulse: &Pulse) {
        let _ended = SaysEnded { index: self.index, reports: self.reports.clone() };
        let mut kept = None;
        let mut command = None;
        loop {
            let Some(next) = command.take().or_else(|| self.await_command(pulse)) else { return };
            command = match next {
                Command::Run(task) => self.process(task, &mut kept, pulse),
                Command::Pause => {
                    self.report(Report::Paused(self.index));
                    None
                }
            };
        }
    }

    fn await_command(&self, pulse: &Pulse) -> Option<Command> {
        pulse.excuse();
        let command = self.commands.recv().ok();
        pulse.beat();
        command
    }

    fn report(&self, report: Report) {
        // There is room for all reports of a runner between two commands. If the coordinator has
        // ended, no thread needs the report.
        _ = self.reports.try_send(report);
    }

    fn name_and_lane(&self) -> (&str, usize) {
        (self.projection.name(), self.lane)
    }

    /// Processes until the next command, and returns it.
    fn process(&self, task: Task, kept: &mut Option<Kept>, pulse: &Pulse) -> Option<Command> {
        let mut work = Work {
            owner: task.owner,
            loaded: None,
            trouble: Trouble::new(&self.retry),
            journal: Journal::new(
                &self.context.board,
                &self.metrics,
                &self.own_metrics,
                self.name_and_lane(),
                task.owner,
            ),
        };
        let command = loop {
            pulse.beat();
            if let Ok(command) = self.commands.try_recv() {
                break Some(command);
            }
            if self.context.stop.is_raised() {
                // The coordinator sends a pause next, or it has ended and drops the sender of the
                // commands.
                break self.await_command(pulse);
            }
            if !self.trust.holds() {
                work.journal.waiting_for_trust();
                pulse.excuse();
                select! {
                    recv(self.commands) -> command => break command.ok(),
                    default(TRUST_CHECK) => continue,
                }
            }
            let step = self.step(&mut work, kept, pulse).unwrap_or_else(|failure| work.failed(&failure));
            pulse.excuse();
            match step {
                Step::Again => {}
                Step::Ask(request) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    send(self.requests, request) -> sent => if sent.is_err() {
                        // The reader has ended: the worker is stopping.
                        break self.await_command(pulse);
                    },
                },
                Step::Read(reading) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(reading.answers) -> answer => match answer {
                        Ok(answer) => work.found(reading, answer),
                        Err(_) => break self.await_command(pulse),
                    },
                },
                Step::Idle(wait) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(self.follower.woken) -> _ => {}
                    // A runner that is cut off reports it as soon as its worker is no longer
                    // trusted.
                    default(wait.unwrap_or(IDLE).min(self.trust.left())) => {}
                },
                Step::Delay(delay) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    default(delay) => {}
                },
                Step::Halt => break self.await_command(pulse),
                Step::Fenced => {
                    self.report(Report::Fenced(self.index, task));
                    break self.await_command(pulse);
                }
            }
        };
        self.follower.set_nowhere();
        if command.is_some()
            && let Some(mut loaded) = work.loaded
        {
            // So that rows of one partition are at the same position when the keys are
            // redistributed, and can be merged.
            _ = loaded.note_position();
            *kept = Some(loaded.into_kept());
        }
        work.journal.stopped();
        command
    }

    /// Does the next piece of work, if there is one.
    fn step(&self, work: &mut Work<'_>, kept: &mut Option<Kept>, pulse: &Pulse) -> Result<Step, Failure> {
        let Work { owner, loaded: in_hand, trouble, journal } = work;
        let loaded = match in_hand {
            Some(loaded) => loaded,
            None => in_hand.insert(self.load(*owner, kept, trouble, journal)?),
        };
        let head = match loaded.standing(&self.feed) {
            Standing::Current(head) => head,
            Standing::AwaitLook => return Ok(Step::Idle(Some(AWAIT_LOOK))),
            Standing::Stale => {
                *in_hand = None;
                return Ok(Step::Again);
            }
        };
        let Some(first) = loaded.rows.first() else { return Ok(Step::Idle(None)) };
        self.follower.set_position(first.reached);
        if loaded.merge_first_two(&self.context.names)? {
            journal.running(&loaded.rows, trouble.is_failing());
            return Ok(Step::Again);
        }
        let Some(range) = loaded.rows.range(head) else {
            trouble.reset_reloads();
            journal.running(&loaded.rows, trouble.is_failing());
            return idle(loaded);
        };
        let batch = match loaded.unread.take() {
            Some(read) => read.map_err(Failure::of_reading)?,
            None => match self.in_memory(&range, trouble) {
                Some(batch) => {
                    loaded.reading = None;
                    batch
                }
                None => return Ok(read_on(loaded, range)),
            },
        };
        if batch.events.is_empty() {
            loaded.rows.reach(batch.end);
        } else {
            self.handle(loaded, batch, trouble, journal, pulse)?;
        }
        journal.running(&loaded.rows, trouble.is_failing());
        Ok(Step::Again)
    }

    fn load(
        &self,
        owner: Owner,
        kept: &mut Option<Kept>,
        trouble: &Trouble,
        journal: &Journal<'_>,
    ) -> Result<Loaded, Failure> {
        let connection = match kept.take().and_then(Kept::taken_again) {
            Some(connection) => connection,
            None => Connection::open(&self.feed, &self.pool, self.context.sessions, &self.context.names)?,
        };
        let loaded = Loaded::load(connection, &self.feed, &self.context.names, self.name_and_lane(), owner)?;
        journal.running(&loaded.rows, trouble.is_failing());
        Ok(loaded)
    }

    /// Reads the first events of a range from the shared tail, if it has them and may be used.
    fn in_memory(&self, range: &Range, trouble: &Trouble) -> Option<Batch> {
        if trouble.is_read_again { None } else { self.feed.read_tail(range, &self.scope) }
    }

    /// Handles events that follow on the first row's position, and commits them.
    fn handle(
        &self,
        loaded: &mut Loaded,
        mut batch: Batch,
        trouble: &mut Trouble,
        journal: &mut Journal<'_>,
        pulse: &Pulse,
    ) -> Result<(), Failure> {
        let count = trouble.commit_first.take().unwrap_or(batch.events.len()).min(batch.events.len());
        // A user's handler may take any time.
        pulse.excuse();
        let outcome = self.commit(loaded, &batch, count);
        pulse.beat();
        let Committed { position, events } = outcome.map_err(|failure| failure.naming(&batch.events))?;
        loaded.committed(position);
        batch.events.drain(..events);
        loaded.unread = Some(batch).filter(|rest| !rest.events.is_empty()).map(Ok);
        journal.committed(events, trouble.failed_attempts());
        trouble.overcome();
        Ok(())
    }

    fn commit(&self, loaded: &mut Loaded, batch: &Batch, count: usize) -> Result<Committed, Failure> {
        let Loaded { owner, connection: Connection { session, statements, .. }, rows, .. } = loaded;
        let Some(row) = rows.first() else { return Err(Failure::Fenced) };
        let job = Job {
            projection: &*self.projection,
            statements,
            owner: *owner,
            row: &row.stored,
            batch,
            count,
            sessions: self.context.sessions,
            idle_limit: self.idle_limit,
            metrics: &self.metrics,
        };
        batch::commit(session, &job, || !self.commands.is_empty() || self.context.stop.is_raised())
    }
}

/// Writes to the database from time to time how far the projection has come without events of its
/// own.
fn idle(loaded: &mut Loaded) -> Result<Step, Failure> {
    match loaded.note_due_in() {
        Some(Duration::ZERO) => {
            loaded.note_position()?;
            Ok(Step::Again)
        }
        wait => Ok(Step::Idle(wait)),
    }
}

/// Waits for the reader, or sends it a request if it reads something else.
fn read_on(loaded: &mut Loaded, range: Range) -> Step {
    if let Some(reading) = loaded.reading.take().filter(|reading| reading.goes_on_with(&range)) {
        return Step::Read(reading);
    }
    let (request, reading) = ask(range);
    loaded.reading = Some(reading);
    Step::Ask(request)
}

impl Work<'_> {
    /// Takes the reader's answer.
    fn found(&mut self, mut reading: Reading, answer: Answer) {
        self.trouble.is_read_again = false;
        if let Some(loaded) = &mut self.loaded {
            reading.take_note(&answer);
            loaded.reading = Some(reading);
            loaded.unread = Some(answer);
        }
    }

    /// Acts on the verdict about a failure.
    fn failed(&mut self, failure: &Failure) -> Step {
        let Self { loaded, trouble, journal, .. } = self;
        let verdict = trouble.judge(failure);
        journal.failed(failure, verdict, trouble.failed_attempts());
        if let Some(loaded) = loaded {
            loaded.discard_unread();
        }
        match verdict {
            Verdict::Reload => {
                *loaded = None;
                Step::Delay(trouble.reloads.next_delay())
            }
            Verdict::CommitFirst(events) => {
                trouble.commit_first = Some(events);
                Step::Again
            }
            Verdict::Retry => Step::Delay(trouble.retries.next_delay()),
            Verdict::Halt => Step::Halt,
            Verdict::Fenced => Step::Fenced,
        }
    }
}
