//! The coordinator: the thread that keeps a worker a member of its replica set.
//!
//! A thin loop: look at the replica set, change what [`plan`](crate::plan::plan) asks for
//! ([`membership`]), do what the worker's own [`stance`] is, wait. When it is notified of a change,
//! it only looks where its worker stands: whichever worker made the change saw to the rest. It sends
//! heartbeats, pauses and resumes the runners, and waits for them only by listening for their
//! reports, so a slow handler cannot make the worker look dead.
//!
//! When its connection fails it opens another, taking the session lock again. Meanwhile the runners
//! go on until the worker's [trust](crate::trust) runs out. When the worker is asked to stop, it
//! pauses the runners, says that the worker has left, and redistributes the partitions in the same
//! transaction: no worker has to wait for a timeout to detect it.

mod membership;
mod runners;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select};

use crate::backoff::Mentions;
use crate::context::Context;
use crate::database::Pool;
use crate::error::Error;
use crate::feed::Feed;
use crate::metrics::WorkerMetrics;
use crate::overview::Overview;
use crate::plan::{Policy, Stance, Standing, WorkerState, stance};
use crate::reconnect::{End, Reconnect};
use crate::status::Assignment;
use crate::store::Registration;
use crate::store::fence::Owner;
use crate::store::session::Session;
use crate::threads::Pulse;
use crate::trust::Trust;
use membership::{Looked, Membership};
pub(crate) use runners::Runners;

/// How long a connection on which something failed has to answer.
const VALIDITY_PATIENCE: Duration = Duration::from_secs(2);
/// A leaving worker that cannot reach the database gives up after this time: its peers will see that its session is gone.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// While another worker changes the replica set, or has just done so: after that there is most likely nothing left to be done.
const WHILE_OTHERS_CHANGE: Duration = Duration::from_millis(50);
/// What becomes due, such as a death, does so for all workers at one moment. The first that acts has told the others before they do.
const SPREAD: Duration = Duration::from_millis(20);
/// Most runners are between two events, or soon will be. To wait for them here saves a look at the replica set for each that reports.
const SOON: Duration = Duration::from_millis(20);

/// What a coordinator works with.
pub(crate) struct Parts {
    pub(crate) context: Context,
    pub(crate) registration: Registration,
    pub(crate) policy: Policy,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) pool: Pool,
    pub(crate) feed: Feed,
    pub(crate) trust: Trust,
    pub(crate) overview: Overview,
    pub(crate) metrics: WorkerMetrics,
    /// Something in the replica set has changed.
    pub(crate) woken: Receiver<()>,
    /// A worker of the replica set seems to be missing.
    pub(crate) missing: Receiver<()>,
}

pub(crate) struct Coordinator {
    parts: Parts,
    runners: Runners,
    assigned: Option<Assigned>,
    /// Since when events are not processed because the replica set is being coordinated.
    interrupted: Option<Instant>,
    /// Of coordination that fails on a sound connection.
    complaints: Mentions,
}

/// In whose name, and by which deals, the feed was last told which keys the worker owns.
type Assigned = (Owner, BTreeMap<Arc<str>, i64>);

impl Coordinator {
    /// `begun` is when the worker began to register.
    pub(crate) fn new(parts: Parts, runners: Runners, begun: Instant) -> Self {
        Self { parts, runners, assigned: None, interrupted: Some(begun), complaints: Mentions::default() }
    }

    /// Runs until the worker has left. `session` is the one in which the worker was registered.
    pub(crate) fn run(self, session: Session, pulse: &Pulse) -> Result<(), Error> {
        let Self { parts, mut runners, mut assigned, mut interrupted, mut complaints } = self;
        let context = &parts.context;
        let mut first = Some(session);
        let mut leaving_since = None;
        let is_given_up =
            || context.stop.is_raised() && leaving_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_PATIENCE;
        let serve = |connection: &mut Reconnect<'_>| {
            let session = first.take().map_or_else(|| context.open().and_then(Session::hold_alive), Ok)?;
            Serving {
                membership: Membership::new(context, &parts.policy, &parts.registration, session)?,
                parts: &parts,
                runners: &mut runners,
                assigned: &mut assigned,
                interrupted: &mut interrupted,
                complaints: &mut complaints,
                connection,
            }
            .run(pulse)
        };
        let lost = |connection: &mut Reconnect<'_>, error| {
            connection.lost(&error);
            context.board.database_lost();
            parts.metrics.database_up.set(0);
            Ok(())
        };
        if Reconnect::new(context, "coordinator").run(pulse, is_given_up, serve, lost)? == End::GivenUp {
            log::warn!(
                "left without saying so, the database is out of reach: replica_set={} worker={}",
                context.replica_set(),
                context.worker()
            );
        }
        context.board.set_assignment(None);
        context.board.set_state(WorkerState::Stopped);
        Ok(())
    }
}

