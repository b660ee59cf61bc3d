//! The work of a runner, step by step.

use std::time::{Duration, Instant};

use super::batch::{self, Committed, Job};
use super::connection::{Connection, Kept};
use super::failure::{self, ERROR_CHARS, Failure, shown};
use super::journal::Journal;
use super::loaded::Loaded;
use super::parking::{self, Parking};
use super::parts::Runner;
use super::permit::{self, Permit};
use super::portion::{DoneBeyond, Origin, Owed, Portion};
use super::replays::Replays;
use super::step::Step;
use super::suspicion::Approach;
use super::trouble::Trouble;
use super::verdict::Verdict;
use crate::context::Context;
use crate::event::Event;
use crate::feed::Standing;
use crate::feed::prefetch::{Answer, Reading, ask};
use crate::plan::{Kind, base_of};
use crate::projection::Work as Handling;
use crate::store::Names;
use crate::store::attempts::{Report, State};
use crate::store::events::{Batch, Range};
use crate::store::fence::{self, Attempt, Checkpoint, EventMark, Owner};
use crate::store::parked::Failed;
use crate::store::rebuilds::Copies;
use crate::threads::Pulse;
use crate::tx::About;

/// How often a runner that waits for a look of the tailer checks again. It is woken when the head
/// moves.
const AWAIT_LOOK: Duration = Duration::from_millis(2);

/// How often a live runner looks how far the rebuild is that it follows.
const AWAIT_REBUILD: Duration = Duration::from_millis(2);

/// How long a runner with nothing to do waits at most. It is woken when there is something to do.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// The state of a runner between a command to run and the next command.
pub(super) struct Work<'a> {
    pub(super) runner: &'a Runner,
    pub(super) names: &'a Names,
    pub(super) owner: Owner,
    /// `None` if the checkpoints are not loaded yet, or have to be reloaded.
    pub(super) loaded: Option<Loaded>,
    pub(super) trouble: Trouble,
    pub(super) replays: Replays,
    pub(super) journal: Journal<'a>,
    /// What a reaction has done that is not recorded.
    pub(super) owed: Option<Owed>,
    pub(super) done_beyond: DoneBeyond,
}

impl Runner {
    fn name_and_lane(&self) -> (&str, usize) {
        (&self.name, self.lane)
    }

