//! The tailer: the thread that finds the safe head and reads the live tail. One poll per worker, however many projections.
//!
//! It polls quickly while polls find something and ever more slowly while they do not; a hint wakes it at once. With the same statement it
//! looks, now and then, whether a worker of the replica set is missing, and wakes the coordinator if one is: that is how a killed worker is
//! noticed well before the coordinator's next poll, at no further statement. When its connection fails it makes another, and begins again
//! from a head that is known to be settled.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};
use postgres::Client;
use postgres::error::SqlState;

use super::Feed;
use super::head::Head;
use crate::backoff::{Backoff, Mentions};
use crate::database::Database;
use crate::error::Error;
use crate::metrics::ReplicaSetMetrics;
use crate::projection::Scope;
use crate::status::Board;
use crate::store::events::{Bounds, EventReader, Range, ReadError};
use crate::store::fence::EventMark;
use crate::store::safe_head::{Holders, Probe, Probes};
use crate::store::session::{Session, Sessions};
use crate::store::{Known, Names, checkpoints, continuity, coordination, event_tables, preflight, safe_head, sequence};
use crate::threads::{Pulse, Stop, Waker};

/// A head that is held back for less is the ordinary life of writers and not worth a word.
const BLOCKED_NOTICE: Duration = Duration::from_secs(1);
/// How long a worker waits between two looks for the missing, for each member of its replica set, and the bounds of that: it is enough
/// that one of them looks, and a look at all sessions costs the more the more there are.
const CENSUS_SHARE: Duration = Duration::from_millis(25);
const CENSUS_INTERVAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(600));
/// From look to look when there is a hint after the other: each then finds more, and all of them cost less.
const BETWEEN_HINTS: Duration = Duration::from_millis(5);
/// How long the sequence of the positions is left alone after it was found to be locked.
const LEAVE_SEQUENCE_FOR: Duration = Duration::from_secs(5);
/// How often the safe head is reported while it moves.
const REPORT_HEAD_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Tailer {
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) sessions: Sessions,
    /// What the worker runs.
    pub(crate) projections: Vec<Known>,
    pub(crate) feed: Feed,
    /// What any projection of the worker wants.
    pub(crate) scope: Scope,
    pub(crate) bounds: Bounds,
    pub(crate) poll: (Duration, Duration),
    pub(crate) hints: Receiver<()>,
    /// Tells the coordinator that somebody of the replica set seems to be missing.
    pub(crate) missing: Waker,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) metrics: ReplicaSetMetrics,
}

struct Statements {
    probes: Probes,
    holders: Holders,
    read: EventReader,
}

/// What is remembered from look to look, on one connection.
struct Sight {
    head: Head,
    census_due: Instant,
    /// The event last seen at the head.
    known: Option<EventMark>,
    /// Until when the sequence is not asked, because another session has locked it.
    sequence_is_locked_until: Instant,
    /// What was said of positions, and of locks.
    positions: Mentions,
    locks: Mentions,
}

/// Why a connection is followed no longer.
enum Failure {
    /// It is lost, or the server does not do what is asked of it.
    Lost(Error),
    /// The table of events is not acceptable until a person changes it.
    Unacceptable(Error),
    /// The events are not those that were processed: no other connection would find other ones.
    Final(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Lost(error)
    }
}

