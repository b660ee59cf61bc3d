//! What must hold in a world, and what happens in it once there are no more faults.

use super::database::{Clock, Owner, Row, worker_id};
use super::world::{Bounds, Life, Meanwhile, Runner, Step, Told, World};
use crate::plan::{DesiredState, GenerationState, KeySet, WorkerState};

impl World {
    /// Runs a period without faults, in which every worker does everything it has to do.
    pub(crate) fn fair_round(&mut self, bounds: &Bounds) {
        while !self.adrift.is_empty() {
            self.step(Step::Land(0), bounds);
        }
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
            self.step(Step::Clear(worker), bounds);
            self.drain(worker, bounds);
        }
    }

    fn change_as_member(&mut self, worker: usize) {
        if self.view(Clock::default()).worker(worker_id(worker)).is_some() {
            self.change(self.fair_clock(), Meanwhile::Nothing);
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
        let known = living.iter().fold(0, |all, worker| all | bounds.knows[*worker]);
        let is_owned = |row: &Row| {
            let Some(projection) = &self.database.projections[row.projection] else { return false };
            if known & 1 << row.projection == 0 {
                return true;
            }
            if projection.desired == DesiredState::Paused || projection.fault.is_some() {
                return row.worker.is_none();
            }
            let told = Told { generation: generation.number, deal: projection.deal };
            row.position == bounds.last
                && row.worker.is_some_and(|worker| {
                    let runner = row.projection * bounds.lanes[worker] + row.lane;
                    living.contains(&worker)
                        && self.processes[worker].runners[runner] == Runner::Running(told, Some(vec![row.clone()]))
                })
        };
        // Without checkpoints, the fault has to be recorded.
        let is_there = |projection: &usize| {
            let claim = self.database.projections[*projection].as_ref();
            claim.is_some_and(|claim| claim.fault.is_some())
                || claim.is_some() && self.database.rows.iter().any(|row| row.projection == *projection)
        };
        let mut wanted = (0..self.handled.len()).filter(|projection| known & 1 << projection != 0);
        living.is_empty()
            || generation.state == GenerationState::Active
                && generation.total == living.len()
                && living.iter().all(runs)
                && wanted.all(|projection| is_there(&projection))
                && self.database.rows.iter().all(is_owned)
                && self.database.commands.is_empty()
                && self.decide(self.fair_clock()).is_empty()
    }

    /// Whether the rows of each projection are disjoint and cover the key space.
    pub(crate) fn rows_partition_the_keys(&self) -> bool {
        (0..self.handled.len()).all(|projection| {
            let mut rows = self.database.rows.iter().filter(|row| row.projection == projection).peekable();
            let is_new = rows.peek().is_none();
            let (all, sum) =
                rows.fold((KeySet::default(), 0), |(all, sum), row| (all.union(&row.keys), sum + row.keys.len()));
            is_new || all == KeySet::all() && sum == KeySet::all().len()
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
