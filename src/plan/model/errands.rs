//! What a worker does for a command that it executes, with the tables, and what readers see of it.
//!
//! A reader takes a snapshot, and finds the tables by their name: before a switch the live ones,
//! after it the copies, as of its snapshot (I11). So the switch may happen only if no reader has a
//! snapshot in which the copies show fewer events than the live tables, and if they do not show
//! fewer now.

use super::commands::Attempt;
use super::database::worker_id;
use super::rebuilds::Switched;
use super::sabotage::Sabotage;
use super::sets::{SETS, kind_of, other};
use super::world::{Bounds, Damage, World};
use crate::plan::{Asked, DesiredState, Kind, Standing};

/// How far a worker has come with a command.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    /// Nothing is committed. For a rewind: the content that its statements have seen.
    Begun(Vec<i64>),
    CaughtUp,
    Following,
    /// The rebuild was level. The reader that has a snapshot now had it then.
    Level {
        awaits_reader: bool,
    },
}

impl World {
    /// Lets the worker begin what it has to execute.
    pub(super) fn order(&mut self, worker: usize, standing: &Standing) {
        let Some(attempt) = standing.errand.as_ref().map(Attempt::at) else { return };
        if self.processes[worker].errand.as_ref().is_none_or(|(before, _)| *before != attempt) {
            let seen = match attempt.asked {
                Asked::Rewind => self.handled[attempt.projection].clone(),
                _ => Vec::new(),
            };
            self.processes[worker].errand = Some((attempt, Stage::Begun(seen)));
        }
    }

    /// Takes the next step of the command that a worker executes. Returns whether there is one.
    pub(super) fn errand(&mut self, worker: usize, bounds: &Bounds) -> bool {
        self.watched(worker, |world| world.advance(worker, bounds))
    }

    /// Takes a step, and sees to it that a worker from which another one has taken over changes
    /// nothing.
    fn watched(&mut self, worker: usize, step: impl FnOnce(&mut Self) -> bool) -> bool {
        let Some((attempt, _)) = self.processes[worker].errand else { return false };
        let is_current = self.database.is_current(worker_id(worker), attempt);
        let before = (!is_current).then(|| self.database.clone());
        let is_taken = step(self);
        if before.is_some_and(|before| before != self.database) {
            self.damage.get_or_insert(Damage::TakenOver);
        }
        is_taken
    }

    fn advance(&mut self, worker: usize, bounds: &Bounds) -> bool {
        let Some((attempt, stage)) = self.processes[worker].errand.take() else { return false };
        let id = worker_id(worker);
        let live = attempt.projection;
        let next = match (attempt.asked, attempt.is_finishing) {
            (Asked::Rewind, _) => {
                self.clear(worker, attempt, &stage);
                None
            }
            (Asked::Rebuild, false) => {
                if self.database.prepare(id, attempt, bounds.versions[worker]) {
                    self.handled[other(live, Kind::Rebuild)] = vec![0; bounds.probes.len()];
                }
                None
            }
            (Asked::Rebuild, true) => match self.finish(worker, attempt, &stage) {
                Ok(next) => next,
                Err(stage) => {
                    self.processes[worker].errand = Some((attempt, stage));
                    return false;
                }
            },
            _ => {
                self.end_rebuild(worker, attempt);
                None
            }
        };
        self.processes[worker].errand = next.map(|stage| (attempt, stage));
        true
    }

    fn clear(&mut self, worker: usize, attempt: Attempt, stage: &Stage) {
        let was_cleared = self.database.is_cleared(attempt);
        if self.database.clear(worker_id(worker), attempt) {
            let handled = &mut self.handled[attempt.projection];
            if was_cleared {
                self.damage = Some(Damage::ClearedTwice);
            } else if *stage != Stage::Begun(handled.clone()) {
                self.damage = Some(Damage::ClearedInPart);
            }
            handled.fill(0);
        }
    }

