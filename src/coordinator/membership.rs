//! A worker's membership in its replica set, on one connection: everything that the coordinator
//! reads and writes.
//!
//! Any worker may change the shared state. It does so in a transaction that holds the replica set's
//! lock. It loads a view under that lock, and makes exactly the changes that [`plan`] returns for
//! it.

use std::time::Duration;

use postgres::Transaction;

use super::faults::Faults;
use super::versions::Versions;
use crate::backoff::Mentions;
use crate::context::Context;
use crate::error::{Error, field};
use crate::plan::{Action, ClusterView, Deal, Effect, KeySet, Plan, Policy, Sightings, Standing, WorkerState, plan};
use crate::store::outcome::Outcome;
use crate::store::session::Session;
use crate::store::view::Statements;
use crate::store::{Registration, checkpoints, coordination, notifications};
use crate::threads::Pulse;

const LOOKING: &str = "looking at the replica set";
const CHANGING: &str = "changing the generation";
/// How many workers of a replica set inspect the checkpoints in each round of polls, on average. So
/// a change by hand is detected within about one poll, and the cost of inspections does not grow
/// with the number of workers.
const INSPECTIONS: usize = 4;

pub(super) struct Membership<'a> {
    context: &'a Context,
    policy: &'a Policy,
    registration: &'a Registration,
    pulse: &'a Pulse,
    pub(super) session: Session,
    statements: Statements,
    memory: Memory,
    faults: Faults,
    versions: Versions,
    /// The number of living workers in the last view.
    workers: usize,
}

/// What the worker remembers between two looks at the replica set. The mentions limit how often
/// something is logged.
#[derive(Default)]
struct Memory {
    sightings: Sightings,
    /// Sessions of evicted workers cannot be ended.
    unended: Mentions,
    /// The other workers cannot be notified.
    unheard: Mentions,
}

/// The result of a look at the whole replica set: the view, and the plan for it.
pub(super) struct Looked {
    pub(super) view: ClusterView,
    pub(super) plan: Plan,
    /// Another worker was changing the replica set.
    pub(super) is_others_turn: bool,
}

impl<'a> Membership<'a> {
    pub(super) fn new(
        context: &'a Context,
        policy: &'a Policy,
        registration: &'a Registration,
        pulse: &'a Pulse,
        mut session: Session,
    ) -> Result<Self, Error> {
        if let Some(worker) = registration.sessions.member() {
            session
                .run(|client| coordination::take_over_session(client, &context.names, worker))
                .map_err(Error::database("taking the session over"))?;
        }
        let statements =
            session.run(|client| Statements::prepare(client, &context.names)).map_err(Error::database(LOOKING))?;
        Ok(Self {
            context,
            policy,
            registration,
            pulse,
            session,
            statements,
            memory: Memory::default(),
            faults: Faults::default(),
            versions: Versions::default(),
            workers: 1,
        })
    }

    /// Sends a heartbeat. Returns false if the worker has been evicted.
    pub(super) fn heartbeat(&mut self) -> Result<bool, Error> {
        let (names, worker) = (&self.context.names, self.registration.worker);
        self.session
            .run(|client| coordination::heartbeat(client, names, worker))
            .map_err(Error::database("sending the heartbeat"))
    }

    /// Loads the view of the whole replica set, and makes the changes that are due.
    pub(super) fn look(&mut self) -> Result<Looked, Error> {
        let looked = self.look_and_change()?;
        self.workers = looked.view.workers.len();
        self.faults.report(self.context, &looked.view);
        self.versions.report(self.context, &looked.view);
        Ok(looked)
    }

    fn look_and_change(&mut self) -> Result<Looked, Error> {
        let replica_set = &self.registration.replica_set;
        let inspects = fastrand::usize(..self.workers.max(INSPECTIONS)) < INSPECTIONS;
        let view = self.session.check(LOOKING, |client| self.statements.view(client, replica_set, inspects))?;
        let view = self.memory.sightings.settle(view);
        let decided = self.pulse.judged(|| decide(&view, self.policy, self.registration));
        // A worker that has been evicted must not change anything until it has registered again.
        let is_member = view.worker(self.registration.worker).is_some();
        if !is_member || decided.actions.is_empty() {
            return Ok(Looked { view, plan: decided, is_others_turn: false });
        }
        // All workers may find at the same moment that a change is due. A worker that does not get
        // the lock skips the change, because another worker is making it.
        let locked = coordination::try_lock(&mut self.session, &self.context.names, replica_set);
        let Some(tx) = locked.map_err(Error::database(CHANGING))? else {
            return Ok(Looked { view, plan: decided, is_others_turn: true });
        };
        let memory = &mut self.memory;
        let (view, actions) = change(tx, self.context, self.policy, self.registration, &self.statements, memory)?;
        self.announce(&actions);
        let mut plan = decide(&view, self.policy, self.registration);
        if !plan.actions.is_empty() {
            plan.recheck_within(Duration::ZERO);
        }
        Ok(Looked { view, plan, is_others_turn: false })
    }

