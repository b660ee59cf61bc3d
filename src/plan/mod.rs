//! Decides what to do about a replica set, from one snapshot of it. Pure: no database, no clock, no
//! channel, no log.
//!
//! [`plan`] decides how to change the state that all workers share. The worker that holds the
//! replica set's lock applies it; it does not matter which worker that is. [`stance`] decides what
//! one worker has to do itself. Both are idempotent: once their result is applied, they return
//! nothing more to do.
//!
//! ```text
//! pending ──(all its workers ready)──► active ──(membership changed)──► superseded
//! ```
//!
//! *Invariant:* a generation is activated only when every member is ready, so every worker that
//! obeys the protocol pauses between two generations. A worker that does not obey (frozen, cut off)
//! cannot commit anything: `store::fence` ensures this, not this module. One projection may be
//! [redistributed](Deal) within a generation while its runners process. The fence ensures there,
//! too, that only the owner commits.

mod commands;
mod deal;
mod deployment;
mod keys;
mod sightings;
mod view;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use commands::{Effect, Refusal};
pub(crate) use deal::Deal;
#[cfg(test)]
pub(crate) use deal::Share;
pub(crate) use deployment::{Deployed, Deployment, Unfinished};
pub(crate) use keys::{KEY_SPACE, KeySet};
pub(crate) use sightings::Sightings;
pub(crate) use view::{
    Asked, ClusterView, Code, CommandView, DesiredState, Errand, Fault, GenerationState, GenerationView, Kind, Member,
    ProjectionView, Rows, ServerTime, Session, Standing, Step, Unclaimed, WorkerView, base_of,
};
pub use view::{WorkerId, WorkerState};

/// The durations on which decisions depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// A worker whose last heartbeat is older than this is dead.
    pub(crate) stale_worker_timeout: Duration,
    /// A worker whose session lock has been gone for this long is dead; `None` where liveness
    /// relies on heartbeats alone.
    pub(crate) session_loss_grace: Option<Duration>,
    /// A worker that is not ready this long after its generation was created is excluded.
    pub(crate) coordination_timeout: Duration,
    /// How long joins are gathered while a complete generation is active.
    pub(crate) registration_wait: Duration,
}

/// Why a generation is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// The replica set has no generation, or no worker of the last one is left.
    Started,
    /// Workers joined.
    Joined,
    /// A worker left, died or was excluded.
    Departed,
}

impl Cause {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Joined => "joined",
            Self::Departed => "departed",
        }
    }
}

/// Why a worker is evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Death {
    /// Its session lock was gone for the grace period.
    SessionLost,
    /// Its heartbeats stopped.
    Stale,
    /// It was not ready within the coordination timeout.
    NotReady,
}

impl Death {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::SessionLost => "session lost",
            Self::Stale => "heartbeats stopped",
            Self::NotReady => "not ready in time",
        }
    }
}

/// A change to what the workers share.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Record that the worker's session lock is gone, from now on.
    NoteSessionLost(WorkerId),
    /// Remove that record: the lock is held again.
    NoteSessionRegained(WorkerId),
    /// Declare the worker dead: it stops being a member, and its database sessions are ended.
    Evict(WorkerId, Death),
    /// Create this generation as pending, superseding the one before. Partition k goes to the k-th
    /// member.
    CreateGeneration { number: i64, cause: Cause, members: Vec<WorkerId> },
    /// Distribute the projections among the members of this generation and make it active.
    Activate { number: i64, deals: Vec<Deal> },
    /// Redistribute one projection within this generation, which is active. No other projection
    /// is touched.
    Deal { generation: i64, deal: Deal },
    /// Claim this projection again and create its checkpoint, as when a worker registers: an
    /// operator has deleted both. Only a worker that knows the projection can do this.
    Begin(Arc<str>),
    /// Take this projection from all workers, and record why. It is dealt again once its
    /// checkpoints are whole.
    Withdraw(Arc<str>, Fault),
    /// Apply this command of an operator, within this generation. No other projection is touched.
    Command { id: i64, asked: Asked, projection: Arc<str>, generation: i64, effect: Effect },
}

/// What [`plan`] decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// When to look again because the passing of time alone may make an action due.
    pub(crate) recheck_after: Option<Duration>,
}