    pub(super) fn begin(&self, owner: Owner) -> Work<'_> {
        let Context { board, names, .. } = &self.context;
        Work {
            runner: self,
            names,
            owner,
            loaded: None,
            trouble: Trouble::new(&self.settings.retry, self.settings.on_failure.at_most().is_some()),
            replays: Replays::new(&self.settings.retry),
            journal: Journal::new(board, &self.metrics, &self.own_metrics, self.name_and_lane(), owner),
            owed: None,
            done_beyond: DoneBeyond::new(),
        }
    }

    /// Does the next piece of work, if there is one.
    pub(super) fn step(
        &self,
        work: &mut Work<'_>,
        kept: &mut Option<Kept>,
        permit: Option<&Permit>,
        pulse: &Pulse,
    ) -> Step {
        self.try_step(work, kept, permit, pulse).unwrap_or_else(|failure| work.failed(&failure))
    }

    fn try_step(
        &self,
        work: &mut Work<'_>,
        kept: &mut Option<Kept>,
        permit: Option<&Permit>,
        pulse: &Pulse,
    ) -> Result<Step, Failure> {
        if let Some(step) = work.settle()? {
            return Ok(step);
        }
        let Work { owner, loaded: in_hand, trouble, replays, journal, .. } = work;
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
        let Some(first) = loaded.rows.first() else {
            // An operator may have taken its checkpoints, and given them back before a coordinator
            // saw it.
            if loaded.is_older_than(IDLE) {
                *in_hand = None;
                return Ok(Step::Again);
            }
            return Ok(Step::Idle(None));
        };
        self.follower.set_position(first.reached);
        let (stored, reached) = (first.stored.position, first.reached);
        if !self.is_rebuild() && self.context.goal.is_crossed(stored, reached) {
            loaded.note_position()?;
            self.context.goal.stored(reached);
            return Ok(Step::Again);
        }
        if loaded.merge_first_two(&self.context.names)? {
            journal.running(&loaded.rows, trouble.is_failing());
            return Ok(Step::Again);
        }
        let head = loaded.limit(&self.context.names, &self.name, head)?;
        let wait = (!loaded.requested.is_empty()).then(|| replays.wait());
        let range = loaded.rows.range(head);
        // Replays and batches take turns.
        if wait.is_some_and(|wait| wait.is_zero()) && (replays.is_next || range.is_none() || trouble.waits()) {
            return self.replay(loaded, replays, trouble, journal, permit);
        }
        if trouble.waits() {
            return Ok(halted(trouble, wait));
        }
        let Some(range) = range else {
            // There is nothing to handle, so an event at which a batch failed is gone.
            trouble.overcome();
            journal.running(&loaded.rows, trouble.is_failing());
            // The rebuild is watched, because nobody says when it has moved.
            let wait = if loaded.is_following { Some(AWAIT_REBUILD) } else { wait };
            let arrival = self.arrive(loaded, journal, head)?;
            return idle(loaded, wait.into_iter().chain(arrival).min());
        };
        if let Some(wait) = loaded.pace.map(|pace| pace.wait(Instant::now())).filter(|wait| !wait.is_zero()) {
            return Ok(Step::Delay(wait));
        }
        loaded.attempted = None;
        let mut batch = match loaded.unread.take() {
            Some(read) => read.map_err(Failure::of_reading)?,
            None => match pulse.judged(|| self.in_memory(&range, trouble)) {
                Some(batch) => {
                    loaded.reading = None;
                    batch
                }
                None => return Ok(read_on(loaded, range)),
            },
        };
        loaded.exceptions.remove_from(&mut batch.events);
        let step = if batch.events.is_empty() {
            loaded.rows.reach(batch.end);
            Step::Again
        } else {
            replays.is_next = true;
            self.handle(loaded, batch, trouble, journal, permit)?
        };
        journal.running(&loaded.rows, trouble.is_failing());
        Ok(step)
    }

    pub(super) fn load(
        &self,
        owner: Owner,
        kept: &mut Option<Kept>,
        trouble: &Trouble,
        journal: &Journal<'_>,
    ) -> Result<Loaded, Failure> {
        let connection = match kept.take().and_then(Kept::taken_again) {
            Some(connection) => connection,
            None => Connection::open(&self.context, &self.feed, &self.pool)?,
        };
        let loaded =
            Loaded::load(connection, &self.feed, &self.context.names, self.name_and_lane(), owner, self.settings.rate)?;
        journal.running(&loaded.rows, trouble.is_failing());
        Ok(loaded)
    }

    /// Reads the first events of a range from the shared tail, if it has them and may be used.
    fn in_memory(&self, range: &Range, trouble: &Trouble) -> Option<Batch> {
        if trouble.is_read_again { None } else { self.feed.read_tail(range, &self.scope, self.settings.bounds) }
    }

    /// Handles events that follow on the first row's position, and commits them.
    fn handle(
        &self,
        loaded: &mut Loaded,
        mut batch: Batch,
        trouble: &mut Trouble,
        journal: &mut Journal<'_>,
        permit: Option<&Permit>,
    ) -> Result<Step, Failure> {
        let (Some(row), Some(first)) = (loaded.rows.first(), batch.events.first()) else { return Ok(Step::Again) };
        if trouble.meets(&row.stored) {
            journal.suspects(trouble.unclean_ends(), first);
        }
        loaded.attempted = Some(first.clone());
        let suspected = (trouble.unclean_ends() > 0).then(|| failure::ended_uncleanly(trouble.unclean_ends(), first));
        let (count, record) = match trouble.approach(&batch, row.reached) {
            Approach::Handle { count, record } => (count, record),
            Approach::Halt(_) => return Err(Failure::Suspected(suspected.unwrap_or_default().into())),
        };
        if suspected.is_some() && permit.is_none() {
            loaded.unread = Some(Ok(batch));
            return Ok(Step::AwaitPermit(permit::request(trouble.unclean_ends())));
        }
        if let Some(number) = record {
            let event = EventMark { position: first.global_position(), id: first.event_id() };
            loaded.record(&self.context.names, Attempt { event, number }, suspected.as_deref())?;
        }
        let count = trouble.commit_first.take().unwrap_or(count).min(count);
        let count = loaded.pace.map_or(count, |pace| count.min(pace.most().max(self.settings.in_flight)));
        if let Handling::Reacts(_) = self.handler.work() {
            return portion(loaded, batch, count);
        }
        let Committed { position, events } = self.commit(loaded, &batch, count)?;
        loaded.committed(position);
        if let Some(pace) = &mut loaded.pace {
            pace.handled(events, Instant::now());
        }
        if !self.is_rebuild() {
            self.context.goal.stored(position);
        }
        batch.events.drain(..events);
        loaded.unread = Some(batch).filter(|rest| !rest.events.is_empty()).map(Ok);
        journal.committed(events, trouble.failed_attempts());
        trouble.committed(position);
        Ok(Step::Again)
    }

    fn commit(&self, loaded: &mut Loaded, batch: &Batch, count: usize) -> Result<Committed, Failure> {
        let Loaded {
            owner,
            connection: Connection { session, statements, kept, .. },
            rows,
            counted_from,
            copies,
            memory,
            ..
        } = loaded;
        let Some(row) = rows.first() else { return Err(Failure::Fenced) };
        let is_pause_requested = || self.is_pause_requested();
        // A batch never contains both kinds of events, see `Rows::range`.
        let is_replay = batch.end <= row.stored.highest;
        let job = self.job(&row.stored, *owner, *counted_from, copies.as_ref(), is_replay, &is_pause_requested)?;
        batch::commit(session, (kept, memory), statements, &job, batch, count).map_err(|failure| {
            let names = &self.context.names;
            let is_lost = failure.may_come_from_a_lost_row()
                && session
                    .run(|client| fence::is_held(client, names, &row.stored, *owner))
                    .is_ok_and(|is_held| !is_held);
            if is_lost { Failure::Fenced } else { failure }
        })
    }

    pub(super) fn is_rebuild(&self) -> bool {
        Kind::of(&self.name) == Kind::Rebuild
    }

    pub(super) fn is_pause_requested(&self) -> bool {
        !self.commands.is_empty() || self.context.stop.is_raised()
    }

    /// How events of a row's keys are handled.
    pub(super) fn job<'a>(
        &'a self,
        row: &'a Checkpoint,
        owner: Owner,
        counted_from: i64,
        copies: Option<&'a Copies>,
        is_replay: bool,
        is_pause_requested: &'a (dyn Fn() -> bool + Sync),
    ) -> Result<Job<'a>, Failure> {
        let Handling::Writes(handler) = self.handler.work() else {
            return Err(Failure::Final("a reaction has no transaction".into()));
        };
        Ok(Job {
            handler,
            about: About {
                projection: base_of(&self.name),
                generation: owner.generation,
                // The live projection handles the same events for the first time.
                is_replay: is_replay || self.is_rebuild(),
                is_pause_requested,
            },
            owner,
            row,
            counted_from,
            copies,
            batch_time: self.settings.batch_time,
            sessions: self.context.sessions,
            idle_limit: self.idle_limit,
            metrics: &self.metrics,
        })
    }
}