    /// Reads only what concerns the worker itself. The worker that made a change has done the rest.
    pub(super) fn glance(&mut self) -> Result<Standing, Error> {
        let Self { registration: Registration { replica_set, worker, .. }, session, statements, .. } = self;
        session.check(LOOKING, |client| statements.standing(client, replica_set, *worker))
    }

    /// Records that the worker is ready for a generation. Returns whether any other worker is not
    /// ready yet.
    pub(super) fn say_ready(&mut self, generation: i64) -> Result<bool, Error> {
        let Self { registration, session, statements, .. } = self;
        session
            .run(|client| statements.mark_ready(client, registration.worker, generation))
            .map_err(Error::database(LOOKING))?;
        // Executed after the commit, so that the last worker to become ready finds no other worker
        // pending.
        session
            .run(|client| statements.are_others_pending(client, registration.worker, generation))
            .map_err(Error::database(LOOKING))
    }

    /// Returns all keys that the worker owns, of any projection.
    pub(super) fn keys(&mut self, generation: i64) -> Result<KeySet, Error> {
        let Self { context, registration: Registration { projections, worker, .. }, session, .. } = self;
        session
            .run(|client| checkpoints::keys_of(client, &context.names, projections, *worker, generation))
            .map_err(Error::database(LOOKING))
    }

    /// Registers the worker again after it has been evicted.
    pub(super) fn rejoin(&mut self) -> Result<(), Error> {
        coordination::register(&mut self.session, &self.context.names, self.registration)?;
        self.notify();
        Ok(())
    }

    /// Records that the worker was asked to leave, so that it gets no partition of a new
    /// generation.
    pub(super) fn say_stopping(&mut self) -> Result<(), Error> {
        let (names, worker) = (&self.context.names, self.registration.worker);
        self.session
            .run(|client| coordination::mark_stopping(client, names, worker))
            .map_err(Error::database("leaving"))
    }

    /// Records that the worker has left and redistributes its partition, in one transaction, so
    /// that no other worker has to detect that it is gone.
    pub(super) fn leave(&mut self) -> Result<(), Error> {
        let (names, worker) = (&self.context.names, self.registration.worker);
        let mut tx = coordination::lock(&mut self.session, names, &self.registration.replica_set)
            .map_err(Error::database(CHANGING))?;
        coordination::mark_left(&mut tx, names, worker).map_err(Error::database(CHANGING))?;
        let memory = &mut self.memory;
        let (_, actions) = change(tx, self.context, self.policy, self.registration, &self.statements, memory)?;
        self.announce(&actions);
        if actions.is_empty() {
            // No other worker needs the notification, but it makes this worker's listener check
            // whether to stop.
            self.notify();
        }
        Ok(())
    }

    /// Whether no other worker could process the partition of this one.
    pub(super) fn is_alone(&mut self) -> Result<bool, Error> {
        let Self { session, statements, registration, .. } = self;
        let view = session.check(LOOKING, |client| statements.view(client, &registration.replica_set, false))?;
        Ok(is_alone(&view, registration))
    }

    /// Leaves the replica set unless this worker is alone in it. Returns whether it has left. It
    /// holds the replica set's lock, so if all workers want to leave at the same time, one of them
    /// stays.
    pub(super) fn leave_to_others(&mut self) -> Result<bool, Error> {
        let (names, registration) = (&self.context.names, self.registration);
        let mut tx = coordination::lock(&mut self.session, names, &registration.replica_set)
            .map_err(Error::database(CHANGING))?;
        if is_alone(&self.statements.view(&mut tx, &registration.replica_set, false)?, registration) {
            return Ok(false);
        }
        coordination::mark_left(&mut tx, names, registration.worker).map_err(Error::database(CHANGING))?;
        let (_, actions) = change(tx, self.context, self.policy, registration, &self.statements, &mut self.memory)?;
        self.announce(&actions);
        Ok(true)
    }

