//! What `store::rebuilds` does, in memory. The tables themselves are in
//! [`errands`](super::errands).

use super::commands::{Attempt, Command};
use super::database::{Clock, Database, Projection, Row};
use super::sabotage::Sabotage;
use super::sets::{kind_of, other};
use crate::plan::{DesiredState, KeySet, Kind, Step, WorkerId};

/// How far a rebuild has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Loading,
    CatchingUp,
    Following,
    /// It is finished, and the former state is kept.
    Old,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Rebuild {
    /// The number of the command.
    pub(crate) id: i64,
    /// The live checkpoints.
    pub(crate) projection: usize,
    pub(crate) phase: Phase,
    pub(crate) keep_old: bool,
    /// Whether the switch is tried again only after a while.
    pub(crate) is_put_off: bool,
}

/// How an attempt to switch has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switched {
    Done { keep_old: bool },
    Superseded,
    NotNow,
}

impl Database {
    /// The rebuild of a projection that is not finished.
    pub(crate) fn current(&self, live: usize) -> Option<Rebuild> {
        let mut all = self.rebuilds.iter().copied();
        all.find(|rebuild| rebuild.projection == live && rebuild.phase != Phase::Old)
    }

    /// The rebuild of a projection whose former state is kept.
    pub(crate) fn kept(&self, live: usize) -> Option<Rebuild> {
        let mut all = self.rebuilds.iter().copied();
        all.find(|rebuild| rebuild.projection == live && rebuild.phase == Phase::Old)
    }

    /// Whether the switch of this rebuild may be tried. In the model a rebuild is never far behind.
    pub(super) fn is_due(&self, command: &Command, clock: Clock) -> bool {
        let is_ready = |rebuild: &Rebuild| rebuild.id == command.id && (!rebuild.is_put_off || clock.due);
        let has_rows = |kind| self.rows.iter().any(|row| row.projection == other(command.projection, kind));
        self.rebuilds.iter().any(is_ready) && has_rows(Kind::Live) && has_rows(Kind::Rebuild)
    }

    /// Whether these are live checkpoints that follow a rebuild.
    pub(super) fn follows(&self, set: usize) -> bool {
        kind_of(set) == Kind::Live && self.current(set).is_some_and(|rebuild| rebuild.phase == Phase::Following)
    }

    /// The position beyond which a live row may not move, if its owner holds it.
    pub(super) fn limit(&self, row: &Row) -> i64 {
        if !row.is_held || self.sabotage == Sabotage::NotHeld {
            return i64::MAX;
        }
        let of_rebuild = other(row.projection, Kind::Rebuild);
        let meets =
            |rebuild: &&Row| rebuild.projection == of_rebuild && !rebuild.keys.intersection(&row.keys).is_empty();
        self.rows.iter().filter(meets).map(|rebuild| rebuild.position).min().unwrap_or(i64::MAX)
    }

    /// Whether the rebuild is nowhere behind the live checkpoints.
    pub(super) fn is_level(&self, live: usize) -> bool {
        let of = |kind| self.rows.iter().filter(move |row| row.projection == other(live, kind));
        self.sabotage == Sabotage::LevelNotChecked
            || of(Kind::Live).all(|live| {
                let mut meeting = of(Kind::Rebuild).filter(|row| !row.keys.intersection(&live.keys).is_empty());
                meeting.all(|row| row.position >= live.position)
            })
    }

    /// Whether the projection is processed, so that it may be switched.
    pub(super) fn is_running(&self, live: usize) -> bool {
        let is_dealt = |claim: &Projection| {
            (claim.desired, claim.dealt) == (DesiredState::Running, DesiredState::Running) && claim.fault.is_none()
        };
        self.projections[live].as_ref().is_some_and(is_dealt) && !self.is_clearing(live)
    }

