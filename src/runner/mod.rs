//! A runner: the thread that moves one projection, or one lane of it, through its events.
//!
//! It obeys two commands from the coordinator: *run* as the owner of this worker's checkpoints in a generation, and *pause*, which it
//! acknowledges once it has stopped at an event boundary and committed what it handled. In between it decides nothing about
//! ownership: the fence does, with every commit.
//!
//! With several checkpoints it always advances the one with the lowest position, no further than the next one's, and merges the two
//! when they meet: one at a time, so events of one aggregate stay in order, and after the catch-up one is left.
//!
//! When it fails: a batch that cannot be committed is tried again ([`failing`]); a panic of the handler counts as its error. The thread
//! ends when the coordinator lets go of its commands.

mod batch;
mod connection;
mod failing;
mod retry;
mod rows;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};

use crate::config::Retry;
use crate::database::Pool;
use crate::error::{BoxError, Error, describe_any};
use crate::feed::ahead::Ahead;
use crate::feed::{Feed, Follower, Mark, Standing};
use crate::metrics::{ProjectionMetrics, WorkerProjectionMetrics};
use crate::plan::KeySet;
use crate::projection::{Projection, Scope};
use crate::status::{Board, LaneStatus, ProjectionState};
use crate::store::events::Batch;
use crate::store::fence::{self, Owner};
use crate::store::session::Sessions;
use crate::store::{Names, continuity};
use crate::threads::{Pulse, Stop};
use crate::trust::Trust;
use batch::{Committed, Job};
use connection::Connection;
pub(crate) use connection::Kept;
use failing::Troubles;
use retry::Failure;
use rows::{Row, Rows};

/// A position that moved without any event of the projection is written down this often: it spares repeated scans after a restart,
/// and losing it loses nothing.
const NOTE_POSITION_EVERY: Duration = Duration::from_secs(1);
/// How often a runner that waits for the tailer to look asks again. It is woken when the head moves.
const AWAIT_LOOK: Duration = Duration::from_millis(2);
/// How often a runner whose worker is cut off looks whether it may go on.
const TRUST_CHECK: Duration = Duration::from_millis(100);

/// What a runner is told to process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) owner: Owner,
    /// The number of the deal that gave the owner its checkpoints. Another number means to load them again.
    pub(crate) deal: i64,
}

/// What the coordinator asks of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Load the checkpoints of this owner and process them, in place of whatever it processes now.
    Run(Task),
    /// Stop at the next event boundary and say so.
    Pause,
}

/// What a runner tells the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// It has stopped processing, as asked.
    Paused(usize),
    /// It found that it is not the owner of its checkpoints any more, and has stopped processing this.
    Fenced(usize, Task),
}

/// Everything a runner works with.
pub(crate) struct Runner {
    pub(crate) index: usize,
    pub(crate) lane: usize,
    pub(crate) projection: Arc<dyn Projection>,
    pub(crate) scope: Scope,
    pub(crate) names: Names,
    pub(crate) pool: Pool,
    pub(crate) sessions: Sessions,
    pub(crate) feed: Feed,
    pub(crate) follower: Follower,
    pub(crate) ahead: Ahead,
    pub(crate) retry: Retry,
    /// See [`fence::mark`].
    pub(crate) idle_limit: Duration,
    pub(crate) trust: Trust,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) metrics: ProjectionMetrics,
    pub(crate) own_metrics: WorkerProjectionMetrics,
    pub(crate) commands: Receiver<Command>,
    pub(crate) reports: Sender<Report>,
    pub(crate) kept: Option<Kept>,
}

/// What a runner has in hand while it runs.
struct Work {
    owner: Owner,
    /// Not loaded yet, or to be loaded again, if none.
    rows: Option<Rows>,
    /// When the rows were loaded.
    mark: Mark,
    /// What was read of the first row and is not committed yet: the rest of a batch, or one to be tried again.
    rest: Option<Batch>,
    /// What comes next is to be read from the database, not from memory: it may have been repaired
    /// or erased since.
    is_read_again: bool,
    connection: Option<Connection>,
    troubles: Troubles,
    /// A batch that failed in its middle is committed up to there first, so that it is the failing event that is tried again.
    commit_first: Option<usize>,
    noted_at: Instant,
}