/// Gives events from the front of a batch to a reaction.
fn portion(loaded: &Loaded, mut batch: Batch, count: usize) -> Result<Step, Failure> {
    let Some(row) = loaded.rows.first() else { return Err(Failure::Fenced) };
    let rest = batch.events.split_off(count.min(batch.events.len()));
    Ok(Step::React(Box::new(Portion {
        row: row.stored.clone(),
        owner: loaded.owner,
        counted_from: loaded.counted_from,
        // A batch never contains both kinds of events, see `Rows::range`.
        is_replay: batch.end <= row.stored.highest,
        events: batch.events.into(),
        origin: Origin::Range { rest, end: batch.end },
        mark: loaded.mark(),
        pace: loaded.pace,
    })))
}

/// Waits until a halted runner tries again, or until a replay may go on if that is sooner. `replay`
/// is the time until then, if one is requested. A replay that is delayed again and again does not
/// keep the runner from trying.
fn halted(trouble: &Trouble, replay: Option<Duration>) -> Step {
    let left = trouble.halt_left();
    match replay {
        Some(replay) if left.is_none_or(|left| replay < left) => Step::Delay(replay),
        _ => Step::Halt(left),
    }
}

/// Writes to the database from time to time how far the projection has come without events of its
/// own. `replay` is the time until a replay may go on, if one is requested.
fn idle(loaded: &mut Loaded, replay: Option<Duration>) -> Result<Step, Failure> {
    match loaded.note_due_in() {
        Some(Duration::ZERO) => {
            loaded.note_position()?;
            Ok(Step::Again)
        }
        wait => Ok(Step::Idle(wait.into_iter().chain(replay).min())),
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
    pub(super) fn found(&mut self, mut reading: Reading, answer: Answer) {
        self.trouble.is_read_again = false;
        if let Some(loaded) = &mut self.loaded {
            reading.take_note(&answer);
            loaded.reading = Some(reading);
            loaded.unread = Some(answer);
        }
    }

    /// Shows that the runner waits until its worker is trusted again.
    pub(super) fn waiting_for_trust(&self) {
        self.journal.waiting_for_trust();
    }

    /// Tries one event, although the attempts are used up.
    pub(super) fn try_again(&mut self) {
        self.trouble.try_again();
    }

    /// Stops, and returns the connection if there is one.
    pub(super) fn end(mut self) -> Option<Kept> {
        self.settle_at_end();
        self.journal.stopped();
        let mut loaded = self.loaded?;
        // This brings the rows of one partition to the same position, so that they can be merged
        // when the keys are redistributed. After a failure it would clear the reported failure.
        if !self.trouble.is_failing() {
            _ = loaded.note_position();
        }
        if let Some(number) = self.trouble.unfinished() {
            loaded.record_next(self.names, number);
        }
        self.runner.interrupt_replay(&mut loaded, &self.replays);
        Some(loaded.into_kept())
    }

    /// Acts on the verdict about a failure.
    fn failed(&mut self, failure: &Failure) -> Step {
        let was_halted = self.trouble.is_halted();
        let verdict = self.trouble.judge(failure);
        let event = self.loaded.as_ref().and_then(|loaded| loaded.attempted.clone());
        if let (Verdict::Park, Some(event)) = (verdict, &event) {
            return self.park(failure, event);
        }
        let Self { names, loaded, trouble, journal, .. } = self;
        let is_halt = matches!(verdict, Verdict::Halt | Verdict::HaltForGood | Verdict::Park);
        let next = event.filter(|_| is_halt).map(|event| failure.way_on(journal.projection, &event));
        journal.failed(failure, verdict, trouble.attempts_at(failure), next.as_deref());
        if let Some(loaded) = loaded {
            loaded.discard_unread();
            let state = match verdict {
                Verdict::Halt | Verdict::HaltForGood => Some(State::Halted),
                Verdict::Retry => Some(State::Retrying),
                Verdict::ReloadLater if !failure.condemns() && !was_halted => Some(State::Retrying),
                _ => None,
            };
            if let (Failure::Trespass(_), Some(copies)) = (failure, &loaded.copies) {
                let (base, worker) = (base_of(&self.runner.name), format!("worker {}", loaded.owner.worker));
                let why = failure.describe();
                let session = &mut loaded.connection.session;
                // The runner stays halted in any case, and an operator can cancel the rebuild.
                _ = session.run(|client| copies.ask_to_cancel(client, names, base, &worker, &why));
            }
            // Nothing can be reported on a lost connection.
            if let Some(state) = state {
                let error = with_way_on(&failure.describe(), next.as_deref());
                loaded.report(names, Report { state, error: &error, attempts: trouble.attempts_to_report(failure) });
            }
            if matches!(failure, Failure::Transient(_) | Failure::Outdated(_) | Failure::Environment { .. }) {
                loaded.take_back(names, trouble.unclean_ends());
            }
            // A new session has the settings that an operator may have changed meanwhile.
            if failure.condemns() || verdict == Verdict::ReloadLater {
                loaded.connection.session.condemn();
            }
        }
        match verdict {
            Verdict::Reload => {
                *loaded = None;
                Step::Delay(trouble.reloads.next_delay())
            }
            Verdict::ReloadLater => {
                *loaded = None;
                Step::Delay(trouble.retries.next_delay())
            }
            Verdict::CommitFirst(events) => {
                trouble.commit_first = Some(events);
                Step::Again
            }
            Verdict::Retry => Step::Delay(trouble.retries.next_delay()),
            Verdict::Repeat => Step::Delay(trouble.reloads.next_delay()),
            // Replays go on although the projection is halted.
            Verdict::Halt | Verdict::HaltForGood
                if loaded.as_ref().is_some_and(|loaded| !loaded.requested.is_empty()) =>
            {
                Step::Again
            }
            Verdict::Halt | Verdict::HaltForGood | Verdict::Park => Step::Halt(trouble.halt_left()),
            Verdict::Fenced => Step::Fenced,
        }
    }

    /// Parks the aggregate of this event, at which the attempts are used up.
    fn park(&mut self, failure: &Failure, event: &Event) -> Step {
        let runner = self.runner;
        let Self { names, loaded, trouble, journal, .. } = self;
        let (Some(loaded), Some(at_most)) = (loaded, runner.settings.on_failure.at_most()) else { return Step::Again };
        loaded.discard_unread();
        let (attempts, described) = (trouble.attempts_at(failure), failure.describe());
        let mark = EventMark { position: event.global_position(), id: event.event_id() };
        let error = shown(&described);
        let failed = Failed { event: mark, event_type: event.event_type(), attempts, error: &error };
        match parking::park(loaded, names, &runner.name, at_most, event, failed) {
            Ok(Parking::Done { before, after }) => {
                trouble.renewed(before, after);
                trouble.committed(mark.position);
                if !runner.is_rebuild() {
                    runner.context.goal.stored(mark.position);
                }
                journal.parked(event, attempts, &described);
                Step::Again
            }
            Ok(Parking::Full(parked)) => self.failed(&failure.of_full(parked, &runner.name)),
            Err(failure) => self.failed(&failure),
        }
    }
}

/// An error as it is written to the database, with the way on, which is never cut off.
fn with_way_on(error: &str, next: Option<&str>) -> String {
    let next = next.map(|next| format!("; {next}")).unwrap_or_default();
    let room = ERROR_CHARS.saturating_sub(next.chars().count());
    let shown: String = shown(error).chars().take(room).collect();
    format!("{shown}{next}")
}