    /// Begins a rebuild for which the copies have been created.
    pub(crate) fn prepare(&mut self, worker: WorkerId, attempt: Attempt, version: i32) -> bool {
        let live = attempt.projection;
        let rebuild = other(live, Kind::Rebuild);
        let Some(at) = self.hold(worker, attempt) else { return false };
        // Without comparing the attempt, it may be there already.
        if self.projections[live].is_none() || self.projections[rebuild].is_some() {
            return false;
        }
        self.create(rebuild, version, DesiredState::Paused);
        let Command { id, keep_old, .. } = self.commands[at];
        let phase = Phase::Loading;
        self.rebuilds.push(Rebuild { id, projection: live, phase, keep_old, is_put_off: false });
        self.commands[at].step = Step::Loading { is_due: false };
        true
    }

    pub(crate) fn catch_up(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let is_held = self.begin_step(worker, attempt);
        if is_held {
            self.set_phase(attempt.command, Phase::CatchingUp);
            self.reload(other(attempt.projection, Kind::Rebuild));
        }
        is_held
    }

    pub(crate) fn follow(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let is_held = self.begin_step(worker, attempt);
        if is_held {
            self.set_phase(attempt.command, Phase::Following);
            self.reload(attempt.projection);
            if self.sabotage != Sabotage::FollowKeepsTokens {
                self.renew(attempt.projection);
            }
        }
        is_held
    }

    pub(crate) fn put_off(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let is_held = self.begin_step(worker, attempt);
        if is_held {
            self.release(attempt.command, attempt.projection, true);
        }
        is_held
    }

    /// Frees the live checkpoints from a rebuild.
    pub(super) fn release(&mut self, id: i64, live: usize, is_put_off: bool) {
        self.set_phase(id, Phase::Loading);
        for rebuild in self.rebuilds.iter_mut().filter(|rebuild| rebuild.id == id) {
            rebuild.is_put_off = is_put_off;
        }
        for command in self.commands.iter_mut().filter(|command| command.id == id) {
            command.step = Step::Loading { is_due: false };
        }
        self.reload(live);
        self.reload(other(live, Kind::Rebuild));
    }

    /// Lets the checkpoints of a rebuild become the live ones.
    pub(crate) fn switch(&mut self, worker: WorkerId, attempt: Attempt) -> Switched {
        let (live, old) = (attempt.projection, other(attempt.projection, Kind::Old));
        let rebuild = other(live, Kind::Rebuild);
        let current = self.current(live);
        let Some(Rebuild { id, keep_old, .. }) = current.filter(|_| self.begin_step(worker, attempt)) else {
            return Switched::Superseded;
        };
        let may_switch = self.is_running(live) || self.sabotage == Sabotage::SwitchedWhilePaused;
        if !may_switch || !self.is_level(live) {
            return Switched::NotNow;
        }
        if keep_old {
            self.copy_claim(live, old);
            self.rename(live, old);
            self.disown(old);
        } else {
            self.rows.retain(|row| row.projection != live);
        }
        self.rename(rebuild, live);
        self.take_over(rebuild, live);
        self.forget_set(rebuild);
        if keep_old {
            self.set_phase(id, Phase::Old);
        } else {
            self.rebuilds.retain(|rebuild| rebuild.id != id);
        }
        self.conclude(attempt.command);
        Switched::Done { keep_old }
    }

    /// Ends a rebuild without a switch.
    pub(crate) fn cancel(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let Some(current) = self.current(attempt.projection).filter(|_| self.begin_step(worker, attempt)) else {
            return false;
        };
        self.forget_set(other(attempt.projection, Kind::Rebuild));
        self.rebuilds.retain(|rebuild| rebuild.id != current.id);
        self.reload(attempt.projection);
        self.conclude(current.id);
        self.conclude(attempt.command);
        true
    }

    /// Exchanges the live checkpoints and the former ones.
    pub(crate) fn revert(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let (live, old) = (attempt.projection, other(attempt.projection, Kind::Old));
        // The SQL refuses rows that were changed by hand.
        if self.kept(live).is_none() || !self.begin_step(worker, attempt) || !self.is_whole(old) {
            return false;
        }
        // The name of a rebuild is free, because there is none.
        let between = other(live, Kind::Rebuild);
        self.copy_claim(live, between);
        self.rename(live, between);
        self.rename(old, live);
        self.take_over(old, live);
        self.copy_claim(between, old);
        self.rename(between, old);
        self.projections[between] = None;
        self.disown(old);
        self.conclude(attempt.command);
        true
    }

