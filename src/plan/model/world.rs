//! The database together with the workers' processes, and everything that may happen to them.
//!
//! A coordinator looks ([`Step::Look`]) and says that it is ready for what it saw ([`Step::Ready`]) at any later time. A runner that has loaded its rows may
//! be in the middle of a batch on the first of them: it commits, through the fence, at any later time ([`Step::Work`]).

use super::database::{Clock, Database, Owner, POLICY, Row, worker_id};
use super::sabotage::Sabotage;
use crate::plan::{Action, ClusterView, GenerationState, Stance, WorkerState, plan, stance};

/// Keys that every cut into up to four partitions tells apart: the lowest of each piece.
pub(crate) const PROBES: [i32; 6] = [0, 16_384, 21_846, 32_768, 43_691, 49_152];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    NotYet,
    Up,
    /// It was asked to leave.
    Leaving,
    Gone,
}

/// A projection's runner.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Runner {
    Paused,
    /// Processing for this generation. Its rows are not loaded yet, or to be loaded again, if none.
    Running(i64, Option<Vec<Row>>),
    /// Told to pause in the middle of a batch on this row.
    Finishing(i64, Row),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) life: Life,
    /// Whether its coordination connection stands, and with it the session lock.
    pub(crate) linked: bool,
    /// What it saw that it has to do, and has not done yet.
    pub(crate) seen: Option<Stance>,
    /// By projection.
    pub(crate) runners: Vec<Runner>,
}

/// What must never happen, once it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Damage {
    HandledTwice,
    Skipped,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) processes: Vec<Process>,
    /// Batches whose commit nobody waits for any more: each may still come through, or not.
    pub(crate) adrift: Vec<(Row, Owner)>,
    /// Up to which position the events of each probed key have been handled, by projection.
    pub(crate) handled: Vec<[i64; PROBES.len()]>,
    pub(crate) damage: Option<Damage>,
    /// How many more faults there may be.
    pub(crate) faults: u8,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Join(usize),
    /// Is asked to stop, and says so.
    Leave(usize),
    /// Has drained its runners; goes, and plans in the same transaction.
    Left(usize),
    /// A coordinator looks at the replica set and does what it has to.
    Look(usize),
    /// It says that it is ready for what it saw then.
    Ready(usize),
    /// Some coordinator changes what is shared, as `plan` asks for at such a time.
    Change(Clock, Meanwhile),
    Load(usize, usize),
    /// A runner commits its batch, or merges two rows.
    Work(usize, usize),
    /// A runner told to pause has not begun a batch yet, or drops it.
    Drop(usize, usize),
    /// A runner's connection breaks while it commits.
    Lose(usize, usize),
    /// A commit that nobody waits for comes through.
    Land(usize),
    /// It does not.
    Vanish(usize),
    /// The coordination connection breaks, the process lives.
    Cut(usize),
    Reconnect(usize),
    Crash(usize),
    /// The server restarts: every session and every transaction is gone.
    Restart,
}

/// What a worker says of itself between a plan and its application: it does so without the replica set's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Meanwhile {
    Nothing,
    /// It is asked to leave.
    Leaves(usize),
    IsReady(usize),
}

/// The bounds within which everything is tried.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Which projections each worker knows, by bit.
    pub(crate) knows: Vec<u8>,
    pub(crate) projections: usize,
    pub(crate) faults: u8,
    /// How many workers run already when it begins.
    pub(crate) already: usize,
    /// The position of the last event. Every position has an event of every key.
    pub(crate) last: i64,
}

impl World {
    pub(crate) fn new(bounds: &Bounds, sabotage: Sabotage) -> Self {
        let runners = vec![Runner::Paused; bounds.projections];
        let process = Process { life: Life::NotYet, linked: false, seen: None, runners };
        let mut world = Self {
            database: Database::new(bounds.knows.len(), sabotage),
            processes: vec![process; bounds.knows.len()],
            adrift: Vec::new(),
            handled: vec![[0; PROBES.len()]; bounds.projections],
            damage: None,
            faults: bounds.faults,
        };
        for worker in 0..bounds.already {
            world.step(Step::Join(worker), bounds);
        }
        for _ in 0..4 * bounds.already {
            world.fair_round(&Bounds { last: 0, ..bounds.clone() });
        }
        world.renumbered()
    }

    pub(crate) fn view(&self, clock: Clock) -> ClusterView {
        self.database.view(clock, |worker| self.processes[worker].linked)
    }

    pub(super) fn is_up(&self, worker: usize) -> bool {
        matches!(self.processes[worker].life, Life::Up | Life::Leaving)
    }

    /// What `plan` asks for at such a time, as far as it is not sabotaged.
    pub(crate) fn decide(&self, clock: Clock) -> Vec<Action> {
        let mut view = self.view(clock);
        let sabotage = self.database.sabotage;
        if let (Sabotage::IgnoresJoiners, Some(generation)) = (sabotage, &view.generation) {
            let number = generation.number;
            view.workers.retain(|worker| worker.generation == number);
        }
        let mut actions = plan(&view, &POLICY).actions;
        if sabotage == Sabotage::NeverEvicts {
            actions.retain(|action| !matches!(action, Action::Evict(..)));
        }
        if let (Sabotage::ActivatesEarly, true, Some(generation)) = (sabotage, actions.is_empty(), &view.generation)
            && generation.state == GenerationState::Pending
            && view.workers.iter().any(|worker| worker.state == WorkerState::Ready)
        {
            actions.push(Action::Activate(generation.number));
        }
        actions
    }