    /// The next step on the way to a switch. Returns the next stage, if there is one; or the same
    /// stage as an error, if the step is not possible yet.
    fn finish(&mut self, worker: usize, attempt: Attempt, stage: &Stage) -> Result<Option<Stage>, Stage> {
        let id = worker_id(worker);
        match stage {
            Stage::Begun(_) => Ok(self.database.catch_up(id, attempt).then_some(Stage::CaughtUp)),
            Stage::CaughtUp => Ok(self.database.follow(id, attempt).then_some(Stage::Following)),
            // A worker that waits sees soon that another one has taken over.
            _ if self.database.hold(id, attempt).is_none() => Ok(None),
            Stage::Following if self.database.is_level(attempt.projection) => {
                let is_awaited = self.database.sabotage != Sabotage::SnapshotsNotAwaited;
                Ok(Some(Stage::Level { awaits_reader: self.is_read && is_awaited }))
            }
            Stage::Level { awaits_reader: false } if self.switch(worker, attempt) => Ok(None),
            Stage::Following | Stage::Level { .. } => Err(stage.clone()),
        }
    }

    /// Exchanges the tables and the checkpoints. Returns false if that is not possible now.
    fn switch(&mut self, worker: usize, attempt: Attempt) -> bool {
        let live = attempt.projection;
        let is_paused = |row: &super::database::Projection| row.desired == DesiredState::Paused;
        let was_paused = self.database.projections[live].as_ref().is_some_and(is_paused);
        match self.database.switch(worker_id(worker), attempt) {
            Switched::Superseded => true,
            Switched::NotNow => false,
            Switched::Done { keep_old } => {
                let shows_less = self.is_read || self.shows_less(live);
                let copies = std::mem::take(&mut self.handled[other(live, Kind::Rebuild)]);
                let former = std::mem::replace(&mut self.handled[live], copies);
                if keep_old {
                    self.handled[other(live, Kind::Old)] = former;
                }
                if was_paused {
                    self.damage = Some(Damage::SwitchedWhilePaused);
                } else if shows_less {
                    self.damage = Some(Damage::WentBack);
                }
                true
            }
        }
    }

    /// Cancels, reverts, or drops what is kept. Refuses that if it is not there any more.
    fn end_rebuild(&mut self, worker: usize, attempt: Attempt) {
        let (id, live) = (worker_id(worker), attempt.projection);
        let (old, rebuild) = (other(live, Kind::Old), other(live, Kind::Rebuild));
        let is_there = match attempt.asked {
            Asked::Cancel => self.database.current(live).is_some(),
            _ => self.database.kept(live).is_some(),
        };
        if !is_there {
            self.database.refuse(id, attempt);
            return;
        }
        match attempt.asked {
            Asked::Cancel if self.database.cancel(id, attempt) => self.handled[rebuild].clear(),
            Asked::Revert if self.database.revert(id, attempt) => self.handled.swap(live, old),
            Asked::DropOld if self.database.drop_old(id, attempt) => self.handled[old].clear(),
            _ => {}
        }
    }

    /// A worker that waits in vain on the way to a switch puts it off.
    pub(super) fn put_off(&mut self, worker: usize) -> bool {
        let Some((attempt, stage)) = self.processes[worker].errand.clone() else { return false };
        if !attempt.is_finishing || matches!(stage, Stage::Begun(_)) {
            return false;
        }
        self.watched(worker, |world| {
            world.database.put_off(worker_id(worker), attempt);
            world.processes[worker].errand = None;
            true
        })
    }

    /// Whether the copies show fewer events than the live tables. Without copies, a snapshot shows
    /// none in those that are created later.
    fn shows_less(&self, live: usize) -> bool {
        let mut copies = self.handled[other(live, Kind::Rebuild)].iter().chain(std::iter::repeat(&0));
        self.handled[live].iter().any(|handled| copies.next().is_some_and(|copied| copied < handled))
    }

    /// A reader takes a snapshot that matters.
    pub(super) fn read(&mut self) -> bool {
        let mut live = (0..SETS).filter(|set| kind_of(*set) == Kind::Live);
        if self.is_read || self.readers == 0 || !live.any(|live| self.shows_less(live)) {
            return false;
        }
        (self.is_read, self.readers) = (true, self.readers - 1);
        true
    }

    /// The reader ends its transaction.
    pub(super) fn release(&mut self) -> bool {
        for process in &mut self.processes {
            if let Some((_, Stage::Level { awaits_reader })) = &mut process.errand {
                *awaits_reader = false;
            }
        }
        std::mem::take(&mut self.is_read)
    }
}