impl Work {
    /// Lets go of everything that was read: it is to be loaded again, on another connection.
    fn forget(&mut self) {
        self.rows = None;
        self.rest = None;
        self.connection = None;
    }

    /// Lets go of the events in hand: they are to be read again, as they are now.
    fn read_again(&mut self) {
        self.rest = None;
        self.is_read_again = true;
    }
}

/// How a step of work ended.
enum Step {
    /// There may be more to do at once.
    Again,
    /// Nothing to do until the feed moves, or this time has passed.
    Idle(Option<Duration>),
    /// A batch is being read; take the answer when it comes.
    Reading,
    /// Try again after this delay.
    Delay(Duration),
    /// The attempts are used up.
    Halt,
    /// Not the owner any more.
    Fenced,
}

impl Runner {
    /// Runs until the coordinator lets go of the commands.
    pub(crate) fn run(mut self, pulse: &Pulse) {
        let mut command = None;
        loop {
            let Some(next) = command.take().or_else(|| self.await_command(pulse)) else { return };
            command = match next {
                Command::Run(task) => self.process(task, pulse),
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

    /// Processes until another command comes, which is returned.
    fn process(&mut self, task: Task, pulse: &Pulse) -> Option<Command> {
        let mut work = Work {
            owner: task.owner,
            rows: None,
            mark: self.feed.mark(),
            rest: None,
            is_read_again: false,
            connection: self.kept.take().and_then(Kept::taken_again),
            troubles: Troubles::new(&self.retry),
            commit_first: None,
            noted_at: Instant::now(),
        };
        let mut answer = None;
        let command = loop {
            pulse.beat();
            if let Ok(command) = self.commands.try_recv() {
                break Some(command);
            }
            if self.stop.is_raised() {
                // The coordinator's pause comes next, or it has ended and lets go of the commands.
                break self.await_command(pulse);
            }
            if !self.trust.holds() {
                self.set_state(ProjectionState::Paused, None);
                pulse.excuse();
                select! {
                    recv(self.commands) -> command => break command.ok(),
                    default(TRUST_CHECK) => continue,
                }
            }
            let step = self.step(&mut work, answer.take(), pulse);
            pulse.excuse();
            match step {
                Step::Again => {}
                Step::Reading => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(self.ahead.answers) -> found => match found {
                        Ok(found) => answer = self.ahead.accept(found),
                        // The reader ended: the worker is stopping.
                        Err(_) => break self.await_command(pulse),
                    },
                },
                Step::Idle(note_in) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(self.follower.woken) -> _ => {}
                    // Should it be cut off, it says so as soon as it is no longer trusted.
                    default(note_in.unwrap_or(Duration::from_secs(10)).min(self.trust.left())) => {}
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
        self.ahead.forget();
        self.follower.is_nowhere();
        if command.is_some() {
            // So that rows of one partition are at one position when the keys are cut anew, and can be merged.
            _ = Self::note_position(&mut work);
            self.kept = work.connection.map(Kept::new);
        }
        self.tell(|status| {
            status.state = ProjectionState::Paused;
            status.keys = KeySet::default();
            status.position = None;
        });
        command
    }

    fn report(&self, report: Report) {
        // The coordinator has room for what a runner can say between two commands; if it has ended, nobody needs to know.
        _ = self.reports.try_send(report);
    }

    /// Does the next piece of work, if there is one.
    fn step(&mut self, work: &mut Work, mut answer: Option<Result<Batch, Error>>, pulse: &Pulse) -> Step {
        if self.feed.standing_of(work.mark) == Standing::Stale {
            work.forget();
            self.ahead.forget();
        }
        if work.rows.is_none() {
            answer = None;
            match self.load_rows(work) {
                Ok(()) => {}
                Err(failure) => return self.failed(work, failure),
            }
        }
        let head = match self.feed.standing_of(work.mark) {
            Standing::Current(head) => head,
            Standing::AwaitLook => return Step::Idle(Some(AWAIT_LOOK)),
            Standing::Stale => return Step::Again,
        };
        let Some((rows, first)) = work.rows.as_ref().and_then(|rows| Some((rows, rows.first()?))) else {
            return Step::Idle(None);
        };
        self.follower.is_at(first.reached);
        if rows.met().is_some() {
            return match self.merge_first_two(work) {
                Ok(()) => Step::Again,
                Err(failure) => self.failed(work, failure),
            };
        }
        let Some(range) = rows.range(head) else { return self.idle(work) };
        let batch = match (work.rest.take(), answer) {
            (Some(rest), _) => rest,
            (None, Some(Ok(batch))) => {
                work.is_read_again = false;
                batch
            }
            (None, Some(Err(error @ Error::UnreadableEvent { .. }))) => {
                return self.failed(work, Failure::Refused(error.into()));
            }
            (None, Some(Err(error))) => return self.failed(work, Failure::Transient(error.into())),
            (None, None) => {
                let in_memory = (!work.is_read_again).then(|| self.feed.read_tail(&range, &self.scope)).flatten();
                let Some(batch) = in_memory else {
                    self.ahead.ask(&range);
                    return Step::Reading;
                };
                self.ahead.forget();
                batch
            }
        };
        self.take(work, batch, pulse)
    }

    /// Handles a batch that follows on the first row's position.
    fn take(&mut self, work: &mut Work, mut batch: Batch, pulse: &Pulse) -> Step {
        if batch.events.is_empty() {
            if let Some(rows) = &mut work.rows {
                rows.reach(batch.end);
            }
            self.show(work);
            return Step::Again;
        }
        let count = work.commit_first.take().unwrap_or(batch.events.len()).min(batch.events.len());
        // A user's handler may take as long as it likes.
        pulse.excuse();
        let outcome = self.commit(work, &batch, count);
        pulse.beat();
        match outcome {
            Ok(committed) => {
                self.committed(work, committed);
                batch.events.drain(..committed.events);
                work.rest = Some(batch).filter(|rest| !rest.events.is_empty());
                Step::Again
            }
            Err(Failure::Handler { error, handled }) => {
                let error = match batch.events.get(handled) {
                    Some(event) => format!(
                        "from global position {} (event {}) on: {}",
                        event.global_position(),
                        event.event_id(),
                        describe_any(&*error)
                    )
                    .into(),
                    None => error,
                };
                self.failed(work, Failure::Handler { error, handled })
            }
            Err(failure) => self.failed(work, failure),
        }
    }

    fn commit(&self, work: &mut Work, batch: &Batch, count: usize) -> Result<Committed, Failure> {
        let owner = work.owner;
        let Some(stored) = work.rows.as_ref().and_then(Rows::first).map(|row| row.stored.clone()) else {
            return Err(Failure::Fenced);
        };
        let connection = Self::connection(&mut work.connection)?;
        let job = Job {
            projection: &*self.projection,
            statements: &connection.statements,
            owner,
            row: &stored,
            batch,
            count,
            sessions: self.sessions,
            idle_limit: self.idle_limit,
            metrics: &self.metrics,
        };
        batch::commit(&mut connection.session, &job, || !self.commands.is_empty() || self.stop.is_raised())
    }

    fn committed(&self, work: &mut Work, committed: Committed) {
        self.overcome(work);
        work.noted_at = Instant::now();
        if let Some(rows) = &mut work.rows {
            rows.store(committed.position);
        }
        let events = u64::try_from(committed.events).unwrap_or(0);
        self.metrics.events_processed.inc_by(events);
        self.metrics.batch_events.observe(f64::from(u32::try_from(committed.events).unwrap_or(u32::MAX)));
        self.tell(|status| status.events += events);
        self.show(work);
    }

    /// The connection on which the rows were loaded. They are never used on another: it may lead to a server that knows less.
    fn connection(connection: &mut Option<Connection>) -> Result<&mut Connection, Failure> {
        connection
            .as_mut()
            .filter(|connection| connection.is_open())
            .ok_or_else(|| Failure::Transient("the connection is lost".into()))
    }

    fn load_rows(&self, work: &mut Work) -> Result<(), Failure> {
        let opened = self.feed.mark();
        let connection = match work.connection.take() {
            Some(connection) => connection,
            None => Connection::open(&self.pool, self.sessions, &self.names)?,
        };
        let Connection { session, statements } = work.connection.insert(connection);
        work.mark = self.feed.mark_in_epoch_of(opened);
        let (name, owner) = (self.projection.name(), work.owner);
        // A policy may hide the rows, and moving one is then taken for being fenced. So it must be an
        // error here, or the runner would take itself for the owner of nothing.
        let mut tx = session.transaction_without_policies().map_err(transient)?;
        let loaded = statements.owned(&mut tx, name, owner, self.lane).map_err(transient)?;
        tx.commit().map_err(transient)?;
        log::debug!("checkpoints loaded: projection={name} {loaded:?}");
        if let Some(position) = loaded.other_event_at {
            let error = continuity::other_event(&self.names, position, &format!("projection {name:?}"));
            return Err(Failure::Refused(error.into()));
        }
        work.rows = Some(Rows::new(loaded.rows));
        self.show(work);
        Ok(())
    }

    /// Merges the first row into the second, which is at the same position.
    fn merge_first_two(&self, work: &mut Work) -> Result<(), Failure> {
        Self::note_position(work)?;
        let owner = work.owner;
        let Some((from, into)) = work.rows.as_ref().and_then(Rows::met) else { return Ok(()) };
        let (from, into) = (from.stored.clone(), into.stored.clone());
        let Connection { session, .. } = Self::connection(&mut work.connection)?;
        let merged = session.run(|client| fence::merge(client, &self.names, &into, &from, owner));
        if !merged.map_err(transient)? {
            return Err(Failure::Fenced);
        }
        if let Some(rows) = &mut work.rows {
            rows.merge();
        }
        self.show(work);
        Ok(())
    }

    /// Nothing to handle: from time to time, write down how far the projection has come without events of its own.
    fn idle(&mut self, work: &mut Work) -> Step {
        let unnoted = work.rows.as_ref().and_then(Rows::first).is_some_and(Row::is_ahead);
        work.troubles.is_connected();
        self.show(work);
        if !unnoted {
            return Step::Idle(None);
        }
        let wait = NOTE_POSITION_EVERY.saturating_sub(work.noted_at.elapsed());
        if !wait.is_zero() {
            return Step::Idle(Some(wait));
        }
        match Self::note_position(work) {
            Ok(()) => Step::Again,
            Err(failure) => self.failed(work, failure),
        }
    }

    /// Writes the first row's position down if it has moved without events.
    fn note_position(work: &mut Work) -> Result<(), Failure> {
        let owner = work.owner;
        let Some(rows) = &mut work.rows else { return Ok(()) };
        if let Some(row) = rows.first().filter(|row| row.is_ahead()) {
            let (to, connection) = (row.reached, Self::connection(&mut work.connection)?);
            let Connection { session, statements } = connection;
            if !session.run(|client| statements.note(client, &row.stored, owner, to)).map_err(transient)? {
                return Err(Failure::Fenced);
            }
            rows.store(to);
        }
        work.noted_at = Instant::now();
        Ok(())
    }

    fn set_state(&self, state: ProjectionState, error: Option<&BoxError>) {
        self.tell(|status| {
            status.state = state;
            status.error = error.map(|error| describe_any(&**error));
        });
    }

    /// Writes on the board, and into the metrics what the board then says of the projection.
    fn tell(&self, change: impl FnOnce(&mut LaneStatus)) {
        let all = self.board.update_lane(self.projection.name(), self.lane, change);
        self.own_metrics.halted.set(i64::from(all.state == ProjectionState::Halted));
        if let Some(position) = all.position {
            self.own_metrics.position.set(position);
        }
    }

    /// Shows on the board that it runs, and how far it is.
    fn show(&self, work: &Work) {
        self.tell(|status| {
            status.keys = work.rows.as_ref().map(Rows::keys).unwrap_or_default();
            status.position = work.rows.as_ref().and_then(Rows::first).map(|row| row.reached);
            // While the same batch is being tried again, the error stays in view.
            if !work.troubles.is_failing() {
                status.state = ProjectionState::Running;
                status.error = None;
            }
        });
    }
}

fn transient(error: postgres::Error) -> Failure {
    Failure::Transient(error.into())
}
