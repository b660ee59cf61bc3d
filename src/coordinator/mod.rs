//! The coordinator: the thread that keeps a worker a member of its replica set.
//!
//! A thin loop: load the view, ask [`plan`](crate::plan::plan) what to change and [`stance`] what to do, do it, wait. When it is told
//! that something has changed, it only looks where it stands itself: whoever made the change saw to the rest. It sends heartbeats, pauses
//! and resumes the runners, and never waits for them in any other way than by listening for their reports, so a slow handler cannot make
//! the worker look dead.
//!
//! When its connection fails it makes another, holding the session lock again; meanwhile the runners go on until the worker's
//! [trust](crate::trust) runs out. When the worker is asked to stop, it pauses the runners, says that the worker has left and deals the
//! partitions out again in the same transaction: nobody has to wait for a timeout to notice.

mod runners;

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, select};
use postgres::Transaction;

use crate::backoff::{Backoff, Mentions};
use crate::database::{Database, Pool};
use crate::error::Error;
use crate::feed::Feed;
use crate::metrics::{ReplicaSetMetrics, WorkerMetrics};
use crate::overview::Overview;
use crate::plan::{Action, ClusterView, Deal, Policy, Stance, Standing, WorkerState, plan, stance};
use crate::status::{Assignment, Board};
use crate::store::coordination;
use crate::store::fence::Owner;
use crate::store::session::Session;
use crate::store::view::Statements;
use crate::store::{Names, Registration, checkpoints, locks, notifications};
use crate::threads::{Pulse, Stop};
use crate::trust::Trust;
pub(crate) use runners::Runners;

/// How long a connection on which something failed has to answer.
const VALIDITY_PATIENCE: Duration = Duration::from_secs(2);
/// A leaving worker that cannot reach the database gives up after this time: its peers will see that its session is gone.
const LEAVE_PATIENCE: Duration = Duration::from_secs(5);
/// While somebody else changes the replica set, or when he has just done so: after that there is most likely nothing left to be done.
const WHILE_OTHERS_CHANGE: Duration = Duration::from_millis(50);
/// What becomes due, such as a death, does so for all workers at one moment: whoever comes to it first has told the others before they do.
const SPREAD: Duration = Duration::from_millis(20);
/// Most runners are between two events, or soon will be: to wait for them here spares a look at the replica set for each that reports.
const SOON: Duration = Duration::from_millis(20);

const LOOKING: &str = "looking at the replica set";
const CHANGING: &str = "changing the generation";

pub(crate) struct Coordinator {
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) policy: Policy,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) registration: Registration,
    pub(crate) runners: Runners,
    pub(crate) pool: Pool,
    pub(crate) wake: Receiver<()>,
    /// Somebody of the replica set seems to be missing.
    pub(crate) missing: Receiver<()>,
    pub(crate) feed: Feed,
    pub(crate) trust: Trust,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) overview: Overview,
    pub(crate) metrics: ReplicaSetMetrics,
    pub(crate) worker_metrics: WorkerMetrics,
    /// Since when events are not processed because the replica set is being coordinated.
    pub(crate) interrupted: Option<Instant>,
    /// Whether the last word in the log is that the connection was lost.
    pub(crate) loss_is_logged: bool,
    /// Of coordination that fails on a sound connection.
    pub(crate) complaints: Mentions,
}

/// A connection, and how to look at the replica set on it.
struct Link {
    session: Session,
    statements: Statements,
}