    /// One transaction under the replica set's lock. Whether it changed anything.
    pub(super) fn change(&mut self, clock: Clock, meanwhile: Meanwhile) -> bool {
        let actions = self.decide(clock);
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Leaves(worker) => self.leave(worker),
            Meanwhile::IsReady(worker) => _ = self.ready(worker),
        }
        for action in &actions {
            self.database.apply(action);
        }
        !actions.is_empty()
    }

    /// Says that it is asked to stop.
    fn leave(&mut self, worker: usize) {
        self.database.mark_stopping(worker);
        self.processes[worker].life = Life::Leaving;
        self.processes[worker].seen = None;
        self.pause(worker);
    }

    /// Tells the runners to pause. True once none of them processes any more.
    fn pause(&mut self, worker: usize) -> bool {
        for runner in &mut self.processes[worker].runners {
            if let Runner::Running(generation, rows) = runner {
                let batch = rows.as_ref().and_then(|rows| rows.first());
                *runner = batch.map_or(Runner::Paused, |row| Runner::Finishing(*generation, row.clone()));
            }
        }
        self.is_paused(worker)
    }

    pub(super) fn is_paused(&self, worker: usize) -> bool {
        self.processes[worker].runners.iter().all(|runner| *runner == Runner::Paused)
    }

    /// What happens then; nothing if it cannot happen.
    pub(crate) fn after(&self, step: Step, bounds: &Bounds) -> Option<Self> {
        let mut next = self.clone();
        next.step(step, bounds).then(|| next.renumbered())
    }

    /// Whether it can happen.
    pub(crate) fn step(&mut self, step: Step, bounds: &Bounds) -> bool {
        match step {
            Step::Join(worker) => {
                let process = &mut self.processes[worker];
                (process.life, process.linked) = (Life::Up, true);
                self.database.register(worker, bounds.knows[worker]);
            }
            Step::Leave(worker) => self.leave(worker),
            Step::Left(worker) => {
                if !self.pause(worker) {
                    return false;
                }
                self.database.mark_left(worker);
                self.change(Clock::default(), Meanwhile::Nothing);
                self.end(worker);
            }
            Step::Look(worker) => return self.look(worker, bounds),
            Step::Ready(worker) => return self.ready(worker),
            Step::Change(clock, meanwhile) => return self.change(clock, meanwhile),
            Step::Load(worker, projection) => {
                let Runner::Running(generation, None) = self.processes[worker].runners[projection] else {
                    return false;
                };
                let rows = self.database.owned(projection, Owner { worker, generation });
                self.processes[worker].runners[projection] = Runner::Running(generation, Some(rows));
            }
            Step::Work(worker, projection) => return self.work(worker, projection, bounds),
            Step::Drop(worker, projection) => self.processes[worker].runners[projection] = Runner::Paused,
            Step::Lose(worker, projection) => return self.lose(worker, projection, bounds),
            Step::Land(at) => {
                let (row, owner) = self.adrift.remove(at);
                self.commit(&row, owner);
            }
            Step::Vanish(at) => {
                self.adrift.remove(at);
            }
            Step::Cut(worker) => (self.processes[worker].linked, self.processes[worker].seen) = (false, None),
            Step::Reconnect(worker) => self.processes[worker].linked = true,
            Step::Crash(worker) => self.end(worker),
            Step::Restart => {
                self.adrift.clear();
                for process in &mut self.processes {
                    (process.linked, process.seen) = (false, None);
                    for runner in &mut process.runners {
                        *runner = match runner {
                            Runner::Running(generation, _) => Runner::Running(*generation, None),
                            Runner::Paused | Runner::Finishing(..) => Runner::Paused,
                        };
                    }
                }
            }
        }
        true
    }

    fn end(&mut self, worker: usize) {
        let process = &mut self.processes[worker];
        (process.life, process.linked, process.seen) = (Life::Gone, false, None);
        process.runners.fill(Runner::Paused);
    }

    /// Looks, and does what it sees it has to do. Only for readiness does it matter that it may be said late: what else it does
    /// late, it might as well have seen late.
    pub(super) fn look(&mut self, worker: usize, bounds: &Bounds) -> bool {
        let before = self.processes[worker].clone();
        let seen = stance(&self.view(Clock::default()).standing(worker_id(worker)));
        self.processes[worker].seen = None;
        match seen {
            Stance::Run(generation) => self.run(worker, generation, bounds),
            Stance::Prepare(_) => self.processes[worker].seen = self.pause(worker).then_some(seen),
            Stance::Rejoin => {
                if self.pause(worker) && self.database.sabotage != Sabotage::NeverRejoins {
                    self.database.register(worker, bounds.knows[worker]);
                    return true;
                }
            }
            Stance::Wait => {
                self.pause(worker);
            }
            Stance::Ready(_) => {}
        }
        self.processes[worker] != before
    }

    fn run(&mut self, worker: usize, generation: i64, bounds: &Bounds) {
        let may_run = self.database.sabotage != Sabotage::RunnerNotRestarted || self.is_paused(worker);
        for projection in (0..bounds.projections).filter(|p| may_run && bounds.knows[worker] & 1 << p != 0) {
            if self.processes[worker].runners[projection] == Runner::Paused {
                // Nobody but this worker changes its rows while they are its own, so it may as well load them at once.
                let rows = self.database.owned(projection, Owner { worker, generation });
                self.processes[worker].runners[projection] = Runner::Running(generation, Some(rows));
            }
        }
    }

    /// Says that its runners are paused.
    pub(super) fn ready(&mut self, worker: usize) -> bool {
        let Some(Stance::Prepare(generation)) = self.processes[worker].seen.take() else { return false };
        self.database.mark_ready(worker, generation);
        true
    }
}
