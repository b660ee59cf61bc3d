//! What `store::coordination`, `store::deal` and `store::fence` do, in memory. `store::equivalence`
//! verifies that both do the same.
//!
//! The model is stricter than the SQL: it reuses a checkpoint's id as soon as the id is free. So
//! the fence must not rely on ids that are never reused.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use super::commands::Command;
use super::rebuilds::Rebuild;
use super::sabotage::{self, Cut, Fenced, Sabotage};
use super::sets::{SETS, known_code, live_sets, set_name, set_of};
use crate::plan::{
    Action, ClusterView, Deal, DesiredState, Fault, GenerationState, GenerationView, KeySet, Policy, ProjectionView,
    Rows, ServerTime, Session, Unclaimed, WorkerId, WorkerState, WorkerView,
};

pub(crate) const POLICY: Policy = Policy {
    stale_worker_timeout: Duration::from_secs(30),
    session_loss_grace: Some(Duration::from_secs(1)),
    coordination_timeout: Duration::from_secs(60),
    registration_wait: Duration::from_secs(1),
};

const LONG_AGO: ServerTime = ServerTime(0);
const NOW: ServerTime = ServerTime(1_000_000_000);

/// Returns the id of a worker. In the model, workers are numbers from 0.
pub(crate) fn worker_id(worker: usize) -> WorkerId {
    // The session locks are derived from the upper half.
    WorkerId(Uuid::from_u128((u128::try_from(worker).unwrap() + 1) << 96))
}

pub(super) fn worker_of(id: WorkerId) -> usize {
    usize::try_from((id.0.as_u128() >> 96) - 1).unwrap()
}

/// The lowest key of each piece of every share that any of these workers may be given, with the
/// partitions in any order.
pub(crate) fn lowest_keys(lanes: &[usize]) -> Vec<i32> {
    let projection = ProjectionView {
        name: set_name(0).clone(),
        version: 1,
        build: None,
        desired: DesiredState::Running,
        is_clearing: false,
        dealt: DesiredState::Running,
        deal: 0,
        rows: Rows::AsDealt,
        withdrawn: None,
    };
    let mut lowest = BTreeSet::new();
    let mut orders: Vec<Vec<usize>> = vec![vec![]];
    while let Some(order) = orders.pop() {
        let members: Vec<WorkerView> = (order.iter().enumerate())
            .map(|(partition, worker)| WorkerView {
                id: worker_id(*worker),
                state: WorkerState::Ready,
                generation: 1,
                partition: Some(partition),
                session: Session::Held,
                registered_at: NOW,
                last_heartbeat: NOW,
                projections: known_code(1, 1, lanes[*worker]),
                build: None,
            })
            .collect();
        let deal = Deal::of(&projection, &members.iter().collect::<Vec<_>>());
        lowest.extend(deal.shares.iter().flat_map(|share| share.keys.ranges()).map(|(low, _)| *low));
        let others = (0..lanes.len()).filter(|worker| !order.contains(worker));
        orders.extend(others.map(|worker| [order.clone(), vec![worker]].concat()));
    }
    lowest.into_iter().collect()
}