impl Coordinator {
    /// Runs until the worker has left. `session` is the one in which the worker was registered.
    pub(crate) fn run(mut self, session: Session, pulse: &Pulse) {
        let mut session = Some(session);
        let mut backoff = Backoff::for_connections();
        let mut leaving_since = None;
        loop {
            pulse.beat();
            if self.stop.is_raised() && leaving_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_PATIENCE {
                log::warn!(
                    "left without saying so, the database is out of reach: replica_set={} worker={}",
                    self.registration.replica_set,
                    self.registration.worker
                );
                break;
            }
            let served = match session.take() {
                Some(session) => Ok(session),
                None => connect(&self.database, &self.registration),
            }
            .and_then(|session| self.serve(session, pulse, &mut backoff));
            match served {
                Ok(()) => break,
                Err(error) => {
                    if backoff.is_worth_logging() {
                        self.loss_is_logged = true;
                        log::warn!(
                            "connection lost: replica_set={} worker={} connection=coordinator error={error}",
                            self.registration.replica_set,
                            self.registration.worker
                        );
                    }
                    self.board.database_lost();
                    self.worker_metrics.database_up.set(0);
                    self.metrics.reconnects("coordinator").inc();
                    let delay = backoff.next_delay();
                    if self.stop.is_raised() {
                        // The signal would cut every wait short, and the attempts to say goodbye would follow on one another.
                        _ = after(delay).recv();
                    } else {
                        self.stop.wait(delay);
                    }
                }
            }
        }
        self.board.set_assignment(None);
        self.board.set_state(WorkerState::Stopped);
    }

    /// Serves on one connection until the worker has left (`Ok`) or the connection fails.
    fn serve(&mut self, mut session: Session, pulse: &Pulse, backoff: &mut Backoff) -> Result<(), Error> {
        let statements =
            session.run(|client| Statements::prepare(client, &self.names)).map_err(Error::database(LOOKING))?;
        let mut link = Link { session, statements };
        let mut heartbeat_due = Instant::now();
        let mut look_due = Instant::now();
        while !self.stop.is_raised() {
            pulse.beat();
            if heartbeat_due <= Instant::now() {
                heartbeat_due = Instant::now() + self.heartbeat_interval;
                self.heartbeat(&mut link.session)?;
                if let Err(error) = self.measure_lag(&mut link.session) {
                    self.complain(&mut link.session, backoff, error)?;
                }
            }
            let looked = if look_due <= Instant::now() {
                look_due = Instant::now() + self.poll_interval;
                self.look(&mut link)
            } else {
                self.glance(&mut link)
            };
            let again = match looked {
                Ok(again) => {
                    backoff.reset();
                    again
                }
                // The connection may be sound and its session lock held: waiting for a lock too long, say, is no reason to part with them.
                Err(error) => self.complain(&mut link.session, backoff, error)?,
            };
            if let Some(delay) = again {
                look_due = look_due.min(Instant::now() + delay);
            }
            if let Err(error) = self.overview.refresh(&mut link.session, &self.names, &self.registration.replica_set) {
                self.complain(&mut link.session, backoff, error)?;
            }
            let wait = look_due.min(heartbeat_due).saturating_duration_since(Instant::now());
            select! {
                recv(self.stop.heard()) -> _ => {}
                recv(self.wake) -> _ => {
                    // What was about to become due has most likely been seen to with the change.
                    let now = Instant::now();
                    if look_due > now {
                        look_due = look_due.max(now + WHILE_OTHERS_CHANGE);
                    }
                }
                recv(self.missing) -> _ => look_due = Instant::now(),
                recv(self.runners.reports) -> report => self.runners.heard(report.ok()),
                default(wait) => {}
            }
        }
        self.leave(&mut link, pulse)
    }

    /// Returns when to try again on the same connection, or the error if the connection failed.
    fn complain(
        &mut self,
        session: &mut Session,
        backoff: &mut Backoff,
        error: Error,
    ) -> Result<Option<Duration>, Error> {
        if session.client().is_valid(VALIDITY_PATIENCE).is_err() {
            return Err(error);
        }
        // What fails may be one thing of several, and the others reset the delays.
        if self.complaints.is_due() {
            log::error!(
                "coordination failed, tried again: replica_set={} worker={} error={error}",
                self.registration.replica_set,
                self.registration.worker
            );
        }
        Ok(Some(backoff.next_delay()))
    }

