//! Makes worlds equal that differ only in their tokens and in the numbers of their generations and
//! deals.

use std::collections::BTreeMap;

use super::database::{Database, Row};
use super::sets::SETS;
use super::world::{Runner, World};
use crate::plan::{Stance, Step, WorkerState};

impl World {
    /// The same world, in which the newest generation always has the same number, and without
    /// anything that no step reads any more. Decisions depend only on whether numbers are equal,
    /// and on which comes next.
    pub(super) fn renumbered(mut self) -> Self {
        const NEWEST: i64 = 100;
        let Some(generation) = &mut self.database.generation else { return self };
        let by = NEWEST - generation.number;
        generation.number = NEWEST;
        let shift = |number: &mut i64| *number += if *number == 0 { 0 } else { by };
        for row in self.database.workers.iter_mut().flatten() {
            if row.state == WorkerState::Stopped {
                (row.generation, row.noted) = (0, false);
            }
            shift(&mut row.generation);
        }
        for row in &mut self.database.rows {
            shift(&mut row.generation);
        }
        for claim in self.database.projections.iter_mut().flatten() {
            if let Some(owners) = claim.dealt_as.take() {
                let shifted = owners.into_iter().map(|((mut generation, worker, lane), keys)| {
                    shift(&mut generation);
                    ((generation, worker, lane), keys)
                });
                claim.dealt_as = Some(shifted.collect());
            }
        }
        for (row, owner) in &mut self.adrift {
            shift(&mut row.generation);
            shift(&mut owner.generation);
        }
        for process in &mut self.processes {
            if let Some(Stance::Prepare(number)) = &mut process.seen {
                shift(number);
            }
            for runner in &mut process.runners {
                match runner {
                    Runner::Paused => {}
                    Runner::Running(told, rows) => {
                        shift(&mut told.generation);
                        rows.iter_mut().flatten().for_each(|row| shift(&mut row.generation));
                    }
                    Runner::Finishing(number, row) => {
                        shift(number);
                        shift(&mut row.generation);
                    }
                }
            }
        }
        self.renew_attempts();
        self.renew_tokens_and_deals();
        self
    }

    /// Gives the last attempt at each command the number 1. Others elsewhere become 0. No search is
    /// long enough for a command to be given up.
    fn renew_attempts(&mut self) {
        let Database { commands, .. } = &mut self.database;
        for process in &mut self.processes {
            if let Some((attempt, _)) = &mut process.errand {
                let last = commands.iter().find(|command| command.id == attempt.command);
                attempt.number = i32::from(last.is_some_and(|last| last.attempt == attempt.number));
            }
        }
        for command in commands.iter_mut().filter(|command| command.attempt > 0) {
            command.attempt = 1;
            if let Step::Executing { attempt, .. } | Step::Finishing { attempt, .. } = &mut command.step {
                *attempt = 1;
            }
        }
    }

    /// Gives the rows in the database the lowest tokens, and the deals that made them and the last
    /// deals number 1. Tokens and deals elsewhere that differ from those will always differ: they
    /// become 0.
    fn renew_tokens_and_deals(&mut self) {
        let tokens: BTreeMap<i64, i64> = self.database.rows.iter().map(|row| row.token).zip(1..).collect();
        let current = self.database.projections.each_ref().map(|row| row.as_ref().map(|row| row.deal));
        let rows = &self.database.rows;
        // All rows of a set were made by the same deal.
        let made: [Option<i64>; SETS] =
            std::array::from_fn(|set| rows.iter().find(|row| row.projection == set).map(|row| row.deal));
        let renew = |row: &mut Row| {
            row.token = tokens.get(&row.token).copied().unwrap_or(0);
            row.deal = i64::from(made[row.projection] == Some(row.deal));
        };
        for process in &mut self.processes {
            for runner in &mut process.runners {
                match runner {
                    Runner::Paused => {}
                    Runner::Running(told, rows) => {
                        told.deal = i64::from(current[told.set] == Some(told.deal));
                        rows.iter_mut().flatten().for_each(renew);
                    }
                    Runner::Finishing(_, row) => renew(row),
                }
            }
        }
        self.adrift.iter_mut().for_each(|(row, _)| renew(row));
        self.database.rows.iter_mut().for_each(renew);
        self.database.projections.iter_mut().flatten().for_each(|row| row.deal = 1);
        self.database.next_token = i64::try_from(tokens.len()).unwrap() + 1;
        self.database.next_deal = 2;
    }
}
