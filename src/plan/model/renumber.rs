//! Worlds that differ in the numbers of their generations only are one.

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
                    Runner::Running(number, rows) => {
                        shift(number);
                        rows.iter_mut().flatten().for_each(|row| shift(&mut row.generation));
                    }
                    Runner::Finishing(number, row) => {
                        shift(number);
                        shift(&mut row.generation);
                    }
                }
            }
        }
        self
    }
}
