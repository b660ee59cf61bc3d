//! Records what a reaction has done.
//!
//! What the reaction has done and the database does not know yet is *owed*, until it is recorded or
//! another worker owns the checkpoint. It is kept while the server is away, so that an outage
//! repeats no effect.
//!
//! The record is made on another connection than the one on which the events were read. See
//! [`fence::follow`] for why that is right.

use std::time::Instant;

use super::connection::{Connection, Kept};
use super::failure::Failure;
use super::loaded::Loaded;
use super::portion::{Origin, Owed, Portion};
use super::replay::{self, Replayed};
use super::step::Step;
use super::verdict::Verdict;
use super::work::Work;
use crate::event::Event;
use crate::feed::Standing;
use crate::store::events::Batch;
use crate::store::fence::{self, EventMark, Followed};
use crate::store::session::Session;

/// Why something could not be recorded.
pub(super) enum Unrecorded {
    /// Another attempt may succeed.
    Yet(Failure),
    /// It is not to be recorded any more.
    Ever(Failure),
}

impl Unrecorded {
    fn yet(error: postgres::Error) -> Self {
        Self::Yet(Failure::outside(error))
    }
}

impl Work<'_> {
    /// Records on a connection of its own what is done so far.
    pub(super) fn record_now(&mut self, owed: &mut Owed) -> Result<(), Unrecorded> {
        let mut connection = self.open().map_err(Unrecorded::Yet)?;
        self.record(owed, &mut connection.session)
    }

    fn open(&self) -> Result<Connection, Failure> {
        Connection::open(&self.runner.context, &self.runner.feed, &self.runner.pool)
    }

    /// Records what is owed.
    fn record(&mut self, owed: &mut Owed, session: &mut Session) -> Result<(), Unrecorded> {
        self.try_to_record(owed, session).inspect_err(|unrecorded| {
            if let Unrecorded::Yet(failure) = unrecorded
                && failure.condemns()
            {
                session.condemn();
            }
        })
    }

    fn try_to_record(&mut self, owed: &mut Owed, session: &mut Session) -> Result<(), Unrecorded> {
        let Owed { portion, done, recorded, .. } = owed;
        if *done == *recorded {
            return Ok(());
        }
        let begun = Instant::now();
        let names = self.names;
        let (before, events) = (portion.row.token, *done - *recorded);
        let Some(progress) = portion.progress(*recorded, *done, portion.end()) else { return Ok(()) };
        match &portion.origin {
            Origin::Range { .. } => {
                let row = &portion.row;
                let followed = session.run(|client| fence::follow(client, names, row, portion.owner, progress));
                match followed.map_err(Unrecorded::yet)? {
                    Followed::Moved => {}
                    Followed::Fenced => return Err(Unrecorded::Ever(Failure::Fenced)),
                    Followed::Missing => return Err(Unrecorded::Ever(missing(progress.last))),
                }
                portion.row.position = progress.to;
                *recorded = *done;
                self.journal.committed(events, self.trouble.failed_attempts());
                self.trouble.committed(progress.to);
                self.runner.context.goal.stored(progress.to);
            }
            Origin::Parked { parked, waiting } => {
                let next = waiting.get(*done);
                let (row, owner) = (&portion.row, portion.owner);
                let noted = self.runner.record_replayed(session, row, owner, parked, (progress.handled, next));
                let after = match noted.map_err(Unrecorded::Yet)? {
                    Replayed::Noted(token) => token,
                    Replayed::Fenced => return Err(Unrecorded::Ever(Failure::Fenced)),
                    Replayed::Changed => return Err(Unrecorded::Ever(replay::changed())),
                };
                *recorded = *done;
                let all = self.replays.committed(events, next.map(|next| next.event.position));
                self.journal.replayed(events);
                if next.is_none() {
                    self.trouble.renewed(before, after);
                    self.trouble.released();
                    self.journal.replay_done(&parked.stream, all);
                }
            }
        }
        self.runner.metrics.commit_duration.observe(begun.elapsed().as_secs_f64());
        Ok(())
    }

    /// Records what is owed, and loads the checkpoints again. Returns the failure of the reaction,
    /// if it has failed.
    pub(super) fn settle(&mut self) -> Result<Option<Step>, Failure> {
        let Some(mut owed) = self.owed.take() else { return Ok(None) };
        if owed.is_fenced {
            return Err(Failure::Fenced);
        }
        let settled = self.open().map_err(Unrecorded::Yet).and_then(|mut connection| {
            let recorded = self.record(&mut owed, &mut connection.session);
            recorded.map(|()| connection)
        });
        let connection = match settled {
            Ok(connection) => connection,
            Err(Unrecorded::Yet(failure)) => {
                self.owed = Some(owed);
                return Err(failure);
            }
            Err(Unrecorded::Ever(failure)) => return Err(failure),
        };
        let Owed { portion, done, error, .. } = owed;
        let mut loaded =
            self.runner.load(self.owner, &mut Some(Kept::new(connection)), &self.trouble, &self.journal)?;
        let row = loaded.rows.first().map(|row| (row.stored.token, row.stored.position));
        let is_followed = row == Some((portion.row.token, portion.row.position));
        let is_current = matches!(self.runner.feed.standing_of(portion.mark), Standing::Current(_));
        if is_current {
            // The head that was found before the call is still valid.
            loaded.keep_mark(portion.mark);
        }
        loaded.pace = portion.pace.map(|mut pace| {
            pace.handled(done, Instant::now());
            pace
        });
        let failed_at = portion.events.get(done).cloned();
        if let (Some(error), Some(event)) = (error, failed_at) {
            return self.reaction_failed(loaded, &portion, event, &*error);
        }
        if let Origin::Range { rest, end } = portion.origin
            && is_followed
            && is_current
        {
            let left: Vec<Event> = portion.events.iter().skip(done).cloned().chain(rest).collect();
            loaded.unread =
                Some(Batch { events: left, keys: Vec::new(), end }).filter(|left| !left.events.is_empty()).map(Ok);
        }
        self.loaded = Some(loaded);
        Ok(Some(Step::Again))
    }

    fn reaction_failed(
        &mut self,
        mut loaded: Loaded,
        portion: &Portion,
        event: Event,
        error: &(dyn std::error::Error + 'static),
    ) -> Result<Option<Step>, Failure> {
        let failure = Failure::of_handler(error, std::slice::from_ref(&event), 0);
        match &portion.origin {
            Origin::Range { .. } => {
                loaded.attempted = Some(event);
                self.loaded = Some(loaded);
                Err(failure)
            }
            Origin::Parked { parked, waiting } => {
                let loaded = self.loaded.insert(loaded);
                let (replays, journal) = (&mut self.replays, &mut self.journal);
                self.runner.replay_failed(loaded, replays, journal, parked, waiting.first(), failure).map(Some)
            }
        }
    }

    /// Tries once more to record what is owed, before the runner stops.
    pub(super) fn settle_at_end(&mut self) {
        let Some(mut owed) = self.owed.take() else { return };
        // After any other failure, the next owner of the keys repeats it as after a crash.
        if let Err(Unrecorded::Ever(failure @ Failure::Fenced)) = self.record_now(&mut owed) {
            self.journal.failed(&failure, Verdict::Fenced, 0, None);
        }
    }
}

/// After a failover, the server may lack events that were handled.
fn missing(last: EventMark) -> Failure {
    let EventMark { position, id } = last;
    let problem = format!(
        "the event at global position {position} (event {id}) was handled, and is not there any more, as after a failover to a server \
         that had not received it: what follows on the checkpoint is handled again"
    );
    Failure::Transient(problem.into())
}
