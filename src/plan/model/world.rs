//! The database together with the workers' processes, and every step that may happen to them.
//!
//! A coordinator looks ([`Step::Look`]) and reports at any later time that it is ready for what it
//! saw ([`Step::Ready`]). A runner that has loaded its rows may be in the middle of a batch on the
//! first of them: it commits, through the fence, at any later time ([`Step::Work`]).

use super::commands::Attempt;
use super::database::{Clock, Database, Edit, Owner, POLICY, Row, worker_id};
use super::errands::Stage;
use super::sabotage::Sabotage;
use super::sets::{SETS, kind_of, live, other, projection_of, set_name};
use crate::plan::{
    Action, Asked, ClusterView, Code, Deal, DesiredState, Effect, GenerationState, Kind, Rows, Stance, Standing,
    WorkerState, plan, stance,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Life {
    NotYet,
    Up,
    /// It was asked to leave.
    Leaving,
    Gone,
}

/// What a runner is told to process: its share of this deal, in this generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Told {
    pub(crate) set: usize,
    pub(crate) generation: i64,
    pub(crate) deal: i64,
}

/// The runner of one lane of a projection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Runner {
    Paused,
    /// The rows are `None` if they are not loaded yet, or have to be reloaded.
    Running(Told, Option<Vec<Row>>),
    /// Told to pause in the middle of a batch on this row, in this generation.
    Finishing(i64, Row),
}

impl Runner {
    fn pause(&mut self) {
        if let Self::Running(told, rows) = self {
            let batch = rows.as_ref().and_then(|rows| rows.first());
            *self = batch.map_or(Self::Paused, |row| Self::Finishing(told.generation, row.clone()));
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Process {
    pub(crate) life: Life,
    /// Whether its coordination connection is open, and with it the session lock held.
    pub(crate) linked: bool,
    /// What it saw that it has to do, if it has not done it yet.
    pub(crate) seen: Option<Stance>,
    /// The command that it executes, and how far it has come.
    pub(crate) errand: Option<(Attempt, Stage)>,
    /// The lanes of the first set of checkpoints, then those of the next.
    pub(crate) runners: Vec<Runner>,
}

/// A violation that must never occur.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Damage {
    HandledTwice,
    Skipped,
    /// A batch of a projection was committed that no worker may process.
    ProcessedWhilePaused,
    /// A read model has kept what was written while it was being cleared.
    ClearedInPart,
    ClearedTwice,
    /// A worker has gone on with a command that another one has taken over.
    TakenOver,
    /// A batch was committed by a worker with the code of another version.
    WrongVersion,
    /// A batch that was begun before a switch was committed after it.
    CommittedAfterSwitch,
    /// A projection was switched although no worker may process it.
    SwitchedWhilePaused,
    /// A reader that finds the copies under the name of the live tables sees fewer events than
    /// before.
    WentBack,
}

impl Damage {
    pub(crate) fn is_of_readers(self) -> bool {
        self == Self::WentBack
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    pub(crate) database: Database,
    pub(crate) processes: Vec<Process>,
    /// Batches whose runners no longer wait for the commit: each may still be committed, or not.
    pub(crate) adrift: Vec<(Row, Owner)>,
    /// The content of each read model, by set: the position up to which the events of each probed
    /// key have been handled. Empty if there are no tables.
    pub(crate) handled: [Vec<i64>; SETS],
    /// Whether a reader has a snapshot in which the copies show fewer events than the live tables.
    /// Another snapshot does not concern a switch.
    pub(crate) is_read: bool,
    /// How many more such snapshots there may be.
    pub(crate) readers: u8,
    pub(crate) damage: Option<Damage>,
    /// How many more faults, and wishes, edits and commands of an operator, there may be.
    pub(crate) faults: u8,
    pub(crate) wishes: u8,
    pub(crate) edits: u8,
    pub(crate) commands: u8,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Join(usize),
    /// The worker is asked to stop, and records that.
    Leave(usize),
    /// The worker's runners have paused: it leaves, and plans in the same transaction.
    Left(usize),
    /// A coordinator looks at the replica set and does what it has to do.
    Look(usize),
    /// The coordinator reports that it is ready for what it saw then.
    Ready(usize),
    /// A coordinator changes the shared state as `plan` decides at such a moment.
    Change(Clock, Meanwhile),
    Load(usize, usize),
    /// A runner commits its batch, or merges two rows.
    Work(usize, usize),
    /// A runner that was told to pause drops its batch, or has not begun one.
    Drop(usize, usize),
    /// A runner's connection breaks while it commits.
    Lose(usize, usize),
    /// A commit for which no runner waits succeeds.
    Land(usize),
    /// Such a commit is lost.
    Vanish(usize),
    /// The coordination connection breaks, but the process lives.
    Cut(usize),
    Reconnect(usize),
    Crash(usize),
    /// The server restarts: every session and every transaction is gone.
    Restart,
    /// An operator wants the projection to be paused, or to run again.
    Wish(usize),
    /// An operator changes its rows by hand.
    Edit(usize, Edit),
    /// An operator gives a command.
    Command(usize, Asked),
    /// A worker takes the next step of the command that it executes.
    Errand(usize),
    /// A worker that cannot switch gives up for now.
    PutOff(usize),
    /// A reader takes a snapshot, and ends it.
    Read,
    Release,
}

/// What a worker reports between a plan and its application, without the replica set's lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Meanwhile {
    Nothing,
    /// The worker is asked to leave.
    Leaves(usize),
    IsReady(usize),
}

/// The bounds of the search.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Which projections each worker knows, by bit, and into how many lanes it cuts each.
    pub(crate) knows: Vec<u8>,
    pub(crate) lanes: Vec<usize>,
    pub(crate) projections: usize,
    pub(crate) faults: u8,
    pub(crate) wishes: u8,
    pub(crate) edits: u8,
    pub(crate) commands: u8,
    /// The commands that an operator may give.
    pub(crate) asked: Vec<Asked>,
    /// The version of each worker's code, and that for which a rebuild is.
    pub(crate) versions: Vec<i32>,
    pub(crate) wanted: Option<i32>,
    /// Whether a rebuild keeps the former state.
    pub(crate) keep_old: bool,
    /// How many readers take a snapshot.
    pub(crate) readers: u8,
    /// What has happened before the search begins.
    pub(crate) begun: Vec<Step>,
    /// How many workers already run at the beginning.
    pub(crate) already: usize,
    /// The position of the last event. Every position has an event of every key.
    pub(crate) last: i64,
    /// Keys that every possible cut distinguishes: the lowest of each piece.
    pub(crate) probes: Vec<i32>,
}

impl Bounds {
    /// Whether read models are rebuilt.
    pub(crate) fn has_rebuilds(&self) -> bool {
        self.asked.contains(&Asked::Rebuild)
    }