    /// Says that the worker is alive.
    fn heartbeat(&mut self, session: &mut Session) -> Result<(), Error> {
        let sent = Instant::now();
        let member = session
            .run(|client| coordination::heartbeat(client, &self.names, self.registration.worker))
            .map_err(Error::database("sending the heartbeat"))?;
        self.metrics.heartbeat_latency.observe(sent.elapsed().as_secs_f64());
        self.worker_metrics.set_pool(self.pool.size(), self.pool.open(), self.pool.idle());
        // The database is there either way; only a member may go on processing.
        self.board.heartbeat_answered(sent);
        self.worker_metrics.database_up.set(1);
        if std::mem::take(&mut self.loss_is_logged) {
            log::info!(
                "connection regained: replica_set={} worker={} connection=coordinator",
                self.registration.replica_set,
                self.registration.worker
            );
        }
        if member {
            self.trust.renew(sent);
        }
        Ok(())
    }

    /// Looks how far the replica set is behind, as seen from the database: also what no worker processes is behind.
    fn measure_lag(&self, session: &mut Session) -> Result<(), Error> {
        for lag in session
            .run(|client| checkpoints::lags(client, &self.names, &self.registration.replica_set))
            .map_err(Error::database("reading the lag"))?
        {
            let metrics = self.metrics.projection(&lag.projection);
            metrics.checkpoint_position.set(lag.position);
            metrics.lag_events.set(lag.events);
            metrics.lag_seconds.set(lag.seconds);
        }
        Ok(())
    }

    /// Looks at the whole replica set, changes what is to be changed, and does its own part. Returns when to look again at the latest.
    fn look(&mut self, link: &mut Link) -> Result<Option<Duration>, Error> {
        let worker = self.registration.worker;
        let mut view = self.load(link)?;
        let mut decided = plan(&view, &self.policy);
        // One who has been evicted leaves the others' affairs to them until it is back.
        let is_member = view.worker(worker).is_some();
        if is_member && !decided.actions.is_empty() {
            if let Some(changed) = self.try_change(link)? {
                view = changed;
                decided = plan(&view, &self.policy);
            } else {
                decided.recheck_within(WHILE_OTHERS_CHANGE);
            }
        }
        self.metrics.active_workers.set(i64::try_from(view.workers.len()).unwrap_or(0));
        let own = self.do_own_part(link, &view.standing(worker))?;
        Ok(own.or(decided.recheck_after.map(|delay| delay + SPREAD.mul_f64(fastrand::f64()))))
    }

    /// Looks only at what concerns itself, and does its own part: when something has changed, one worker has changed it and seen to the
    /// rest. Returns when to look at the whole replica set, if that is sooner than it would be.
    fn glance(&mut self, link: &mut Link) -> Result<Option<Duration>, Error> {
        let Registration { replica_set, worker, .. } = &self.registration;
        let Link { session, statements } = link;
        let standing = session.check(LOOKING, |client| statements.standing(client, replica_set, *worker))?;
        self.do_own_part(link, &standing)
    }

    /// Lets the runners process or pause, as the worker's standing has it. Returns when to look at the whole replica set, if it must.
    fn do_own_part(&mut self, link: &mut Link, standing: &Standing) -> Result<Option<Duration>, Error> {
        self.show_state(standing.member.map_or(WorkerState::Stopped, |member| member.state));
        let partitions = standing.generation.as_ref().map_or(0, |generation| generation.total_partitions);
        self.metrics.partitions.set(i64::try_from(partitions).unwrap_or(0));
        let worker = self.registration.worker;
        match stance(standing) {
            Stance::Run(generation) => self.resume(&mut link.session, standing, generation)?,
            Stance::Prepare(generation) if self.pause() || self.paused_soon() => {
                let Link { session, statements } = link;
                session
                    .run(|client| statements.mark_ready(client, worker, generation))
                    .map_err(Error::database(LOOKING))?;
                // After the commit, so that the last worker finds no other one.
                let others_follow = session
                    .run(|client| statements.are_others_pending(client, worker, generation))
                    .map_err(Error::database(LOOKING))?;
                log::debug!("ready: worker={worker} generation={generation}");
                self.show_state(WorkerState::Ready);
                // The last one activates the generation.
                return Ok((!others_follow).then_some(Duration::ZERO));
            }
            Stance::Rejoin if self.pause() => {
                self.rejoin(&mut link.session)?;
                return Ok(Some(Duration::ZERO));
            }
            Stance::Prepare(_) | Stance::Rejoin | Stance::Ready(_) => {}
            Stance::Wait => {
                self.pause();
            }
        }
        Ok(None)
    }