    /// Logs the changes, and notifies the other workers.
    fn announce(&mut self, actions: &[Applied]) {
        for (action, outcome) in actions {
            applied(self.context, action, outcome.as_ref());
        }
        if !actions.is_empty() {
            self.notify();
        }
    }

    fn notify(&mut self) {
        let Self { context, registration, session, memory, .. } = self;
        let failures = &mut memory.unheard;
        notifications::notify_coordination(session, &context.names, &registration.replica_set, failures);
    }
}

fn is_alone(view: &ClusterView, own: &Registration) -> bool {
    !view.workers.iter().any(|worker| worker.id != own.worker && worker.state != WorkerState::Stopping)
}

/// Returns the plan without the actions that this worker cannot execute.
fn decide(view: &ClusterView, policy: &Policy, worker: &Registration) -> Plan {
    let mut plan = plan(view, policy);
    // Only a worker that knows the projection knows where it starts.
    let knows = |name: &str| worker.projections.iter().any(|known| known.name == name);
    plan.actions.retain(|action| !matches!(action, Action::Begin(projection) if !knows(projection)));
    plan
}

/// Makes the changes that [`plan`] returns, in a transaction that holds the replica set's lock, and
/// commits. Returns the resulting view, and the changes.
fn change(
    mut tx: Transaction<'_>,
    context: &Context,
    policy: &Policy,
    worker: &Registration,
    statements: &Statements,
    memory: &mut Memory,
) -> Result<(ClusterView, Vec<Applied>), Error> {
    let replica_set = context.replica_set();
    // The view is loaded again, because anything may have changed before this worker got the lock.
    let mut view = memory.sightings.settle(statements.view(&mut tx, replica_set, true)?);
    let mut applied = Vec::new();
    for action in decide(&view, policy, worker).actions {
        let outcome = coordination::apply(&mut tx, &context.names, worker, &action, &mut memory.unended)?;
        applied.push((action, outcome));
    }
    if !applied.is_empty() {
        view = memory.sightings.settle(statements.view(&mut tx, replica_set, true)?);
    }
    tx.commit().map_err(Error::database(CHANGING))?;
    Ok((view, applied))
}

/// An action that was applied, and the outcome of a command that has one now.
type Applied = (Action, Option<Outcome>);

fn applied(context: &Context, action: &Action, outcome: Option<&Outcome>) {
    let replica_set = context.replica_set();
    match action {
        Action::NoteSessionLost(worker) => {
            log::info!("session lost: replica_set={replica_set} worker={worker}", replica_set = field(&replica_set));
        }
        Action::NoteSessionRegained(worker) => {
            log::info!(
                "session regained: replica_set={replica_set} worker={worker}",
                replica_set = field(&replica_set)
            );
        }
        Action::Evict(worker, death) => {
            context.metrics.stale_workers_cleaned.inc();
            log::warn!(
                "worker evicted: replica_set={replica_set} worker={worker} reason={}",
                field(&death.as_str()),
                replica_set = field(&replica_set)
            );
        }
        Action::CreateGeneration { number, cause, members } => {
            context.metrics.generations.inc();
            log::info!(
                "generation created: replica_set={replica_set} generation={number} reason={} partitions={}",
                field(&cause.as_str()),
                members.len(),
                replica_set = field(&replica_set)
            );
        }
        Action::Activate { number, .. } => {
            log::info!(
                "generation activated: replica_set={replica_set} generation={number}",
                replica_set = field(&replica_set)
            );
        }
        Action::Deal { generation, deal: Deal { projection, desired, .. } } => {
            log::info!(
                "projection reassigned: replica_set={replica_set} generation={generation} projection={projection} state={}",
                field(&desired.as_str()),
                replica_set = field(&replica_set),
                projection = field(&projection)
            );
        }
        Action::Begin(projection) => {
            log::warn!(
                "projection begins again, its rows were deleted: replica_set={replica_set} projection={projection}",
                replica_set = field(&replica_set),
                projection = field(&projection)
            );
        }
        Action::Command { id, asked, projection, effect, .. } => {
            if let Some(outcome) = outcome {
                if let (Effect::Discard, Outcome::Done(_)) = (effect, outcome) {
                    context.metrics.projection(projection).discarded.inc();
                }
                context.command_applied(*asked, projection, *id, outcome);
            }
        }
        // Every worker reports the fault.
        Action::Withdraw(..) => {}
    }
}