/// The coordinator while it has a connection.
struct Serving<'a, 'c> {
    parts: &'a Parts,
    membership: Membership<'a>,
    runners: &'a mut Runners,
    assigned: &'a mut Option<Assigned>,
    interrupted: &'a mut Option<Instant>,
    complaints: &'a mut Mentions,
    connection: &'a mut Reconnect<'c>,
}

impl Serving<'_, '_> {
    /// Serves until the worker has left (`Ok`) or the connection fails.
    fn run(mut self, pulse: &Pulse) -> Result<(), Error> {
        let Parts { context, overview, woken, missing, heartbeat_interval, poll_interval, .. } = self.parts;
        let mut heartbeat_due = Instant::now();
        let mut look_due = Instant::now();
        while !context.stop.is_raised() {
            pulse.beat();
            if heartbeat_due <= Instant::now() {
                heartbeat_due = Instant::now() + *heartbeat_interval;
                self.heartbeat()?;
                if let Err(error) = self.measure_lag() {
                    self.complain(error)?;
                }
            }
            let looked = if look_due <= Instant::now() {
                look_due = Instant::now() + *poll_interval;
                self.look()
            } else {
                self.glance()
            };
            let again = match looked {
                Ok(again) => {
                    self.connection.works();
                    again
                }
                // The connection may be sound and its session lock held: to wait for a lock too long, say, is no reason to give them up.
                Err(error) => Some(self.complain(error)?),
            };
            if let Some(delay) = again {
                look_due = look_due.min(Instant::now() + delay);
            }
            let refreshed = overview.refresh(&mut self.membership.session, &context.names, context.replica_set());
            if let Err(error) = refreshed {
                self.complain(error)?;
            }
            let wait = look_due.min(heartbeat_due).saturating_duration_since(Instant::now());
            select! {
                recv(context.stop.heard()) -> _ => {}
                recv(woken) -> _ => {
                    // What was about to become due has most likely been seen to with the change.
                    let now = Instant::now();
                    if look_due > now {
                        look_due = look_due.max(now + WHILE_OTHERS_CHANGE);
                    }
                }
                recv(missing) -> _ => look_due = Instant::now(),
                recv(self.runners.reports) -> report => self.runners.heard(report.ok()),
                default(wait) => {}
            }
        }
        self.leave(pulse)
    }

    /// Returns when to retry on the same connection, or the error if the connection failed.
    fn complain(&mut self, error: Error) -> Result<Duration, Error> {
        if self.membership.session.client().is_valid(VALIDITY_PATIENCE).is_err() {
            return Err(error);
        }
        // What fails may be one thing of several, and the others reset the delays.
        if self.complaints.is_due() {
            let context = &self.parts.context;
            log::error!(
                "coordination failed, will retry: replica_set={} worker={} error={error}",
                context.replica_set(),
                context.worker()
            );
        }
        Ok(self.connection.next_delay())
    }

    /// Says that the worker is alive.
    fn heartbeat(&mut self) -> Result<(), Error> {
        let Parts { context, pool, trust, metrics, .. } = self.parts;
        let sent = Instant::now();
        let is_member = self.membership.heartbeat()?;
        context.metrics.heartbeat_latency.observe(sent.elapsed().as_secs_f64());
        metrics.set_pool(pool.size(), pool.open(), pool.idle());
        // The database is there either way; only a member may go on processing.
        context.board.heartbeat_answered(sent);
        metrics.database_up.set(1);
        if is_member {
            trust.renew(sent);
        }
        Ok(())
    }

    fn measure_lag(&mut self) -> Result<(), Error> {
        for lag in self.membership.lags()? {
            let metrics = self.parts.context.metrics.projection(&lag.projection);
            metrics.checkpoint_position.set(lag.position);
            metrics.lag_events.set(lag.events);
            metrics.lag_seconds.set(lag.seconds);
        }
        Ok(())
    }

    /// Looks at the whole replica set, changes what is to be changed, and does the worker's own part. Returns when to look again at
    /// the latest.
    fn look(&mut self) -> Result<Option<Duration>, Error> {
        let Parts { context, registration, .. } = self.parts;
        let Looked { view, mut plan, is_others_turn } = self.membership.look()?;
        if is_others_turn {
            plan.recheck_within(WHILE_OTHERS_CHANGE);
        }
        context.metrics.active_workers.set(i64::try_from(view.workers.len()).unwrap_or(0));
        let own = self.do_own_part(&view.standing(registration.worker))?;
        Ok(own.or(plan.recheck_after.map(|delay| delay + SPREAD.mul_f64(fastrand::f64()))))
    }

    /// Looks only where the worker stands, and does its own part. Returns when to look at the whole replica set, if that is sooner
    /// than it would be.
    fn glance(&mut self) -> Result<Option<Duration>, Error> {
        let standing = self.membership.glance()?;
        self.do_own_part(&standing)
    }