    fn load(&self, link: &mut Link) -> Result<ClusterView, Error> {
        let Link { session, statements } = link;
        session.check(LOOKING, |client| statements.view(client, &self.registration.replica_set))
    }

    /// Does what `plan` asks for, unless somebody else is changing what the workers share: when all see at one moment that something is
    /// to be done, they do not queue up to find it done. Returns the view that results.
    fn try_change(&self, link: &mut Link) -> Result<Option<ClusterView>, Error> {
        let locked = coordination::try_lock(&mut link.session, &self.names, &self.registration.replica_set);
        locked.map_err(Error::database(CHANGING))?.map(|tx| self.change(tx, &link.statements)).transpose()
    }

    /// Changes what the workers share as `plan` asks for, in a transaction that holds the replica set's lock, and commits. Returns the
    /// view that results.
    fn change(&self, mut tx: Transaction<'_>, statements: &Statements) -> Result<ClusterView, Error> {
        let replica_set = &self.registration.replica_set;
        // Anything may have changed since the lock was not held.
        let mut view = statements.view(&mut tx, replica_set)?;
        let actions = plan(&view, &self.policy).actions;
        for action in &actions {
            coordination::apply(&mut tx, &self.names, replica_set, action)?;
        }
        if !actions.is_empty() {
            view = statements.view(&mut tx, replica_set)?;
            notifications::notify_coordination(&mut tx, &self.names, replica_set).map_err(Error::database(CHANGING))?;
        }
        tx.commit().map_err(Error::database(CHANGING))?;
        for action in &actions {
            self.applied(action);
        }
        Ok(view)
    }

    fn applied(&self, action: &Action) {
        let replica_set = &self.registration.replica_set;
        match action {
            Action::NoteSessionLost(worker) => {
                log::info!("session lost: replica_set={replica_set} worker={worker}");
            }
            Action::NoteSessionRegained(worker) => {
                log::info!("session regained: replica_set={replica_set} worker={worker}");
            }
            Action::Evict(worker, death) => {
                self.metrics.stale_workers_cleaned.inc();
                log::warn!("worker evicted: replica_set={replica_set} worker={worker} reason={:?}", death.as_str());
            }
            Action::CreateGeneration { number, cause, members } => {
                self.metrics.generations.inc();
                log::info!(
                    "generation created: replica_set={replica_set} generation={number} reason={} partitions={}",
                    cause.as_str(),
                    members.len()
                );
            }
            Action::Activate { number, .. } => {
                log::info!("generation activated: replica_set={replica_set} generation={number}");
            }
            Action::Deal { generation, deal: Deal { projection, desired, .. } } => {
                log::info!(
                    "projection reassigned: replica_set={replica_set} generation={generation} projection={projection} state={}",
                    desired.as_str()
                );
            }
        }
    }

