//! What `store::commands` and `store::rewinding` do, in memory. A rewind goes to the beginning.

use super::database::{Database, Row, projection_name, worker_of};
use super::sabotage::Sabotage;
use crate::plan::{Asked, CommandView, Effect, Step, WorkerId};

/// A command that is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Command {
    /// Higher than those of the commands before it.
    pub(crate) id: i64,
    pub(crate) projection: usize,
    pub(crate) asked: Asked,
    pub(crate) step: Step,
}

/// The attempt of a worker at clearing a read model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Clearing {
    pub(crate) command: i64,
    pub(crate) attempt: i32,
}

impl Command {
    pub(super) fn view(&self) -> CommandView {
        let Self { id, projection, asked, step } = *self;
        CommandView { id, projection: projection_name(projection).clone(), asked, step, version: None, build: None }
    }
}

impl Database {
    /// Records a command.
    pub(crate) fn command(&mut self, projection: usize, asked: Asked) {
        let id = self.commands.last().map_or(1, |last| last.id + 1);
        self.commands.push(Command { id, projection, asked, step: Step::Queued });
    }

    /// The first command of each projection.
    pub(super) fn first_commands(&self) -> impl Iterator<Item = &Command> {
        self.commands.iter().enumerate().filter_map(|(at, command)| {
            let earlier = self.commands.iter().take(at);
            earlier.clone().all(|earlier| earlier.projection != command.projection).then_some(command)
        })
    }

    /// Whether a read model is being cleared.
    pub(super) fn is_clearing(&self, projection: usize) -> bool {
        self.commands.iter().any(|command| command.projection == projection && command.step != Step::Queued)
    }

    /// Applies a command, and forgets it once it has an outcome.
    pub(super) fn apply_command(&mut self, id: i64, projection: usize, generation: i64, effect: &Effect) -> bool {
        let mut next = None;
        match effect {
            Effect::Desire(state, deal) => {
                self.desire(projection, *state);
                if !deal.as_ref().is_none_or(|deal| self.deal(generation, deal)) {
                    return false;
                }
            }
            Effect::Begin(executor, Some(deal)) => {
                let is_ahead = |row: &Row| row.projection == projection && row.position > 0;
                if self.rows.iter().any(is_ahead) {
                    if self.sabotage != Sabotage::ClearsUndealt && !self.deal(generation, deal) {
                        return false;
                    }
                    next = Some(Step::Executing { executor: *executor, attempt: 1 });
                }
            }
            Effect::Again(executor) => {
                next = self.commands.iter().find(|command| command.id == id).map(|command| match command.step {
                    Step::Executing { attempt, .. } => Step::Executing { executor: *executor, attempt: attempt + 1 },
                    step => step,
                });
            }
            Effect::GiveUp(deal) | Effect::Finish(deal) => {
                if !deal.as_ref().is_none_or(|deal| self.deal(generation, deal)) {
                    return false;
                }
            }
            Effect::Remove => {
                self.rows.retain(|row| row.projection != projection);
                self.projections[projection] = None;
                self.commands.retain(|command| command.projection != projection);
            }
            // The others change no checkpoint that the model has.
            Effect::PutOff
            | Effect::Begin(_, None)
            | Effect::Switch(_)
            | Effect::Refuse(_)
            | Effect::Replay
            | Effect::Discard => {}
        }
        match next {
            None => self.commands.retain(|command| command.id != id),
            Some(step) => {
                let of_id = self.commands.iter_mut().filter(|command| command.id == id);
                of_id.for_each(|command| command.step = step);
            }
        }
        true
    }

    /// Moves the rows to the beginning, if this is still the attempt that may do so.
    pub(crate) fn clear(&mut self, worker: WorkerId, clearing: Clearing) -> Option<usize> {
        let sabotage = self.sabotage;
        let is_held = |command: &&mut Command| {
            command.id == clearing.command
                && match command.step {
                    Step::Executing { executor, attempt } => {
                        sabotage == Sabotage::AttemptNotCompared || (executor, attempt) == (worker, clearing.attempt)
                    }
                    Step::Executed => sabotage == Sabotage::AttemptNotCompared,
                    Step::Queued | Step::Loading { .. } | Step::Finishing { .. } => false,
                }
        };
        let command = self.commands.iter_mut().find(is_held)?;
        command.step = Step::Executed;
        let projection = command.projection;
        for row in self.rows.iter_mut().filter(|row| row.projection == projection) {
            row.position = 0;
            if sabotage != Sabotage::TokenNotRenewed {
                row.token = self.next_token;
                self.next_token += 1;
            }
        }
        self.rows.sort_by_key(|row| row.id);
        Some(projection)
    }

    /// Whether the read model has been cleared for this command.
    pub(super) fn is_cleared(&self, clearing: Clearing) -> bool {
        self.commands.iter().any(|command| command.id == clearing.command && command.step == Step::Executed)
    }

    /// The attempt that this worker has to make, and the projection.
    pub(crate) fn to_clear(&self, worker: usize) -> Option<(Clearing, usize)> {
        self.commands.iter().find_map(|command| match command.step {
            Step::Executing { executor, attempt } if worker_of(executor) == worker => {
                Some((Clearing { command: command.id, attempt }, command.projection))
            }
            _ => None,
        })
    }
}
