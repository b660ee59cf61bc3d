//! What the tailer sees on one connection: the events above the safe head, and the transactions
//! that may still commit others.
//!
//! *Invariant* (I3): a look first asks which positions are visible and which the sequence has
//! handed out, and only then which transactions are writing. [`Head`] relies on that order.

use std::time::{Duration, Instant};

use postgres::Client;
use postgres::error::SqlState;

use super::head::Head;
use crate::backoff::Mentions;
use crate::error::{Error, field};
use crate::status::Board;
use crate::store::fence::EventMark;
use crate::store::safe_head::{Holders, Probe, Probes};
use crate::store::session::Session;
use crate::store::{Known, Names, checkpoints, continuity, event_tables, preflight, sequence};

/// How long a worker waits between two looks for missing workers, for each member of its replica
/// set, and the bounds of that time. It is enough if one worker looks, and the cost of a look grows
/// with the number of sessions.
const CENSUS_SHARE: Duration = Duration::from_millis(25);
const CENSUS_INTERVAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(600));
/// How long the sequence of the positions is not queried after it was found to be locked.
const LEAVE_SEQUENCE_FOR: Duration = Duration::from_secs(5);

const LOOKING: &str = "looking for events";
const FOLLOWING: &str = "following the events";

/// Why a look failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another session has locked the table for longer than a statement waits. The connection is
    /// sound, and the lock will end.
    Locked(Error),
    /// The connection is lost, or the server does not do what it is asked.
    Lost(Error),
    /// The table of events is not acceptable until an operator changes it.
    Unacceptable(Error),
    /// The events are not those that were processed. Another connection would find the same events.
    Final(Error),
}

impl Failure {
    pub(super) fn error(&self) -> &Error {
        match self {
            Self::Locked(error) | Self::Lost(error) | Self::Unacceptable(error) | Self::Final(error) => error,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error.as_postgres().is_some_and(is_lock_timeout) { Self::Locked(error) } else { Self::Lost(error) }
    }
}

/// A connection on which to follow the events.
pub(super) enum Connected {
    /// The worker's start has just verified the server and the tables on it.
    AtStart(Session),
    /// Since the last connection the server, the table or its events may have been replaced.
    Again(Session),
}

impl Connected {
    fn verified(self, names: &Names) -> Result<Session, Failure> {
        let mut session = match self {
            Self::AtStart(session) => return Ok(session),
            Self::Again(session) => session,
        };
        // A standby shows no writers, so all holes would seem to be settled.
        session.check("asking for the server's state", preflight::server)?;
        session.check("verifying the table of events", |client| event_tables::shape(client, names)).map_err(
            |error| match error {
                Error::Schema { .. } | Error::UnsupportedServer { .. } => Failure::Unacceptable(error),
                error => error.into(),
            },
        )?;
        Ok(session)
    }
}

/// The state that is kept from look to look.
pub(super) struct Sight<'a> {
    names: &'a Names,
    board: &'a Board,
    pub(super) session: Session,
    probes: Probes,
    holders: Holders,
    pub(super) head: Head,
    /// The event that was last seen at the head.
    known: Option<EventMark>,
    /// The newest position, when it was last found to be below the head.
    below_head: Option<i64>,
    /// When to look for missing workers; `None` if sessions are not the worker's own.
    census_due: Option<Instant>,
    /// Until when the sequence is not queried, because another session has locked it.
    sequence_is_locked_until: Instant,
    mentioned: &'a mut Mentioned,
}

/// When each condition of the table of events was last logged, on any connection.
#[derive(Debug, Default)]
pub(super) struct Mentioned {
    positions: Mentions,
    locks: Mentions,
}

impl Mentioned {
    /// Logs that something is locked, at most every 30 s.
    pub(super) fn lock(&mut self, board: &Board, error: &Error) {
        if self.locks.is_due() {
            log::warn!(
                "events are locked, will retry: replica_set={} worker={} error={error}",
                field(&board.replica_set()),
                board.worker_id(),
                error = field(&error)
            );
        }
    }
}

impl<'a> Sight<'a> {
    /// Verifies the server and its events, and begins at a settled position.
    pub(super) fn begin(
        connected: Connected,
        names: &'a Names,
        board: &'a Board,
        projections: &[Known],
        takes_census: bool,
        mentioned: &'a mut Mentioned,
    ) -> Result<Self, Failure> {
        let mut session = connected.verified(names)?;
        let (probes, holders) = session
            .run(|client| {
                let sequence = sequence::readable(client, names)?;
                Ok((Probes::prepare(client, names, sequence.as_ref())?, Holders::prepare(client)?))
            })
            .map_err(Error::database(FOLLOWING))?;
        // Positions at which none of the projections will look again are settled for this worker.
        // No other position is known to be settled: a position that the worker has seen or stored
        // before may be from another server. A projection may start above all existing positions.
        let (lowest, (newest, last)) = session
            .run(|client| {
                let lowest = checkpoints::lowest(client, names, projections)?;
                Ok::<_, postgres::Error>((lowest.unwrap_or(0), sequence::positions(client, names)?))
            })
            .map_err(Error::database(FOLLOWING))?;
        let settled = lowest.min(newest.max(last.unwrap_or(0)));
        // The event at the head shows whether events are replaced from now on. The check after it
        // shows whether they were replaced before.
        let known = session.run(|client| probes.look(client, settled, None)).map_err(Error::database(FOLLOWING))?.here;
        session.check(FOLLOWING, |client| continuity::verify(client, names, projections)).map_err(final_if_schema)?;
        let now = Instant::now();
        Ok(Self {
            names,
            board,
            session,
            probes,
            holders,
            head: Head::new(settled),
            known,
            below_head: None,
            census_due: takes_census.then_some(now),
            sequence_is_locked_until: now,
            mentioned,
        })
    }