    /// The sets of checkpoints for which there are runners.
    fn sets(&self) -> impl Iterator<Item = usize> + use<> {
        let has_rebuilds = self.has_rebuilds();
        let of = move |live| std::iter::once(live).chain(has_rebuilds.then(|| other(live, Kind::Rebuild)));
        (0..self.projections).map(live).flat_map(of)
    }

    /// All runners of a worker: the set and lane of each.
    pub(crate) fn runners(&self, worker: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let lanes = self.lanes[worker];
        self.sets().flat_map(move |set| (0..lanes).map(move |lane| (set, lane)))
    }

    /// The set and lane of a runner.
    fn runner(&self, worker: usize, runner: usize) -> (usize, usize) {
        self.runners(worker).nth(runner).unwrap()
    }

    /// The runner of a lane.
    pub(crate) fn runner_of(&self, worker: usize, set: usize, lane: usize) -> Option<usize> {
        self.runners(worker).position(|runner| runner == (set, lane))
    }

    pub(crate) fn knows(&self, worker: usize, set: usize) -> bool {
        self.knows[worker] & 1 << projection_of(set) != 0
    }
}

impl World {
    pub(crate) fn new(bounds: &Bounds, sabotage: Sabotage) -> Self {
        let process = |worker| {
            let runners = bounds.runners(worker).map(|_| Runner::Paused).collect();
            Process { life: Life::NotYet, linked: false, seen: None, errand: None, runners }
        };
        let mut world = Self {
            database: Database::new(bounds.knows.len(), sabotage),
            processes: (0..bounds.knows.len()).map(process).collect(),
            adrift: Vec::new(),
            handled: std::array::from_fn(|set| match kind_of(set) {
                Kind::Live if projection_of(set) < bounds.projections => vec![0; bounds.probes.len()],
                _ => Vec::new(),
            }),
            is_read: false,
            readers: bounds.readers,
            damage: None,
            faults: bounds.faults,
            wishes: bounds.wishes,
            edits: bounds.edits,
            commands: bounds.commands,
        };
        for worker in 0..bounds.already {
            world.step(Step::Join(worker), bounds);
        }
        for _ in 0..4 * bounds.already {
            world.fair_round(&Bounds { last: 0, ..bounds.clone() });
        }
        for step in &bounds.begun {
            // A worker may look and find nothing new.
            let is_taken = world.step(*step, bounds) || matches!(step, Step::Look(_));
            assert!(is_taken, "{step:?} is not possible");
        }
        world.renumbered()
    }

    pub(crate) fn view(&self, clock: Clock) -> ClusterView {
        self.database.view(clock, |worker| self.processes[worker].linked)
    }

