//! What the coordinator knows about its runners. It tells them to run and to pause, and they report
//! to it when they have paused.

use std::collections::BTreeMap;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::error::Error;
use crate::plan::{Kind, base_of};
use crate::runner::{Command, Report, Task};
use crate::store::fence::Owner;

/// The worker's runners, as the coordinator sees them.
pub(crate) struct Runners {
    each: Vec<Runner>,
    pub(super) reports: Receiver<Report>,
    /// Whether the runners were last told to run, and not to pause.
    is_running: bool,
    spawn: Spawn,
}

/// Starts the thread of a runner: for these checkpoints of a projection, with this lane and index.
/// It obeys the commands that it receives. Returns false if the projection is not known.
pub(crate) type Spawn = Box<dyn Fn(&str, usize, usize, Receiver<Command>) -> Result<(), Error> + Send>;

struct Runner {
    projection: Arc<str>,
    commands: Sender<Command>,
    state: State,
}

/// What a runner was last told to do, until it reports that it has paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The runner processes nothing.
    Paused,
    Running(Task),
    /// The runner may still process its last task.
    Pausing,
}

impl Runners {
    /// Creates an empty set. Runners that are added later report through `reports`.
    pub(crate) fn new(reports: Receiver<Report>, spawn: Spawn) -> Self {
        Self { each: Vec::new(), reports, is_running: false, spawn }
    }

    /// Adds the runners of a projection, or of a rebuild, one for each lane. The index of a runner
    /// is the number of runners that were added before it.
    pub(crate) fn add(&mut self, projection: &str, lanes: usize) -> Result<(), Error> {
        for lane in 0..lanes {
            // There is at most one command to run, followed by one to pause.
            let (commands, inbox) = bounded(2);
            (self.spawn)(projection, lane, self.each.len(), inbox)?;
            self.each.push(Runner { projection: projection.into(), commands, state: State::Paused });
        }
        Ok(())
    }

    /// Adds the runners of rebuilds that have begun since. Those of a rebuild that has ended wait,
    /// without a connection, for the next one.
    fn add_rebuilds(&mut self, deals: &BTreeMap<Arc<str>, i64>) -> Result<(), Error> {
        let lanes =
            |runners: &Self, name: &str| runners.each.iter().filter(|runner| &*runner.projection == name).count();
        for name in deals.keys().filter(|name| Kind::of(name) == Kind::Rebuild) {
            if lanes(self, name) == 0 {
                self.add(name, lanes(self, base_of(name)))?;
            }
        }
        Ok(())
    }

    /// Whether every runner has been told to process for this owner and these deals, and has not
    /// paused since.
    pub(super) fn are_told(&self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) -> bool {
        let is_added = |name: &&Arc<str>| self.each.iter().any(|runner| runner.projection == **name);
        let rebuilds = deals.keys().filter(|name| Kind::of(name) == Kind::Rebuild);
        rebuilds.clone().all(|name| is_added(&name))
            && self.each.iter().all(|runner| match runner.task(owner, deals) {
                Some(task) => runner.state == State::Running(task),
                None => !matches!(runner.state, State::Running(_)),
            })
    }

    /// Starts the runners that are paused, and tells those whose projection was redistributed to
    /// reload their checkpoints.
    pub(super) fn run(&mut self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) -> Result<(), Error> {
        self.hear_all();
        self.is_running = true;
        self.add_rebuilds(deals)?;
        for runner in &mut self.each {
            let Some(task) = runner.task(owner, deals) else {
                runner.pause();
                continue;
            };
            match runner.state {
                // The runner has to report its pause first. Otherwise this report could be mistaken
                // for one about the new task.
                State::Pausing => {}
                State::Running(told) if told == task => {}
                // The runner has not taken its last command yet, and the channel must keep room for
                // a pause. It is told after a later look.
                State::Running(_) if !runner.commands.is_empty() => {}
                State::Running(_) | State::Paused => runner.tell(Command::Run(task), State::Running(task)),
            }
        }
        Ok(())
    }

    /// Tells each running runner once to pause. Returns whether all runners have paused.
    pub(super) fn pause(&mut self) -> bool {
        self.hear_all();
        self.is_running = false;
        for runner in &mut self.each {
            runner.pause();
        }
        self.are_paused()
    }

