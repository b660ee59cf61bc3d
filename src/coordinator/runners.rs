//! What the coordinator knows of its runners. It tells them to run and to pause, and hears from them when they have.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::runner::{Command, Report, Task};
use crate::store::fence::Owner;

/// The worker's runners, seen from the coordinator.
pub(crate) struct Runners {
    each: Vec<Runner>,
    pub(super) reports: Receiver<Report>,
    /// Whether they are told to run, and not to pause since.
    is_running: bool,
}

struct Runner {
    projection: Arc<str>,
    commands: Sender<Command>,
    /// The other end, to take back what has been replaced before the runner took it.
    untaken: Receiver<Command>,
    state: State,
}

/// What a runner was told last, and has not yet answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It processes nothing.
    Paused,
    Running(Task),
    /// It may still process what it was told before.
    Pausing,
}

impl Runners {
    /// None yet; they report here.
    pub(crate) fn new(reports: Receiver<Report>) -> Self {
        Self { each: Vec::new(), reports, is_running: false }
    }

    /// Adds a runner, and returns where it hears its commands. Its index is the number of those before it.
    pub(crate) fn add(&mut self, projection: &str) -> Receiver<Command> {
        // At most one command to run, and after it one to pause.
        let (commands, untaken) = bounded(2);
        let taken = untaken.clone();
        self.each.push(Runner { projection: projection.into(), commands, untaken, state: State::Paused });
        taken
    }

    /// Whether every one of them has been told this, and processes.
    pub(super) fn are_told(&self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) -> bool {
        self.each.iter().all(|runner| runner.state == State::Running(runner.task(owner, deals)))
    }

    /// Lets those that do not process yet begin, and those whose projection was dealt again load their checkpoints again.
    pub(super) fn run(&mut self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) {
        self.is_running = true;
        for runner in &mut self.each {
            let task = runner.task(owner, deals);
            match runner.state {
                // First it has to say that it is paused, or it would not be known what it says that about.
                State::Pausing => {}
                State::Running(told) if told == task => {}
                State::Running(_) | State::Paused => runner.tell(Command::Run(task), State::Running(task)),
            }
        }
    }

    /// Tells those that process to pause, once. True when none does any more.
    pub(super) fn pause(&mut self) -> bool {
        while let Ok(report) = self.reports.try_recv() {
            self.heard(Some(report));
        }
        self.is_running = false;
        for runner in &mut self.each {
            if matches!(runner.state, State::Running(_)) {
                runner.tell(Command::Pause, State::Pausing);
            }
        }
        self.are_paused()
    }

    pub(super) fn heard(&mut self, report: Option<Report>) {
        match report {
            // Otherwise it has been told something else since, and will take that up.
            Some(Report::Fenced(index, task)) => self.paused(index, |state| state == State::Running(task)),
            Some(Report::Paused(index)) => self.paused(index, |_| true),
            // All of them have ended.
            None => (0..self.each.len()).for_each(|index| self.paused(index, |_| true)),
        }
    }

    fn paused(&mut self, index: usize, from: impl Fn(State) -> bool) {
        if let Some(runner) = self.each.get_mut(index).filter(|runner| from(runner.state)) {
            runner.state = State::Paused;
        }
    }

    pub(super) fn are_running(&self) -> bool {
        self.is_running
    }

    pub(super) fn are_paused(&self) -> bool {
        self.each.iter().all(|runner| runner.state == State::Paused)
    }
}

impl Runner {
    fn task(&self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) -> Task {
        Task { owner, deal: deals.get(&self.projection).copied().unwrap_or(0) }
    }

    fn tell(&mut self, command: Command, state: State) {
        // A pause that was not taken yet is not replaced: nobody is told to run before it has been answered.
        if let Command::Run(_) = command {
            while self.untaken.try_recv().is_ok() {}
        }
        // There is room. A runner whose thread has ended processes nothing.
        self.state = if self.commands.try_send(command).is_ok() { state } else { State::Paused };
    }
}
