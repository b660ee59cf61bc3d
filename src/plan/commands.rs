//! What to do about an operator's commands. Pure.
//!
//! The commands of one projection are applied in the order in which they were given, and the next
//! one waits until the one before is finished. A command takes effect in one transaction under the
//! replica set's lock, which also records that it is done (I10). The exceptions are commands that
//! take long or need the code of the application, because that must not run under the lock. One
//! worker executes such a command as its *errand*, in a transaction that compares the worker and
//! the number of the attempt. If the worker is gone, another one starts again. So of two workers
//! that execute one command, because one of them was considered dead, only one commits.
//!
//! ```text
//! rewind:  queued ──(dealt to no worker)──► executing ──► executed ──(dealt again)──► done
//! rebuild: queued ──► executing ──(copies exist)──► loading ──(caught up)──► finishing ──► done
//!                                                      ▲────(put off)────────────┘
//! cancel, revert, drop_old, rebuild_aggregate: queued ──► executing ──► done
//! ```
//!
//! While the read model of a rewound projection is being cleared, no worker owns the projection's
//! checkpoints. A rebuild that is *loading* or *finishing* is in the background: other commands of
//! the projection go on.

use super::deal::Deal;
use super::view::{
    Asked, ClusterView, CommandView, DesiredState, Fault, GenerationState, Kind, ProjectionView, Rows, Step, WorkerId,
    WorkerState, WorkerView,
};

/// How many workers may begin to execute one command, including those that were asked to leave. If
/// so many have ended meanwhile, executing it probably ends the process.
const MOST_ATTEMPTS: i32 = 10;
/// The same for a command that handles events: one of them may end the process. A replay is given
/// up as soon.
const MOST_ATTEMPTS_AT_EVENTS: i32 = 3;

/// What applying a command does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Nothing, for this reason.
    Refuse(Refusal),
    /// This state is desired from now on. The deal is `None` if the next generation deals the
    /// projection, or if its checkpoints are not usable.
    Desire(DesiredState, Option<Deal>),
    /// This worker begins to execute it. For a rewind, the projection is dealt to no worker.
    Begin(WorkerId, Option<Deal>),
    /// The worker that executed it is gone, and this one starts again.
    Again(WorkerId),
    /// The workers that executed it have ended too often.
    GiveUp(Option<Deal>),
    /// The read model is cleared, and the projection is dealt again.
    Finish(Option<Deal>),
    /// The copies are filled, and this worker begins to switch to them.
    Switch(WorkerId),
    /// No worker can go on with the switch, so the live projection does not wait for it.
    PutOff,
    /// The projection, its checkpoints and its parked events are deleted.
    Remove,
    /// The replay of parked events is requested.
    Replay,
    /// An event is recorded as discarded.
    Discard,
}

/// Why a command is refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Refusal {
    AlreadyPaused,
    NotPaused,
    /// No running worker has the projection's code, of the version that is needed.
    NobodyKnows,
    /// These workers would create it again.
    StillKnown(Vec<WorkerId>),
    /// Its checkpoints were changed by hand.
    Unusable(Fault),
    /// It is being rebuilt.
    AlreadyRebuilt,
    /// It is not being rebuilt.
    NotRebuilt,
    /// No former tables are kept.
    NothingKept,
    /// Former tables are kept.
    OldKept,
    /// The version that is asked for is not above that of the live read model.
    NotNewer(i32),
}

/// Returns the first command that can be applied now, and its effect; only commands of this kind,
/// if one is given. `running` are the members of the active generation that may get a share;
/// `alive` are all workers that are not dead.
pub(super) fn next<'v>(
    view: &'v ClusterView,
    running: &[&WorkerView],
    alive: &[&WorkerView],
    only: Option<Asked>,
) -> Option<(&'v CommandView, Effect)> {
    let mut meant = view.commands.iter().filter(|command| only.is_none_or(|only| command.asked == only));
    meant.find_map(|command| {
        let is_first =
            |earlier: &&CommandView| earlier.projection == command.projection && !earlier.step.is_in_background();
        let waits = || view.commands.iter().find(is_first).is_some_and(|first| first.id != command.id);
        if !command.step.is_in_background() && waits() {
            return None;
        }
        let situation = Situation { view, running, alive };
        let projection = situation.projection(&command.projection)?;
        situation.effect(command, projection).map(|effect| (command, effect))
    })
}