    /// Receives all reports, so that the channel has room for the runners' answers to the next
    /// commands.
    fn hear_all(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.heard(Some(report));
        }
    }

    pub(super) fn heard(&mut self, report: Option<Report>) {
        match report {
            // In another state, the runner has been told something else since, and will act on
            // that.
            Some(Report::Fenced(index, task)) => self.paused(index, |state| state == State::Running(task)),
            Some(Report::Paused(index)) => self.paused(index, |_| true),
            // All runners have ended.
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
    /// What the runner is to process; `None` if its rebuild has ended.
    fn task(&self, owner: Owner, deals: &BTreeMap<Arc<str>, i64>) -> Option<Task> {
        let deal = deals.get(&self.projection).copied();
        let is_over = deal.is_none() && Kind::of(&self.projection) == Kind::Rebuild;
        (!is_over).then(|| Task { owner, deal: deal.unwrap_or(0) })
    }

    fn pause(&mut self) {
        if matches!(self.state, State::Running(_)) {
            self.tell(Command::Pause, State::Pausing);
        }
    }

    fn tell(&mut self, command: Command, state: State) {
        // There is room, so sending fails only if the runner's thread has ended. Then the runner
        // processes nothing.
        self.state = if self.commands.try_send(command).is_ok() { state } else { State::Paused };
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::plan::WorkerId;

    const OWNER: Owner = Owner { worker: WorkerId(Uuid::from_u128(1)), generation: 1 };

    /// Creates two runners, of p and q, with the receivers of their commands and the sender of
    /// their reports.
    fn runners() -> (Runners, [Receiver<Command>; 2], Sender<Report>) {
        let (reports, inbox) = bounded(8);
        let (hired, inboxes) = bounded(8);
        let spawn: Spawn = Box::new(move |_, _, _, commands| {
            hired.send(commands).unwrap();
            Ok(())
        });
        let mut runners = Runners::new(inbox, spawn);
        let commands = ["p", "q"].map(|projection| {
            runners.add(projection, 1).unwrap();
            inboxes.recv().unwrap()
        });
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
        runners.run(OWNER, &deals(1, 1)).unwrap();
        assert_eq!((told(&p), told(&q)), (vec![Command::Run(task(1))], vec![Command::Run(task(1))]));
        assert!(runners.are_told(OWNER, &deals(1, 1)));
        assert!(!runners.are_told(OWNER, &deals(2, 1)));
        runners.run(OWNER, &deals(2, 1)).unwrap();
        assert_eq!((told(&p), told(&q)), (vec![Command::Run(task(2))], vec![]));
        // While a runner has not taken a command, the next command has to wait: there must be room
        // for a pause.
        runners.run(OWNER, &deals(3, 1)).unwrap();
        runners.run(OWNER, &deals(4, 1)).unwrap();
        assert!(!runners.are_told(OWNER, &deals(4, 1)));
        assert!(!runners.pause());
        assert_eq!(told(&p), [Command::Run(task(3)), Command::Pause]);
    }

    #[test]
    fn fenced_runner_is_told_to_run_again_unless_told_already() {
        let (mut runners, [p, _q], reports) = runners();
        runners.run(OWNER, &deals(1, 1)).unwrap();
        reports.send(Report::Fenced(0, task(1))).unwrap();
        runners.run(OWNER, &deals(1, 1)).unwrap();
        assert_eq!(told(&p), [Command::Run(task(1)), Command::Run(task(1))]);
        // The runner reports its former task, and will take the new one.
        runners.run(OWNER, &deals(2, 1)).unwrap();
        reports.send(Report::Fenced(0, task(1))).unwrap();
        runners.run(OWNER, &deals(2, 1)).unwrap();
        assert_eq!(told(&p), [Command::Run(task(2))]);
    }

    #[test]
    fn runners_are_paused_once_each_has_said_so() {
        let (mut runners, [p, q], reports) = runners();
        assert!(runners.pause(), "none has been told to run");
        runners.run(OWNER, &deals(1, 1)).unwrap();
        assert!(!runners.pause());
        assert!(!runners.pause());
        assert_eq!(told(&p), [Command::Run(task(1)), Command::Pause], "once");
        reports.send(Report::Paused(0)).unwrap();
        // The runner has not taken the command to pause yet.
        reports.send(Report::Fenced(1, task(1))).unwrap();
        assert!(!runners.pause());
        runners.run(OWNER, &deals(1, 1)).unwrap();
        assert_eq!(told(&p), [Command::Run(task(1))]);
        assert_eq!(told(&q), [Command::Run(task(1)), Command::Pause], "first it has to say that it is paused");
        reports.send(Report::Paused(1)).unwrap();
        runners.run(OWNER, &deals(1, 1)).unwrap();
        assert_eq!(told(&q), [Command::Run(task(1))]);
    }

    #[test]
    fn runner_that_has_ended_does_not_keep_the_others_waiting() {
        let (mut runners, [p, q], reports) = runners();
        runners.run(OWNER, &deals(1, 1)).unwrap();
        assert_eq!((told(&p), told(&q)), (vec![Command::Run(task(1))], vec![Command::Run(task(1))]));
        drop(p);
        assert!(!runners.pause());
        assert_eq!(told(&q), [Command::Pause]);
        reports.send(Report::Paused(1)).unwrap();
        assert!(runners.pause());
    }
}
