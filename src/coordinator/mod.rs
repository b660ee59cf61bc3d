//! The coordinator: the thread that keeps a worker a member of its replica set.
//!
//! It is a thin loop: load the view of the replica set, make the changes that
//! [`plan`](crate::plan::plan) returns ([`membership`]), act on the worker's own [`stance`], wait.
//! When it is notified of a change, it reads only its own worker's standing, because the worker
//! that made the change has done the rest. It sends heartbeats, and pauses and resumes the runners.
//! It never blocks on a runner but receives its reports, so a slow handler cannot make the worker
//! look dead.
//!
//! When its connection fails, it opens another and takes the session lock again. Meanwhile the
//! runners continue until the worker's [trust](crate::trust) runs out. When the worker is asked to
//! stop, the coordinator pauses the runners, records that the worker has left, and redistributes
//! the partitions in the same transaction: no worker has to wait for a timeout to detect it.

mod faults;
mod membership;
mod runners;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, never, select};

use crate::backoff::{Allowance, Mentions};
use crate::context::Context;
use crate::database::{Filling, Pool};
use crate::error::{Error, field};
use crate::feed::{Feed, tailer};
use crate::metrics::WorkerMetrics;
use crate::plan::{Errand, Policy, Stance, Standing, WorkerState, stance};
use crate::reconnect::{End, Reconnect};
use crate::status::{Assignment, Board};
use crate::store::Registration;
use crate::store::fence::Owner;
use crate::store::session::Session;
use crate::threads::Pulse;
use crate::trust::Trust;
use membership::{Looked, Membership};
pub(crate) use runners::Runners;

/// How long a connection has to answer after something failed on it.
const VALIDITY_PATIENCE: Duration = Duration::from_secs(2);
/// A leaving worker that cannot reach the database gives up after this time: the other workers will
/// detect that its session is gone.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// How long a worker that gave up waiting for its connections leaves the connections to other
/// workers.
const BEFORE_REJOIN: Duration = Duration::from_secs(1);
/// How soon to look at the replica set again while another worker changes it, or has just changed
/// it. After this time, there is most likely nothing left to do.
const WHILE_OTHERS_CHANGE: Duration = Duration::from_millis(50);
/// The longest random delay of an action that becomes due at a certain moment. An eviction, for
/// example, becomes due for all workers at once. With the delay, the first worker that acts
/// notifies the others before they act as well.
const SPREAD: Duration = Duration::from_millis(20);
/// How long to wait for the runners to pause. Most of them finish their current event within this
/// time. Waiting for them here saves a look at the replica set for each report.
const SOON: Duration = Duration::from_millis(20);

/// How many notifications may wake the coordinator without a delay between them.
const WAKES_AT_ONCE: u32 = 20;
/// The time between two such wake-ups after that.
const WAKE_SPACING: Duration = Duration::from_millis(50);

/// Everything that a coordinator works with.
pub(crate) struct Parts {
    pub(crate) context: Context,
    pub(crate) registration: Registration,
    pub(crate) policy: Policy,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) poll_interval: Duration,
    /// How long the worker may lack connections before it gives its partition back.
    pub(crate) shortage_limit: Duration,
    pub(crate) pool: Pool,
    pub(crate) feed: Feed,
    pub(crate) trust: Trust,
    pub(crate) metrics: WorkerMetrics,
    /// Wakes the coordinator because something in the replica set has changed.
    pub(crate) woken: Receiver<()>,
    /// Wakes the coordinator so that it looks at the whole replica set: a worker seems to be
    /// missing, or a command has been executed.
    pub(crate) missing: Receiver<()>,
    /// Sends the commands that this worker has to execute.
    pub(crate) errands: Sender<Errand>,
}

pub(crate) struct Coordinator {
    parts: Parts,
    runners: Runners,
    assigned: Option<Assigned>,
    /// The command that the worker was last told to execute.
    errand: Option<Errand>,
    /// When coordination interrupted processing, if it is interrupted.
    interrupted: Option<Instant>,
    /// Limits how often failures of coordination on a sound connection are logged.
    complaints: Mentions,
}

/// The owner and the deals for which the worker's keys were last assigned to the feed.
type Assigned = (Owner, BTreeMap<Arc<str>, i64>);

impl Coordinator {
    /// Creates a coordinator. `begun` is the moment when the worker began to register.
    pub(crate) fn new(parts: Parts, runners: Runners, begun: Instant) -> Self {
        Self { parts, runners, assigned: None, errand: None, interrupted: Some(begun), complaints: Mentions::default() }
    }

