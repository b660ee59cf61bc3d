//! What must hold in a world, and what happens in it once there are no more faults.

use super::commands::Command;
use super::database::{Clock, Owner, Row, worker_id};
use super::sets::{SETS, kind_of, live, other};
use super::world::{Bounds, Life, Meanwhile, Runner, Step, Told, World};
use crate::plan::{self, DesiredState, GenerationState, Kind, WorkerState};

impl World {
    /// Runs a period without faults, in which every worker does everything it has to do.
    pub(crate) fn fair_round(&mut self, bounds: &Bounds) {
        while !self.adrift.is_empty() {
            self.step(Step::Land(0), bounds);
        }
        self.step(Step::Release, bounds);
        for worker in 0..self.processes.len() {
            if !self.is_up(worker) {
                continue;
            }
            self.processes[worker].linked = true;
            if self.processes[worker].life == Life::Leaving {
                self.drain(worker, bounds);
                self.step(Step::Left(worker), bounds);
                continue;
            }
            // The coordinator has the same order.
            self.change_as_member(worker);
            if self.processes[worker].seen.is_none() {
                self.look(worker, bounds);
            }
            if self.ready(worker) {
                self.change_as_member(worker);
                self.look(worker, bounds);
            }
            while self.step(Step::Errand(worker), bounds) {}
            if self.is_switch_forbidden(worker) {
                self.step(Step::PutOff(worker), bounds);
            }
            self.drain(worker, bounds);
        }
    }

    /// Whether a worker waits for a switch of a projection that is paused, or is being rewound.
    fn is_switch_forbidden(&self, worker: usize) -> bool {
        let errand = self.processes[worker].errand.as_ref().filter(|(attempt, _)| attempt.is_finishing);
        errand.is_some_and(|(attempt, _)| !self.database.is_running(attempt.projection))
    }

    fn change_as_member(&mut self, worker: usize) {
        if self.view(Clock::default()).worker(worker_id(worker)).is_some() {
            // The coordinator looks again at once after a change.
            let has_changed = self.change(self.fair_clock(), Meanwhile::Nothing);
            if has_changed {
                self.change(self.fair_clock(), Meanwhile::Nothing);
            }
        }
    }

    /// Lets the runners of a worker do everything they have to do.
    fn drain(&mut self, worker: usize, bounds: &Bounds) {
        for runner in 0..self.processes[worker].runners.len() {
            while self.step(Step::Load(worker, runner), bounds) || self.work(worker, runner, bounds) {}
            if matches!(self.processes[worker].runners[runner], Runner::Finishing(..)) {
                self.step(Step::Drop(worker, runner), bounds);
            }
        }
    }

