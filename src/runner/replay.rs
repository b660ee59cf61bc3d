//! Replays parked aggregates: handles the events that wait, portion by portion, between the batches
//! of the events that follow. [`parked`] says why each event is handled once.
//!
//! A replay is one attempt: if an event fails, the events before it are committed and the aggregate
//! stays parked at it. Failures that no event causes are repeated. A replay that ends together with
//! its session, its process or the server is begun again, but not without end: an event that ends
//! the process must not end every worker in turn.

use super::batch;
use super::connection::Connection;
use super::failure::{Failure, shown};
use super::journal::Journal;
use super::loaded::Loaded;
use super::parts::Runner;
use super::permit::{self, Permit};
use super::portion::{Origin, Portion};
use super::replays::{Replays, portion};
use super::step::Step;
use super::trouble::Trouble;
use super::verdict::Verdict;
use postgres::GenericClient;

use crate::event::Event;
use crate::projection::Work;
use crate::store::fence::{self, Checkpoint, Mark, Owner};
use crate::store::parked::{self, Failed, Parked, Waiting};
use crate::store::session::Session;

/// The outcome of recording that events of a parked aggregate were handled.
pub(super) enum Replayed {
    /// The row has this token.
    Noted(i64),
    /// The row is no longer this worker's.
    Fenced,
    /// The aggregate is not parked as it was.
    Changed,
}

impl Runner {
    /// Handles the next portion of the first aggregate that is to be replayed.
    pub(super) fn replay(
        &self,
        loaded: &mut Loaded,
        replays: &mut Replays,
        trouble: &mut Trouble,
        journal: &mut Journal<'_>,
        permit: Option<&Permit>,
    ) -> Result<Step, Failure> {
        let Some(parked) = loaded.requested.front().cloned() else { return Ok(Step::Again) };
        let Some(row) = loaded.rows.of_key(parked.key) else {
            loaded.requested.pop_front();
            return Ok(Step::Again);
        };
        if row.is_ahead() {
            // Up to the position in memory, the events of the aggregate were skipped. They have to
            // be replayed, too, and the fence compares the position in the database.
            loaded.note_position()?;
        }
        let most = replays.go_on(&parked, self.settings.bounds);
        if replays.unclean_ends() > 0 && permit.is_none() {
            return Ok(Step::AwaitPermit(permit::request(replays.unclean_ends())));
        }
        let mut waiting = Vec::new();
        match self.replay_portion(loaded, replays, trouble, journal, &parked, most, &mut waiting) {
            Ok(step) => Ok(step),
            Err(failure) => self.replay_failed(loaded, replays, journal, &parked, waiting.first(), failure),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "they are the parts of the runner's work")]
    fn replay_portion(
        &self,
        loaded: &mut Loaded,
        replays: &mut Replays,
        trouble: &mut Trouble,
        journal: &mut Journal<'_>,
        parked: &Parked,
        most: usize,
        waiting: &mut Vec<Waiting>,
    ) -> Result<Step, Failure> {
        let events = self.read_waiting(loaded, parked, most, waiting)?;
        if let Some(failure) = events.first().and_then(|first| replays.given_up(first)) {
            return Err(failure);
        }
        if let Some(number) = replays.number_to_record() {
            self.record_begun(loaded, parked, number)?;
            replays.begun();
        }
        if let Work::Reacts(_) = self.handler.work() {
            return portion_of_parked(loaded, parked, events, waiting);
        }
        let (events, before, after) = self.commit_portion(loaded, parked, &events, waiting)?;
        let next = waiting.get(events);
        let handled = replays.committed(events, next.map(|next| next.event.position));
        journal.replayed(events);
        if let Some(next) = next {
            if let Some(front) = loaded.requested.front_mut() {
                front.event = next.event;
                front.event_type.clone_from(&next.event_type);
            }
            return Ok(Step::Again);
        }
        loaded.requested.pop_front();
        loaded.exceptions.release(&parked.stream);
        loaded.rows.set_token(parked.key, after);
        // Events of the aggregate have been removed from what was read.
        loaded.discard_unread();
        trouble.renewed(before, after);
        trouble.released();
        journal.replay_done(&parked.stream, handled);
        Ok(Step::Again)
    }