    /// Lets the runners process this generation, if they do not already, and load what has been dealt again.
    fn resume(&mut self, session: &mut Session, standing: &Standing, generation: i64) -> Result<(), Error> {
        let owner = Owner { worker: self.registration.worker, generation };
        if self.runners.are_told(owner, &standing.deals) {
            return Ok(());
        }
        let partition = standing.member.and_then(|member| member.partition);
        let total_partitions = standing.generation.as_ref().map_or(0, |generation| generation.total_partitions);
        let keys = session
            .run(|client| {
                checkpoints::keys_of(client, &self.names, &self.registration.projections, owner.worker, generation)
            })
            .map_err(Error::database(LOOKING))?;
        self.feed.assign(keys);
        self.board.set_assignment(partition.map(|partition| Assignment { generation, partition, total_partitions }));
        self.runners.run(owner, &standing.deals);
        if let Some(since) = self.interrupted.take() {
            let pause = since.elapsed();
            self.metrics.coordination_duration.observe(pause.as_secs_f64());
            self.metrics.reconfigurations.inc();
            self.metrics.partition_assignments.inc();
            log::info!(
                "processing: replica_set={} worker={} generation={generation} partition={} of={total_partitions} pause={pause:?}",
                self.registration.replica_set,
                owner.worker,
                partition.map_or(-1, |k| i64::try_from(k).unwrap_or(-1))
            );
        }
        Ok(())
    }

    /// Pauses the runners. True once none of them processes any more.
    fn pause(&mut self) -> bool {
        if self.runners.are_running() {
            self.interrupted.get_or_insert_with(Instant::now);
            self.board.set_assignment(None);
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
    fn rejoin(&mut self, session: &mut Session) -> Result<(), Error> {
        let Registration { replica_set, worker, .. } = &self.registration;
        log::warn!("evicted, registering again: replica_set={replica_set} worker={worker}");
        let sent = Instant::now();
        coordination::register(session, &self.names, &self.registration)?;
        self.trust.renew(sent);
        self.metrics.workers_registered.inc();
        self.interrupted.get_or_insert(sent);
        Ok(())
    }

    fn show_state(&self, state: WorkerState) {
        self.board.set_state(state);
        self.worker_metrics.set_state(state.as_str());
    }

    /// Drains the runners, then hands over: the worker is gone and the partitions are dealt out again in one transaction.
    fn leave(&mut self, link: &mut Link, pulse: &Pulse) -> Result<(), Error> {
        let worker = self.registration.worker;
        link.session
            .run(|client| coordination::mark_stopping(client, &self.names, worker))
            .map_err(Error::database("leaving"))?;
        self.show_state(WorkerState::Stopping);
        while !self.pause() {
            pulse.beat();
            select! {
                recv(self.runners.reports) -> report => self.runners.heard(report.ok()),
                default(self.heartbeat_interval) => self.heartbeat(&mut link.session)?,
            }
        }
        let mut tx = coordination::lock(&mut link.session, &self.names, &self.registration.replica_set)
            .map_err(Error::database(CHANGING))?;
        coordination::mark_left(&mut tx, &self.names, worker).map_err(Error::database(CHANGING))?;
        self.change(tx, &link.statements)?;
        log::info!("left: replica_set={} worker={worker}", self.registration.replica_set);
        Ok(())
    }
}

/// Opens the coordination connection, holding the lock that says "alive".
pub(crate) fn connect(database: &Database, registration: &Registration) -> Result<Session, Error> {
    hold_alive(Session::open(database, registration.sessions)?, registration)
}

/// Takes the lock that says "alive", where sessions are used.
pub(crate) fn hold_alive(mut session: Session, registration: &Registration) -> Result<Session, Error> {
    let doing = "taking the session lock";
    if let Some(worker) = registration.sessions.member() {
        let client = session.client();
        // Planning costs more than executing, and one plan is as good as another. The connection is the worker's alone.
        client.batch_execute("SET plan_cache_mode = force_generic_plan").map_err(Error::database(doing))?;
        let mut backoff = Backoff::for_connections();
        while !locks::try_hold_alive(client, worker).map_err(Error::database(doing))? {
            // The server has not noticed yet that this worker's former connection is gone. It is this worker's own: end it.
            locks::end_former(client, worker).map_err(Error::database(doing))?;
            _ = after(backoff.next_delay()).recv();
        }
    }
    Ok(session)
}