/// What a worker has to do itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stance {
    /// It is not a member any more: pause, then register again.
    Rejoin,
    /// It has no partition: stay paused.
    Wait,
    /// Pause, then say that it is ready for this generation.
    Prepare(i64),
    /// It is ready: stay paused until the others are.
    Ready(i64),
    /// Process the partition it holds in this generation.
    Run(i64),
}

/// Decides what to change in what the workers share. See the module's documentation.
pub(crate) fn plan(view: &ClusterView, policy: &Policy) -> Plan {
    let mut plan = Plan::default();
    let mut alive: Vec<&WorkerView> = Vec::with_capacity(view.workers.len());
    for worker in &view.workers {
        match judge(worker, view, policy, &mut plan) {
            Some(death) => plan.actions.push(Action::Evict(worker.id, death)),
            None => alive.push(worker),
        }
    }

    let Some(generation) = &view.generation else {
        plan.create(0, Cause::Started, &alive);
        return plan;
    };
    let assigned: Vec<&WorkerView> = alive.iter().copied().filter(|w| w.generation == generation.number).collect();
    if assigned.len() < generation.total_partitions {
        // A partition without an owner is redistributed at once; workers that have just joined are
        // included.
        let cause = if assigned.is_empty() { Cause::Started } else { Cause::Departed };
        plan.create(generation.number, cause, &alive);
        return plan;
    }
    // A worker that is leaving gets no share: nothing would process it until the next generation.
    let running: Vec<&WorkerView> =
        assigned.iter().copied().filter(|worker| worker.state == WorkerState::Running).collect();
    // A projection that was to be paused before any worker started is not processed at all. Other
    // commands do not hold up a generation that can be activated.
    let is_ready =
        generation.state == GenerationState::Pending && assigned.iter().all(|w| w.state == WorkerState::Ready);
    let only = is_ready.then_some(Asked::Pause);
    let command = commands::next(view, &running, &alive, only).map(|(command, effect)| Action::Command {
        id: command.id,
        asked: command.asked,
        projection: command.projection.clone(),
        generation: generation.number,
        effect,
    });
    let mut upkeep: Vec<Action> = command.into_iter().collect();
    match generation.state {
        GenerationState::Pending => {
            let late: Vec<WorkerId> = assigned.iter().filter(|w| w.state != WorkerState::Ready).map(|w| w.id).collect();
            if !late.is_empty() {
                if plan.is_due_or_recheck(generation.created_at, policy.coordination_timeout, view.now) {
                    plan.actions.extend(late.iter().map(|id| Action::Evict(*id, Death::NotReady)));
                    alive.retain(|worker| !late.contains(&worker.id));
                    plan.create(generation.number, Cause::Departed, &alive);
                }
            } else if upkeep.is_empty() {
                // One projection that cannot be distributed does not hold up the others.
                let usable = view.projections.iter().filter(|projection| !matches!(projection.rows, Rows::Unusable(_)));
                let deals = usable.map(|projection| Deal::of(projection, &assigned)).collect();
                plan.actions.push(Action::Activate { number: generation.number, deals });
            }
        }
        GenerationState::Active => {
            let joiners = alive.iter().filter(|w| w.generation != generation.number && w.state == WorkerState::Pending);
            // Counted from the first joiner: continuous joins cannot delay the generation forever.
            if let Some(first) = joiners.map(|worker| worker.registered_at).min()
                && plan.is_due_or_recheck(first, policy.registration_wait, view.now)
            {
                plan.create(generation.number, Cause::Joined, &alive);
                return plan;
            }
            if upkeep.is_empty() {
                upkeep = self::upkeep(view, generation.number, &running);
            }
        }
    }
    if plan.actions.is_empty() {
        plan.actions = upkeep;
    } else if !upkeep.is_empty() {
        // Commands and upkeep get transactions of their own: if one of them fails, this must not
        // undo changes that concern the workers.
        plan.recheck_within(Duration::ZERO);
    }
    plan
}

