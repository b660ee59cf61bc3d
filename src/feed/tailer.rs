//! The tailer: the thread that finds the safe head and reads the live tail. One poll per worker, however many projections.
//!
//! It polls quickly while polls find something and ever more slowly while they do not; a hint wakes it at once. With the same statement it
//! looks, now and then, whether a worker of the replica set is missing, and wakes the coordinator if one is: that is how a killed worker is
//! noticed well before the coordinator's next poll, at no further statement. When its connection fails it makes another, and begins again
//! from a head that is known to be settled.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, select};
use postgres::{Client, Statement};

use super::Feed;
use super::head::Head;
use crate::backoff::{Backoff, Mentions};
use crate::database::Database;
use crate::error::Error;
use crate::metrics::ReplicaSetMetrics;
use crate::plan::WorkerId;
use crate::projection::Scope;
use crate::status::Board;
use crate::store::events::{Bounds, EventReader, Range};
use crate::store::{Names, coordination, event_tables, safe_head, session};
use crate::threads::{Pulse, Stop};

/// A head that is held back for less is the ordinary life of writers and not worth a word.
const BLOCKED_NOTICE: Duration = Duration::from_secs(1);
/// How long a worker waits between two looks for the missing, for each member of its replica set, and the bounds of that: it is enough
/// that one of them looks, and a look at all sessions costs the more the more there are.
const CENSUS_SHARE: Duration = Duration::from_millis(25);
const CENSUS_INTERVAL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(600));
/// From look to look when there is a hint after the other: each then finds more, and all of them cost less.
const BETWEEN_HINTS: Duration = Duration::from_millis(5);
/// How often the safe head is reported while it moves.
const REPORT_HEAD_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Tailer {
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) worker: Option<WorkerId>,
    pub(crate) feed: Feed,
    /// What any projection of the worker wants.
    pub(crate) scope: Scope,
    pub(crate) bounds: Bounds,
    pub(crate) poll: (Duration, Duration),
    pub(crate) hints: Receiver<()>,
    /// Tells the coordinator that somebody of the replica set seems to be missing.
    pub(crate) missing: Sender<()>,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) metrics: ReplicaSetMetrics,
}

struct Statements {
    probe: Statement,
    probe_with_census: Statement,
    holders: Statement,
    read: EventReader,
}

impl Tailer {
    pub(crate) fn run(self, pulse: &Pulse) -> Result<(), Error> {
        let mut backoff = Backoff::for_connections();
        while !self.stop.is_raised() {
            pulse.beat();
            let error = match self.follow(pulse, &mut backoff) {
                Ok(()) => break,
                // No other connection would find other events.
                Err(error @ Error::Schema { .. }) => return Err(error),
                Err(error) => error,
            };
            if backoff.is_worth_logging() {
                log::warn!(
                    "connection lost: replica_set={} worker={} connection=tailer error={error}",
                    self.board.replica_set(),
                    self.board.worker_id()
                );
            }
            self.metrics.reconnects("tailer").inc();
            self.stop.wait(backoff.next_delay());
        }
        Ok(())
    }

    /// Follows the events on one connection until it fails or the worker stops.
    fn follow(&self, pulse: &Pulse, backoff: &mut Backoff) -> Result<(), Error> {
        let mut client = session::connect(&self.database, self.worker)?;
        let doing = "following the events";
        let mut statements = Statements {
            probe: safe_head::prepare_probe(&mut client, &self.names).map_err(Error::database(doing))?,
            probe_with_census: safe_head::prepare_probe_with_census(&mut client, &self.names)
                .map_err(Error::database(doing))?,
            holders: safe_head::prepare_holders(&mut client).map_err(Error::database(doing))?,
            read: EventReader::prepare(&mut client, &self.names, self.scope.clone(), self.bounds, true)
                .map_err(Error::database(doing))?,
        };
        // Never from memory: after a failover the server may know less than was seen before.
        let settled = coordination::reported_safe_head(&mut client, &self.names, self.board.replica_set())
            .map_err(Error::database(doing))?;
        let mut head = Head::new(settled);
        self.feed.begin_epoch();
        // Whoever held it back may be gone like the connection; if not, it is soon known again.
        self.show_unblocked();
        let mut blocked = Blocked::default();
        let mut below_head = None;
        let mut census_due = Instant::now();
        let mut reported = (settled, Instant::now());
        let (quickest, slowest) = self.poll;
        let mut interval = quickest;
        let mut is_hinted = false;
        while !self.stop.is_raised() {
            pulse.beat();
            let begun = Instant::now();
            let before = self.feed.head();
            let newest =
                self.look(&mut client, &statements, &mut head, &mut census_due).map_err(Error::database(doing))?;
            // Below the head once events were removed, which is for the user to do, but not to hand out their positions again.
            if newest < head.safe() && below_head.replace(newest) != Some(newest) {
                event_tables::reach(&mut client, &self.names, head.safe(), "the safe head")?;
            }
            if before != Some(head.safe()) {
                self.read_tail(&mut client, &mut statements.read, head.safe()).map_err(Error::database(doing))?;
                self.board.set_safe_head(head.safe());
                self.metrics.safe_head.set(head.safe());
                self.feed.publish(head.safe());
            }
            self.feed.looked(begun);
            // Where hints tell everything, there is no need to poll quickly as well.
            let more_may_come = if is_hinted { head.is_held_back() } else { before != Some(head.safe()) };
            if more_may_come {
                interval = quickest;
            }
            if reported.0 != head.safe() && reported.1.elapsed() >= REPORT_HEAD_EVERY {
                let worker = self.board.worker_id();
                coordination::report_safe_head(&mut client, &self.names, worker, head.safe())
                    .map_err(Error::database(doing))?;
                reported = (head.safe(), Instant::now());
            }
            blocked.report(self, &mut client, &head).map_err(Error::database(doing))?;
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

    /// Moves the head as far as it may. Returns the newest visible position.
    fn look(
        &self,
        client: &mut Client,
        statements: &Statements,
        head: &mut Head,
        census_due: &mut Instant,
    ) -> Result<i64, postgres::Error> {
        // The order is what the safe head rests on: first what is visible, then who is writing.
        let probe = if self.worker.is_some() && *census_due <= Instant::now() {
            let replica_set = self.board.replica_set();
            let (probe, census) =
                safe_head::probe_with_census(client, &statements.probe_with_census, head.safe(), replica_set)?;
            *census_due = Instant::now() + census_interval(census.members);
            if census.missing > 0 {
                // Full means that it is to be woken already; disconnected, that it has ended.
                _ = self.missing.try_send(());
            }
            probe
        } else {
            safe_head::probe(client, &statements.probe, head.safe())?
        };
        if head.observe(probe) {
            let holders = safe_head::holders(client, &statements.holders, &self.names)?;
            head.settle(probe, holders);
        }
        Ok(probe.newest)
    }

    fn show_unblocked(&self) {
        self.board.set_head_blocked(None);
        self.metrics.head_blocked.set(0.0);
        self.metrics.head_blockers([] as [(Option<i32>, &str, Duration); 0]);
    }

    /// Reads the events up to the head into the shared tail, unless no runner is near enough to want them.
    fn read_tail(&self, client: &mut Client, events: &mut EventReader, head: i64) -> Result<(), postgres::Error> {
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
            let batch = events.read(client, &range)?;
            self.feed.shared.tail.write().extend(&range.keys, range.after, batch, self.bounds);
        }
    }
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
    fn report(&mut self, tailer: &Tailer, client: &mut Client, head: &Head) -> Result<(), postgres::Error> {
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
        let blockers = safe_head::describe_holders(client, &holders)?;
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