impl Tailer {
    pub(crate) fn run(self, pulse: &Pulse) -> Result<(), Error> {
        let mut backoff = Backoff::for_connections();
        while !self.stop.is_raised() {
            pulse.beat();
            let (replica_set, worker) = (self.board.replica_set(), self.board.worker_id());
            match self.follow(pulse, &mut backoff) {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Unacceptable(error)) => {
                    if backoff.is_worth_logging() {
                        log::error!(
                            "events cannot be followed, will retry: replica_set={replica_set} worker={worker} error={error}"
                        );
                    }
                }
                Err(Failure::Lost(error)) if is_lock_timeout(&error) => self.say_locked(&error),
                Err(Failure::Lost(error)) => {
                    if backoff.is_worth_logging() {
                        log::warn!(
                            "connection lost: replica_set={replica_set} worker={worker} connection=tailer error={error}"
                        );
                    }
                    self.metrics.reconnects("tailer").inc();
                }
            }
            self.stop.wait(backoff.next_delay());
        }
        Ok(())
    }

    /// Follows the events on one connection until it fails or the worker stops.
    fn follow(&self, pulse: &Pulse, backoff: &mut Backoff) -> Result<(), Failure> {
        let doing = "following the events";
        let mut session = Session::open(&self.database, self.sessions)?;
        self.feed.begin_epoch();
        // A standby shows no writers, so all holes would seem settled.
        session.check("asking for the server's state", preflight::server)?;
        // Whatever has happened since the last connection: the table may be another one, and its
        // events may be others.
        session.check("verifying the table of events", |client| event_tables::shape(client, &self.names)).map_err(
            |error| match error {
                Error::Schema { .. } | Error::UnsupportedServer { .. } => Failure::Unacceptable(error),
                error => Failure::Lost(error),
            },
        )?;
        let mut statements = session.run(|client| self.prepare(client)).map_err(Error::database(doing))?;
        // What none of the projections will look at again is settled as far as this worker goes.
        // More is not known: what a worker has seen before, or written down, may be of another
        // server. A projection may start above all positions that there are.
        let (lowest, (newest, last)) = session
            .run(|client| {
                let lowest = checkpoints::lowest(client, &self.names, &self.projections)?;
                Ok::<_, postgres::Error>((lowest.unwrap_or(0), sequence::positions(client, &self.names)?))
            })
            .map_err(Error::database(doing))?;
        let settled = lowest.min(newest.max(last.unwrap_or(0)));
        // Events that are replaced from now on are noticed by this one, and those before by what
        // follows.
        let known =
            session.run(|client| statements.probes.look(client, settled, None)).map_err(Error::database(doing))?.here;
        session
            .check(doing, |client| continuity::verify(client, &self.names, &self.projections))
            .map_err(not_the_same)?;
        let now = Instant::now();
        let mut sight = Sight {
            head: Head::new(settled),
            census_due: now,
            known,
            sequence_is_locked_until: now,
            positions: Mentions::default(),
            locks: Mentions::default(),
        };
        // Whoever held it back may be gone like the connection; if not, it is soon known again.
        self.show_unblocked();
        let mut blocked = Blocked::default();
        let mut below_head = None;
        let mut reported = (settled, Instant::now());
        let (quickest, slowest) = self.poll;
        let mut interval = quickest;
        let mut is_hinted = false;
        while !self.stop.is_raised() {
            pulse.beat();
            let begun = Instant::now();
            let before = self.feed.head();
            let probe = match self.look(&mut session, &statements, &mut sight) {
                Ok(probe) => probe,
                // Not a reason to close the connection: the session that has locked the table will
                // end its transaction at some time.
                Err(Failure::Lost(error)) if is_lock_timeout(&error) => {
                    if sight.locks.is_due() {
                        self.say_locked(&error);
                    }
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let safe = sight.head.safe();
            // Below the head once events were removed, which is for the user to do, but not to hand out their positions again.
            if probe.newest < safe && below_head.replace(probe.newest) != Some(probe.newest) {
                session
                    .check(doing, |client| continuity::reach(client, &self.names, safe, "the safe head"))
                    .map_err(not_the_same)?;
            }
            if before != Some(safe) {
                self.read_tail(&mut session, &mut statements.read, safe)?;
                self.board.set_safe_head(safe);
                self.metrics.safe_head.set(safe);
                self.feed.publish(safe);
            }
            self.feed.looked(begun);
            // Where hints tell everything, there is no need to poll quickly as well.
            let more_may_come = if is_hinted { sight.head.is_held_back() } else { before != Some(safe) };
            if more_may_come {
                interval = quickest;
            }
            if reported.0 != safe && reported.1.elapsed() >= REPORT_HEAD_EVERY {
                let worker = self.board.worker_id();
                session
                    .run(|client| coordination::report_safe_head(client, &self.names, worker, safe))
                    .map_err(Error::database(doing))?;
                reported = (safe, Instant::now());
            }
            blocked.report(self, &mut session, &sight.head).map_err(Error::database(doing))?;
            if backoff.reset() {
                log::info!(
                    "connection regained: replica_set={} worker={} connection=tailer",
                    self.board.replica_set(),
                    self.board.worker_id()
                );
            }
            select! {
                recv(self.stop.heard()) -> _ => break,
                recv(self.hints) -> hint => {
                    if hint.is_err() { break }
                    is_hinted = true;
                    self.stop.wait(quickest.min(BETWEEN_HINTS).saturating_sub(begun.elapsed()));
                }
                // From look to look, so that looking takes nothing away from how fresh the events are.
                default(interval.saturating_sub(begun.elapsed())) => {
                    is_hinted = false;
                    interval = (interval * 2).min(slowest);
                }
            }
        }
        Ok(())
    }

    fn say_locked(&self, error: &Error) {
        log::warn!(
            "events are locked, will look again: replica_set={} worker={} error={error}",
            self.board.replica_set(),
            self.board.worker_id()
        );
    }

    fn prepare(&self, client: &mut Client) -> Result<Statements, postgres::Error> {
        let sequence = sequence::readable(client, &self.names)?;
        Ok(Statements {
            probes: Probes::prepare(client, &self.names, sequence.as_ref())?,
            holders: Holders::prepare(client)?,
            read: EventReader::prepare(client, &self.names, self.scope.clone(), self.bounds, true)?,
        })
    }

    /// Moves the head as far as it may.
    fn look(&self, session: &mut Session, statements: &Statements, sight: &mut Sight) -> Result<Probe, Failure> {
        let failed = |error| Failure::Lost(Error::database("looking for events")(error));
        let at = sight.head.safe();
        // The order is what the safe head rests on: first what is visible, and what was handed out,
        // then who is writing.
        let probe = match session.run(|client| self.probe(client, &statements.probes, sight)) {
            Err(error) if is_lock_timeout_of(&error) => {
                // It may be that the sequence alone is locked; then the events go on being
                // followed, without it.
                let probe = session
                    .run(|client| statements.probes.look_without_sequence(client, at, sight.known))
                    .map_err(failed)?;
                sight.sequence_is_locked_until = Instant::now() + LEAVE_SEQUENCE_FOR;
                if sight.locks.is_due() {
                    self.say_locked(&Error::database("reading the sequence of the positions")(error));
                }
                probe
            }
            probed => probed.map_err(failed)?,
        };
        if let Some((seen, known)) = probe.there.zip(sight.known)
            && seen != known
        {
            return Err(Failure::Final(continuity::other_event(&self.names, known.position, "this worker")));
        }
        sight.known = probe.here.or(probe.there);
        // A grace period goes on while the sequence cannot be asked.
        if sight.head.observe(probe) || sight.head.is_held_back() {
            let holders = session.run(|client| statements.holders.list(client, &self.names));
            sight.head.settle(probe, holders.map_err(failed)?);
        }
        Ok(probe)
    }

    fn probe(&self, client: &mut Client, probes: &Probes, sight: &mut Sight) -> Result<Probe, postgres::Error> {
        let (at, now) = (sight.head.safe(), Instant::now());
        if sight.sequence_is_locked_until > now {
            return probes.look_without_sequence(client, at, sight.known);
        }
        let probe = if self.sessions.member().is_some() && sight.census_due <= now {
            let (probe, census) = probes.look_with_census(client, at, sight.known, self.board.replica_set())?;
            sight.census_due = Instant::now() + census_interval(census.members);
            if census.missing > 0 {
                self.missing.wake();
            }
            probe
        } else {
            probes.look(client, at, sight.known)?
        };
        if let Some(last) = probe.last.filter(|last| *last < probe.newest.max(at))
            && sight.positions.is_due()
        {
            log::error!(
                "positions were not handed out by the sequence: replica_set={} worker={} newest={} head={at} last={last}",
                self.board.replica_set(),
                self.board.worker_id(),
                probe.newest
            );
        }
        Ok(probe)
    }

    fn show_unblocked(&self) {
        self.board.set_head_blocked(None);
        self.metrics.head_blocked.set(0.0);
        self.metrics.head_blockers([] as [(Option<i32>, &str, Duration); 0]);
    }

    /// Reads the events up to the head into the shared tail, unless no runner is near enough to want them.
    fn read_tail(&self, session: &mut Session, events: &mut EventReader, head: i64) -> Result<(), Error> {
        loop {
            let (keys, after) = {
                let tail = self.feed.shared.tail.read();
                (tail.keys().clone(), tail.end())
            };
            if after >= head {
                return Ok(());
            }
            if keys.is_empty() || head.saturating_sub(after) > self.feed.reach() || !self.feed.somebody_is_near(head) {
                self.feed.shared.tail.write().skip_to(head);
                return Ok(());
            }
            let range = Range { keys, after, upto: head };
            match session.run(|client| events.read(client, &range)) {
                Ok(batch) => self.feed.shared.tail.write().extend(&range.keys, range.after, batch, self.bounds),
                // It concerns the projections that want it, and not the others: each reads for itself.
                Err(ReadError::Event(_)) => {
                    self.feed.shared.tail.write().skip_to(head);
                    return Ok(());
                }
                Err(error) => return Err(error.into_error()),
            }
        }
    }
}

/// What was verified of the events, or the connection on which it could not be.
fn not_the_same(error: Error) -> Failure {
    match error {
        Error::Schema { .. } => Failure::Final(error),
        error => Failure::Lost(error),
    }
}

fn is_lock_timeout(error: &Error) -> bool {
    error.as_postgres().is_some_and(is_lock_timeout_of)
}

fn is_lock_timeout_of(error: &postgres::Error) -> bool {
    error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE)
}