    /// Moves the head as far as possible. Returns whether a worker of the replica set seems to be
    /// missing.
    pub(super) fn look(&mut self) -> Result<bool, Failure> {
        let (probe, is_anyone_missing) = self.probe()?;
        self.verify_known(probe)?;
        // A grace period continues while the sequence cannot be queried.
        if self.head.observe(probe) || self.head.is_held_back() {
            let holders = self.session.run(|client| self.holders.list(client, self.names));
            self.head.settle(probe, holders.map_err(Error::database(LOOKING))?);
        }
        self.verify_reach(probe)?;
        Ok(is_anyone_missing)
    }

    /// Asks what is above the head and, from time to time in the same statement, how many workers
    /// are missing.
    fn probe(&mut self) -> Result<(Probe, bool), Failure> {
        let (at, known, now) = (self.head.safe(), self.known, Instant::now());
        let without_sequence = |client: &mut Client| self.probes.look_without_sequence(client, at, known);
        if self.sequence_is_locked_until > now {
            return Ok((self.session.run(without_sequence).map_err(Error::database(LOOKING))?, false));
        }
        let is_census_due = self.census_due.is_some_and(|due| due <= now);
        let probed = self.session.run(|client| {
            if is_census_due {
                let (probe, census) = self.probes.look_with_census(client, at, known, self.board.replica_set())?;
                Ok((probe, Some(census)))
            } else {
                Ok((self.probes.look(client, at, known)?, None))
            }
        });
        match probed {
            Ok((probe, census)) => {
                self.mention_position_beyond_sequence(probe);
                if let Some(census) = &census {
                    self.census_due = Some(Instant::now() + census_interval(census.members));
                }
                Ok((probe, census.is_some_and(|census| census.missing > 0)))
            }
            Err(error) if is_lock_timeout(&error) => {
                // Perhaps only the sequence is locked. Then the events can still be followed.
                let probe = self.session.run(without_sequence).map_err(Error::database(LOOKING))?;
                self.sequence_is_locked_until = Instant::now() + LEAVE_SEQUENCE_FOR;
                self.mention_lock(&Error::database("reading the sequence of the positions")(error));
                Ok((probe, false))
            }
            Err(error) => Err(Error::database(LOOKING)(error).into()),
        }
    }

    /// Verifies that the event last seen at the head is unchanged.
    fn verify_known(&mut self, probe: Probe) -> Result<(), Failure> {
        if let Some((seen, known)) = probe.there.zip(self.known)
            && seen != known
        {
            return Err(Failure::Final(continuity::other_event(self.names, known.position, "this worker")));
        }
        self.known = probe.here.or(probe.there);
        Ok(())
    }

    /// Verifies that no position at or below the head can be handed out again after the events at
    /// the head were removed. Users may remove them.
    fn verify_reach(&mut self, probe: Probe) -> Result<(), Failure> {
        let safe = self.head.safe();
        if probe.newest < safe && self.below_head != Some(probe.newest) {
            self.session
                .check(FOLLOWING, |client| continuity::reach(client, self.names, safe, "the safe head"))
                .map_err(final_if_schema)?;
            self.below_head = Some(probe.newest);
        }
        Ok(())
    }

    fn mention_position_beyond_sequence(&mut self, probe: Probe) {
        let at = self.head.safe();
        if let Some(last) = probe.last.filter(|last| *last < probe.newest.max(at))
            && self.mentioned.positions.is_due()
        {
            log::error!(
                "positions were not handed out by the sequence: replica_set={} worker={} newest={} head={at} last={last}",
                field(&self.board.replica_set()),
                self.board.worker_id(),
                probe.newest
            );
        }
    }

    /// Logs that something is locked.
    pub(super) fn mention_lock(&mut self, error: &Error) {
        self.mentioned.lock(self.board, error);
    }
}

/// A failed verification of the events is final. A verification that could not be made is not.
fn final_if_schema(error: Error) -> Failure {
    match error {
        Error::Schema { .. } => Failure::Final(error),
        error => error.into(),
    }
}

fn is_lock_timeout(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

fn census_interval(members: i64) -> Duration {
    let (shortest, longest) = CENSUS_INTERVAL;
    CENSUS_SHARE.saturating_mul(u32::try_from(members).unwrap_or(u32::MAX)).clamp(shortest, longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn census_interval_grows_with_the_number_of_members() {
        for (members, millis) in [(0, 200), (1, 200), (8, 200), (10, 250), (24, 600), (1_000, 600), (i64::MAX, 600)] {
            assert_eq!(census_interval(members), Duration::from_millis(millis), "{members} members");
        }
    }
}