    /// Reads the events that are next, and finds which events wait: these, and at least one more if
    /// there is one, up to the position of the row of their key.
    fn read_waiting(
        &self,
        loaded: &mut Loaded,
        parked: &Parked,
        most: usize,
        waiting: &mut Vec<Waiting>,
    ) -> Result<Vec<Event>, Failure> {
        let Some(row) = loaded.rows.of_key(parked.key) else { return Err(Failure::Fenced) };
        let (names, upto) = (&self.context.names, row.stored.position);
        let mut tx = loaded.connection.session.transaction_of_library().map_err(Failure::outside)?;
        let limit = most.saturating_add(1);
        let range = (parked.event, upto);
        let found = parked::waiting(&mut tx, names, &self.name, &self.scope, &parked.stream, range, limit);
        let found = found.map_err(Failure::outside)?;
        if found.is_missing {
            // It waits, although it is not there. Otherwise it would be skipped in silence.
            let Parked { event, event_type, .. } = parked;
            waiting.push(Waiting { event: *event, event_type: event_type.clone(), weight: 0 });
            return Err(Failure::of_missing(*event));
        }
        waiting.extend(found.events);
        if let Some(first) = waiting.first().filter(|first| first.weight > self.settings.bounds.event_bytes) {
            let problem = format!(
                "the event at global position {} has {} bytes, and max_event_bytes is {}",
                first.event.position, first.weight, self.settings.bounds.event_bytes
            );
            return Err(Failure::Unreadable(problem.into()));
        }
        let count = portion(waiting, most, self.settings.bounds, parked.highest);
        let events = parked::read(&mut tx, names, waiting.get(..count).unwrap_or_default());
        let events = events.map_err(|error| Failure::of_reading_waiting(error, count))?;
        tx.commit().map_err(Failure::outside)?;
        if events.len() != count {
            return Err(Failure::Transient("events of a parked aggregate were deleted while they were read".into()));
        }
        Ok(events)
    }

    /// Records before a replay that it is the one with this number, 0 if none has begun.
    fn record_begun(&self, loaded: &mut Loaded, parked: &Parked, number: u32) -> Result<(), Failure> {
        self.record_replay(loaded, parked, |tx| parked::set_begun(tx, &self.context.names, &self.name, parked, number))
    }

