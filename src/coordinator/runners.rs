//! What the coordinator knows of its runners. It tells them to run and to pause, and hears from them when they have.

use crossbeam_channel::{Receiver, Sender};

use crate::runner::{Command, Report};
use crate::store::fence::Owner;

/// The worker's runners, seen from the coordinator.
pub(crate) struct Runners {
    commands: Vec<Sender<Command>>,
    pub(super) reports: Receiver<Report>,
    /// Which may be processing: told to run and not heard to have paused since.
    active: Vec<bool>,
    /// Whether the active ones have been told to pause.
    pausing: bool,
    pub(super) generation: Option<i64>,
}

impl Runners {
    pub(crate) fn new(commands: Vec<Sender<Command>>, reports: Receiver<Report>) -> Self {
        let active = vec![false; commands.len()];
        Self { commands, reports, active, pausing: false, generation: None }
    }

    /// Lets those that do not process yet begin.
    pub(super) fn run(&mut self, owner: Owner) {
        self.pausing = false;
        self.generation = Some(owner.generation);
        for (commands, active) in self.commands.iter().zip(&mut self.active) {
            if !*active {
                *active = commands.send(Command::Run(owner)).is_ok();
            }
        }
    }

    /// Tells those that process to pause, once. True when none does any more.
    pub(super) fn pause(&mut self) -> bool {
        while let Ok(report) = self.reports.try_recv() {
            self.heard(Some(report));
        }
        if !self.pausing {
            self.pausing = true;
            for (commands, active) in self.commands.iter().zip(&mut self.active) {
                if *active {
                    // A runner whose thread has ended processes nothing.
                    *active = commands.send(Command::Pause).is_ok();
                }
            }
        }
        self.all_paused()
    }

    pub(super) fn heard(&mut self, report: Option<Report>) {
        match report {
            // It still waits for the pause it was told, and will acknowledge it.
            Some(Report::Fenced(_)) if self.pausing => {}
            Some(Report::Paused(index) | Report::Fenced(index)) => {
                if let Some(active) = self.active.get_mut(index) {
                    *active = false;
                }
            }
            None => self.active.fill(false),
        }
    }

    pub(super) fn all_paused(&self) -> bool {
        !self.active.contains(&true)
    }

    pub(super) fn all_active(&self) -> bool {
        !self.active.contains(&false)
    }
}