    /// Runs until the worker has left. `session` is the one in which the worker was registered.
    pub(crate) fn run(self, session: Session, pulse: &Pulse) -> Result<(), Error> {
        let Self { parts, mut runners, mut assigned, mut errand, mut interrupted, mut complaints } = self;
        let context = &parts.context;
        let _ended = ShowsEnded(context.board.clone());
        let mut first = Some(session);
        let mut leaving_since = None;
        let is_given_up =
            || context.stop.is_raised() && leaving_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_PATIENCE;
        let serve = |connection: &mut Reconnect<'_>| {
            let session = first.take().map_or_else(|| context.open().and_then(Session::with_generic_plans), Ok)?;
            Serving {
                membership: Membership::new(context, &parts.policy, &parts.registration, pulse, session)?,
                parts: &parts,
                runners: &mut runners,
                assigned: &mut assigned,
                errand: &mut errand,
                interrupted: &mut interrupted,
                complaints: &mut complaints,
                connection,
                connected_at: Instant::now(),
                filling: None,
            }
            .run()
        };
        let lost = |connection: &mut Reconnect<'_>, error| {
            connection.lost(&error);
            context.board.coordination_failed(&error);
            Ok(())
        };
        if Reconnect::new(context, "coordinator").run(is_given_up, serve, lost)? == End::GivenUp {
            log::warn!(
                "left without telling the other workers, the database cannot be reached: replica_set={} worker={}",
                field(&context.replica_set()),
                context.worker()
            );
        }
        Ok(())
    }
}

/// Shows that the worker has stopped when its coordinator ends, even by an error or a panic.
struct ShowsEnded(Board);

impl Drop for ShowsEnded {
    fn drop(&mut self) {
        self.0.set_assignment(None);
        self.0.set_state(WorkerState::Stopped);
    }
}

/// The coordinator while it has a connection.
struct Serving<'a, 'c> {
    parts: &'a Parts,
    membership: Membership<'a>,
    runners: &'a mut Runners,
    assigned: &'a mut Option<Assigned>,
    errand: &'a mut Option<Errand>,
    interrupted: &'a mut Option<Instant>,
    complaints: &'a mut Mentions,
    connection: &'a mut Reconnect<'c>,
    connected_at: Instant,
    /// The progress of filling the pool, while the worker is not a member.
    filling: Option<Filling>,
}

impl Serving<'_, '_> {
    /// Serves until the worker has left (`Ok`) or the connection fails.
    fn run(mut self) -> Result<(), Error> {
        let Parts { context, woken, missing, heartbeat_interval, poll_interval, .. } = self.parts;
        let mut heartbeat_due = Instant::now();
        let mut look_due = Instant::now();
        let mut looked_at = look_due;
        let mut wakes = Allowance::new(WAKE_SPACING, WAKES_AT_ONCE);
        while !context.stop.is_raised() {
            if heartbeat_due <= Instant::now() {
                heartbeat_due = Instant::now() + *heartbeat_interval;
                // The connection may still work, as below.
                if let Err(error) = self.heartbeat() {
                    self.complain(error)?;
                }
            }
            let looked = if look_due <= Instant::now() {
                looked_at = Instant::now();
                look_due = looked_at + *poll_interval;
                self.look()
            } else {
                self.glance()
            };
            let again = match looked {
                Ok(again) => {
                    self.connection.works();
                    context.board.coordinated();
                    again
                }
                // The connection may still work and hold its session lock. For example, a statement
                // that waited too long for a lock is not a reason to give them up.
                Err(error) => Some(self.complain(error)?),
            };
            if let Some(delay) = again {
                look_due = look_due.min(Instant::now() + delay);
            }
            let wait = look_due.min(heartbeat_due).saturating_duration_since(Instant::now());
            // Any database role may send notifications at any rate, so the wake-ups are limited.
            let hold = wakes.wait(Instant::now());
            let deaf = never();
            let (woken, wait) = if hold.is_zero() { (woken, wait) } else { (&deaf, wait.min(hold)) };
            select! {
                recv(context.stop.heard()) -> _ => {}
                recv(woken) -> _ => {
                    // Most likely, what was about to become due has been done by the worker that
                    // made the change.
                    let now = Instant::now();
                    wakes.take(now);
                    if look_due > now {
                        let latest = looked_at + *poll_interval + WHILE_OTHERS_CHANGE;
                        look_due = look_due.max((now + WHILE_OTHERS_CHANGE).min(latest));
                    }
                }
                recv(missing) -> _ => look_due = Instant::now(),
                recv(self.runners.reports) -> report => self.runners.heard(report.ok()),
                default(wait) => {}
            }
        }
        self.leave()
    }

