//! What `store::commands`, `store::execution` and `store::rewinding` do, in memory. A rewind goes
//! to the beginning.

use super::database::{Database, Row};
use super::sabotage::Sabotage;
use super::sets::{set_name, set_of};
use crate::plan::{Asked, CommandView, DesiredState, Effect, Errand, Step, WorkerId};

/// A command that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Command {
    /// Higher than those of the commands before it.
    pub(crate) id: i64,
    pub(crate) projection: usize,
    pub(crate) asked: Asked,
    /// A rebuild that is loading is never due here: see [`Database::is_due`].
    pub(crate) step: Step,
    /// The number of the last attempt.
    pub(crate) attempt: i32,
    /// What a rebuild asks for.
    pub(crate) version: Option<i32>,
    pub(crate) keep_old: bool,
}

/// The attempt of a worker at a command: an [`Errand`], in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub(crate) command: i64,
    pub(crate) projection: usize,
    pub(crate) asked: Asked,
    pub(crate) is_finishing: bool,
    pub(crate) number: i32,
}

impl Attempt {
    pub(crate) fn at(errand: &Errand) -> Self {
        let Errand { command, asked, is_finishing, attempt, ref projection } = *errand;
        Self { command, projection: set_of(projection), asked, is_finishing, number: attempt }
    }
}

impl Command {
    pub(super) fn view(&self, is_due: bool) -> CommandView {
        let Self { id, projection, asked, step, version, .. } = *self;
        let step = if matches!(step, Step::Loading { .. }) { Step::Loading { is_due } } else { step };
        CommandView { id, projection: set_name(projection).clone(), asked, step, version, build: None }
    }
}

impl Database {
    /// Records a command, with what a rebuild asks for.
    pub(crate) fn command(&mut self, projection: usize, asked: Asked, version: Option<i32>, keep_old: bool) {
        let of_rebuilds = self.rebuilds.iter().map(|rebuild| rebuild.id);
        let last = self.commands.iter().map(|command| command.id).chain(of_rebuilds).max();
        let (id, step) = (last.map_or(1, |last| last + 1), Step::Queued);
        self.commands.push(Command { id, projection, asked, step, attempt: 0, version, keep_old });
    }

    /// The first command of each projection, and a rebuild in the background.
    pub(super) fn first_commands(&self) -> impl Iterator<Item = &Command> {
        self.commands.iter().enumerate().filter_map(|(at, command)| {
            let place = |command: &Command| (command.projection, command.step.is_in_background());
            let earlier = self.commands.iter().take(at);
            earlier.clone().all(|earlier| place(earlier) != place(command)).then_some(command)
        })
    }

    /// Whether a read model is being cleared.
    pub(super) fn is_clearing(&self, projection: usize) -> bool {
        let clears = |command: &Command| command.asked == Asked::Rewind && command.step != Step::Queued;
        self.commands.iter().any(|command| command.projection == projection && clears(command))
    }

    /// Applies a command, and forgets it once it has an outcome.
    pub(super) fn apply_command(&mut self, id: i64, projection: usize, generation: i64, effect: &Effect) -> bool {
        let Some(at) = self.commands.iter().position(|command| command.id == id) else { return false };
        let Command { asked, step: before, attempt: last, .. } = self.commands[at];
        let attempt = last + 1;
        let is_ahead = |row: &Row| row.projection == projection && row.position > 0;
        let next = match effect {
            // There is nothing to rewind.
            Effect::Begin(..) if asked == Asked::Rewind && !self.rows.iter().any(is_ahead) => None,
            Effect::Begin(executor, deal) => {
                let is_dealt = self.sabotage == Sabotage::ClearsUndealt
                    || deal.as_ref().is_none_or(|deal| self.deal(generation, deal));
                if !is_dealt {
                    return false;
                }
                Some(Step::Executing { executor: *executor, attempt })
            }
            Effect::Switch(executor) => Some(Step::Finishing { executor: *executor, attempt }),
            Effect::Again(executor) => match before {
                Step::Finishing { .. } => Some(Step::Finishing { executor: *executor, attempt }),
                _ => Some(Step::Executing { executor: *executor, attempt }),
            },
            Effect::PutOff => {
                self.release(id, projection, false);
                return true;
            }
            Effect::Desire(state, deal) => {
                self.desire(projection, *state);
                match deal {
                    // Nobody may go on with rows that cannot be dealt.
                    None if *state == DesiredState::Paused => {
                        self.disown(projection);
                        self.reload(projection);
                    }
                    Some(deal) if !self.deal(generation, deal) => return false,
                    Some(_) | None => {}
                }
                None
            }
            Effect::GiveUp(deal) | Effect::Finish(deal) => {
                if !deal.as_ref().is_none_or(|deal| self.deal(generation, deal)) {
                    return false;
                }
                None
            }
            Effect::Remove => {
                self.rows.retain(|row| row.projection != projection);
                self.projections[projection] = None;
                self.commands.retain(|command| command.projection != projection);
                None
            }
            // The others change no checkpoint that the model has.
            Effect::Refuse(_) | Effect::Replay | Effect::Discard => None,
        };
        match next {
            None => self.conclude(id),
            Some(step) => (self.commands[at].step, self.commands[at].attempt) = (step, attempt),
        }
        true
    }

    /// Forgets a command, because it has an outcome.
    pub(super) fn conclude(&mut self, id: i64) {
        self.commands.retain(|command| command.id != id);
    }

    /// The index of the command, if this is still the worker and the attempt that executes it.
    pub(super) fn hold(&self, worker: WorkerId, attempt: Attempt) -> Option<usize> {
        self.held(worker, attempt, self.sabotage == Sabotage::AttemptNotCompared)
    }

    /// Whether this really is the worker and the attempt.
    pub(super) fn is_current(&self, worker: WorkerId, attempt: Attempt) -> bool {
        self.held(worker, attempt, false).is_some()
    }

    fn held(&self, worker: WorkerId, attempt: Attempt, is_ignored: bool) -> Option<usize> {
        let is_current = |executor, number| is_ignored || (executor, number) == (worker, attempt.number);
        let is_executed = |step| match step {
            Step::Executing { executor, attempt: number } => !attempt.is_finishing && is_current(executor, number),
            Step::Finishing { executor, attempt: number } => attempt.is_finishing && is_current(executor, number),
            Step::Executed => is_ignored && attempt.asked == Asked::Rewind,
            Step::Queued | Step::Loading { .. } => false,
        };
        self.commands.iter().position(|command| command.id == attempt.command && is_executed(command.step))
    }

    /// Moves the rows to the beginning. Returns false if another worker has taken over.
    pub(crate) fn clear(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let Some(at) = self.hold(worker, attempt) else { return false };
        self.commands[at].step = Step::Executed;
        let keeps_token = self.sabotage == Sabotage::TokenNotRenewed;
        for row in self.rows.iter_mut().filter(|row| row.projection == attempt.projection) {
            row.position = 0;
            if !keeps_token {
                row.token = self.next_token;
                self.next_token += 1;
            }
        }
        self.rows.sort_by_key(|row| row.id);
        true
    }

    /// Records that the command is refused by the worker that executes it. Returns false if another
    /// one has taken over.
    pub(crate) fn refuse(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let is_held = self.hold(worker, attempt).is_some();
        if is_held {
            self.conclude(attempt.command);
        }
        is_held
    }

    /// Whether the read model has been cleared for this command.
    pub(super) fn is_cleared(&self, attempt: Attempt) -> bool {
        self.commands.iter().any(|command| command.id == attempt.command && command.step == Step::Executed)
    }
}