    /// Deletes the former checkpoints.
    pub(crate) fn drop_old(&mut self, worker: WorkerId, attempt: Attempt) -> bool {
        let Some(kept) = self.kept(attempt.projection).filter(|_| self.begin_step(worker, attempt)) else {
            return false;
        };
        self.forget_set(other(attempt.projection, Kind::Old));
        self.rebuilds.retain(|rebuild| rebuild.id != kept.id);
        self.conclude(attempt.command);
        true
    }

    fn begin_step(&self, worker: WorkerId, attempt: Attempt) -> bool {
        self.projections[attempt.projection].is_some() && self.hold(worker, attempt).is_some()
    }

    fn set_phase(&mut self, id: i64, phase: Phase) {
        for rebuild in self.rebuilds.iter_mut().filter(|rebuild| rebuild.id == id) {
            (rebuild.phase, rebuild.is_put_off) = (phase, false);
        }
    }

    /// Lets the runners of a set load again.
    pub(super) fn reload(&mut self, set: usize) {
        let deal = self.take_deal();
        if let Some(claim) = &mut self.projections[set] {
            claim.deal = deal;
        }
    }

    /// Gives the rows of a set new tokens.
    fn renew(&mut self, set: usize) {
        let deal = self.projections[set].as_ref().map_or(0, |claim| claim.deal);
        for row in self.rows.iter_mut().filter(|row| row.projection == set) {
            (row.token, row.deal) = (self.next_token, deal);
            self.next_token += 1;
        }
    }

    /// Gives the rows of one set to another.
    fn rename(&mut self, from: usize, to: usize) {
        for row in self.rows.iter_mut().filter(|row| row.projection == from) {
            row.projection = to;
        }
        if self.sabotage != Sabotage::SwitchKeepsTokens {
            self.renew(to);
        }
    }

    /// Claims a set that is like another one, but paused.
    fn copy_claim(&mut self, from: usize, to: usize) {
        let deal = self.take_deal();
        let (desired, dealt) = (DesiredState::Paused, DesiredState::Paused);
        let version = self.projections[from].as_ref().map(|claim| claim.version);
        self.projections[to] =
            version.map(|version| Projection { version, desired, dealt, deal, dealt_as: None, fault: None });
    }

    /// Lets a set be what another one was. Its desired state is not changed.
    fn take_over(&mut self, from: usize, to: usize) {
        let (deal, owners) = (self.take_deal(), self.owners(to));
        let Some(former) = self.projections[from].clone() else { return };
        if let Some(claim) = &mut self.projections[to] {
            (claim.version, claim.dealt, claim.fault, claim.deal) = (former.version, former.dealt, None, deal);
            claim.dealt_as = Some(owners);
        }
        for row in self.rows.iter_mut().filter(|row| row.projection == to) {
            row.deal = deal;
        }
    }

    pub(super) fn disown(&mut self, set: usize) {
        for row in self.rows.iter_mut().filter(|row| row.projection == set) {
            (row.worker, row.generation, row.lane) = (None, 0, 0);
        }
        self.renew(set);
    }

    /// Deletes a set, and the commands for it.
    fn forget_set(&mut self, set: usize) {
        self.rows.retain(|row| row.projection != set);
        self.projections[set] = None;
        self.commands.retain(|command| command.projection != set);
    }

    /// Whether the rows of a set are disjoint and cover the key space.
    pub(super) fn is_whole(&self, set: usize) -> bool {
        let rows = self.rows.iter().filter(|row| row.projection == set);
        let (all, sum) =
            rows.fold((KeySet::default(), 0), |(all, sum), row| (all.union(&row.keys), sum + row.keys.len()));
        all == KeySet::all() && sum == KeySet::all().len()
    }
}
