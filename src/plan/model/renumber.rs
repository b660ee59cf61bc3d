//! Worlds that differ only in the numbers of their generations and deals, and in their tokens, are one.

use std::collections::BTreeMap;

use super::database::Row;
use super::world::{Runner, World};
use crate::plan::{Stance, WorkerState};

impl World {
    /// The same, with the newest generation's number always the same: for all that is decided, only whether numbers are equal
    /// matters, and which comes next. And without what nobody looks at any more.
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
        self.renew_tokens_and_deals();
        self
    }

    /// What is in the database gets the lowest tokens and deal 1. Whatever else there is can only differ from that, and for good: it
    /// gets 0.
    fn renew_tokens_and_deals(&mut self) {
        let tokens: BTreeMap<i64, i64> = self.database.rows.iter().map(|row| row.token).zip(1..).collect();
        let current = self.database.projections.map(|row| row.map(|row| row.deal));
        let deal = |projection: usize, deal: i64| i64::from(current[projection] == Some(deal));
        let renew = |row: &mut Row| {
            row.token = tokens.get(&row.token).copied().unwrap_or(0);
            row.deal = deal(row.projection, row.deal);
        };
        for process in &mut self.processes {
            let lanes = process.runners.len() / self.handled.len();
            for (index, runner) in process.runners.iter_mut().enumerate() {
                match runner {
                    Runner::Paused => {}
                    Runner::Running(told, rows) => {
                        told.deal = deal(index / lanes, told.deal);
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
    }
}
