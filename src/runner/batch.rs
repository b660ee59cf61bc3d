//! One batch: one transaction that commits the handler's writes together with the checkpoint (I1),
//! protected by the fence (I4).

use std::time::{Duration, Instant};

use super::failure::{self, Failure};
use crate::event::Event;
use crate::metrics::ProjectionMetrics;
use crate::projection::{self, Failed, Writes};
use crate::store::events::Batch;
use crate::store::fence::{self, Advanced, Checkpoint, EventMark, Mark, Owner, Progress, Statements};
use crate::store::rebuilds::Copies;
use crate::store::session::{Session, Sessions};
use crate::tx::{About, KeptStatements, Memory, Tx};

/// The result of a committed batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Committed {
    /// The checkpoint's new position.
    pub(super) position: i64,
    pub(super) events: usize,
}

/// How events are handled, and for which owner.
pub(super) struct Job<'a> {
    pub(super) handler: &'a dyn Writes,
    pub(super) about: About<'a>,
    pub(super) owner: Owner,
    /// The checkpoint of the events' keys.
    pub(super) row: &'a Checkpoint,
    /// Events above this position are counted.
    pub(super) counted_from: i64,
    /// Where the handlers of a rebuild write.
    pub(super) copies: Option<&'a Copies>,
    /// A batch that has taken this long is committed with the events handled so far. This keeps
    /// read models fresh and row locks short when handlers are slow.
    pub(super) batch_time: Duration,
    pub(super) sessions: Sessions,
    /// How long a transaction may be idle before the server ends it.
    pub(super) idle_limit: Duration,
    pub(super) metrics: &'a ProjectionMetrics,
}

impl Job<'_> {
    /// How many of these handled events are counted.
    pub(super) fn counted(&self, done: &[Event]) -> i64 {
        let counted = done.iter().filter(|event| event.global_position() > self.counted_from).count();
        i64::try_from(counted).unwrap_or(i64::MAX)
    }
}

/// Handles the first events of a batch, at most this many, and moves the checkpoint, in one
/// transaction. Once a pause is requested, the events handled so far are committed and the rest is
/// left for later. The statements are those that were prepared on the same connection.
pub(super) fn commit(
    session: &mut Session,
    (kept, memory): (&mut KeptStatements, &mut Memory),
    statements: &Statements,
    job: &Job<'_>,
    batch: &Batch,
    count: usize,
) -> Result<Committed, Failure> {
    let events = batch.events.get(..count).unwrap_or(&batch.events);
    let (events, position) = handled_together(session, (kept, memory), job, events, |tx, mark, done| {
        let Some(last) = done.last() else { return Err(Failure::Fenced) };
        let last = EventMark { position: last.global_position(), id: last.event_id() };
        // Every matching event up to the batch's end was in it, so handling all of them brings the
        // projection up to that end.
        let position = if done.len() < batch.events.len() { last.position } else { batch.end };
        let progress = Progress { to: position, last, handled: job.counted(done) };
        match statements.advance(&mut **tx, job.row, job.owner, progress, mark) {
            Ok(Advanced::Moved) => Ok(position),
            // Dropping the transaction rolls it back.
            Ok(Advanced::Fenced) => Err(Failure::Fenced),
            Ok(Advanced::OtherTransaction) => Err(transaction_ended(events)),
            Err(error) => Err(Failure::of_commit(&error, done)),
        }
    })?;
    Ok(Committed { position, events })
}