    pub(super) fn is_up(&self, worker: usize) -> bool {
        matches!(self.processes[worker].life, Life::Up | Life::Leaving)
    }

    /// What `plan` decides at such a moment, changed by the sabotage.
    pub(crate) fn decide(&self, clock: Clock) -> Vec<Action> {
        let mut view = self.view(clock);
        let sabotage = self.database.sabotage;
        if let (Sabotage::IgnoresJoiners, Some(generation)) = (sabotage, &view.generation) {
            let number = generation.number;
            view.workers.retain(|worker| worker.generation == number);
        }
        if sabotage == Sabotage::EditNotSeen {
            for projection in view.projections.iter_mut().filter(|projection| projection.rows == Rows::Whole) {
                projection.rows = Rows::AsDealt;
            }
        }
        if sabotage == Sabotage::VersionNotCompared {
            view.projections.iter_mut().for_each(|projection| projection.version = 1);
            for worker in &mut view.workers {
                worker.projections =
                    worker.projections.iter().map(|code| Code { version: 1, ..code.clone() }).collect();
            }
        }
        let mut actions = plan(&view, &POLICY).actions;
        if sabotage == Sabotage::NeverReleased {
            actions.retain(|action| !matches!(action, Action::Command { effect: Effect::PutOff, .. }));
        }
        if sabotage == Sabotage::NeverBegins {
            actions.retain(|action| !matches!(action, Action::Begin(_)));
        }
        if sabotage == Sabotage::FaultBlocksAll
            && view.projections.iter().any(|projection| matches!(projection.rows, Rows::Unusable(_)))
        {
            actions.retain(|action| !matches!(action, Action::Activate { .. }));
        }
        if sabotage == Sabotage::NeverEvicts {
            actions.retain(|action| !matches!(action, Action::Evict(..)));
        }
        if sabotage == Sabotage::DealDropsShare {
            for action in &mut actions {
                if let Action::Activate { deals, .. } = action {
                    deals.iter_mut().filter(|deal| deal.shares.len() > 1).for_each(|deal| _ = deal.shares.pop());
                }
            }
        }
        if let (Sabotage::ActivatesEarly, true, Some(generation)) = (sabotage, actions.is_empty(), &view.generation)
            && generation.state == GenerationState::Pending
            && view.workers.iter().any(|worker| worker.state == WorkerState::Ready)
        {
            let ready = view.workers.iter().filter(|worker| worker.state == WorkerState::Ready).collect::<Vec<_>>();
            let deals = view.projections.iter().map(|projection| Deal::of(projection, &ready)).collect();
            actions.push(Action::Activate { number: generation.number, deals });
        }
        actions
    }

    /// One transaction under the replica set's lock. Returns whether it changed anything.
    pub(super) fn change(&mut self, clock: Clock, meanwhile: Meanwhile) -> bool {
        let actions = self.decide(clock);
        match meanwhile {
            Meanwhile::Nothing => {}
            Meanwhile::Leaves(worker) => self.leave(worker),
            Meanwhile::IsReady(worker) => _ = self.ready(worker),
        }
        let before = self.database.clone();
        if !actions.iter().all(|action| self.database.apply(action)) {
            self.database = before;
            return false;
        }
        !actions.is_empty()
    }

    /// The worker records that it was asked to stop.
    fn leave(&mut self, worker: usize) {
        self.database.mark_stopping(worker);
        self.processes[worker].life = Life::Leaving;
        self.processes[worker].seen = None;
        self.pause(worker);
    }

    /// Tells the runners to pause. Returns whether all of them have stopped processing.
    fn pause(&mut self, worker: usize) -> bool {
        self.processes[worker].runners.iter_mut().for_each(Runner::pause);
        self.is_paused(worker)
    }

    pub(super) fn is_paused(&self, worker: usize) -> bool {
        self.processes[worker].runners.iter().all(|runner| *runner == Runner::Paused)
    }

    /// The world after this step; `None` if the step cannot happen.
    pub(crate) fn after(&self, step: Step, bounds: &Bounds) -> Option<Self> {
        let mut next = self.clone();
        next.step(step, bounds).then(|| next.renumbered())
    }

