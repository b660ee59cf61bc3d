//! What a runner has loaded: its checkpoints, on the connection on which they were loaded.
//!
//! *Invariant:* checkpoints, and what was read to follow on them, are never used on another
//! connection, which may lead to a server that knows less. So a connection that fails takes all of
//! it along.

use std::time::{Duration, Instant};

use super::connection::{Connection, Kept};
use super::failure::Failure;
use super::rows::{Row, Rows};
use crate::feed::prefetch::{Answer, Reading};
use crate::feed::{Feed, Mark, Standing};
use crate::store::fence::{self, Owner};
use crate::store::{Names, continuity};

/// A position that moved without any event of the projection is written down this often. It spares
/// repeated reading after a restart; losing it loses nothing.
const NOTE_POSITION_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Loaded {
    pub(super) owner: Owner,
    pub(super) connection: Connection,
    pub(super) rows: Rows,
    /// Right before the rows were loaded.
    mark: Mark,
    /// What follows on the first row: what the reader gave, or is left of a batch.
    pub(super) unread: Option<Answer>,
    /// What the reader has been asked for and goes on with.
    pub(super) reading: Option<Reading>,
    /// When the position was last written down.
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
    ) -> Result<Self, Failure> {
        let mark = feed.mark_in_epoch_of(connection.opened);
        let Connection { session, statements, .. } = &mut connection;
        // A policy may hide the rows, and moving one is then taken for being fenced. So it must be an
        // error here, or the runner would take itself for the owner of nothing.
        let mut tx = session.transaction_without_policies().map_err(Failure::transient)?;
        let found = statements.owned(&mut tx, projection, owner, lane).map_err(Failure::transient)?;
        tx.commit().map_err(Failure::transient)?;
        log::debug!("checkpoints loaded: projection={projection} {found:?}");
        if let Some(position) = found.other_event_at {
            let error = continuity::other_event(names, position, &format!("projection {projection:?}"));
            return Err(Failure::Refused(error.into()));
        }
        let rows = Rows::new(found.rows);
        Ok(Self { owner, connection, rows, mark, unread: None, reading: None, noted_at: Instant::now() })
    }

    /// Up to where these rows may be advanced, if they still may.
    pub(super) fn standing(&self, feed: &Feed) -> Standing {
        feed.standing_of(self.mark)
    }

    /// Lets go of what was read: it is to be read again, as it is now.
    pub(super) fn discard_unread(&mut self) {
        self.unread = None;
        self.reading = None;
    }

    /// The first row has been committed at this position.
    pub(super) fn committed(&mut self, position: i64) {
        self.rows.store(position);
        self.noted_at = Instant::now();
    }

    /// Merges the first row into the second, if they are at one position. Returns whether they were.
    pub(super) fn merge_first_two(&mut self, names: &Names) -> Result<bool, Failure> {
        if self.rows.met().is_none() {
            return Ok(false);
        }
        self.note_position()?;
        if let Some((from, into)) = self.rows.met() {
            let session = &mut self.connection.session;
            let merged = session.run(|client| fence::merge(client, names, &into.stored, &from.stored, self.owner));
            if !merged.map_err(Failure::transient)? {
                return Err(Failure::Fenced);
            }
            self.rows.merge();
        }
        Ok(true)
    }

    /// When the first row's position is to be written down; none if the database has it.
    pub(super) fn note_due_in(&self) -> Option<Duration> {
        let unnoted = self.rows.first().filter(|row| row.is_ahead());
        unnoted.map(|_| NOTE_POSITION_EVERY.saturating_sub(self.noted_at.elapsed()))
    }

    /// Writes the first row's position down if it has moved without events.
    pub(super) fn note_position(&mut self) -> Result<(), Failure> {
        if let Some(Row { stored, reached }) = self.rows.first().filter(|row| row.is_ahead()) {
            let (to, Connection { session, statements, .. }) = (*reached, &mut self.connection);
            let noted = session.run(|client| statements.note(client, stored, self.owner, to));
            if !noted.map_err(Failure::transient)? {
                return Err(Failure::Fenced);
            }
            self.rows.store(to);
        }
        self.noted_at = Instant::now();
        Ok(())
    }

    /// Keeps the connection alone.
    pub(super) fn into_kept(self) -> Kept {
        Kept::new(self.connection)
    }
}