/// Decides what to change in single projections within an active generation: those whose desired
/// state has changed, or whose rows were changed by hand.
fn upkeep(view: &ClusterView, generation: i64, running: &[&WorkerView]) -> Vec<Action> {
    let is_known = |projection: &ProjectionView| running.iter().any(|worker| worker.knows(projection));
    let has_code = |name: &str| running.iter().any(|worker| worker.has_code(name));
    let deleted = view.unclaimed.iter().filter(|unclaimed| unclaimed.owner.is_none() && has_code(&unclaimed.name));
    let begin = deleted.map(|unclaimed| Action::Begin(unclaimed.name.clone()));
    let due = view.projections.iter().filter_map(|projection| {
        let ProjectionView { name, dealt, rows, withdrawn, .. } = projection;
        let target = projection.target();
        let is_due = match rows {
            Rows::Unusable(fault) => {
                return (*withdrawn != Some(*fault)).then(|| Action::Withdraw(name.clone(), *fault));
            }
            // A projection that no running worker knows is dealt in the generation of the worker
            // that has registered it.
            Rows::Whole => target != *dealt || target == DesiredState::Paused || is_known(projection),
            Rows::AsDealt => target != *dealt,
            Rows::NotInspected => target != *dealt && withdrawn.is_none(),
        };
        is_due.then(|| Action::Deal { generation, deal: Deal::of(projection, running) })
    });
    begin.chain(due).collect()
}

/// Decides whether the worker is dead. Adds changes of its session to the plan, and when to look
/// again.
fn judge(worker: &WorkerView, view: &ClusterView, policy: &Policy, plan: &mut Plan) -> Option<Death> {
    if plan.is_due_or_recheck(worker.last_heartbeat.max(view.observing_since), policy.stale_worker_timeout, view.now) {
        return Some(Death::Stale);
    }
    let grace = policy.session_loss_grace?;
    match worker.session {
        Session::Held | Session::Unused => {}
        Session::Regained => plan.actions.push(Action::NoteSessionRegained(worker.id)),
        Session::Missing => {
            plan.actions.push(Action::NoteSessionLost(worker.id));
            plan.recheck_within(grace);
        }
        Session::LostSince(at) => {
            if plan.is_due_or_recheck(at.max(view.observing_since), grace, view.now) {
                return Some(Death::SessionLost);
            }
        }
    }
    None
}

/// Decides what this worker has to do itself.
pub(crate) fn stance(standing: &Standing) -> Stance {
    let Some(member) = &standing.member else { return Stance::Rejoin };
    let Some(generation) = standing.generation.as_ref().filter(|g| g.number == member.generation) else {
        return Stance::Wait;
    };
    match (generation.state, member.state) {
        (GenerationState::Pending, WorkerState::Pending) => Stance::Prepare(generation.number),
        (GenerationState::Pending, WorkerState::Ready) => Stance::Ready(generation.number),
        (GenerationState::Active, WorkerState::Running) => Stance::Run(generation.number),
        _ => Stance::Wait,
    }
}

impl Plan {
    /// Returns whether `wait` has passed since `since`. If not, requests another look for when it
    /// has.
    fn is_due_or_recheck(&mut self, since: ServerTime, wait: Duration, now: ServerTime) -> bool {
        let left = wait.saturating_sub(now.since(since));
        if !left.is_zero() {
            self.recheck_within(left);
        }
        left.is_zero()
    }

    /// Asks for another look after this time, if none is due sooner.
    pub(crate) fn recheck_within(&mut self, wait: Duration) {
        self.recheck_after = Some(self.recheck_after.map_or(wait, |sooner| sooner.min(wait)));
    }

    /// Adds a generation of all workers that are alive and not leaving. The partitions keep their
    /// order, so that few keys change their owner.
    fn create(&mut self, last: i64, cause: Cause, alive: &[&WorkerView]) {
        let mut members: Vec<&WorkerView> =
            alive.iter().copied().filter(|worker| worker.state != WorkerState::Stopping).collect();
        if members.is_empty() {
            return;
        }
        members.sort_by_key(|worker| (worker.partition.unwrap_or(usize::MAX), worker.registered_at, worker.id));
        let members = members.into_iter().map(|worker| worker.id).collect();
        self.actions.push(Action::CreateGeneration { number: last + 1, cause, members });
    }
}

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
pub(crate) mod tests;