    /// Whether all living workers are members, and every key they know belongs to a lane that has
    /// handled all its events, or to no worker if its projection is paused.
    pub(crate) fn is_well(&self, bounds: &Bounds) -> bool {
        let living: Vec<usize> = (0..self.processes.len()).filter(|worker| self.is_up(*worker)).collect();
        let Some(generation) = self.database.generation else { return living.is_empty() };
        let runs = |worker: &usize| {
            let is_running = self.database.workers[*worker]
                .is_some_and(|row| row.state == WorkerState::Running && row.generation == generation.number);
            is_running && self.processes[*worker].life == Life::Up
        };
        let is_known = |set: usize| living.iter().any(|worker| self.has_code(*worker, set, bounds));
        let is_owned = |row: &Row| {
            let Some(projection) = &self.database.projections[row.projection] else { return false };
            if !is_known(row.projection) && kind_of(row.projection) != Kind::Old {
                return true;
            }
            if projection.desired == DesiredState::Paused || projection.fault.is_some() {
                return row.worker.is_none();
            }
            let (set, lane) = (row.projection, row.lane);
            let told = Told { set, generation: generation.number, deal: projection.deal };
            let row = Row { is_held: self.database.follows(set), ..row.clone() };
            row.position == bounds.last
                && row.worker.is_some_and(|worker| {
                    let runner = bounds.runner_of(worker, set, lane);
                    let runner = runner.map(|runner| &self.processes[worker].runners[runner]);
                    living.contains(&worker) && runner == Some(&Runner::Running(told, Some(vec![row])))
                })
        };
        // Without checkpoints, the fault has to be recorded.
        let is_there = |projection: &usize| {
            let claim = self.database.projections[*projection].as_ref();
            claim.is_some_and(|claim| claim.fault.is_some())
                || claim.is_some() && self.database.rows.iter().any(|row| row.projection == *projection)
        };
        let knows = |set: usize| living.iter().any(|worker| bounds.knows(*worker, set));
        let mut wanted = (0..bounds.projections).map(live).filter(|set| knows(*set));
        // A rebuild goes on without an end if it may not be switched, or if no worker has its code.
        let may_wait = |command: &Command| {
            let claim = self.database.projections[command.projection].as_ref();
            matches!(command.step, plan::Step::Loading { .. })
                && (claim.is_some_and(|claim| claim.desired == DesiredState::Paused)
                    || !is_known(other(command.projection, Kind::Rebuild)))
        };
        living.is_empty()
            || generation.state == GenerationState::Active
                && generation.total == living.len()
                && living.iter().all(runs)
                && wanted.all(|projection| is_there(&projection))
                && self.database.rows.iter().all(is_owned)
                && self.database.commands.iter().all(may_wait)
                && self.decide(self.fair_clock()).is_empty()
    }

    /// Whether the rows of each projection are disjoint and cover the key space.
    pub(crate) fn rows_partition_the_keys(&self) -> bool {
        let is_new = |set| !self.database.rows.iter().any(|row| row.projection == set);
        (0..SETS).all(|set| is_new(set) || self.database.is_whole(set))
    }

    /// Whether a worker has the code that may process a set.
    fn has_code(&self, worker: usize, set: usize, bounds: &Bounds) -> bool {
        let claim = self.database.projections[set].as_ref();
        bounds.knows(worker, set) && claim.is_some_and(|claim| claim.version == bounds.versions[worker])
    }

    /// Whether a rebuild is there exactly while its command goes on, and a former state exactly
    /// while it is kept (I10).
    pub(crate) fn rebuilds_are_whole(&self) -> bool {
        (0..SETS).filter(|set| kind_of(*set) == Kind::Live).all(|live| {
            let has = |kind| {
                let set = other(live, kind);
                (self.database.projections[set].is_some(), !self.handled[set].is_empty())
            };
            let is_meant = |command: &&Command| command.projection == live && command.step.is_in_background();
            let goes_on = self.database.commands.iter().any(|command| is_meant(&command));
            let (is_current, is_kept) = (self.database.current(live).is_some(), self.database.kept(live).is_some());
            goes_on == is_current
                && has(Kind::Rebuild) == (is_current, is_current)
                && has(Kind::Old) == (is_kept, is_kept)
        })
    }

    /// Whether each row's position is that of the last handled event of its keys.
    pub(crate) fn rows_agree_with_the_log(&self, bounds: &Bounds) -> bool {
        self.database.rows.iter().all(|row| {
            let handled = self.handled[row.projection].iter().zip(&bounds.probes);
            handled.filter(|(_, key)| row.keys.contains(**key)).all(|(handled, _)| *handled == row.position)
        })
    }

    /// The batches that would commit if they ended now.
    pub(crate) fn could_commit(&self) -> Vec<(&Row, Owner)> {
        let runners = |worker: usize| 0..self.processes[worker].runners.len();
        let workers = 0..self.processes.len();
        let in_hand = workers.flat_map(|worker| runners(worker).filter_map(move |runner| self.batch(worker, runner)));
        let adrift = self.adrift.iter().map(|(row, owner)| (row, *owner));
        in_hand.chain(adrift).filter(|(row, owner)| self.database.may_commit(row, *owner)).collect()
    }
}