fn census_interval(members: i64) -> Duration {
    let (shortest, longest) = CENSUS_INTERVAL;
    CENSUS_SHARE.saturating_mul(u32::try_from(members).unwrap_or(u32::MAX)).clamp(shortest, longest)
}

/// Since when the head is held back, and when that was last mentioned.
#[derive(Default)]
struct Blocked {
    since: Option<(Instant, i64)>,
    described_at: Option<Instant>,
    is_logged: bool,
    mentions: Mentions,
}

impl Blocked {
    /// Names who holds the head back, once it has stood still for a while.
    fn report(&mut self, tailer: &Tailer, session: &mut Session, head: &Head) -> Result<(), postgres::Error> {
        let holders = head.blockers();
        if holders.is_empty() || self.since.is_some_and(|(_, at)| at != head.safe()) {
            if self.described_at.is_some() {
                tailer.show_unblocked();
            }
            if self.is_logged {
                log::info!(
                    "safe head moves again: replica_set={} worker={} head={}",
                    tailer.board.replica_set(),
                    tailer.board.worker_id(),
                    head.safe()
                );
            }
            // One long transaction after the other is the same story.
            *self = Self { mentions: std::mem::take(&mut self.mentions), ..Self::default() };
        }
        if holders.is_empty() {
            return Ok(());
        }
        let (since, _) = *self.since.get_or_insert((Instant::now(), head.safe()));
        if since.elapsed() < BLOCKED_NOTICE || self.described_at.is_some_and(|at| at.elapsed() < BLOCKED_NOTICE) {
            return Ok(());
        }
        self.described_at = Some(Instant::now());
        let blockers = session.run(|client| safe_head::describe_holders(client, &holders))?;
        tailer.metrics.head_blocked.set(since.elapsed().as_secs_f64());
        tailer.metrics.head_blockers(blockers.iter().map(|blocker| (blocker.pid, blocker.name.as_str(), blocker.age)));
        if self.mentions.is_due() {
            self.is_logged = true;
            for blocker in &blockers {
                log::warn!(
                    "safe head blocked by an open transaction: replica_set={} worker={} head={} for={:?} pid={} \
                     application_name={:?} transaction_age={:?}",
                    tailer.board.replica_set(),
                    tailer.board.worker_id(),
                    head.safe(),
                    since.elapsed(),
                    blocker.pid.map_or_else(|| "prepared".to_owned(), |pid| pid.to_string()),
                    blocker.name,
                    blocker.age
                );
            }
        }
        tailer.board.set_head_blocked(Some((since, blockers)));
        Ok(())
    }
}
