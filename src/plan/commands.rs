//! What to do about an operator's commands. Pure.
//!
//! The commands of one projection are applied in the order in which they were given, and the next
//! one waits until the one before is finished. A command takes effect in one transaction under the
//! replica set's lock, which also records that it is done (I10). The exception is a rewind, because
//! the code of the application must not run under that lock. It has three steps:
//!
//! ```text
//! queued ──(dealt to no worker)──► clearing ──(by one worker)──► cleared ──(dealt again)──► done
//! ```
//!
//! While the read model is being cleared, no worker owns the projection's checkpoints. If the
//! worker that clears it is gone, another one starts again: the number of the attempt decides which
//! of them may commit.

use super::deal::Deal;
use super::view::{
    Asked, ClusterView, CommandView, DesiredState, Fault, GenerationState, ProjectionView, Rows, Step, WorkerId,
    WorkerState, WorkerView,
};

/// How many workers may begin to clear one read model, including those that were asked to leave. If
/// so many have ended meanwhile, clearing it probably ends the process.
const MOST_ATTEMPTS: i32 = 10;

/// What applying a command does.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    /// Nothing, for this reason.
    Refuse(Refusal),
    /// This state is desired from now on. The deal is `None` if the next generation deals the
    /// projection, or if its checkpoints are not usable.
    Desire(DesiredState, Option<Deal>),
    /// The projection is dealt to no worker, and this worker begins to clear its read model.
    Clear(WorkerId, Deal),
    /// The worker that cleared the read model is gone, and this one starts again.
    ClearAgain(WorkerId),
    /// The workers that cleared the read model have ended too often.
    GiveUp(Option<Deal>),
    /// The read model is cleared, and the projection is dealt again.
    Finish(Option<Deal>),
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
    /// No running worker has the projection's code.
    NobodyKnows,
    /// These workers would create it again.
    StillKnown(Vec<WorkerId>),
    /// Its checkpoints were changed by hand.
    Unusable(Fault),
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
        let is_first = |earlier: &&CommandView| earlier.projection == command.projection;
        if view.commands.iter().find(is_first)?.id != command.id {
            return None;
        }
        let projection = view.projections.iter().find(|projection| projection.name == command.projection)?;
        let is_active = view.generation.as_ref().is_some_and(|now| now.state == GenerationState::Active);
        effect(command, projection, is_active, running, alive).map(|effect| (command, effect))
    })
}

fn effect(
    command: &CommandView,
    projection: &ProjectionView,
    is_active: bool,
    running: &[&WorkerView],
    alive: &[&WorkerView],
) -> Option<Effect> {
    let name = &*projection.name;
    let fault = match projection.rows {
        Rows::Unusable(fault) => Some(fault),
        _ => None,
    };
    // The deal in which the projection has this state.
    let deal = |desired| Deal::of(&ProjectionView { desired, is_clearing: false, ..projection.clone() }, running);
    let dealt_again = || (is_active && fault.is_none()).then(|| deal(projection.desired));
    let able = || running.iter().filter(|worker| worker.knows(name)).min_by_key(|worker| worker.partition);
    Some(match (command.asked, command.step) {
        (Asked::Rewind, Step::Cleared) => Effect::Finish(dealt_again()),
        (Asked::Rewind, Step::Clearing { executor, attempt }) => {
            if alive.iter().any(|worker| worker.id == executor && worker.state != WorkerState::Stopping) {
                return None;
            }
            if attempt >= MOST_ATTEMPTS { Effect::GiveUp(dealt_again()) } else { Effect::ClearAgain(able()?.id) }
        }
        (Asked::Pause, _) if projection.desired == DesiredState::Paused => Effect::Refuse(Refusal::AlreadyPaused),
        (Asked::Pause, _) => {
            let deal = fault.is_none().then(|| deal(DesiredState::Paused));
            Effect::Desire(DesiredState::Paused, deal)
        }
        (Asked::Resume, _) if projection.desired == DesiredState::Running => Effect::Refuse(Refusal::NotPaused),
        (Asked::Resume, _) => {
            let deal = (is_active && fault.is_none()).then(|| deal(DesiredState::Running));
            Effect::Desire(DesiredState::Running, deal)
        }
        (Asked::Rewind, Step::Queued) => match (fault, able()) {
            (Some(fault), _) => Effect::Refuse(Refusal::Unusable(fault)),
            (None, Some(executor)) => Effect::Clear(executor.id, deal(DesiredState::Paused)),
            // The members of a pending generation do not run yet.
            (None, None) if !is_active && alive.iter().any(|worker| worker.knows(name)) => return None,
            (None, None) => Effect::Refuse(Refusal::NobodyKnows),
        },
        (Asked::Remove, _) => {
            let knowing: Vec<WorkerId> = alive.iter().filter(|worker| worker.knows(name)).map(|w| w.id).collect();
            if knowing.is_empty() { Effect::Remove } else { Effect::Refuse(Refusal::StillKnown(knowing)) }
        }
        (Asked::Replay, _) => Effect::Replay,
        (Asked::Discard, _) => Effect::Discard,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ToClear;
    use crate::plan::tests::{id, projection, view, worker};
    use crate::plan::view::to_clear;

    fn command(number: i64, projection: &str, asked: Asked, step: Step) -> CommandView {
        CommandView { id: number, projection: projection.into(), asked, step }
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
            Effect::Clear(_, deal) => Some(deal.shares.len()),
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
        let clearing = Step::Clearing { executor: id(1), attempt: 1 };
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
        let clearing = |executor, attempt| at(Step::Clearing { executor: id(executor), attempt });
        let begun = found(at(Step::Queued), |_| {});
        assert!(matches!(&begun, Some((7, Effect::Clear(executor, _))) if *executor == id(1)), "{begun:?}");
        assert_eq!(shares(begun), Some(0));
        assert_eq!(found(clearing(2, 1), |_| {}), None);
        let leaves = |view: &mut ClusterView| view.workers[1].state = WorkerState::Stopping;
        assert_eq!(found(clearing(2, 1), leaves), Some((7, Effect::ClearAgain(id(1)))));
        assert_eq!(found(clearing(9, 9), |_| {}), Some((7, Effect::ClearAgain(id(1)))));
        assert_eq!(shares(found(clearing(9, 10), |_| {})), Some(2), "it is given up");
        assert_eq!(found(clearing(9, 1), pending), None, "no worker runs");
        assert_eq!(found(clearing(2, 1), pending), None, "it goes on meanwhile");
        assert_eq!(shares(found(at(Step::Cleared), |_| {})), Some(2));
        assert_eq!(shares(found(at(Step::Cleared), paused)), Some(0));
        assert_eq!(found(at(Step::Cleared), pending), Some((7, Effect::Finish(None))));
        assert_eq!(found(at(Step::Queued), pending), None, "it begins when workers run");
        let torn = found(at(Step::Queued), |view| view.projections[2].rows = Rows::Unusable(Fault::Missing));
        assert_eq!(torn, Some((7, Effect::Refuse(Refusal::Unusable(Fault::Missing)))));
        let old = vec![command(7, "old", Asked::Rewind, Step::Queued)];
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

    #[test]
    fn a_worker_clears_only_what_it_was_given() {
        let commands = [
            command(3, "orders", Asked::Rewind, Step::Cleared),
            command(4, "invoices", Asked::Rewind, Step::Clearing { executor: id(2), attempt: 3 }),
        ];
        assert_eq!(to_clear(&commands, id(1)), None);
        let expected = ToClear { command: 4, attempt: 3, projection: "invoices".into() };
        assert_eq!(to_clear(&commands, id(2)), Some(expected));
    }
}
