//! What `store::coordination` and `store::checkpoints` do, in memory. `store::equivalence` holds the two equal.
//!
//! Where the real one is kinder, this one is not: a checkpoint's id is used again as soon as it is free, so that the fence must not
//! lean on ids being unique for ever.

use std::time::Duration;

use uuid::Uuid;

use super::sabotage::{self, Cut, Fenced, Sabotage};
use crate::plan::{
    Action, ClusterView, GenerationState, GenerationView, KeySet, Policy, ServerTime, Session, WorkerId, WorkerState,
    WorkerView,
};

pub(crate) const POLICY: Policy = Policy {
    stale_worker_timeout: Duration::from_secs(30),
    session_loss_grace: Some(Duration::from_secs(1)),
    coordination_timeout: Duration::from_secs(60),
    registration_wait: Duration::from_secs(1),
};

const LONG_AGO: ServerTime = ServerTime(0);
const NOW: ServerTime = ServerTime(1_000_000_000);

/// Workers and projections are numbers here, from 0.
pub(crate) fn worker_id(worker: usize) -> WorkerId {
    // The upper half tells session locks apart.
    WorkerId(Uuid::from_u128((u128::try_from(worker).unwrap() + 1) << 96))
}

fn worker_of(id: WorkerId) -> usize {
    usize::try_from((id.0.as_u128() >> 96) - 1).unwrap()
}

/// What clocks would decide. Everything it does not name happened just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Clock {
    /// The workers, by bit, whose last heartbeat is too old.
    pub(crate) stale: u8,
    /// Whether the grace of lost sessions is over.
    pub(crate) grace: bool,
    /// Whether the joiners have waited long enough.
    pub(crate) gathered: bool,
    /// Whether the generation's coordination timeout is over.
    pub(crate) late: bool,
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
    /// Which it knows, by bit.
    pub(crate) projections: u8,
    /// Whether the loss of its session is noted.
    pub(crate) noted: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Row {
    pub(crate) projection: usize,
    pub(crate) id: i64,
    pub(crate) keys: KeySet,
    pub(crate) position: i64,
    pub(crate) generation: i64,
    pub(crate) worker: Option<usize>,
}

/// By what a worker proves that a row is its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Owner {
    pub(crate) worker: usize,
    pub(crate) generation: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Database {
    pub(crate) generation: Option<Generation>,
    pub(crate) workers: Vec<Option<Worker>>,
    /// By id.
    pub(crate) rows: Vec<Row>,
    pub(crate) sabotage: Sabotage,
}

impl Database {
    pub(crate) fn new(workers: usize, sabotage: Sabotage) -> Self {
        Self { generation: None, workers: vec![None; workers], rows: Vec::new(), sabotage }
    }

    /// As `load_view`; `held` says whose session lock is held.
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
                })
                .collect(),
        }
    }

    pub(crate) fn register(&mut self, worker: usize, projections: u8) {
        for projection in (0..8).filter(|projection| projections & 1 << projection != 0) {
            if !self.rows.iter().any(|row| row.projection == projection) {
                let taken = |id: &i64| self.rows.iter().any(|row| row.id == *id);
                let id = (1..100).find(|id| !taken(id)).unwrap();
                self.rows.push(Row { projection, id, keys: KeySet::all(), position: 0, generation: 0, worker: None });
                self.rows.sort_by_key(|row| row.id);
            }
        }
        let state = WorkerState::Pending;
        // A worker that comes back knows what it knew.
        let projections = self.workers[worker].map_or(projections, |before| before.projections);
        self.workers[worker] = Some(Worker { state, generation: 0, partition: None, projections, noted: false });
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

    pub(crate) fn apply(&mut self, action: &Action) {
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
            Action::Activate(number) => {
                self.recut(*number);
                if let Some(generation) = &mut self.generation {
                    generation.state = GenerationState::Active;
                }
                for row in self.workers.iter_mut().flatten() {
                    if row.generation == *number && row.state == WorkerState::Ready {
                        row.state = WorkerState::Running;
                    }
                }
            }
        }
    }

    pub(crate) fn recut(&mut self, generation: i64) {
        if self.sabotage == Sabotage::ActivatesUncut {
            return;
        }
        let mut cut = Cut::new();
        for old in std::mem::take(&mut self.rows) {
            let mut members: Vec<(usize, &Worker)> = self
                .workers
                .iter()
                .enumerate()
                .filter_map(|(worker, row)| Some((worker, row.as_ref()?)))
                .filter(|(_, row)| row.generation == generation && row.state == WorkerState::Ready)
                .filter(|(_, row)| row.projections & 1 << old.projection != 0)
                .collect();
            members.sort_by_key(|(_, row)| row.partition);
            let total = members.len();
            let mut dealt: Vec<(Option<usize>, KeySet)> =
                members.iter().enumerate().map(|(k, (id, _))| (Some(*id), KeySet::partition(k, total))).collect();
            if dealt.is_empty() {
                dealt.push((None, KeySet::all()));
            }
            if self.sabotage == Sabotage::RecutDropsPiece && total > 2 {
                dealt.pop();
            }
            for (worker, keys) in dealt {
                let piece = old.keys.intersection(&keys);
                if !piece.is_empty() {
                    let kept = cut.entry((old.projection, old.position, worker)).or_default();
                    *kept = kept.union(&piece);
                }
            }
        }
        if matches!(self.sabotage, Sabotage::RecutJumps | Sabotage::RecutGoesBack) {
            cut = sabotage::at_one_position(cut, self.sabotage == Sabotage::RecutJumps);
        }
        self.rows = (1..)
            .zip(cut)
            .map(|(id, ((projection, position, worker), keys))| Row {
                projection,
                id,
                keys,
                position,
                generation,
                worker,
            })
            .collect();
    }

    /// Where the row is that a worker may change.
    fn passes_fence(&self, row: &Row, owner: Owner) -> Option<usize> {
        let ignores = |what| self.sabotage == Sabotage::FenceWithout(what);
        self.rows.iter().position(|now| {
            now.id == row.id
                && (now.position == row.position || ignores(Fenced::Position))
                && (now.generation == owner.generation || ignores(Fenced::Generation) || ignores(Fenced::Owner))
                && (now.worker == Some(owner.worker) || ignores(Fenced::Owner))
        })
    }

    pub(crate) fn may_commit(&self, row: &Row, owner: Owner) -> bool {
        self.passes_fence(row, owner).is_some()
    }

    pub(crate) fn owned(&self, projection: usize, owner: Owner) -> Vec<Row> {
        let is_owned = |row: &&Row| {
            (row.projection, row.generation, row.worker) == (projection, owner.generation, Some(owner.worker))
        };
        let mut rows: Vec<Row> = self.rows.iter().filter(is_owned).cloned().collect();
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
        // One position stands for both in the statement.
        let from = Row { position: into.position, ..from.clone() };
        let (Some(target), Some(gone)) = (self.passes_fence(into, owner), self.passes_fence(&from, owner)) else {
            return false;
        };
        self.rows[target].keys = self.rows[target].keys.union(&self.rows[gone].keys);
        self.rows.remove(gone);
        true
    }
}