    /// Takes the step. Returns whether it can happen.
    pub(crate) fn step(&mut self, step: Step, bounds: &Bounds) -> bool {
        match step {
            Step::Join(worker) => {
                let process = &mut self.processes[worker];
                (process.life, process.linked) = (Life::Up, true);
                self.register(worker, bounds);
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
            Step::Load(worker, runner) => {
                let before = self.processes[worker].runners[runner].clone();
                let Runner::Running(told, loaded) = &before else { return false };
                // A runner that found nothing looks again from time to time.
                if loaded.as_ref().is_some_and(|rows| !rows.is_empty()) {
                    return false;
                }
                let rows = self.load(worker, runner, *told, bounds);
                self.processes[worker].runners[runner] = Runner::Running(*told, Some(rows));
                return self.processes[worker].runners[runner] != before;
            }
            Step::Work(worker, runner) => return self.work(worker, runner, bounds),
            Step::Drop(worker, runner) => self.processes[worker].runners[runner] = Runner::Paused,
            Step::Lose(worker, runner) => return self.lose(worker, runner, bounds),
            Step::Land(at) => {
                let (row, owner) = self.adrift.remove(at);
                self.commit(&row, owner, bounds);
            }
            Step::Wish(projection) => {
                let Some(row) = &self.database.projections[projection] else { return false };
                let desired = match row.desired {
                    DesiredState::Running => DesiredState::Paused,
                    DesiredState::Paused => DesiredState::Running,
                };
                self.database.desire(projection, desired);
            }
            Step::Edit(projection, edit) => {
                if edit == Edit::Forget {
                    self.handled[projection].fill(0);
                }
                return self.database.edit(projection, edit);
            }
            Step::Command(projection, asked) => {
                let wanted = bounds.wanted.filter(|_| asked == Asked::Rebuild);
                self.database.command(projection, asked, wanted, bounds.keep_old);
            }
            Step::Errand(worker) => return self.errand(worker, bounds),
            Step::PutOff(worker) => return self.put_off(worker),
            Step::Read => return self.read(),
            Step::Release => return self.release(),
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
                    // Its transaction is gone, and it starts again when it looks.
                    process.errand = None;
                    for runner in &mut process.runners {
                        *runner = match runner {
                            Runner::Running(told, _) => Runner::Running(*told, None),
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
        (process.life, process.linked, process.seen, process.errand) = (Life::Gone, false, None, None);
        process.runners.fill(Runner::Paused);
    }

    /// The coordinator looks, and does what it has to do at once. Reporting readiness is a step of
    /// its own, because it matters that it may happen later. For everything else, acting late is
    /// the same as looking late.
    pub(super) fn look(&mut self, worker: usize, bounds: &Bounds) -> bool {
        let before = self.processes[worker].clone();
        let standing = self.view(Clock::default()).standing(worker_id(worker));
        let seen = stance(&standing);
        self.processes[worker].seen = None;
        self.order(worker, &standing);
        match seen {
            Stance::Run(generation) => self.run(worker, generation, &standing, bounds),
            Stance::Prepare(_) => self.processes[worker].seen = self.pause(worker).then_some(seen),
            Stance::Rejoin => {
                if self.pause(worker) && self.database.sabotage != Sabotage::NeverRejoins {
                    self.register(worker, bounds);
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

    fn run(&mut self, worker: usize, generation: i64, standing: &Standing, bounds: &Bounds) {
        let may_run = self.database.sabotage != Sabotage::RunnerNotRestarted || self.is_paused(worker);
        for (index, (set, _)) in bounds.runners(worker).enumerate() {
            if !may_run || !bounds.knows(worker, set) {
                continue;
            }
            let Some(deal) = standing.deals.get(set_name(set)).copied() else {
                // Its rebuild has ended.
                if kind_of(set) == Kind::Rebuild {
                    self.processes[worker].runners[index].pause();
                }
                continue;
            };
            let told = Told { set, generation, deal };
            match &self.processes[worker].runners[index] {
                Runner::Paused => {
                    // Without wishes and commands, only this worker changes the rows while it owns
                    // them, so it may load them at once.
                    let rows = (bounds.wishes + bounds.commands == 0).then(|| self.load(worker, index, told, bounds));
                    self.processes[worker].runners[index] = Runner::Running(told, rows);
                }
                Runner::Running(before, _) if *before != told && self.database.sabotage != Sabotage::DealNotTold => {
                    self.processes[worker].runners[index] = Runner::Running(told, None);
                }
                Runner::Running(..) | Runner::Finishing(..) => {}
            }
        }
    }

    fn load(&self, worker: usize, runner: usize, told: Told, bounds: &Bounds) -> Vec<Row> {
        let owner = Owner { worker, generation: told.generation };
        let (set, lane) = bounds.runner(worker, runner);
        self.database.owned(set, owner, lane)
    }

    fn register(&mut self, worker: usize, bounds: &Bounds) {
        self.database.register(worker, bounds.knows[worker], bounds.versions[worker], bounds.lanes[worker]);
    }

    /// The worker reports that its runners are paused.
    pub(super) fn ready(&mut self, worker: usize) -> bool {
        let Some(Stance::Prepare(generation)) = self.processes[worker].seen.take() else { return false };
        self.database.mark_ready(worker, generation);
        true
    }
}