/// Handles events, and records that in the same transaction. `record` is given the transaction, its
/// mark and the handled events. Returns how many they are, and what `record` returns.
pub(super) fn handled_together<T>(
    session: &mut Session,
    (kept, memory): (&mut KeptStatements, &mut Memory),
    job: &Job<'_>,
    events: &[Event],
    record: impl FnOnce(&mut Tx<'_>, &Mark, &[Event]) -> Result<T, Failure>,
) -> Result<(usize, T), Failure> {
    let outcome = handle_and_commit(session, (&mut *kept, &mut *memory), job, events, record);
    outcome.map_err(|failure| {
        kept.failed();
        memory.clear();
        match failure {
            failure if session.farewell().is_some() => failure.of_bystander(),
            failure if kept.was_outdated() => failure.of_outdated(),
            failure => failure,
        }
    })
}

fn handle_and_commit<T>(
    session: &mut Session,
    (kept, memory): (&mut KeptStatements, &mut Memory),
    job: &Job<'_>,
    events: &[Event],
    record: impl FnOnce(&mut Tx<'_>, &Mark, &[Event]) -> Result<T, Failure>,
) -> Result<(usize, T), Failure> {
    let transaction = session.transaction().map_err(Failure::outside)?;
    let mut tx = Tx::new(transaction, kept, memory, job.about);
    let mark = fence::mark(&mut tx, job.sessions, job.idle_limit, job.copies.map(|copies| copies.schema.as_str()))
        .map_err(Failure::outside)?;
    let handled = match handle(&mut tx, job, events) {
        Ok(handled) => handled,
        Err((Failed { error, at }, handled)) => {
            let failed_at = handled + at.unwrap_or(0);
            return Err(match fence::is_marked(&mut *tx, &mark) {
                // Another attempt would repeat what the handler has committed by itself.
                Ok(false) => transaction_ended(events),
                Err(probe) if failure::is_connection_lost(&probe) => {
                    Failure::of_lost_handler(&*error, events, failed_at)
                }
                _ if at.is_none() => Failure::of_handler(&*error, events, handled).of_many(events.len()),
                _ => Failure::of_handler(&*error, events, failed_at),
            });
        }
    };
    if tx.was_outdated() {
        // The handler went on although its statement had failed, so its writes may be incomplete.
        return Err(Failure::Outdated("a kept statement is outdated".into()));
    }
    let done = events.get(..handled).unwrap_or(events);
    if let Some(copies) = job.copies
        && let Some(trespass) = copies.trespass(&mut *tx).map_err(|error| Failure::of_commit(&error, done))?
    {
        return Err(Failure::of_trespass(&trespass));
    }
    let begun = Instant::now();
    let recorded = record(&mut tx, &mark, done)?;
    tx.commit().map_err(|error| Failure::of_commit(&error, done))?;
    job.metrics.commit_duration.observe(begun.elapsed().as_secs_f64());
    Ok((handled, recorded))
}

/// Calls the handler until all events are handled, a pause is requested, or it has taken long
/// enough. Returns how many events are handled, with the error if it failed at the next.
fn handle(tx: &mut Tx<'_>, job: &Job<'_>, events: &[Event]) -> Result<usize, (Failed, usize)> {
    let begun = Instant::now();
    let mut called = begun;
    let mut handled = 0;
    let durations = job.metrics.processing_duration.local();
    while let Some(rest) = events.get(handled..).filter(|rest| !rest.is_empty()) {
        let count = projection::handle(job.handler, tx, rest).map_err(|failed| (failed, handled))?;
        // If the handler takes many events at once, this is the mean per event.
        let returned = Instant::now();
        let seconds = (returned - called).as_secs_f64() / f64::from(u32::try_from(count).unwrap_or(u32::MAX));
        durations.observe(seconds);
        handled += count;
        if tx.is_pause_requested() || returned - begun >= job.batch_time {
            break;
        }
        called = returned;
    }
    Ok(handled)
}

pub(super) fn transaction_ended(events: &[Event]) -> Failure {
    let position = |event: Option<&Event>| event.map_or(0, Event::global_position);
    Failure::Final(
        format!(
            "the handler has ended the transaction it was given (COMMIT, ROLLBACK, PREPARE TRANSACTION, or RESET ALL), at one of \
             the events at global positions {} to {}, so what it wrote is not committed together with the checkpoint: correct the \
             handler, then repair what it has committed",
            position(events.first()),
            position(events.last())
        )
        .into(),
    )
}