/// What clocks would decide. Everything that is not named here happened just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a clock of its own")]
pub(crate) struct Clock {
    /// The workers, by bit, whose last heartbeat is too old.
    pub(crate) stale: u8,
    /// Whether the grace period of lost sessions is over.
    pub(crate) grace: bool,
    /// Whether the joiners have waited long enough.
    pub(crate) gathered: bool,
    /// Whether the generation's coordination timeout is over.
    pub(crate) late: bool,
    /// Whether it is time to try a switch again that was put off.
    pub(crate) due: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Generation {
    pub(crate) number: i64,
    pub(crate) state: GenerationState,
    pub(crate) total: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Worker {
    pub(crate) state: WorkerState,
    pub(crate) generation: i64,
    pub(crate) partition: Option<usize>,
    /// The projections it knows, by bit, and the version of its code of all of them.
    pub(crate) projections: u8,
    pub(crate) version: i32,
    pub(crate) lanes: usize,
    /// Whether the loss of its session is recorded.
    pub(crate) noted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Projection {
    pub(crate) version: i32,
    pub(crate) desired: DesiredState,
    /// What was desired when it was last distributed.
    pub(crate) dealt: DesiredState,
    /// The number of its last deal.
    pub(crate) deal: i64,
    /// Which workers owned which keys right after that deal.
    pub(crate) dealt_as: Option<Owners>,
    pub(crate) fault: Option<Fault>,
}

/// The keys of each lane of each worker, and the number of keys, which is larger if rows overlap;
/// by generation, worker and lane.
pub(crate) type Owners = BTreeMap<(i64, Option<usize>, usize), (KeySet, i32)>;

/// What an operator does to the rows of a projection by hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Edit {
    /// Deletes its checkpoints and its claim, and empties its read model.
    Forget,
    /// Deletes its checkpoints.
    DropRows,
    /// Takes the checkpoint at this index from its owner.
    Disown(usize),
    /// Gives the checkpoint at the first index to the worker with the second.
    GiveTo(usize, usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    /// The set of checkpoints to which it belongs.
    pub(crate) projection: usize,
    /// Identifies the row. In SQL the token alone does.
    pub(crate) id: i64,
    /// Unique: never used for another row.
    pub(crate) token: i64,
    /// The deal that made the row. The fence does not compare it; only the properties do.
    pub(crate) deal: i64,
    pub(crate) keys: KeySet,
    pub(crate) position: i64,
    pub(crate) generation: i64,
    pub(crate) worker: Option<usize>,
    pub(crate) lane: usize,
    /// Whether its owner has found, together with the token, that the live rows follow a rebuild.
    /// Never in the database.
    pub(crate) is_held: bool,
}

/// What a worker states to prove that a row is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) worker: usize,
    pub(crate) generation: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    pub(crate) generation: Option<Generation>,
    pub(crate) workers: Vec<Option<Worker>>,
    /// By set. None before a worker has registered it.
    pub(crate) projections: [Option<Projection>; SETS],
    /// Sorted by id.
    pub(crate) rows: Vec<Row>,
    /// The commands that are not finished, in the order in which they were given.
    pub(crate) commands: Vec<Command>,
    /// The rebuilds that are not finished, and those whose former state is kept.
    pub(crate) rebuilds: Vec<Rebuild>,
    pub(crate) next_token: i64,
    pub(crate) next_deal: i64,
    pub(crate) sabotage: Sabotage,
}

impl Database {
    pub(crate) fn new(workers: usize, sabotage: Sabotage) -> Self {
        let (workers, projections) = (vec![None; workers], [const { None }; SETS]);
        Self {
            generation: None,
            workers,
            projections,
            rows: Vec::new(),
            commands: Vec::new(),
            rebuilds: Vec::new(),
            next_token: 1,
            next_deal: 1,
            sabotage,
        }
    }

    /// Returns what `store::view` would load; `held` tells whether a worker's session lock is held.
    pub(crate) fn view(&self, clock: Clock, held: impl Fn(usize) -> bool) -> ClusterView {
        let moment = |long_ago: bool| if long_ago { LONG_AGO } else { NOW };
        let registered = self.workers.iter().enumerate().filter_map(|(worker, row)| row.map(|row| (worker, row)));
        ClusterView {
            now: NOW,
            observing_since: LONG_AGO,
            generation: self.generation.map(|generation| GenerationView {
                number: generation.number,
                state: generation.state,
                total_partitions: generation.total,
                created_at: moment(clock.late),
            }),
            workers: registered
                .filter(|(_, row)| row.state != WorkerState::Stopped)
                .map(|(worker, row)| WorkerView {
                    id: worker_id(worker),
                    state: row.state,
                    generation: row.generation,
                    partition: row.partition,
                    session: match (held(worker), row.noted) {
                        (true, false) => Session::Held,
                        (true, true) => Session::Regained,
                        (false, false) => Session::Missing,
                        (false, true) => Session::LostSince(moment(clock.grace)),
                    },
                    registered_at: moment(clock.gathered),
                    last_heartbeat: moment(clock.stale & 1 << worker != 0),
                    projections: known_code(row.projections, row.version, row.lanes),
                    build: None,
                })
                .collect(),
            projections: (self.projections.iter().enumerate())
                .filter_map(|(projection, row)| {
                    let Projection { version, desired, dealt, deal, fault, .. } = row.as_ref()?;
                    Some(ProjectionView {
                        name: set_name(projection).clone(),
                        version: *version,
                        build: None,
                        desired: *desired,
                        is_clearing: self.is_clearing(projection),
                        dealt: *dealt,
                        deal: *deal,
                        rows: self.inspect(projection),
                        withdrawn: *fault,
                    })
                })
                .collect(),
            unclaimed: live_sets(self.known())
                .filter(|projection| self.projections[*projection].is_none())
                .map(|projection| Unclaimed { name: set_name(projection).clone(), owner: None })
                .collect(),
            commands: self
                .first_commands()
                .filter(|command| self.projections[command.projection].is_some())
                .map(|command| command.view(self.is_due(command, clock)))
                .collect(),
        }
    }

    /// The projections that workers know, by bit.
    fn known(&self) -> u8 {
        let living = self.workers.iter().flatten().filter(|row| row.state != WorkerState::Stopped);
        living.fold(0, |all, row| all | row.projections)
    }

    pub(super) fn owners(&self, projection: usize) -> Owners {
        let mut owners = Owners::new();
        for row in self.rows.iter().filter(|row| row.projection == projection) {
            let (keys, size) = owners.entry((row.generation, row.worker, row.lane)).or_default();
            (*keys, *size) = (keys.union(&row.keys), *size + row.keys.len());
        }
        owners
    }

    fn inspect(&self, projection: usize) -> Rows {
        let owners = self.owners(projection);
        if self.projections[projection].as_ref().is_some_and(|row| row.dealt_as.as_ref() == Some(&owners)) {
            return Rows::AsDealt;
        }
        let size: i32 = owners.values().map(|(_, size)| size).sum();
        let all = owners.values().fold(KeySet::default(), |all, (keys, _)| all.union(keys));
        match (owners.is_empty(), size == KeySet::all().len() && all == KeySet::all()) {
            (true, _) => Rows::Unusable(Fault::Missing),
            (false, true) => Rows::Whole,
            (false, false) => Rows::Unusable(Fault::Torn),
        }
    }

    pub(crate) fn register(&mut self, worker: usize, projections: u8, version: i32, lanes: usize) {
        for projection in live_sets(projections) {
            self.begin(projection, version);
        }
        let new = Worker {
            state: WorkerState::Pending,
            generation: 0,
            partition: None,
            projections,
            version,
            lanes,
            noted: false,
        };
        // A worker that registers again has the same code as before.
        self.workers[worker] =
            Some(self.workers[worker].map_or(new, |Worker { projections, version, lanes, .. }| Worker {
                projections,
                version,
                lanes,
                ..new
            }));
    }

    /// Claims the projection and creates its checkpoint, unless it is claimed.
    fn begin(&mut self, projection: usize, version: i32) {
        if self.projections[projection].is_none() {
            self.create(projection, version, DesiredState::Running);
        }
    }

    /// Creates a set of checkpoints at the beginning.
    pub(super) fn create(&mut self, projection: usize, version: i32, dealt: DesiredState) {
        let (desired, deal) = (DesiredState::Running, self.take_deal());
        self.projections[projection] = Some(Projection { version, desired, dealt, deal, dealt_as: None, fault: None });
        self.insert([((projection, 0, None, 0), KeySet::all())].into(), 0, |_| None);
    }

    /// Changes rows as an operator does by hand. Returns false if nothing changes.
    pub(crate) fn edit(&mut self, projection: usize, edit: Edit) -> bool {
        let before = self.rows.len();
        let set = |row: Option<&mut Row>, worker: Option<usize>| {
            row.is_some_and(|row| std::mem::replace(&mut row.worker, worker) != worker)
        };
        match edit {
            Edit::Forget => {
                self.rows.retain(|row| row.projection != projection);
                self.projections[projection].take().is_some()
            }
            Edit::DropRows => {
                self.rows.retain(|row| row.projection != projection);
                self.rows.len() < before
            }
            Edit::Disown(at) => set(self.nth(projection, at), None),
            Edit::GiveTo(at, worker) => set(self.nth(projection, at), Some(worker)),
        }
    }

    /// The row at this index among those of the projection, in the order of their keys.
    fn nth(&mut self, projection: usize, at: usize) -> Option<&mut Row> {
        let mut rows: Vec<&mut Row> = self.rows.iter_mut().filter(|row| row.projection == projection).collect();
        rows.sort_by_key(|row| row.keys.ranges().to_vec());
        rows.into_iter().nth(at)
    }

    /// Sets what an operator wants from now on.
    pub(crate) fn desire(&mut self, projection: usize, desired: DesiredState) {
        if let Some(row) = &mut self.projections[projection] {
            row.desired = desired;
        }
    }

    fn update(&mut self, worker: usize, change: impl FnOnce(&mut Worker)) {
        self.workers[worker].as_mut().map(change).unwrap_or_default();
    }

    pub(crate) fn mark_ready(&mut self, worker: usize, generation: i64) {
        self.update(worker, |row| {
            if row.generation == generation && row.state == WorkerState::Pending {
                row.state = WorkerState::Ready;
            }
        });
    }

    pub(crate) fn mark_stopping(&mut self, worker: usize) {
        self.update(worker, |row| {
            if row.state != WorkerState::Stopped {
                row.state = WorkerState::Stopping;
            }
        });
    }

    pub(crate) fn mark_left(&mut self, worker: usize) {
        self.update(worker, |row| {
            if row.state != WorkerState::Stopped {
                (row.state, row.partition) = (WorkerState::Stopped, None);
            }
        });
    }

    /// Applies an action. Returns false if it is refused.
    pub(crate) fn apply(&mut self, action: &Action) -> bool {
        match action {
            Action::NoteSessionLost(id) => self.update(worker_of(*id), |row| row.noted = true),
            Action::NoteSessionRegained(id) => self.update(worker_of(*id), |row| row.noted = false),
            Action::Evict(id, _) => self.mark_left(worker_of(*id)),
            Action::CreateGeneration { number, members, .. } => {
                let (state, total) = (GenerationState::Pending, members.len());
                self.generation = Some(Generation { number: *number, state, total });
                for (k, member) in members.iter().enumerate() {
                    self.update(worker_of(*member), |row| {
                        (row.generation, row.partition, row.state) = (*number, Some(k), WorkerState::Pending);
                    });
                }
            }
            Action::Activate { number, deals } => {
                if self.sabotage != Sabotage::ActivatesUncut && !deals.iter().all(|deal| self.deal(*number, deal)) {
                    return false;
                }
                if let Some(generation) = &mut self.generation {
                    generation.state = GenerationState::Active;
                }
                for row in self.workers.iter_mut().flatten() {
                    if row.generation == *number && row.state == WorkerState::Ready {
                        row.state = WorkerState::Running;
                    }
                }
            }
            Action::Deal { generation, deal } => return self.deal(*generation, deal),
            // The worker that applies it has the first version.
            Action::Begin(name) => self.begin(set_of(name), 1),
            Action::Withdraw(name, fault) => self.withdraw(set_of(name), *fault),
            Action::Command { id, projection, generation, effect, .. } => {
                return self.apply_command(*id, set_of(projection), *generation, effect);
            }
        }
        true
    }

    /// Cuts the rows of a projection along the shares. Returns false if the shares overlap or leave
    /// keys out.
    pub(super) fn deal(&mut self, generation: i64, Deal { projection, desired, shares }: &Deal) -> bool {
        let projection = set_of(projection);
        let mut number = self.take_deal();
        let is_sabotaged = self.sabotage == Sabotage::DealNumberReused;
        let Some(row) = &mut self.projections[projection] else { return false };
        if is_sabotaged && row.dealt_as.is_none() {
            // Runners that have not heard of the last deals know this number.
            number = 0;
        }
        (row.dealt, row.deal, row.fault) = (*desired, number, None);
        let mut dealt: Vec<(Option<usize>, usize, &KeySet)> =
            shares.iter().map(|share| (Some(worker_of(share.worker)), share.lane, &share.keys)).collect();
        let all = KeySet::all();
        if dealt.is_empty() {
            dealt.push((None, 0, &all));
        }
        let sum: i32 = dealt.iter().map(|(.., keys)| keys.len()).sum();
        let covered = dealt.iter().fold(KeySet::default(), |covered, (.., keys)| covered.union(keys));
        if (sum, &covered) != (all.len(), &all) {
            return false;
        }
        if self.sabotage == Sabotage::CutDropsPiece && dealt.len() > 2 {
            dealt.pop();
        }
        let (old, others): (Vec<Row>, Vec<Row>) =
            std::mem::take(&mut self.rows).into_iter().partition(|row| row.projection == projection);
        self.rows = others;
        let mut cut = Cut::new();
        for row in &old {
            for (worker, lane, keys) in &dealt {
                let piece = row.keys.intersection(keys);
                if !piece.is_empty() {
                    let kept = cut.entry((projection, row.position, *worker, *lane)).or_default();
                    *kept = kept.union(&piece);
                }
            }
        }
        if matches!(self.sabotage, Sabotage::CutJumps | Sabotage::CutGoesBack) {
            cut = sabotage::at_one_position(cut, self.sabotage == Sabotage::CutJumps);
        }
        let keeps_token = self.sabotage == Sabotage::TokenNotRenewed;
        self.insert(cut, generation, |keys| {
            let whole = old.iter().find(|row| keeps_token && row.keys == *keys);
            whole.map(|row| row.token)
        });
        let owners = self.owners(projection);
        if let Some(row) = &mut self.projections[projection] {
            row.dealt_as = Some(owners);
        }
        true
    }

    pub(super) fn take_deal(&mut self) -> i64 {
        self.next_deal += 1;
        self.next_deal - 1
    }

    fn withdraw(&mut self, projection: usize, fault: Fault) {
        let deal = self.take_deal();
        let Some(claim) = &mut self.projections[projection] else { return };
        (claim.deal, claim.dealt_as, claim.fault) = (deal, None, Some(fault));
        for row in self.rows.iter_mut().filter(|row| row.projection == projection) {
            (row.token, row.deal, row.worker, row.generation, row.lane) = (self.next_token, deal, None, 0, 0);
            self.next_token += 1;
        }
    }

    /// Makes a row of each piece, with a new token unless `token` gives one.
    fn insert(&mut self, cut: Cut, generation: i64, token: impl Fn(&KeySet) -> Option<i64>) {
        for ((projection, position, worker, lane), keys) in cut {
            let id = (1..100).find(|id| !self.rows.iter().any(|row| row.id == *id)).unwrap();
            let token = token(&keys).unwrap_or_else(|| {
                self.next_token += 1;
                self.next_token - 1
            });
            let deal = self.projections[projection].as_ref().map_or(0, |row| row.deal);
            let is_held = false;
            self.rows.push(Row { projection, id, token, deal, keys, position, generation, worker, lane, is_held });
            self.rows.sort_by_key(|row| row.id);
        }
    }

    /// The index of the row, if the fence lets this owner change it.
    fn passes_fence(&self, row: &Row, owner: Owner) -> Option<usize> {
        use Fenced::{Position, Token, TokenAndGeneration, TokenAndOwner};
        let ignores = |what: &[Fenced]| what.iter().any(|what| self.sabotage == Sabotage::FenceWithout(*what));
        self.rows.iter().position(|now| {
            now.id == row.id
                && (now.token == row.token || ignores(&[Token, TokenAndGeneration, TokenAndOwner]))
                && (now.position == row.position || ignores(&[Position]))
                && (now.generation == owner.generation || ignores(&[TokenAndGeneration, TokenAndOwner]))
                && (now.worker == Some(owner.worker) || ignores(&[TokenAndOwner]))
        })
    }

    pub(crate) fn may_commit(&self, row: &Row, owner: Owner) -> bool {
        self.passes_fence(row, owner).is_some()
    }

    pub(crate) fn owned(&self, projection: usize, owner: Owner, lane: usize) -> Vec<Row> {
        let is_owned = |row: &&Row| {
            (row.projection, row.generation, row.worker, row.lane)
                == (projection, owner.generation, Some(owner.worker), lane)
        };
        let mut rows: Vec<Row> = self.rows.iter().filter(is_owned).cloned().collect();
        let is_held = self.follows(projection);
        for row in &mut rows {
            row.is_held = is_held;
        }
        rows.sort_by_key(|row| (row.position, row.id));
        rows
    }

    pub(crate) fn advance(&mut self, row: &Row, owner: Owner, to: i64) -> bool {
        let found = self.passes_fence(row, owner);
        if let Some(at) = found {
            self.rows[at].position = to;
        }
        found.is_some()
    }

    pub(crate) fn merge(&mut self, into: &Row, from: &Row, owner: Owner) -> bool {
        // In the statement, one position is compared with both rows.
        let from = Row { position: into.position, ..from.clone() };
        let (Some(target), Some(gone)) = (self.passes_fence(into, owner), self.passes_fence(&from, owner)) else {
            return false;
        };
        self.rows[target].keys = self.rows[target].keys.union(&self.rows[gone].keys);
        self.rows.remove(gone);
        true
    }
}