/// What the effect of a command depends on.
struct Situation<'a> {
    view: &'a ClusterView,
    running: &'a [&'a WorkerView],
    alive: &'a [&'a WorkerView],
}

impl Situation<'_> {
    fn projection(&self, name: &str) -> Option<&ProjectionView> {
        self.view.projections.iter().find(|projection| &*projection.name == name)
    }

    /// The checkpoints of another kind of a projection.
    fn other(&self, projection: &ProjectionView, kind: Kind) -> Option<&ProjectionView> {
        self.projection(&kind.name(&projection.name))
    }

    fn is_active(&self) -> bool {
        self.view.generation.as_ref().is_some_and(|now| now.state == GenerationState::Active)
    }

    /// Whether this worker is still there to execute what it has begun.
    fn executes(&self, executor: WorkerId) -> bool {
        self.alive.iter().any(|worker| worker.id == executor && worker.state != WorkerState::Stopping)
    }

    /// Chooses a worker to execute a command: preferably one that executes no other.
    fn executor(&self, is_able: impl Fn(&WorkerView) -> bool) -> Option<WorkerId> {
        let is_busy = |id| self.view.commands.iter().any(|command| command.step.executor() == Some(id));
        let able = self.running.iter().filter(|worker| is_able(worker));
        able.min_by_key(|worker| (is_busy(worker.id), worker.partition)).map(|worker| worker.id)
    }

    /// Whether a living worker can execute a command, or will when it runs: the members of a
    /// pending generation do not run yet, nor do workers that have just joined.
    fn has_able(&self, is_able: impl Fn(&WorkerView) -> bool) -> bool {
        self.alive.iter().any(|worker| worker.state != WorkerState::Stopping && is_able(worker))
    }

    /// A worker begins to execute the command, if there is one.
    fn begin(&self, is_able: impl Fn(&WorkerView) -> bool, deal: Option<Deal>) -> Option<Effect> {
        match self.executor(&is_able) {
            Some(executor) => Some(Effect::Begin(executor, deal)),
            None if self.has_able(is_able) => None,
            None => Some(Effect::Refuse(Refusal::NobodyKnows)),
        }
    }

    /// What becomes of a command whose executor is gone: another worker begins again, or it ends,
    /// because it must not hold up the commands behind it.
    fn execute_again(
        &self,
        command: &CommandView,
        attempt: i32,
        is_able: impl Fn(&WorkerView) -> bool + Copy,
        dealt_again: impl Fn() -> Option<Deal>,
    ) -> Option<Effect> {
        let (is_rewind, is_of_aggregate) = (command.asked == Asked::Rewind, command.asked == Asked::RebuildAggregate);
        let most = if is_of_aggregate { MOST_ATTEMPTS_AT_EVENTS } else { MOST_ATTEMPTS };
        let given_up = || Effect::GiveUp(if is_rewind { dealt_again() } else { None });
        if attempt >= most {
            return Some(given_up());
        }
        if self.has_able(is_able) || !self.is_active() {
            return self.executor(is_able).map(Effect::Again);
        }
        // A rewind waits for the code, as its projection does, unless there is another version:
        // that one is rebuilt, behind it. What an aggregate lets wait must not wait any more.
        let has_other_version = self.has_able(|worker| worker.has_code(&command.projection));
        if is_of_aggregate || (is_rewind && has_other_version) {
            return Some(given_up());
        }
        // The others have changed nothing.
        (!is_rewind).then_some(Effect::Refuse(Refusal::NobodyKnows))
    }

    fn effect(&self, command: &CommandView, projection: &ProjectionView) -> Option<Effect> {
        let fault = match projection.rows {
            Rows::Unusable(fault) => Some(fault),
            _ => None,
        };
        // The deal in which the projection has this state.
        let deal =
            |desired| Deal::of(&ProjectionView { desired, is_clearing: false, ..projection.clone() }, self.running);
        let is_dealable = self.is_active() && fault.is_none();
        let dealt_again = || is_dealable.then(|| deal(projection.desired));
        // The code of another version than the live one is needed to rebuild for that version.
        let (version, build) = (command.version.unwrap_or(projection.version), command.build.clone());
        let wanted = ProjectionView { version, build, ..projection.clone() };
        let is_able = |worker: &WorkerView| match command.asked {
            Asked::Cancel | Asked::Revert | Asked::DropOld => worker.has_code(&projection.name),
            _ => worker.knows(&wanted),
        };
        let refuse = |refusal| Some(Effect::Refuse(refusal));
        let rebuild = || self.other(projection, Kind::Rebuild);
        match (command.asked, command.step) {
            (Asked::Rewind, Step::Executed) => Some(Effect::Finish(dealt_again())),
            (_, Step::Executed) => None,
            (_, Step::Executing { executor, .. } | Step::Finishing { executor, .. }) if self.executes(executor) => None,
            (_, Step::Executing { attempt, .. }) => self.execute_again(command, attempt, is_able, dealt_again),
            (_, Step::Loading { is_due }) => {
                let rebuild = rebuild()?;
                // A paused projection processes nothing any more, so it is not switched.
                let may_switch = is_due && is_dealable && projection.target() == DesiredState::Running;
                let executor = may_switch.then(|| self.executor(|worker| worker.knows(rebuild)));
                executor.flatten().map(Effect::Switch)
            }
            (_, Step::Finishing { .. }) => {
                let rebuild = rebuild()?;
                let again = self.executor(|worker| worker.knows(rebuild)).map(Effect::Again);
                again.or_else(|| self.is_active().then_some(Effect::PutOff))
            }
            (Asked::Pause, Step::Queued) if projection.desired == DesiredState::Paused => {
                refuse(Refusal::AlreadyPaused)
            }
            (Asked::Pause, Step::Queued) => {
                let deal = fault.is_none().then(|| deal(DesiredState::Paused));
                Some(Effect::Desire(DesiredState::Paused, deal))
            }
            (Asked::Resume, Step::Queued) if projection.desired == DesiredState::Running => refuse(Refusal::NotPaused),
            (Asked::Resume, Step::Queued) => {
                Some(Effect::Desire(DesiredState::Running, is_dealable.then(|| deal(DesiredState::Running))))
            }
            (Asked::Rewind | Asked::Rebuild | Asked::RebuildAggregate, Step::Queued) if fault.is_some() => {
                fault.map(Refusal::Unusable).and_then(refuse)
            }
            (Asked::Rewind, Step::Queued) => self.begin(is_able, Some(deal(DesiredState::Paused))),
            (Asked::Rebuild, Step::Queued) => match command.version {
                _ if rebuild().is_some() => refuse(Refusal::AlreadyRebuilt),
                // After another switch, the former tables could not be brought back.
                _ if self.other(projection, Kind::Old).is_some() => refuse(Refusal::OldKept),
                Some(version) if version < projection.version => refuse(Refusal::NotNewer(projection.version)),
                // Another build has finished it in the meantime.
                Some(_) if version == projection.version && command.build.is_some() => {
                    refuse(Refusal::NotNewer(version))
                }
                _ => self.begin(is_able, None),
            },
            (Asked::Cancel, Step::Queued) if rebuild().is_none() => refuse(Refusal::NotRebuilt),
            (Asked::Revert | Asked::DropOld, Step::Queued) if self.other(projection, Kind::Old).is_none() => {
                refuse(Refusal::NothingKept)
            }
            (Asked::Revert, Step::Queued) if rebuild().is_some() => refuse(Refusal::AlreadyRebuilt),
            (Asked::Cancel | Asked::Revert | Asked::DropOld | Asked::RebuildAggregate, Step::Queued) => {
                self.begin(is_able, None)
            }
            (Asked::Remove, Step::Queued) => {
                let having = self.alive.iter().filter(|worker| worker.has_code(&projection.name));
                let having: Vec<WorkerId> = having.map(|worker| worker.id).collect();
                match having.is_empty() {
                    false => refuse(Refusal::StillKnown(having)),
                    _ if rebuild().is_some() => refuse(Refusal::AlreadyRebuilt),
                    _ if self.other(projection, Kind::Old).is_some() => refuse(Refusal::OldKept),
                    _ => Some(Effect::Remove),
                }
            }
            (Asked::Replay, Step::Queued) => Some(Effect::Replay),
            (Asked::Discard, Step::Queued) => Some(Effect::Discard),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{id, projection, view, worker};
    use crate::plan::view::errand;
    use crate::plan::{Code, Errand};

    fn command(number: i64, projection: &str, asked: Asked, step: Step) -> CommandView {
        CommandView { id: number, projection: projection.into(), asked, step, version: None, build: None }
    }

    fn running(n: u128, partition: usize) -> WorkerView {
        worker(n, WorkerState::Running, 5, Some(partition))
    }

    /// What becomes of the commands in an active generation of workers 1 and 2, which know
    /// `orders` and `invoices`.
    fn found(commands: Vec<CommandView>, change: impl FnOnce(&mut ClusterView)) -> Option<(i64, Effect)> {
        let mut view = view(GenerationState::Active, 2, vec![running(1, 0), running(2, 1)]);
        view.projections = ["invoices", "old", "orders"]
            .map(|name| projection(name, DesiredState::Running, DesiredState::Running))
            .into();
        view.commands = commands;
        change(&mut view);
        let alive: Vec<&WorkerView> = view.workers.iter().collect();
        let running: Vec<&WorkerView> =
            alive.iter().copied().filter(|worker| worker.state == WorkerState::Running).collect();
        next(&view, &running, &alive, None).map(|(command, effect)| (command.id, effect))
    }

    fn shares(effect: Option<(i64, Effect)>) -> Option<usize> {
        match effect?.1 {
            Effect::Desire(_, deal) | Effect::GiveUp(deal) | Effect::Finish(deal) => deal.map(|deal| deal.shares.len()),
            Effect::Begin(_, Some(deal)) => Some(deal.shares.len()),
            _ => None,
        }
    }

    fn paused(view: &mut ClusterView) {
        view.projections[2].desired = DesiredState::Paused;
    }

    fn pending(view: &mut ClusterView) {
        view.generation.as_mut().unwrap().state = GenerationState::Pending;
        view.workers.iter_mut().for_each(|worker| worker.state = WorkerState::Ready);
    }

    #[test]
    fn pause_and_resume_deal_the_projection_at_once() {
        let asked = |asked| vec![command(7, "orders", asked, Step::Queued)];
        let as_is = |_: &mut ClusterView| {};
        assert!(matches!(found(asked(Asked::Pause), as_is), Some((7, Effect::Desire(DesiredState::Paused, Some(_))))));
        assert_eq!(shares(found(asked(Asked::Pause), as_is)), Some(0));
        assert_eq!(shares(found(asked(Asked::Pause), pending)), Some(0), "also while a generation is pending");
        assert_eq!(shares(found(asked(Asked::Resume), paused)), Some(2));
        let resumed = found(asked(Asked::Resume), |view| (paused(view), pending(view)).1);
        assert_eq!(resumed, Some((7, Effect::Desire(DesiredState::Running, None))), "the activation deals it");
        let torn = found(asked(Asked::Pause), |view| view.projections[2].rows = Rows::Unusable(Fault::Torn));
        assert_eq!(torn, Some((7, Effect::Desire(DesiredState::Paused, None))));
        assert_eq!(found(asked(Asked::Pause), paused), Some((7, Effect::Refuse(Refusal::AlreadyPaused))));
        assert_eq!(found(asked(Asked::Resume), as_is), Some((7, Effect::Refuse(Refusal::NotPaused))));
    }

    #[test]
    fn commands_of_one_projection_are_applied_in_order() {
        let clearing = Step::Executing { executor: id(1), attempt: 1 };
        let commands = || {
            vec![
                command(3, "orders", Asked::Rewind, clearing),
                command(4, "orders", Asked::Pause, Step::Queued),
                command(5, "invoices", Asked::Pause, Step::Queued),
            ]
        };
        assert_eq!(found(commands(), |_| {}).map(|(number, _)| number), Some(5), "the others do not wait");
        assert_eq!(found(commands()[..2].to_vec(), |_| {}), None);
        assert_eq!(found(commands()[1..].to_vec(), |_| {}).map(|(number, _)| number), Some(4));
    }

    #[test]
    fn a_rewind_goes_in_steps() {
        let at = |step| vec![command(7, "orders", Asked::Rewind, step)];
        let clearing = |executor, attempt| at(Step::Executing { executor: id(executor), attempt });
        let begun = found(at(Step::Queued), |_| {});
        assert!(matches!(&begun, Some((7, Effect::Begin(executor, Some(_)))) if *executor == id(1)), "{begun:?}");
        assert_eq!(shares(begun), Some(0));
        assert_eq!(found(clearing(2, 1), |_| {}), None);
        let leaves = |view: &mut ClusterView| view.workers[1].state = WorkerState::Stopping;
        assert_eq!(found(clearing(2, 1), leaves), Some((7, Effect::Again(id(1)))));
        assert_eq!(found(clearing(9, 9), |_| {}), Some((7, Effect::Again(id(1)))));
        assert_eq!(shares(found(clearing(9, 10), |_| {})), Some(2), "it is given up");
        assert_eq!(found(clearing(9, 1), pending), None, "no worker runs");
        assert_eq!(found(clearing(2, 1), pending), None, "it goes on meanwhile");
        assert_eq!(shares(found(at(Step::Executed), |_| {})), Some(2));
        assert_eq!(shares(found(at(Step::Executed), paused)), Some(0));
        assert_eq!(found(at(Step::Executed), pending), Some((7, Effect::Finish(None))));
        assert_eq!(found(at(Step::Queued), pending), None, "it begins when workers run");
        let torn = found(at(Step::Queued), |view| view.projections[2].rows = Rows::Unusable(Fault::Missing));
        assert_eq!(torn, Some((7, Effect::Refuse(Refusal::Unusable(Fault::Missing)))));
        let old = vec![command(7, "old", Asked::Rewind, Step::Queued)];
        assert_eq!(found(old, |_| {}), Some((7, Effect::Refuse(Refusal::NobodyKnows))));
    }

    /// Lets the workers have version 2 of `orders`, while the live read model has version 1.
    fn newer(view: &mut ClusterView, workers: &[usize]) {
        for worker in workers {
            let code = |name: &str, version| Code { name: name.into(), version, lanes: 1 };
            view.workers[*worker].projections = [code("orders", 2), code("invoices", 1)].into();
        }
    }

    fn add_rebuild(view: &mut ClusterView, build: Option<&str>) {
        let rebuild = projection("orders@rebuild", DesiredState::Running, DesiredState::Running);
        view.projections.push(ProjectionView { version: 2, build: build.map(Into::into), ..rebuild });
    }

    #[test]
    fn a_version_is_rebuilt_by_a_worker_that_has_it() {
        let rebuild = |build: Option<&str>, step| {
            let build = build.map(Into::into);
            vec![CommandView { version: Some(2), build, ..command(7, "orders", Asked::Rebuild, step) }]
        };
        let queued = |change: fn(&mut ClusterView)| found(rebuild(None, Step::Queued), change);
        assert_eq!(queued(|view| newer(view, &[1])), Some((7, Effect::Begin(id(2), None))));
        assert_eq!(queued(|_| {}), Some((7, Effect::Refuse(Refusal::NobodyKnows))));
        let joins = |view: &mut ClusterView| {
            newer(view, &[1]);
            view.workers[1].state = WorkerState::Pending;
        };
        assert_eq!(queued(joins), None, "it runs soon");
        let builds: fn(&mut ClusterView) = |view| {
            newer(view, &[0, 1]);
            view.workers[1].build = Some("b".into());
        };
        let of_b = || rebuild(Some("b"), Step::Queued);
        assert_eq!(found(of_b(), builds), Some((7, Effect::Begin(id(2), None))));
        let refused = Some((7, Effect::Refuse(Refusal::NobodyKnows)));
        assert_eq!(found(of_b(), |view| newer(view, &[0, 1])), refused);
        let switched = |view: &mut ClusterView| {
            builds(view);
            view.projections[2].version = 2;
        };
        assert_eq!(found(of_b(), switched), Some((7, Effect::Refuse(Refusal::NotNewer(2)))));
    }

    #[test]
    fn a_rebuild_without_workers_holds_nothing_up() {
        let at = |step| {
            let rebuild = CommandView { version: Some(2), ..command(7, "orders", Asked::Rebuild, step) };
            vec![rebuild, command(8, "orders", Asked::Pause, Step::Queued)]
        };
        let (executor, attempt) = (id(9), 1);
        let preparing = at(Step::Executing { executor, attempt });
        assert_eq!(found(preparing.clone(), |_| {}), Some((7, Effect::Refuse(Refusal::NobodyKnows))));
        assert_eq!(found(preparing, |view| newer(view, &[1])), Some((7, Effect::Again(id(2)))));
        let finishing = || at(Step::Finishing { executor, attempt })[..1].to_vec();
        assert_eq!(found(finishing(), |view| add_rebuild(view, None)), Some((7, Effect::PutOff)));
        let of_another_build = |view: &mut ClusterView| {
            newer(view, &[1]);
            add_rebuild(view, Some("b"));
        };
        assert_eq!(found(finishing(), of_another_build), Some((7, Effect::PutOff)));
        let able = |view: &mut ClusterView| {
            newer(view, &[1]);
            add_rebuild(view, None);
        };
        assert_eq!(found(finishing(), able), Some((7, Effect::Again(id(2)))));
        assert_eq!(found(finishing(), |view| (able(view), pending(view)).1), None, "it runs soon");
    }

    #[test]
    fn a_rewind_that_only_another_version_could_end_is_given_up() {
        let clearing = || vec![command(7, "orders", Asked::Rewind, Step::Executing { executor: id(9), attempt: 1 })];
        assert_eq!(shares(found(clearing(), |view| newer(view, &[0, 1]))), Some(0));
        assert_eq!(found(clearing(), |view| newer(view, &[1])), Some((7, Effect::Again(id(1)))));
        let without_code = |view: &mut ClusterView| {
            for worker in &mut view.workers {
                worker.projections = [].into();
            }
        };
        assert_eq!(found(clearing(), without_code), None, "its workers may come back");
    }

    /// It is executed by one worker, as long as the first one lives, and given up sooner than a
    /// rewind.
    #[test]
    fn an_aggregate_is_rebuilt_by_one_worker() {
        let at = |step| vec![command(7, "orders", Asked::RebuildAggregate, step)];
        let executing = |executor, attempt| at(Step::Executing { executor: id(executor), attempt });
        assert_eq!(found(at(Step::Queued), |_| {}), Some((7, Effect::Begin(id(1), None))));
        assert_eq!(found(at(Step::Queued), paused), Some((7, Effect::Begin(id(1), None))), "also if it is paused");
        assert_eq!(found(executing(2, 1), |_| {}), None);
        assert_eq!(found(executing(9, 2), |_| {}), Some((7, Effect::Again(id(1)))));
        assert_eq!(found(executing(9, 3), |_| {}), Some((7, Effect::GiveUp(None))));
        let torn = found(at(Step::Queued), |view| view.projections[2].rows = Rows::Unusable(Fault::Torn));
        assert_eq!(torn, Some((7, Effect::Refuse(Refusal::Unusable(Fault::Torn)))));
        let old = vec![command(7, "old", Asked::RebuildAggregate, Step::Queued)];
        assert_eq!(found(old, |_| {}), Some((7, Effect::Refuse(Refusal::NobodyKnows))));
    }

    #[test]
    fn only_what_no_living_worker_knows_is_removed() {
        let remove = |name| vec![command(7, name, Asked::Remove, Step::Queued)];
        assert_eq!(found(remove("old"), |_| {}), Some((7, Effect::Remove)));
        let refused = Effect::Refuse(Refusal::StillKnown(vec![id(1), id(2)]));
        assert_eq!(found(remove("orders"), |_| {}), Some((7, refused)));
        assert_eq!(found(remove("unknown"), |_| {}), None);
    }

    fn with(kind: Kind) -> impl Fn(&mut ClusterView) {
        move |view| {
            let other = projection(&kind.name("orders"), DesiredState::Running, DesiredState::Running);
            view.projections.push(other);
        }
    }

    /// `orders` is rebuilt for version 2, which only worker 2 has.
    fn rebuilt_for_version_2(view: &mut ClusterView) {
        with(Kind::Rebuild)(view);
        view.projections.last_mut().unwrap().version = 2;
        let code = view.workers[1].projections.iter().map(|code| Code { version: 2, ..code.clone() });
        view.workers[1].projections = code.collect();
    }

    fn without_worker_2(view: &mut ClusterView) {
        rebuilt_for_version_2(view);
        view.workers.pop();
    }

    #[test]
    fn a_rebuild_goes_in_steps() {
        let at = |step| vec![command(7, "orders", Asked::Rebuild, step)];
        let executing = |n, attempt| at(Step::Executing { executor: id(n), attempt });
        let finishing = |n, attempt| at(Step::Finishing { executor: id(n), attempt });
        let due = || at(Step::Loading { is_due: true });
        let begun = Effect::Begin(id(1), None);
        let as_is = |_: &mut ClusterView| {};
        let rebuilt = with(Kind::Rebuild);
        assert_eq!(found(at(Step::Queued), as_is), Some((7, begun)), "the live one is dealt as before");
        assert_eq!(found(at(Step::Queued), pending), None);
        assert_eq!(found(executing(1, 1), as_is), None);
        assert_eq!(found(executing(9, 1), as_is), Some((7, Effect::Again(id(1)))));
        assert_eq!(found(executing(9, 10), as_is), Some((7, Effect::GiveUp(None))));
        assert_eq!(found(at(Step::Executed), as_is), None, "it has no such step");

        assert_eq!(found(due(), as_is), None, "its row is missing");
        assert_eq!(found(due(), &rebuilt), Some((7, Effect::Switch(id(1)))));
        assert_eq!(found(at(Step::Loading { is_due: false }), &rebuilt), None);
        assert_eq!(found(due(), |view| (rebuilt(view), paused(view)).1), None, "a paused one is not switched");
        assert_eq!(found(due(), |view| (rebuilt(view), pending(view)).1), None);
        assert_eq!(found(due(), |view| (rebuilt(view), view.projections[2].is_clearing = true).1), None);
        let torn = |view: &mut ClusterView| view.projections[2].rows = Rows::Unusable(Fault::Torn);
        assert_eq!(found(due(), |view| (rebuilt(view), torn(view)).1), None);
        assert_eq!(found(due(), rebuilt_for_version_2), Some((7, Effect::Switch(id(2)))), "by who has the code");
        assert_eq!(found(due(), without_worker_2), None);

        assert_eq!(found(finishing(2, 1), &rebuilt), None);
        assert_eq!(found(finishing(2, 1), |view| (rebuilt(view), paused(view)).1), None, "it is put off by its worker");
        assert_eq!(found(finishing(9, 99), &rebuilt), Some((7, Effect::Again(id(1)))), "it has changed nothing");
        assert_eq!(found(finishing(9, 1), rebuilt_for_version_2), Some((7, Effect::Again(id(2)))));
        assert_eq!(found(finishing(2, 1), without_worker_2), Some((7, Effect::PutOff)), "the live one does not wait");
        assert_eq!(found(finishing(2, 1), |view| (without_worker_2(view), pending(view)).1), None, "it may come yet");
    }

    #[test]
    fn a_rebuild_that_is_not_possible_is_refused() {
        let for_version = |version| vec![CommandView { version, ..command(7, "orders", Asked::Rebuild, Step::Queued) }];
        let refused = |refusal| Some((7, Effect::Refuse(refusal)));
        let as_is = |_: &mut ClusterView| {};
        assert_eq!(found(for_version(None), with(Kind::Rebuild)), refused(Refusal::AlreadyRebuilt));
        assert_eq!(found(for_version(None), with(Kind::Old)), refused(Refusal::OldKept));
        assert_eq!(found(for_version(Some(2)), as_is), refused(Refusal::NobodyKnows));
        assert_eq!(found(for_version(Some(1)), as_is), Some((7, Effect::Begin(id(1), None))));
        let with_version_2 = |view: &mut ClusterView| (rebuilt_for_version_2(view), view.projections.pop()).0;
        assert_eq!(found(for_version(Some(2)), with_version_2), Some((7, Effect::Begin(id(2), None))));
        let newer = |view: &mut ClusterView| view.projections[2].version = 2;
        assert_eq!(found(for_version(Some(1)), newer), refused(Refusal::NotNewer(2)));
        let torn = |view: &mut ClusterView| view.projections[2].rows = Rows::Unusable(Fault::Torn);
        assert_eq!(found(for_version(None), torn), refused(Refusal::Unusable(Fault::Torn)));

        let gone = Step::Executing { executor: id(2), attempt: 1 };
        let begun = || vec![CommandView { version: Some(2), ..command(7, "orders", Asked::Rebuild, gone) }];
        let gone = |view: &mut ClusterView| _ = view.workers.pop();
        assert_eq!(found(begun(), gone), refused(Refusal::NobodyKnows), "it does not hold up other commands");
        assert_eq!(found(begun(), |view| (gone(view), pending(view)).1), None, "its code may come yet");
        let rewind = vec![command(7, "old", Asked::Rewind, Step::Executing { executor: id(9), attempt: 1 })];
        assert_eq!(found(rewind, as_is), None, "its projection waits for the code, too");
    }

    #[test]
    fn other_commands_go_on_while_a_rebuild_loads() {
        let rebuild = |step| command(3, "orders", Asked::Rebuild, step);
        let (executing, finishing) =
            (Step::Executing { executor: id(1), attempt: 1 }, Step::Finishing { executor: id(1), attempt: 1 });
        for (step, asked, expected) in [
            (Step::Queued, Asked::Pause, Some(3)),
            (executing, Asked::Pause, None),
            (executing, Asked::Cancel, None),
            (Step::Loading { is_due: false }, Asked::Pause, Some(4)),
            (Step::Loading { is_due: false }, Asked::Cancel, Some(4)),
            (Step::Loading { is_due: true }, Asked::Cancel, Some(3)),
            (finishing, Asked::Rewind, Some(4)),
            (finishing, Asked::Cancel, Some(4)),
        ] {
            let commands = vec![rebuild(step), command(4, "orders", asked, Step::Queued)];
            // A rebuild that is queued has no row yet.
            let change = |view: &mut ClusterView| {
                if step.is_in_background() {
                    with(Kind::Rebuild)(view);
                }
            };
            assert_eq!(found(commands, change).map(|(number, _)| number), expected, "{step:?} {asked:?}");
        }
        let busy = vec![rebuild(finishing), command(4, "orders", Asked::Cancel, Step::Queued)];
        let begun = Effect::Begin(id(2), None);
        assert_eq!(found(busy, with(Kind::Rebuild)), Some((4, begun)), "by a worker that is not busy");
    }

    #[test]
    fn a_rebuild_is_ended_by_any_worker_with_the_code() {
        let ask = |asked, step| vec![command(7, "orders", asked, step)];
        let refused = |refusal| Some((7, Effect::Refuse(refusal)));
        let as_is = |_: &mut ClusterView| {};
        let of_version_3 = |kind| move |view: &mut ClusterView| (with(kind)(view), view.projections[2].version = 3).0;
        for (asked, kind, refusal) in [
            (Asked::Cancel, Kind::Rebuild, Refusal::NotRebuilt),
            (Asked::Revert, Kind::Old, Refusal::NothingKept),
            (Asked::DropOld, Kind::Old, Refusal::NothingKept),
        ] {
            assert_eq!(found(ask(asked, Step::Queued), as_is), refused(refusal), "{asked:?}");
            let begun = Some((7, Effect::Begin(id(1), None)));
            assert_eq!(found(ask(asked, Step::Queued), with(kind)), begun, "{asked:?}");
            assert_eq!(found(ask(asked, Step::Queued), of_version_3(kind)), begun, "{asked:?}");
            let gone = Step::Executing { executor: id(9), attempt: 1 };
            assert_eq!(found(ask(asked, gone), with(kind)), Some((7, Effect::Again(id(1)))), "{asked:?}");
        }
        let both = |view: &mut ClusterView| (with(Kind::Old)(view), with(Kind::Rebuild)(view)).0;
        assert_eq!(found(ask(Asked::Revert, Step::Queued), both), refused(Refusal::AlreadyRebuilt));
        let unknown = |kind: Kind| {
            move |view: &mut ClusterView| {
                view.projections.push(projection(&kind.name("old"), DesiredState::Running, DesiredState::Running));
            }
        };
        for (kind, refusal) in [(Kind::Rebuild, Refusal::AlreadyRebuilt), (Kind::Old, Refusal::OldKept)] {
            let remove = vec![command(7, "old", Asked::Remove, Step::Queued)];
            assert_eq!(found(remove, unknown(kind)), refused(refusal));
        }
    }

    #[test]
    fn a_worker_clears_only_what_it_was_given() {
        let commands = [
            command(3, "orders", Asked::Rewind, Step::Executed),
            command(4, "invoices", Asked::Rewind, Step::Executing { executor: id(2), attempt: 3 }),
        ];
        assert_eq!(errand(&commands, id(1)), None);
        let expected =
            Errand { command: 4, asked: Asked::Rewind, is_finishing: false, attempt: 3, projection: "invoices".into() };
        assert_eq!(errand(&commands, id(2)), Some(expected));
        let finishing = Step::Finishing { executor: id(2), attempt: 5 };
        let [_, clearing] = commands;
        let both = [command(3, "orders", Asked::Rebuild, finishing), clearing];
        assert_eq!(errand(&both, id(2)).map(|errand| errand.command), Some(4), "the switch comes last");
        let expected =
            Errand { command: 3, asked: Asked::Rebuild, is_finishing: true, attempt: 5, projection: "orders".into() };
        assert_eq!(errand(&both[..1], id(2)), Some(expected));
    }
}