    /// Reports a failure of coordination. Returns when to retry on the same connection, or the
    /// error if the connection failed.
    fn complain(&mut self, error: Error) -> Result<Duration, Error> {
        if self.membership.session.client().is_valid(VALIDITY_PATIENCE).is_err() {
            return Err(error);
        }
        self.parts.context.board.coordination_failed(&error);
        // Uses its own limit for log lines: if only one of several statements fails, the others
        // reset the limit of the connection.
        if self.complaints.is_due() {
            let context = &self.parts.context;
            log::error!(
                "coordination failed, will retry: replica_set={} worker={} error={error}",
                field(&context.replica_set()),
                context.worker(),
                error = field(&error)
            );
        }
        Ok(self.connection.next_delay())
    }

    /// Sends a heartbeat, and renews the trust if the worker is still a member.
    fn heartbeat(&mut self) -> Result<(), Error> {
        let Parts { context, pool, trust, metrics, .. } = self.parts;
        let sent = Instant::now();
        let is_member = self.membership.heartbeat()?;
        context.metrics.heartbeat_latency.observe(sent.elapsed().as_secs_f64());
        metrics.set_pool(pool.size(), pool.open(), pool.idle());
        // The database answered in either case, but only a member may continue to process.
        context.board.heartbeat_answered(sent);
        if is_member {
            trust.renew(sent);
        }
        Ok(())
    }

    /// Loads the view of the whole replica set, makes the changes that are due, and does the
    /// worker's own part. Returns the time after which to look again at the latest.
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

    /// Reads only the worker's own standing, and does its own part. Returns the time after which to
    /// look at the whole replica set, if that is sooner than planned.
    fn glance(&mut self) -> Result<Option<Duration>, Error> {
        let standing = self.membership.glance()?;
        let own = self.do_own_part(&standing)?;
        // An operator waits for the command, so it is not left to the next poll.
        let at_once = SPREAD.mul_f64(fastrand::f64());
        Ok(if standing.is_command_due { Some(own.map_or(at_once, |own| own.min(at_once))) } else { own })
    }

    /// Lets a command be executed, if this is the worker's to do.
    fn order(&mut self, standing: &Standing) {
        if let Some(errand) = &standing.errand
            && self.errand.as_ref() != Some(errand)
            // If the thread is still busy, the errand is sent after a later look.
            && self.parts.errands.try_send(errand.clone()).is_ok()
        {
            *self.errand = Some(errand.clone());
        }
    }

    /// Lets the runners process or pause, according to the worker's standing. Returns the time
    /// after which to look at the whole replica set, if that is necessary.
    fn do_own_part(&mut self, standing: &Standing) -> Result<Option<Duration>, Error> {
        self.show_state(standing.member.map_or(WorkerState::Stopped, |member| member.state));
        self.order(standing);
        let partitions = standing.generation.as_ref().map_or(0, |generation| generation.total_partitions);
        self.parts.context.metrics.partitions.set(i64::try_from(partitions).unwrap_or(0));
        // A worker that is alone keeps its partition, because some of its projections may still
        // continue.
        if standing.member.is_some()
            && let Some(problem) = self.shortage()
            && !self.membership.is_alone()?
        {
            return self.give_back(&problem);
        }
        match stance(standing) {
            Stance::Run(generation) => self.resume(standing, generation)?,
            Stance::Prepare(generation) if self.pause() || self.paused_soon() => {
                let others_follow = self.membership.say_ready(generation)?;
                log::debug!("ready: worker={} generation={generation}", self.parts.registration.worker);
                self.show_state(WorkerState::Ready);
                // The last worker to become ready activates the generation.
                return Ok((!others_follow).then_some(Duration::ZERO));
            }
            Stance::Rejoin if self.pause() => return self.rejoin().map(Some),
            Stance::Prepare(_) | Stance::Rejoin | Stance::Ready(_) => {}
            Stance::Wait => {
                self.pause();
            }
        }
        Ok(None)
    }

    /// Lets the runners process this generation, if they do not already, and reload what has been
    /// redistributed.
    fn resume(&mut self, standing: &Standing, generation: i64) -> Result<(), Error> {
        let Parts { context, registration: Registration { worker, .. }, feed, .. } = self.parts;
        let owner = Owner { worker: *worker, generation };
        if self.runners.are_told(owner, &standing.deals) {
            return Ok(());
        }
        let partition = standing.member.and_then(|member| member.partition);
        let total_partitions = standing.generation.as_ref().map_or(0, |generation| generation.total_partitions);
        // A runner that was fenced is told to run again even if nothing was redistributed. Then the
        // feed already has the keys. If a policy hides the runner's rows, loading them fails and
        // the runner reports it.
        if !self.assigned.as_ref().is_some_and(|(by, deals)| (by, deals) == (&owner, &standing.deals)) {
            feed.assign(self.membership.keys(generation)?);
            *self.assigned = Some((owner, standing.deals.clone()));
        }
        let assignment = partition.map(|partition| Assignment { generation, partition, total_partitions });
        context.board.set_assignment(assignment);
        self.runners.run(owner, &standing.deals)?;
        if let Some(since) = self.interrupted.take() {
            let pause = since.elapsed();
            context.metrics.coordination_duration.observe(pause.as_secs_f64());
            context.metrics.reconfigurations.inc();
            context.metrics.partition_assignments.inc();
            log::info!(
                "processing: replica_set={} worker={worker} generation={generation} partition={} of={total_partitions} pause={pause:?}",
                field(&context.replica_set()),
                partition.map_or(-1, |k| i64::try_from(k).unwrap_or(-1))
            );
        }
        Ok(())
    }

