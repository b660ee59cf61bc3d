//! Which steps may happen next, which moments are tried, and which steps count as faults.

use super::database::{Clock, Edit};
use super::errands::Stage;
use super::sets::{SETS, kind_of};
use super::world::{Bounds, Life, Meanwhile, Runner, Step, World};
use crate::plan::Kind;

impl World {
    /// Adds every step that may happen next.
    pub(crate) fn steps(&self, steps: &mut Vec<Step>, bounds: &Bounds) {
        let workers = 0..self.processes.len();
        let mut meanwhile = vec![Meanwhile::Nothing];
        for worker in workers {
            let process = &self.processes[worker];
            let faulty = self.faults > 0;
            match process.life {
                // These workers differ only in what they know, so it is enough to let them join in
                // one order.
                Life::NotYet if worker == 0 || self.processes[worker - 1].life != Life::NotYet => {
                    steps.push(Step::Join(worker));
                    continue;
                }
                Life::NotYet | Life::Gone => continue,
                Life::Up if process.linked => {
                    steps.push(Step::Look(worker));
                    if faulty {
                        steps.push(Step::Leave(worker));
                        meanwhile.push(Meanwhile::Leaves(worker));
                    }
                }
                Life::Leaving if process.linked && self.is_drained(worker) => steps.push(Step::Left(worker)),
                Life::Up | Life::Leaving => {}
            }
            if process.linked {
                steps.extend(faulty.then_some(Step::Cut(worker)));
            } else {
                steps.push(Step::Reconnect(worker));
            }
            steps.extend(faulty.then_some(Step::Crash(worker)));
            for (index, runner) in process.runners.iter().enumerate() {
                match runner {
                    Runner::Paused => continue,
                    Runner::Running(_, None) => steps.push(Step::Load(worker, index)),
                    Runner::Running(_, Some(rows)) if rows.is_empty() => steps.push(Step::Load(worker, index)),
                    Runner::Running(_, Some(_)) => steps.push(Step::Work(worker, index)),
                    Runner::Finishing(..) => {
                        steps.extend([Step::Work(worker, index), Step::Drop(worker, index)]);
                    }
                }
                steps.extend(faulty.then_some(Step::Lose(worker, index)));
            }
        }
        for worker in (0..self.processes.len()).filter(|worker| self.processes[*worker].seen.is_some()) {
            steps.push(Step::Ready(worker));
            meanwhile.push(Meanwhile::IsReady(worker));
        }
        for at in 0..self.adrift.len() {
            steps.extend([Step::Land(at), Step::Vanish(at)]);
        }
        if self.processes.iter().any(|process| process.linked) {
            steps.extend(
                self.clocks()
                    .into_iter()
                    .flat_map(|clock| meanwhile.iter().map(move |said| Step::Change(clock, *said))),
            );
            steps.extend((self.faults > 0).then_some(Step::Restart));
        }
        let is_claimed = |set: &usize| kind_of(*set) == Kind::Live && self.database.projections[*set].is_some();
        let claimed = || (0..SETS).filter(is_claimed);
        steps.extend(claimed().filter(|_| self.wishes > 0).map(Step::Wish));
        let commanded = claimed().filter(|_| self.commands > 0);
        steps.extend(
            commanded.flat_map(|projection| bounds.asked.iter().map(move |asked| Step::Command(projection, *asked))),
        );
        for worker in 0..self.processes.len() {
            if let Some((attempt, stage)) = &self.processes[worker].errand {
                steps.push(Step::Errand(worker));
                let may_wait = attempt.is_finishing && !matches!(stage, Stage::Begun(_));
                steps.extend(may_wait.then_some(Step::PutOff(worker)));
            }
        }
        if self.is_read {
            steps.push(Step::Release);
        } else if self.readers > 0 {
            steps.push(Step::Read);
        }
        for projection in claimed().filter(|_| self.edits > 0) {
            let edits = [Edit::Forget, Edit::DropRows, Edit::Disown(0), Edit::GiveTo(0, 0), Edit::GiveTo(1, 0)];
            steps.extend(edits.map(|edit| Step::Edit(projection, edit)));
        }
    }

    fn is_drained(&self, worker: usize) -> bool {
        self.is_paused(worker)
    }

    /// The moments that are tried.
    fn clocks(&self) -> Vec<Clock> {
        let calm = Clock::default();
        let mut clocks = vec![calm, Clock { gathered: true, ..calm }, Clock { grace: true, ..calm }, self.fair_clock()];
        for worker in 0..self.processes.len() {
            if self.faults > 0 || self.processes[worker].life == Life::Gone {
                clocks.push(Clock { stale: 1 << worker, ..calm });
            }
        }
        if self.faults > 0 {
            clocks.push(Clock { late: true, ..calm });
        }
        if self.database.rebuilds.iter().any(|rebuild| rebuild.is_put_off) {
            clocks.push(Clock { due: true, ..calm });
        }
        clocks
    }

    /// The moment at which every timeout that is over has its effect, and no living worker is
    /// suspected.
    pub(crate) fn fair_clock(&self) -> Clock {
        let stale = (0..self.processes.len()).filter(|worker| !self.is_up(*worker)).map(|worker| 1 << worker).sum();
        Clock { stale, grace: true, gathered: true, late: false, due: true }
    }

    /// How many faults the step costs.
    pub(crate) fn cost(&self, step: Step) -> u8 {
        let suspects_the_living =
            |clock: Clock| clock.late || (0..self.processes.len()).any(|w| clock.stale & 1 << w != 0 && self.is_up(w));
        match step {
            Step::Leave(_) | Step::Lose(..) | Step::Cut(_) | Step::Crash(_) | Step::Restart => 1,
            Step::Change(clock, meanwhile) => {
                u8::from(suspects_the_living(clock)) + u8::from(matches!(meanwhile, Meanwhile::Leaves(_)))
            }
            _ => 0,
        }
    }
}