    /// Changes the row of a parked aggregate, in a transaction of its own that also locks the
    /// checkpoint.
    fn record_replay(
        &self,
        loaded: &mut Loaded,
        parked: &Parked,
        record: impl FnOnce(&mut postgres::Transaction<'_>) -> Result<bool, postgres::Error>,
    ) -> Result<(), Failure> {
        let Some(row) = loaded.rows.of_key(parked.key) else { return Err(Failure::Fenced) };
        let mut tx = loaded.connection.session.transaction_of_library().map_err(Failure::outside)?;
        let is_owner = fence::lock(&mut tx, &self.context.names, &row.stored, loaded.owner);
        if !is_owner.map_err(Failure::outside)? {
            return Err(Failure::Fenced);
        }
        if !record(&mut tx).map_err(Failure::outside)? {
            return Err(changed());
        }
        tx.commit().map_err(Failure::outside)
    }

    /// Handles events from the front of those that wait, and commits that. Returns how many were
    /// handled, and the token of the checkpoint before and after that.
    fn commit_portion(
        &self,
        loaded: &mut Loaded,
        parked: &Parked,
        events: &[Event],
        waiting: &[Waiting],
    ) -> Result<(usize, i64, i64), Failure> {
        let Loaded { owner, connection: Connection { session, kept, .. }, rows, counted_from, copies, memory, .. } =
            loaded;
        let Some(row) = rows.of_key(parked.key) else { return Err(Failure::Fenced) };
        let (row, owner) = (&row.stored, *owner);
        let is_pause_requested = || self.is_pause_requested();
        let is_replay = events.first().is_some_and(|first| first.global_position() <= parked.highest);
        let job = self.job(row, owner, *counted_from, copies.as_ref(), is_replay, &is_pause_requested)?;
        let committed = batch::handled_together(session, (kept, memory), &job, events, |tx, mark, done| {
            let failed = |error: postgres::Error| Failure::of_commit(&error, done);
            let next = waiting.get(done.len());
            let handled = (job.counted(done), next);
            match self.note_replayed(&mut **tx, mark, row, owner, parked, handled).map_err(failed)? {
                Replayed::Noted(token) => Ok(token),
                Replayed::Changed => Err(changed()),
                Replayed::Fenced => {
                    let is_marked = fence::is_marked(&mut **tx, mark).map_err(failed)?;
                    Err(if is_marked { Failure::Fenced } else { batch::transaction_ended(events) })
                }
            }
        });
        committed.map(|(events, token)| (events, row.token, token))
    }

    /// Records, in the transaction that is marked, how many counted events were handled, and which
    /// one is next.
    fn note_replayed(
        &self,
        client: &mut impl GenericClient,
        mark: &Mark,
        row: &Checkpoint,
        owner: Owner,
        parked: &Parked,
        (counted, next): (i64, Option<&Waiting>),
    ) -> Result<Replayed, postgres::Error> {
        let names = &self.context.names;
        let Some(token) = fence::replayed(client, names, row, owner, (counted, next.is_none()), mark)? else {
            return Ok(Replayed::Fenced);
        };
        let is_unchanged = match next {
            Some(next) => parked::set_next(client, names, &self.name, parked, next)?,
            None => parked::delete(client, names, &self.name, parked)?,
        };
        Ok(if is_unchanged { Replayed::Noted(token) } else { Replayed::Changed })
    }

    /// Records in a transaction of its own what [`note_replayed`](Self::note_replayed) records.
    pub(super) fn record_replayed(
        &self,
        session: &mut Session,
        row: &Checkpoint,
        owner: Owner,
        parked: &Parked,
        handled: (i64, Option<&Waiting>),
    ) -> Result<Replayed, Failure> {
        let mut tx = session.transaction_of_library().map_err(Failure::outside)?;
        let mark = fence::mark(&mut tx, self.context.sessions, self.idle_limit, None).map_err(Failure::outside)?;
        let noted = self.note_replayed(&mut tx, &mark, row, owner, parked, handled).map_err(Failure::outside)?;
        if let Replayed::Noted(_) = noted {
            tx.commit().map_err(Failure::outside)?;
        }
        Ok(noted)
    }

    /// Acts on the failure of a portion. Returns the failures that concern everything that is
    /// loaded.
    pub(super) fn replay_failed(
        &self,
        loaded: &mut Loaded,
        replays: &mut Replays,
        journal: &mut Journal<'_>,
        parked: &Parked,
        next: Option<&Waiting>,
        failure: Failure,
    ) -> Result<Step, Failure> {
        match (replays.judge(&failure), failure) {
            // The events are those of a parked aggregate, so the next batch is not suspected.
            (_, Failure::Lost(error)) => Err(Failure::Connection(error)),
            (Verdict::Halt | Verdict::HaltForGood | Verdict::Park, failure) => {
                replays.ended();
                self.stay_parked(loaded, journal, parked, next, &failure)?;
                loaded.requested.pop_front();
                Ok(Step::Again)
            }
            (Verdict::ReloadLater, failure) => {
                replays.is_next = false;
                journal.replay_delayed(&failure);
                Ok(Step::Again)
            }
            (Verdict::CommitFirst(_) | Verdict::Repeat | Verdict::Retry, _) => Ok(Step::Again),
            (Verdict::Reload | Verdict::Fenced, failure) => Err(failure),
        }
    }

    /// Records that the replay has failed at the next event that waits.
    fn stay_parked(
        &self,
        loaded: &mut Loaded,
        journal: &mut Journal<'_>,
        parked: &Parked,
        next: Option<&Waiting>,
        failure: &Failure,
    ) -> Result<(), Failure> {
        let (names, described) = (&self.context.names, failure.describe());
        let Some(next) = next else { return Err(changed()) };
        let error = shown(&described);
        let failed = Failed { event: next.event, event_type: &next.event_type, attempts: 1, error: &error };
        self.record_replay(loaded, parked, |tx| parked::set_failed(tx, names, &self.name, parked, failed))?;
        journal.replay_failed(&parked.stream, next.event, failure);
        Ok(())
    }

    /// Records that the replay in progress stops here by itself. If that cannot be recorded, it
    /// counts as one that ended uncleanly.
    pub(super) fn interrupt_replay(&self, loaded: &mut Loaded, replays: &Replays) {
        let Some((stream, left)) = replays.unfinished() else { return };
        if let Some(parked) = loaded.requested.front().filter(|parked| parked.stream == *stream).cloned() {
            _ = self.record_begun(loaded, &parked, left);
        }
    }
}

/// Gives events of a parked aggregate to a reaction.
fn portion_of_parked(
    loaded: &Loaded,
    parked: &Parked,
    events: Vec<Event>,
    waiting: &[Waiting],
) -> Result<Step, Failure> {
    let Some(row) = loaded.rows.of_key(parked.key) else { return Err(Failure::Fenced) };
    let is_replay = events.first().is_some_and(|first| first.global_position() <= parked.highest);
    Ok(Step::React(Box::new(Portion {
        row: row.stored.clone(),
        owner: loaded.owner,
        counted_from: loaded.counted_from,
        is_replay,
        events: events.into(),
        origin: Origin::Parked { parked: parked.clone(), waiting: waiting.to_vec() },
        mark: loaded.mark(),
        pace: loaded.pace,
    })))
}

/// The row of a parked aggregate is no longer as it was loaded: a commit whose outcome was unknown
/// has succeeded, or a command has changed it.
pub(super) fn changed() -> Failure {
    Failure::Transient("a parked aggregate has changed since it was loaded".into())
}
