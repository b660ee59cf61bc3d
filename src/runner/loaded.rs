//! What a runner has loaded: its checkpoints, on the connection on which they were loaded.
//!
//! *Invariant:* checkpoints, and the events that were read after them, are never used on another
//! connection, because that may lead to a server that has fewer events. So when a connection fails,
//! the runner drops them together with it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::arrival::Arrival;
use super::connection::{Connection, Kept};
use super::exceptions::Exceptions;
use super::failure::Failure;
use super::pace::Pace;
use super::rows::{Row, Rows};
use crate::error::field;
use crate::event::Event;
use crate::feed::prefetch::{Answer, Reading};
use crate::feed::{Feed, Mark, Standing};
use crate::plan::{Kind, base_of};
use crate::store::attempts::{self, Report};
use crate::store::fence::{self, Attempt, EventMark, Owned, Owner};
use crate::store::parked::{self, Parked};
use crate::store::rebuilds::{self, Copies};
use crate::store::{Names, continuity};
use crate::tx::Memory;

/// How often a position that moved without any event of the projection is written to the database.
/// This avoids reading the same events again after a restart; without it nothing would be lost.
const NOTE_POSITION_EVERY: Duration = Duration::from_secs(1);
/// The same in a rebuild that is about to be switched, because the live projection waits for that.
const NOTE_POSITION_SOON: Duration = Duration::from_millis(20);

pub(super) struct Loaded {
    pub(super) owner: Owner,
    pub(super) connection: Connection,
    pub(super) rows: Rows,
    /// Events above this position are counted when they are handled.
    pub(super) counted_from: i64,
    /// Whether the rows may go no further than those of a rebuild.
    pub(super) is_following: bool,
    /// The first time that the projection catches up, until that has happened.
    pub(super) arrival: Option<Arrival>,
    /// Where the handlers of a rebuild write.
    pub(super) copies: Option<Copies>,
    /// How fast events may be handled, if there is a limit.
    pub(super) pace: Option<Pace>,
    /// What the handler keeps in memory.
    pub(super) memory: Memory,
    pub(super) exceptions: Exceptions,
    /// The parked aggregates that are to be replayed, the next one first.
    pub(super) requested: VecDeque<Parked>,
    /// The first event of the batch that was handled last, unless that was committed.
    pub(super) attempted: Option<Event>,
    /// Taken right before the rows were loaded.
    mark: Mark,
    /// The events that follow on the first row: an answer of the reader, or the rest of a batch.
    pub(super) unread: Option<Answer>,
    /// The request that the reader is working on.
    pub(super) reading: Option<Reading>,
    /// When the position was last written to the database.
    noted_at: Instant,
}

impl Loaded {
    /// Loads what this owner holds of a projection for one of its lanes.
    pub(super) fn load(
        mut connection: Connection,
        feed: &Feed,
        names: &Names,
        (projection, lane): (&str, usize),
        owner: Owner,
        rate: Option<u32>,
    ) -> Result<Self, Failure> {
        let mark = feed.mark_in_epoch_of(connection.opened);
        let Connection { session, statements, .. } = &mut connection;
        // A policy may hide the rows, and moving a hidden row looks like being fenced. So a policy
        // must be an error here, or the runner would consider itself the owner of nothing.
        let mut tx = session.transaction_without_policies().map_err(Failure::outside)?;
        let found = statements.owned(&mut tx, projection, owner, lane).and_then(|found| {
            let rows = Rows::new(found.rows);
            let exceptions = parked::load(&mut tx, names, projection, &rows.keys(), rows.lowest())?;
            let copies = match Kind::of(projection) {
                Kind::Rebuild => rebuilds::copies(&mut tx, names, base_of(projection))?,
                Kind::Live | Kind::Old => None,
            };
            tx.commit().map(|()| (Owned { rows: Vec::new(), ..found }, rows, exceptions, copies))
        });
        let (found, mut rows, exceptions, copies) = found.map_err(Failure::outside)?;
        // Without copies, a handler would write to the live tables.
        if Kind::of(projection) == Kind::Rebuild && copies.is_none() {
            rows = Rows::new(Vec::new());
        }
        log::debug!(
            "checkpoints loaded: projection={projection} {rows:?} {exceptions:?}",
            projection = field(&projection)
        );
        if let Some(position) = found.other_event_at {
            let error = continuity::other_event(names, position, &format!("projection {projection:?}"));
            return Err(Failure::Final(error.into()));
        }
        Ok(Self {
            owner,
            connection,
            counted_from: found.counted_from,
            is_following: found.is_following,
            arrival: (found.is_catching_up && Kind::of(projection) == Kind::Live).then(Arrival::new),
            pace: copies
                .as_ref()
                .map_or(rate, |copies| copies.rate.and_then(|rate| u32::try_from(rate).ok()))
                .map(|rate| Pace::of(rate, &rows.keys(), Instant::now())),
            copies,
            memory: Memory::default(),
            rows,
            exceptions: Exceptions::new(&exceptions),
            // A replay would handle what the rebuild may not have handled yet.
            requested: exceptions
                .parked
                .into_iter()
                .filter(|parked| parked.is_requested && !found.is_following)
                .collect(),
            attempted: None,
            mark,
            unread: None,
            reading: None,
            noted_at: Instant::now(),
        })
    }

    /// Whether this was loaded, or its position was written, longer ago than this time.
    pub(super) fn is_older_than(&self, time: Duration) -> bool {
        self.noted_at.elapsed() > time
    }

