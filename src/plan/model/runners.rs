//! Runners: the batch that each is processing, and how it ends.

use std::cmp::Ordering;

use super::database::{Owner, Row};
use super::world::{Bounds, Damage, Runner, World};
use crate::plan::DesiredState;

impl World {
    /// The batch that a runner is processing, if it has one.
    pub(crate) fn batch(&self, worker: usize, runner: usize) -> Option<(&Row, Owner)> {
        match &self.processes[worker].runners[runner] {
            Runner::Paused => None,
            Runner::Running(told, rows) => {
                Some((rows.as_ref()?.first()?, Owner { worker, generation: told.generation }))
            }
            Runner::Finishing(generation, row) => Some((row, Owner { worker, generation: *generation })),
        }
    }

    pub(super) fn work(&mut self, worker: usize, runner: usize, bounds: &Bounds) -> bool {
        let Some((row, owner)) = self.batch(worker, runner) else { return false };
        let row = row.clone();
        let rows = match &self.processes[worker].runners[runner] {
            Runner::Running(_, rows) => rows.clone().unwrap_or_default(),
            _ => Vec::new(),
        };
        let next = match rows.get(1) {
            Some(into) if into.position == row.position => {
                let keys = row.keys.union(&into.keys);
                let mut rest = rows[1..].to_vec();
                rest[0].keys = keys;
                self.database.merge(into, &row, owner).then_some(rest)
            }
            _ if !self.may_go_on(&row, bounds) => return false,
            _ => {
                let mut rows = rows.clone();
                if let Some(first) = rows.first_mut() {
                    first.position += 1;
                }
                self.commit(&row, owner, bounds).then_some(rows)
            }
        };
        let runner = &mut self.processes[worker].runners[runner];
        *runner = match (&runner, next) {
            (Runner::Running(told, _), Some(rows)) => Runner::Running(*told, Some(rows)),
            // It was fenced, or was told to pause.
            _ => Runner::Paused,
        };
        true
    }

    /// Whether there is an event that the row may handle.
    fn may_go_on(&self, row: &Row, bounds: &Bounds) -> bool {
        row.position < bounds.last.min(self.database.limit(row))
    }

    /// Handles the next event of the row's keys and moves the row, if the fence allows it.
    /// `handled` tells which events were handled before.
    pub(super) fn commit(&mut self, row: &Row, owner: Owner, bounds: &Bounds) -> bool {
        let moved = self.database.advance(row, owner, row.position + 1);
        if moved {
            let claim = self.database.projections[row.projection].as_ref();
            if claim.is_some_and(|claim| claim.dealt == DesiredState::Paused) {
                self.damage = Some(Damage::ProcessedWhilePaused);
            }
            if claim.is_some_and(|claim| claim.version != bounds.versions[owner.worker]) {
                self.damage = Some(Damage::WrongVersion);
            }
            // The handler has written to the tables that it has found when the batch began.
            if self.database.rows.iter().any(|now| now.id == row.id && now.projection != row.projection) {
                self.damage = Some(Damage::CommittedAfterSwitch);
            }
            let probed = self.handled[row.projection].iter_mut().zip(&bounds.probes);
            for (handled, _) in probed.filter(|(_, key)| row.keys.contains(**key)) {
                match row.position.cmp(handled) {
                    Ordering::Less => self.damage = Some(Damage::HandledTwice),
                    Ordering::Equal => *handled += 1,
                    Ordering::Greater => self.damage = Some(Damage::Skipped),
                }
            }
        }
        moved
    }

    pub(super) fn lose(&mut self, worker: usize, runner: usize, bounds: &Bounds) -> bool {
        let Some((row, owner)) = self.batch(worker, runner) else { return false };
        if !self.may_go_on(row, bounds) {
            return false;
        }
        self.adrift.push((row.clone(), owner));
        let runner = &mut self.processes[worker].runners[runner];
        *runner = match &runner {
            Runner::Running(told, _) => Runner::Running(*told, None),
            _ => Runner::Paused,
        };
        true
    }
}
