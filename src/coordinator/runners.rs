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
        let (commands, inbox) = bounded(2);
        self.each.push(Runner { projection: projection.into(), commands, state: State::Paused });
        inbox
    }

    /// Whether every one of them has been told this, and processes.
    pub(super) fn are_told(&self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) -> bool {
        self.each.iter().all(|runner| runner.state == State::Running(runner.task(owner, deals)))
    }

    /// Lets those that do not process yet begin, and those whose projection was dealt again load their checkpoints again.
    pub(super) fn run(&mut self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) {
        self.hear_all();
        self.is_running = true;
        for runner in &mut self.each {
            let task = runner.task(owner, deals);
            match runner.state {
                // First it has to say that it is paused, or it would not be known what it says that about.
                State::Pausing => {}
                State::Running(told) if told == task => {}
                // It has not taken the last one yet. It is told with the next look: there must be room for a pause.
                State::Running(_) if !runner.commands.is_empty() => {}
                State::Running(_) | State::Paused => runner.tell(Command::Run(task), State::Running(task)),
            }
        }
    }

    /// Tells those that process to pause, once. True when none does any more.
    pub(super) fn pause(&mut self) -> bool {
        self.hear_all();
        self.is_running = false;
        for runner in &mut self.each {
            if matches!(runner.state, State::Running(_)) {
                runner.tell(Command::Pause, State::Pausing);
            }
        }
        self.are_paused()
    }

    /// Takes all reports, so that there is room for what the runners say to the next commands.
    fn hear_all(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.heard(Some(report));
        }
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
        // There is room, so it fails only if the runner's thread has ended. Then it processes nothing.
        self.state = if self.commands.try_send(command).is_ok() { state } else { State::Paused };
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::plan::WorkerId;

    const OWNER: Owner = Owner { worker: WorkerId(Uuid::from_u128(1)), generation: 1 };

    /// Two runners, of p and q, where they hear their commands, and where they report.
    fn runners() -> (Runners, [Receiver<Command>; 2], Sender<Report>) {
        let (reports, inbox) = bounded(8);
        let mut runners = Runners::new(inbox);
        let commands = ["p", "q"].map(|projection| runners.add(projection));
        (runners, commands, reports)
    }

    fn deals(p: i64, q: i64) -> BTreeMap<Arc<str>, i64> {
        [("p".into(), p), ("q".into(), q)].into()
    }

    fn task(deal: i64) -> Task {
        Task { owner: OWNER, deal }
    }

    fn told(commands: &Receiver<Command>) -> Vec<Command> {
        commands.try_iter().collect()
    }

    #[test]
    fn runner_is_told_again_only_if_its_projection_is_dealt() {
        let (mut runners, [p, q], _) = runners();
        runners.run(OWNER, &deals(1, 1));
        assert_eq!((told(&p), told(&q)), (vec![Command::Run(task(1))], vec![Command::Run(task(1))]));
        assert!(runners.are_told(OWNER, &deals(1, 1)));
        assert!(!runners.are_told(OWNER, &deals(2, 1)));
        runners.run(OWNER, &deals(2, 1));
        assert_eq!((told(&p), told(&q)), (vec![Command::Run(task(2))], vec![]));
        // While it has not taken one, the next has to wait: a pause must find room.
        runners.run(OWNER, &deals(3, 1));
        runners.run(OWNER, &deals(4, 1));
        assert!(!runners.are_told(OWNER, &deals(4, 1)));
        assert!(!runners.pause());
        assert_eq!(told(&p), [Command::Run(task(3)), Command::Pause]);
    }

    #[test]
    fn fenced_runner_is_told_to_run_again_unless_told_already() {
        let (mut runners, [p, _q], reports) = runners();
        runners.run(OWNER, &deals(1, 1));
        reports.send(Report::Fenced(0, task(1))).unwrap();
        runners.run(OWNER, &deals(1, 1));
        assert_eq!(told(&p), [Command::Run(task(1)), Command::Run(task(1))]);
        // It reports what it was told before, and will take what it has been told since.
        runners.run(OWNER, &deals(2, 1));
        reports.send(Report::Fenced(0, task(1))).unwrap();
        runners.run(OWNER, &deals(2, 1));
        assert_eq!(told(&p), [Command::Run(task(2))]);
    }

    #[test]
    fn runners_are_paused_once_each_has_said_so() {
        let (mut runners, [p, q], reports) = runners();
        assert!(runners.pause(), "none has been told to run");
        runners.run(OWNER, &deals(1, 1));
        assert!(!runners.pause());
        assert!(!runners.pause());
        assert_eq!(told(&p), [Command::Run(task(1)), Command::Pause], "once");
        reports.send(Report::Paused(0)).unwrap();
        // It has yet to take the pause that it was told.
        reports.send(Report::Fenced(1, task(1))).unwrap();
        assert!(!runners.pause());
        runners.run(OWNER, &deals(1, 1));
        assert_eq!(told(&p), [Command::Run(task(1))]);
        assert_eq!(told(&q), [Command::Run(task(1)), Command::Pause], "first it has to say that it is paused");
        reports.send(Report::Paused(1)).unwrap();
        runners.run(OWNER, &deals(1, 1));
        assert_eq!(told(&q), [Command::Run(task(1))]);
    }

    #[test]
    fn runner_that_has_ended_does_not_keep_the_others_waiting() {
        let (mut runners, [p, q], reports) = runners();
        runners.run(OWNER, &deals(1, 1));
        assert_eq!((told(&p), told(&q)), (vec![Command::Run(task(1))], vec![Command::Run(task(1))]));
        drop(p);
        assert!(!runners.pause());
        assert_eq!(told(&q), [Command::Pause]);
        reports.send(Report::Paused(1)).unwrap();
        assert!(runners.pause());
    }
}