    /// Pauses the runners. Returns whether all of them have stopped processing.
    fn pause(&mut self) -> bool {
        if self.runners.are_running() {
            self.interrupted.get_or_insert_with(Instant::now);
            self.parts.context.board.set_assignment(None);
        }
        self.runners.pause()
    }

    /// Waits briefly for the runners to pause. Returns whether all of them have paused.
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

    /// Returns why the worker cannot process although it can coordinate: one of its threads has had
    /// no connection for too long.
    fn shortage(&self) -> Option<String> {
        let Parts { context, shortage_limit, .. } = self.parts;
        let (lasts, problem) = context.board.shortage.longest()?;
        // After an outage of the server, this connection may be the first that works again, so the
        // time counts from its opening.
        (lasts.min(self.connected_at.elapsed()) > *shortage_limit).then_some(problem)
    }

    /// Leaves the replica set until the worker has its connections, so that other workers process
    /// its partition. Returns the time after which to look again.
    fn give_back(&mut self, problem: &str) -> Result<Option<Duration>, Error> {
        if self.pause() || self.paused_soon() {
            if !self.membership.leave_to_others()? {
                return Ok(Some(Duration::ZERO));
            }
            let context = &self.parts.context;
            log::error!(
                "partition given back, too few connections: replica_set={} worker={} error={problem}",
                field(&context.replica_set()),
                context.worker(),
                problem = field(&problem)
            );
            self.show_state(WorkerState::Stopped);
            return Ok(Some(BEFORE_REJOIN));
        }
        Ok(None)
    }

    /// Registers the worker again after it has been evicted or has given its partition back, if it
    /// can get all its connections or no other worker is left. Returns the time after which to look
    /// again.
    fn rejoin(&mut self) -> Result<Duration, Error> {
        let Parts { context, trust, pool, .. } = self.parts;
        let shortage = &context.board.shortage;
        let filling = self.filling.get_or_insert_with(|| Filling::begin(pool));
        let opened = shortage.note(|| filling.step(pool)).map_err(|error| error.with_causes());
        let is_filling = opened.is_err() && !filling.is_stuck();
        // The tailer itself keeps trying to get a connection.
        let lacking = opened.err().or_else(|| shortage.of(tailer::THREAD));
        if let Some(error) = lacking
            && !self.membership.is_alone()?
        {
            if is_filling {
                return Ok(Duration::ZERO);
            }
            pool.close_idle();
            self.filling = None;
            if self.complaints.is_due() {
                log::error!(
                    "too few connections, will register later: replica_set={} worker={} error={error}",
                    field(&context.replica_set()),
                    context.worker(),
                    error = field(&error)
                );
            }
            // Other workers may lack connections as well, and wait for the same ones.
            return Ok(BEFORE_REJOIN.mul_f64(1.0 + fastrand::f64()));
        }
        self.filling = None;
        // Forgets that the runners failed to get connections before they were paused.
        shortage.end();
        log::warn!("registering again: replica_set={} worker={}", field(&context.replica_set()), context.worker());
        let sent = Instant::now();
        self.membership.rejoin()?;
        trust.renew(sent);
        context.metrics.workers_registered.inc();
        self.interrupted.get_or_insert(sent);
        Ok(Duration::ZERO)
    }

    fn show_state(&self, state: WorkerState) {
        self.parts.context.board.set_state(state);
        self.parts.metrics.set_state(state.as_str());
    }

    /// Waits until the runners have paused, then leaves the replica set.
    fn leave(&mut self) -> Result<(), Error> {
        self.membership.say_stopping()?;
        self.show_state(WorkerState::Stopping);
        while !self.pause() {
            select! {
                recv(self.runners.reports) -> report => self.runners.heard(report.ok()),
                default(self.parts.heartbeat_interval) => self.heartbeat()?,
            }
        }
        self.membership.leave()?;
        let context = &self.parts.context;
        log::info!("left: replica_set={} worker={}", field(&context.replica_set()), context.worker());
        Ok(())
    }
}
