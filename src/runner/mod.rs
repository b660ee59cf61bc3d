//! A runner: the thread that moves one projection, or one lane of it, through its events.
//!
//! It obeys two commands of the coordinator: *run* as the owner of this worker's checkpoints in a
//! generation, and *pause*, which it acknowledges once it has stopped at an event boundary and
//! committed what it handled. It does not decide about ownership: the fence does, with every
//! commit.
//!
//! With several checkpoints it always advances the one with the lowest position, up to the next
//! one's position, and merges the two when they meet. It advances one at a time, so events of one
//! aggregate stay in order, and after the catch-up only one checkpoint is left.
//!
//! When it fails, the [verdict] decides whether it retries the batch, reloads its checkpoints, or
//! halts. A panic of the handler counts as the handler's error. Attempts that ended together with
//! their process are known from the checkpoint, see [suspicion]. The thread ends when the
//! coordinator drops the sender of its commands.

mod arrival;
mod arriving;
mod batch;
mod connection;
mod exceptions;
mod failure;
mod flight;
mod journal;
mod loaded;
mod pace;
mod parking;
mod parts;
mod permit;
mod portion;
mod reacting;
mod replay;
mod replays;
mod rows;
mod settling;
mod step;
mod suspicion;
mod trouble;
mod verdict;
mod work;

use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender, select};

use crate::threads::Pulse;
use connection::{KEEP_CONNECTION, Kept};
pub(crate) use parts::{Command, Report, Runner, Task};
use step::Step;
use work::IDLE;

/// How often a runner whose worker is cut off checks whether it may continue.
const TRUST_CHECK: Duration = Duration::from_millis(100);

/// Reports that the runner has stopped processing when its thread ends, also by a panic: the
/// coordinator may be waiting for it to pause.
struct SaysEnded {
    index: usize,
    reports: Sender<Report>,
}

impl Drop for SaysEnded {
    fn drop(&mut self) {
        _ = self.reports.try_send(Report::Paused(self.index));
    }
}

impl Runner {
    /// Runs until the coordinator drops the sender of the commands.
    pub(crate) fn run(self, pulse: &Pulse) {
        let _ended = SaysEnded { index: self.index, reports: self.reports.clone() };
        let mut kept = None;
        let mut command = None;
        loop {
            let Some(next) = command.take().or_else(|| self.await_command_with(&mut kept)) else { return };
            command = match next {
                Command::Run(task) => self.process(task, &mut kept, pulse),
                Command::Pause => {
                    self.report(Report::Paused(self.index));
                    None
                }
            };
        }
    }

    /// Waits for a command. If that takes long, returns the kept connection to the pool.
    fn await_command_with(&self, kept: &mut Option<Kept>) -> Option<Command> {
        match self.commands.recv_timeout(KEEP_CONNECTION) {
            Err(RecvTimeoutError::Timeout) => {
                *kept = None;
                self.await_command()
            }
            command => command.ok(),
        }
    }

    fn await_command(&self) -> Option<Command> {
        self.commands.recv().ok()
    }

    fn report(&self, report: Report) {
        // There is room for all reports of a runner between two commands. If the coordinator has
        // ended, no thread needs the report.
        _ = self.reports.try_send(report);
    }

    /// Processes until the next command, and returns it.
    fn process(&self, task: Task, kept: &mut Option<Kept>, pulse: &Pulse) -> Option<Command> {
        let mut work = self.begin(task.owner);
        let mut granted = None;
        let command = loop {
            let permit = granted.take();
            if let Ok(command) = self.commands.try_recv() {
                break Some(command);
            }
            if self.context.stop.is_raised() {
                // The coordinator sends a pause next, or it has ended and drops the sender of the
                // commands.
                break self.await_command();
            }
            // What a reaction has done is recorded even then. The fence decides.
            if !self.trust.holds() && !work.is_owing() {
                work.waiting_for_trust();
                select! {
                    recv(self.commands) -> command => break command.ok(),
                    default(TRUST_CHECK) => continue,
                }
            }
            let step = self.step(&mut work, kept, permit.as_ref(), pulse);
            if let Step::React(portion) = step {
                work.react(*portion);
                continue;
            }
            drop(permit);
            match step {
                Step::Again | Step::React(_) => {}
                Step::Ask(request) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    send(self.requests, request) -> sent => if sent.is_err() {
                        // The reader has ended: the worker is stopping.
                        break self.await_command();
                    },
                },
                Step::Read(reading) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(reading.answers) -> answer => match answer {
                        Ok(answer) => work.found(reading, answer),
                        Err(_) => break self.await_command(),
                    },
                },
                Step::Idle(wait) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(self.follower.woken) -> _ => {}
                    // The wait ends when the worker is no longer trusted, so that the runner shows
                    // it at once.
                    default(wait.unwrap_or(IDLE).min(self.trust.left())) => {}
                },
                Step::Delay(delay) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    default(delay) => {}
                },
                Step::AwaitPermit(permit) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    recv(permit) -> permit => granted = permit.ok(),
                },
                Step::Halt(None) => break self.await_command(),
                Step::Halt(Some(interval)) => select! {
                    recv(self.commands) -> command => break command.ok(),
                    default(interval) => work.try_again(),
                },
                Step::Fenced => {
                    self.report(Report::Fenced(self.index, task));
                    break self.await_command();
                }
            }
        };
        self.follower.set_nowhere();
        *kept = work.end();
        command
    }
}
