//! The tailer: the thread that finds the safe head and reads the live tail. Each worker has one,
//! for any number of projections.
//!
//! From time to time, the statement with which it polls also looks for missing workers. If there is
//! one, the tailer wakes the coordinator. So a killed worker is detected well before the
//! coordinator's next poll, without another statement.
//!
//! When its connection fails it opens another, and starts again from a head that is known to be
//! settled.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use super::Feed;
use super::blocked::Blocked;
use super::cadence::Cadence;
use super::sight::{Connected, Failure, Mentioned, Sight};
use crate::context::Context;
use crate::error::{Error, field};
use crate::reconnect::Reconnect;
use crate::scope::Scope;
use crate::store::events::{Bounds, EventReader, ReadError};
use crate::store::session::Session;
use crate::store::{Known, coordination};
use crate::threads::{Pulse, Waker};

const FOLLOWING: &str = "following the events";

/// The name of its thread.
pub(crate) const THREAD: &str = "pup-tail";

pub(crate) struct Tailer {
    pub(crate) context: Context,
    /// Its first connection.
    pub(crate) first: Receiver<Session>,
    /// The projections that the worker runs.
    pub(crate) projections: Vec<Known>,
    pub(crate) feed: Feed,
    /// The events that any projection of the worker needs.
    pub(crate) scope: Scope,
    pub(crate) bounds: Bounds,
    /// The shortest and the longest time between two polls.
    pub(crate) poll: (Duration, Duration),
    /// How often the safe head is reported while it moves.
    pub(crate) report_every: Duration,
    pub(crate) hints: Receiver<()>,
    /// Tells the coordinator that a worker of the replica set seems to be missing.
    pub(crate) missing: Waker,
}

impl Tailer {
    pub(crate) fn run(self, pulse: &Pulse) -> Result<(), Error> {
        let stop = || self.context.stop.is_raised();
        let mut mentioned = Mentioned::default();
        let serve = |connection: &mut Reconnect<'_>| {
            self.follow(pulse, connection, &mut mentioned).inspect_err(|failure| {
                if let Failure::Locked(error) = failure {
                    mentioned.lock(&self.context.board, error);
                }
            })
        };
        let judge = |connection: &mut Reconnect<'_>, failure| self.failed(connection, failure);
        Reconnect::new(&self.context, "tailer").run(stop, serve, judge).map(drop)
    }

    fn failed(&self, connection: &mut Reconnect<'_>, failure: Failure) -> Result<(), Error> {
        self.context.board.look_failed(failure.error());
        match failure {
            Failure::Final(error) => return Err(error),
            Failure::Lost(error) => connection.lost(&error),
            Failure::Locked(_) => {}
            Failure::Unacceptable(error) => {
                if connection.is_worth_logging() {
                    log::error!(
                        "table of events cannot be used, will retry: replica_set={} worker={} error={error}",
                        field(&self.context.replica_set()),
                        self.context.worker(),
                        error = field(&error)
                    );
                }
            }
        }
        Ok(())
    }

    /// Follows the events on one connection until it fails or the worker stops.
    fn follow(&self, pulse: &Pulse, connection: &mut Reconnect<'_>, mentioned: &mut Mentioned) -> Result<(), Failure> {
        let connected = match self.first.try_recv() {
            Ok(session) => Connected::AtStart(session),
            Err(_) => Connected::Again(self.context.board.shortage.note(|| self.context.open())?),
        };
        self.feed.begin_epoch();
        let takes_census = self.context.sessions.member().is_some();
        let mut sight = Sight::begin(
            connected,
            &self.context.names,
            &self.context.board,
            &self.projections,
            takes_census,
            mentioned,
        )?;
        let mut reader = sight
            .session
            .run(|client| EventReader::prepare(client, &self.context.names, self.scope.clone(), self.bounds, true))
            .map_err(Error::database(FOLLOWING))?;
        let mut blocked = Blocked::new(&self.context.board, &self.context.metrics);
        let mut cadence = Cadence::new(self.poll);
        let mut reported = (sight.head.safe(), Instant::now());
        while !self.context.stop.is_raised() {
            let begun = Instant::now();
            let look = self.feed.begin_look();
            match sight.look() {
                Ok(is_anyone_missing) => {
                    if is_anyone_missing {
                        self.missing.wake();
                    }
                }
                Err(Failure::Locked(error)) => {
                    self.context.board.look_failed(&error);
                    sight.mention_lock(&error);
                    continue;
                }
                Err(failure) => return Err(failure),
            }
            let safe = sight.head.safe();
            let has_moved = self.feed.head() != Some(safe);
            if has_moved {
                self.read_tail(&mut sight.session, &mut reader, safe)?;
                self.context.board.set_safe_head(safe);
                self.context.metrics.safe_head.set(safe);
                pulse.judged(|| self.feed.publish(safe));
            }
            self.feed.end_look(look);
            self.context.board.looked(begun);
            let wait = cadence.after_look(has_moved, sight.head.is_held_back());
            if reported.0 != safe && reported.1.elapsed() >= self.report_every {
                self.report_head(&mut sight.session, safe)?;
                reported = (safe, Instant::now());
            }
            blocked.report(&mut sight.session, &sight.head).map_err(Error::database(FOLLOWING))?;
            connection.works();
            select! {
                recv(self.context.stop.heard()) -> _ => break,
                recv(self.hints) -> hint => {
                    if hint.is_err() { break }
                    self.context.stop.wait(cadence.hinted().saturating_sub(begun.elapsed()));
                }
                default(wait.saturating_sub(begun.elapsed())) => cadence.waited(),
            }
        }
        Ok(())
    }

    fn report_head(&self, session: &mut Session, safe: i64) -> Result<(), Error> {
        session
            .run(|client| coordination::report_safe_head(client, &self.context.names, self.context.worker(), safe))
            .map_err(Error::database(FOLLOWING))
    }

    /// Reads the events up to the head into the shared tail, if a runner is near enough to need
    /// them.
    fn read_tail(&self, session: &mut Session, reader: &mut EventReader, head: i64) -> Result<(), Error> {
        while let Some(range) = self.feed.unread_tail(head) {
            match session.run(|client| reader.read(client, &range)) {
                Ok(batch) => self.feed.extend_tail(&range, batch),
                // Only the projections that need this event are affected: each of them reads for
                // itself.
                Err(ReadError::Event(_)) => self.feed.skip_tail(head),
                Err(error) => return Err(error.into_error()),
            }
        }
        Ok(())
    }
}