    /// Replaces the mark by an earlier one, of the same epoch.
    pub(super) fn keep_mark(&mut self, mark: Mark) {
        self.mark = mark;
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Returns up to which position these rows may be advanced, if they may still be used.
    pub(super) fn standing(&self, feed: &Feed) -> Standing {
        feed.standing_of(self.mark)
    }

    /// Returns up to which position the first row may be advanced.
    pub(super) fn limit(&mut self, names: &Names, projection: &str, head: i64) -> Result<i64, Failure> {
        let Some(first) = self.rows.first().filter(|_| self.is_following) else { return Ok(head) };
        let session = &mut self.connection.session;
        let ceiling = session.run(|client| rebuilds::ceiling(client, names, projection, &first.stored.keys));
        // Without a rebuild, these rows are about to be loaded again.
        Ok(ceiling.map_err(Failure::outside)?.unwrap_or(first.reached).min(head))
    }

    /// Drops the events that were read, so that they are read again in their current form.
    pub(super) fn discard_unread(&mut self) {
        self.unread = None;
        self.reading = None;
    }

    /// Takes note that the first row has been committed at this position.
    pub(super) fn committed(&mut self, position: i64) {
        self.attempted = None;
        self.rows.store(position);
        self.noted_at = Instant::now();
    }

    /// Records the attempt at the first row's events that is about to be made, unless the row has
    /// it already.
    pub(super) fn record(&mut self, names: &Names, attempt: Attempt, why: Option<&str>) -> Result<(), Failure> {
        let Some(row) = self.rows.first().filter(|row| row.stored.attempt != Some(attempt)) else { return Ok(()) };
        let session = &mut self.connection.session;
        let recorded = session.run(|client| attempts::record(client, names, &row.stored, self.owner, attempt, why));
        if !recorded.map_err(Failure::outside)? {
            return Err(Failure::Fenced);
        }
        self.rows.set_attempt(Some(attempt));
        Ok(())
    }

    /// Records this number of attempts at the event that is to be handled next, if it has been
    /// read.
    pub(super) fn record_next(&mut self, names: &Names, number: u32) {
        let next = self.unread.as_ref().and_then(|read| read.as_ref().ok()?.events.first());
        let event = next.map(|next| EventMark { position: next.global_position(), id: next.event_id() });
        if let Some(event) = event {
            _ = self.record(names, Attempt { event, number }, None);
        }
    }

    /// Reports a failure at the first row's events. It is not retried if it cannot be reported:
    /// what the runner does about the failure does not depend on it.
    pub(super) fn report(&mut self, names: &Names, report: Report<'_>) {
        let Some(row) = self.rows.first() else { return };
        let session = &mut self.connection.session;
        let reported = session.run(|client| attempts::report(client, names, &row.stored, self.owner, report));
        if reported.is_ok_and(|is_owner| is_owner) && report.attempts.is_some() {
            self.rows.set_attempt(None);
        }
    }

    /// Takes the recorded attempt back, because it has ended by itself and does not count. `left`
    /// is the number of attempts that did not end by themselves; otherwise the next owner would
    /// count this attempt as one of them.
    pub(super) fn take_back(&mut self, names: &Names, left: u32) {
        let Some(row) = self.rows.first() else { return };
        let Some(attempt) = row.stored.attempt.filter(|attempt| attempt.number > left) else { return };
        let session = &mut self.connection.session;
        let taken = session.run(|client| attempts::take_back(client, names, &row.stored, self.owner, left));
        if taken.is_ok_and(|is_owner| is_owner) {
            self.rows.set_attempt((left > 0).then_some(Attempt { number: left, ..attempt }));
        }
    }

    /// Merges the first row into the second, if they are at one position. Returns whether they
    /// were.
    pub(super) fn merge_first_two(&mut self, names: &Names) -> Result<bool, Failure> {
        if self.rows.met().is_none() {
            return Ok(false);
        }
        self.note_position()?;
        if let Some((from, into)) = self.rows.met() {
            let session = &mut self.connection.session;
            let merged = session.run(|client| fence::merge(client, names, &into.stored, &from.stored, self.owner));
            if !merged.map_err(Failure::outside)? {
                return Err(Failure::Fenced);
            }
            self.rows.merge();
        }
        Ok(true)
    }

    /// How soon the first row's position has to be written to the database; `None` if the database
    /// has it.
    pub(super) fn note_due_in(&self) -> Option<Duration> {
        let unnoted = self.rows.first().filter(|row| row.is_ahead());
        let is_awaited = self.copies.as_ref().is_some_and(|copies| copies.is_awaited);
        let every = if is_awaited { NOTE_POSITION_SOON } else { NOTE_POSITION_EVERY };
        unnoted.map(|_| every.saturating_sub(self.noted_at.elapsed()))
    }

    /// Writes the first row's position to the database if it has moved without events.
    pub(super) fn note_position(&mut self) -> Result<(), Failure> {
        if let Some(Row { stored, reached }) = self.rows.first().filter(|row| row.is_ahead()) {
            let (to, Connection { session, statements, .. }) = (*reached, &mut self.connection);
            let noted = session.run(|client| statements.note(client, stored, self.owner, to));
            if !noted.map_err(Failure::outside)? {
                return Err(Failure::Fenced);
            }
            self.rows.store(to);
        }
        self.noted_at = Instant::now();
        Ok(())
    }

    /// Keeps only the connection.
    pub(super) fn into_kept(self) -> Kept {
        Kept::new(self.connection)
    }
}
