//! The first time that a projection catches up: calls its `caught_up`.
//!
//! Every runner of the projection that has nothing to do asks from time to time whether all keys
//! have come to where the head was when it arrived there itself. The first one that finds so calls
//! `caught_up`, and records that in the same transaction. An advisory lock keeps the others from
//! calling it at the same time. The runner still has to own its checkpoint then, so that the record
//! is never about a state before a rewind.

use std::time::{Duration, Instant};

use super::connection::Connection;
use super::failure::{self, Failure};
use super::journal::Journal;
use super::loaded::Loaded;
use super::parts::Runner;
use crate::error::{BoxError, describe_any};
use crate::projection::guarded;
use crate::store::{arrival, fence};
use crate::tx::{About, KeptStatements, Memory, Tx};

/// The outcome of an attempt to record that the projection has caught up.
enum Attempt {
    Done,
    /// Another worker does it, or has done it.
    LeftToOthers,
    Failed(BoxError),
}

impl Runner {
    /// Calls `caught_up` if the projection has caught up for the first time. Returns when to ask
    /// again, if it has not.
    pub(super) fn arrive(
        &self,
        loaded: &mut Loaded,
        journal: &mut Journal<'_>,
        head: i64,
    ) -> Result<Option<Duration>, Failure> {
        let Some(first) = &mut loaded.arrival else { return Ok(None) };
        let at = *first.at.get_or_insert(head);
        if first.is_due() {
            first.wait();
            loaded.note_position()?;
            let (names, session) = (&self.context.names, &mut loaded.connection.session);
            let is_level = session.run(|client| arrival::is_level(client, names, &self.name, at));
            if is_level.map_err(Failure::outside)? {
                match self.caught_up(loaded)? {
                    Attempt::Done => {
                        journal.caught_up(at);
                        loaded.arrival = None;
                    }
                    Attempt::LeftToOthers => {}
                    Attempt::Failed(error) => {
                        journal.caught_up_failed(&describe_any(&*error));
                        if let Some(first) = &mut loaded.arrival {
                            first.wait_after_error(&self.settings.retry);
                        }
                    }
                }
            }
        }
        Ok(loaded.arrival.as_ref().map(|first| first.due.saturating_duration_since(Instant::now())))
    }

    fn caught_up(&self, loaded: &mut Loaded) -> Result<Attempt, Failure> {
        let Loaded { owner, connection: Connection { session, .. }, rows, .. } = loaded;
        let (mut kept, mut memory) = (KeptStatements::default(), Memory::default());
        let (Some(row), names) = (rows.first(), &self.context.names) else { return Ok(Attempt::LeftToOthers) };
        let is_pause_requested = || self.is_pause_requested();
        let about = About {
            projection: &self.name,
            generation: owner.generation,
            is_replay: false,
            is_pause_requested: &is_pause_requested,
        };
        let transaction = session.transaction().map_err(Failure::outside)?;
        let mut tx = Tx::new(transaction, &mut kept, &mut memory, about);
        let mark = fence::mark(&mut tx, self.context.sessions, self.idle_limit, None).map_err(Failure::outside)?;
        if !arrival::begin(&mut *tx, names, &self.name).map_err(Failure::outside)? {
            return Ok(Attempt::LeftToOthers);
        }
        let called = guarded(|| self.handler.caught_up(&mut tx));
        let is_marked = fence::is_marked(&mut *tx, &mark);
        match (called, is_marked) {
            (_, Err(error)) if failure::is_connection_lost(&error) => Err(Failure::Connection(error.into())),
            (Err(error), _) => Ok(Attempt::Failed(error)),
            (Ok(()), Err(error)) => Ok(Attempt::Failed(error.into())),
            (Ok(()), Ok(false)) => Ok(Attempt::Failed("it has ended the transaction that it was given".into())),
            (Ok(()), Ok(true)) if tx.was_outdated() => Ok(Attempt::Failed("a kept statement is outdated".into())),
            (Ok(()), Ok(true)) => {
                let is_recorded = arrival::record(&mut tx, names, &self.name, &row.stored, *owner);
                match is_recorded
                    .and_then(|is_recorded| if is_recorded { tx.commit().map(|()| true) } else { Ok(false) })
                {
                    Ok(true) => Ok(Attempt::Done),
                    Ok(false) => Err(Failure::Fenced),
                    Err(error) if failure::is_connection_lost(&error) => Err(Failure::Connection(error.into())),
                    // A deferred constraint, for example.
                    Err(error) => Ok(Attempt::Failed(error.into())),
                }
            }
        }
    }
}