    /// Lets the runners process or pause, as the worker's standing has it. Returns when to look at the whole replica set, if it must.
    fn do_own_part(&mut self, standing: &Standing) -> Result<Option<Duration>, Error> {
        self.show_state(standing.member.map_or(WorkerState::Stopped, |member| member.state));
        let partitions = standing.generation.as_ref().map_or(0, |generation| generation.total_partitions);
        self.parts.context.metrics.partitions.set(i64::try_from(partitions).unwrap_or(0));
        match stance(standing) {
            Stance::Run(generation) => self.resume(standing, generation)?,
            Stance::Prepare(generation) if self.pause() || self.paused_soon() => {
                let others_follow = self.membership.say_ready(generation)?;
                log::debug!("ready: worker={} generation={generation}", self.parts.registration.worker);
                self.show_state(WorkerState::Ready);
                // The last one activates the generation.
                return Ok((!others_follow).then_some(Duration::ZERO));
            }
            Stance::Rejoin if self.pause() => {
                self.rejoin()?;
                return Ok(Some(Duration::ZERO));
            }
            Stance::Prepare(_) | Stance::Rejoin | Stance::Ready(_) => {}
            Stance::Wait => {
                self.pause();
            }
        }
        Ok(None)
    }

    /// Lets the runners process this generation, if they do not already, and load what has been dealt again.
    fn resume(&mut self, standing: &Standing, generation: i64) -> Result<(), Error> {
        let Parts { context, registration: Registration { worker, .. }, feed, .. } = self.parts;
        let owner = Owner { worker: *worker, generation };
        if self.runners.are_told(owner, &standing.deals) {
            return Ok(());
        }
        let partition = standing.member.and_then(|member| member.partition);
        let total_partitions = standing.generation.as_ref().map_or(0, |generation| generation.total_partitions);
        // A runner that was fenced is told to run again although nothing was dealt. Should its rows be hidden, it is the one to say so.
        if !self.assigned.as_ref().is_some_and(|(by, deals)| (by, deals) == (&owner, &standing.deals)) {
            feed.assign(self.membership.keys(generation)?);
            *self.assigned = Some((owner, standing.deals.clone()));
        }
        let assignment = partition.map(|partition| Assignment { generation, partition, total_partitions });
        context.board.set_assignment(assignment);
        self.runners.run(owner, &standing.deals);
        if let Some(since) = self.interrupted.take() {
            let pause = since.elapsed();
            context.metrics.coordination_duration.observe(pause.as_secs_f64());
            context.metrics.reconfigurations.inc();
            context.metrics.partition_assignments.inc();
            log::info!(
                "processing: replica_set={} worker={worker} generation={generation} partition={} of={total_partitions} pause={pause:?}",
                context.replica_set(),
                partition.map_or(-1, |k| i64::try_from(k).unwrap_or(-1))
            );
        }
        Ok(())
    }

    /// Pauses the runners. True once none of them processes any more.
    fn pause(&mut self) -> bool {
        if self.runners.are_running() {
            self.interrupted.get_or_insert_with(Instant::now);
            self.parts.context.board.set_assignment(None);
        }
        self.runners.pause()
    }

    /// Waits a little for the runners to pause. True if none processes any more.
    fn paused_soon(&mut self) -> bool {
        let deadline = Instant::now() + SOON;
        while let Ok(report) = self.runners.reports.recv_deadline(deadline) {
            self.runners.heard(Some(report));
            if self.runners.are_paused() {
                return true;
            }
        }
        false
    }

    /// Registers again after having been evicted.
    fn rejoin(&mut self) -> Result<(), Error> {
        let Parts { context, trust, .. } = self.parts;
        log::warn!("evicted, registering again: replica_set={} worker={}", context.replica_set(), context.worker());
        let sent = Instant::now();
        self.membership.rejoin()?;
        trust.renew(sent);
        context.metrics.workers_registered.inc();
        self.interrupted.get_or_insert(sent);
        Ok(())
    }

    fn show_state(&self, state: WorkerState) {
        self.parts.context.board.set_state(state);
        self.parts.metrics.set_state(state.as_str());
    }

    /// Drains the runners, then hands over.
    fn leave(&mut self, pulse: &Pulse) -> Result<(), Error> {
        self.membership.say_stopping()?;
        self.show_state(WorkerState::Stopping);
        while !self.pause() {
            pulse.beat();
            select! {
                recv(self.runners.reports) -> report => self.runners.heard(report.ok()),
                default(self.parts.heartbeat_interval) => self.heartbeat()?,
            }
        }
        self.membership.leave()?;
        let context = &self.parts.context;
        log::info!("left: replica_set={} worker={}", context.replica_set(), context.worker());
        Ok(())
    }
}
