//! What a worker knows about itself. Every thread writes its part here, and any thread can read a
//! copy.
//!
//! The board is a few cells behind locks that are held only while a value is copied. Reading it
//! never queries the database.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;

use crate::error::{Error, Shown, one_line, without_rows};
use crate::health::{Limits, NotReady, Vitals};
use crate::plan::{KeySet, WorkerId, WorkerState};
use crate::shortage::Shortage;

/// The state of a projection on this worker. States are ordered by how much attention they need. A
/// projection with several lanes has the state of the lane that needs most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[non_exhaustive]
pub enum ProjectionState {
    /// The worker holds no part of the projection, for example because an operator has paused it.
    /// Or processing is paused while a generation is formed.
    #[default]
    Paused,
    /// Events are processed, or the projection waits for events.
    Running,
    /// The last batch failed and will be retried.
    Retrying,
    /// The attempts are used up: the projection makes no progress on this worker. It retries with
    /// one event at an interval ([`Retry::halted_interval`](crate::Retry::halted_interval)), when
    /// the worker is restarted, and when the partitions are redistributed.
    Halted,
}

impl ProjectionState {
    /// The state's name in `/status` and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Running => "running",
            Self::Retrying => "retrying",
            Self::Halted => "halted",
        }
    }
}

impl fmt::Display for ProjectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of event keys, from 0 to 65535: the part of a projection that is owned. An event's key is
/// a hash of its aggregate's id.
///
/// Displays as PostgreSQL writes an `int4multirange`: `{[0,32768)}`, or `{}` if it is empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Keys(pub(crate) KeySet);

impl Keys {
    /// The ranges of keys, in ascending order, with a gap between any two of them.
    pub fn ranges(&self) -> impl ExactSizeIterator<Item = Range<i32>> {
        self.0.ranges().iter().map(|&(low, high)| low..high)
    }

    /// Whether the set contains this key.
    pub fn contains(&self, key: i32) -> bool {
        self.0.contains(key)
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of keys in the set.
    pub fn len(&self) -> usize {
        self.ranges().map(|range| range.len()).sum()
    }
}

impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The status of one projection on this worker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProjectionStatus {
    /// The projection's state.
    pub state: ProjectionState,
    /// The keys of the projection that this worker owns.
    pub keys: Keys,
    /// Every event of these keys at or below this global position has been processed; `None` if the
    /// worker owns no keys. With several lanes, this is the lowest of their positions.
    pub position: Option<i64>,
    /// The number of global positions between `position` and the safe head: an upper bound of the
    /// events still to be processed.
    pub lag: Option<i64>,
    /// The number of events that this worker has processed since it started.
    pub events: u64,
    /// The last error, while the projection retries or is halted.
    pub error: Option<String>,
}

/// One lane of a projection.
#[derive(Debug, Clone, Default)]
pub(crate) struct LaneStatus {
    pub(crate) state: ProjectionState,
    pub(crate) keys: KeySet,
    pub(crate) position: Option<i64>,
    pub(crate) events: u64,
    pub(crate) error: Option<String>,
}

/// The sum over the lanes of a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) state: ProjectionState,
    pub(crate) position: Option<i64>,
}

impl Sum {
    fn of(lanes: &[LaneStatus]) -> Self {
        Self {
            state: lanes.iter().map(|lane| lane.state).max().unwrap_or(ProjectionState::Paused),
            position: lanes.iter().filter_map(|lane| lane.position).min(),
        }
    }
}

impl ProjectionStatus {
    fn of(lanes: &[LaneStatus], safe_head: Option<i64>) -> Self {
        let Sum { state, position } = Sum::of(lanes);
        Self {
            state,
            position,
            keys: Keys(lanes.iter().fold(KeySet::default(), |all, lane| all.union(&lane.keys))),
            lag: safe_head.zip(position).map(|(head, at)| (head - at).max(0)),
            events: lanes.iter().map(|lane| lane.events).sum(),
            error: lanes.iter().find_map(|lane| lane.error.clone()),
        }
    }
}

/// The partition that a worker holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Assignment {
    /// The generation's number.
    pub generation: i64,
    /// The index of the partition, from 0.
    pub partition: usize,
    /// The number of partitions.
    pub total_partitions: usize,
}

/// Why the safe head does not advance.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeadBlocked {
    /// For how long it has not advanced.
    pub duration: Duration,
    /// The transactions that block it.
    pub blockers: Vec<HeadBlocker>,
}

/// What blocks the safe head: an open transaction that may still commit events below it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HeadBlocker {
    /// The backend's process id; `None` for a prepared transaction.
    pub pid: Option<i32>,
    /// Its `application_name`, or the prepared transaction's identifier.
    pub name: String,
    /// How long its transaction has been open; 0 if the server does not show it, because it belongs
    /// to another role.
    pub age: Duration,
}

/// A copy of what a worker knows about itself at one moment.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Status {
    /// The worker's identity.
    pub worker_id: WorkerId,
    /// The name of its replica set.
    pub replica_set: String,
    /// Its state.
    pub state: WorkerState,
    /// The partition it holds; `None` while it waits for one.
    pub assignment: Option<Assignment>,
    /// Every event that will ever exist at or below this global position is visible; `None` before
    /// the worker has first determined it.
    pub safe_head: Option<i64>,
    /// What blocks the safe head, if it is blocked.
    pub head_blocked: Option<HeadBlocked>,
    /// Whether a heartbeat was answered within the last half of `stale_worker_timeout`.
    pub database_reachable: bool,
    /// How long ago the last answered heartbeat was sent; `None` before the first.
    pub last_heartbeat: Option<Duration>,
    /// The projections that the worker runs, by name.
    pub projections: BTreeMap<String, ProjectionStatus>,
}

#[derive(Debug)]
struct Cells {
    state: WorkerState,
    assignment: Option<Assignment>,
    safe_head: Option<i64>,
    head_blocked: Option<(Instant, Vec<HeadBlocker>)>,
    /// When the last answered heartbeat was sent.
    last_heartbeat: Option<Instant>,
    /// The last error of coordination since then.
    coordination_error: Option<String>,
    /// When the worker last coordinated successfully, or registered.
    coordinated: Option<Instant>,
    /// When the tailer's last completed look began; before the first, when the worker registered.
    last_look: Option<Instant>,
    /// The last error of the tailer since then.
    look_error: Option<String>,
    /// The lanes of each projection.
    projections: BTreeMap<String, Vec<LaneStatus>>,
}

/// The board on which the threads of one worker write. Clones share the same cells.
#[derive(Debug, Clone)]
pub(crate) struct Board {
    worker_id: WorkerId,
    replica_set: Arc<str>,
    limits: Limits,
    /// Which threads lack a connection.
    pub(crate) shortage: Shortage,
    cells: Arc<RwLock<Cells>>,
}

impl Board {
    pub(crate) fn new(
        worker_id: WorkerId,
        replica_set: &str,
        limits: Limits,
        lanes: impl IntoIterator<Item = (String, usize)>,
    ) -> Self {
        let projections = lanes.into_iter().map(|(name, lanes)| (name, vec![LaneStatus::default(); lanes])).collect();
        let cells = Cells {
            state: WorkerState::Pending,
            assignment: None,
            safe_head: None,
            head_blocked: None,
            last_heartbeat: None,
            coordination_error: None,
            coordinated: None,
            last_look: None,
            look_error: None,
            projections,
        };
        Self {
            worker_id,
            replica_set: replica_set.into(),
            limits,
            shortage: Shortage::default(),
            cells: Arc::new(RwLock::new(cells)),
        }
    }

    pub(crate) fn worker_id(&self) -> WorkerId {
        self.worker_id
    }

    pub(crate) fn replica_set(&self) -> &str {
        &self.replica_set
    }

    pub(crate) fn set_state(&self, state: WorkerState) {
        self.cells.write().state = state;
    }

    pub(crate) fn set_assignment(&self, assignment: Option<Assignment>) {
        self.cells.write().assignment = assignment;
    }

    pub(crate) fn set_safe_head(&self, head: i64) {
        self.cells.write().safe_head = Some(head);
    }

    pub(crate) fn set_head_blocked(&self, blocked: Option<(Instant, Vec<HeadBlocker>)>) {
        self.cells.write().head_blocked = blocked;
    }

    /// Notes that a heartbeat sent at `sent` was answered.
    pub(crate) fn heartbeat_answered(&self, sent: Instant) {
        let mut cells = self.cells.write();
        cells.last_heartbeat = Some(sent);
        cells.coordinated.get_or_insert(sent);
        cells.last_look.get_or_insert(sent);
    }

    /// Notes that the worker has coordinated successfully.
    pub(crate) fn coordinated(&self) {
        let mut cells = self.cells.write();
        cells.coordinated = Some(Instant::now());
        cells.coordination_error = None;
    }

    /// Notes why coordination failed, or why there is no connection for it.
    pub(crate) fn coordination_failed(&self, error: &Error) {
        self.cells.write().coordination_error = Some(shown(error));
    }

    /// Notes that the tailer has completed a look that it began at `begun`.
    pub(crate) fn looked(&self, begun: Instant) {
        let mut cells = self.cells.write();
        cells.last_look = Some(begun);
        cells.look_error = None;
    }

    /// Notes why the tailer could not complete a look.
    pub(crate) fn look_failed(&self, error: &Error) {
        self.cells.write().look_error = Some(shown(error));
    }

    /// Returns why the worker is not ready, if it is not.
    pub(crate) fn readiness(&self, is_asked_to_stop: bool) -> Result<(), NotReady> {
        let cells = self.cells.read();
        let is_halted = |lanes: &[LaneStatus]| Sum::of(lanes).state == ProjectionState::Halted;
        let halted = cells.projections.iter().filter(|(_, lanes)| is_halted(lanes));
        self.limits.judge(&Vitals {
            is_asked_to_stop,
            state: cells.state,
            heartbeat: cells.last_heartbeat.map(|at| at.elapsed()),
            coordination_error: cells.coordination_error.as_deref(),
            coordinated: cells.coordinated.map(|at| at.elapsed()),
            look: cells.last_look.map(|at| at.elapsed()),
            look_error: cells.look_error.as_deref(),
            shortage: self.shortage.longest().map(|(lasts, error)| (lasts, shown(&error))),
            halted: halted.map(|(name, _)| name.as_str()).collect(),
        })
    }

    pub(crate) fn is_database_reachable(&self) -> bool {
        self.limits.is_recent(self.cells.read().last_heartbeat.map(|at| at.elapsed()))
    }

    /// Changes what is shown for a lane of a projection. Returns the sum over all its lanes.
    pub(crate) fn update_lane(&self, projection: &str, lane: usize, change: impl FnOnce(&mut LaneStatus)) -> Sum {
        let mut cells = self.cells.write();
        let lanes = cells.projections.get_mut(projection).map_or(&mut [][..], Vec::as_mut_slice);
        if let Some(lane) = lanes.get_mut(lane) {
            change(lane);
        }
        Sum::of(lanes)
    }

    pub(crate) fn read(&self) -> Status {
        let cells = self.cells.read();
        let last_heartbeat = cells.last_heartbeat.map(|at| at.elapsed());
        let projections = cells
            .projections
            .iter()
            .map(|(name, lanes)| (name.clone(), ProjectionStatus::of(lanes, cells.safe_head)))
            .collect();
        Status {
            worker_id: self.worker_id,
            replica_set: self.replica_set.to_string(),
            state: cells.state,
            assignment: cells.assignment,
            safe_head: cells.safe_head,
            head_blocked: cells
                .head_blocked
                .as_ref()
                .map(|(since, blockers)| HeadBlocked { duration: since.elapsed(), blockers: blockers.clone() }),
            database_reachable: self.limits.is_recent(last_heartbeat),
            last_heartbeat,
            projections,
        }
    }
}

/// Formats an error in one line, without the rows that the server may quote.
fn shown(error: &impl Shown) -> String {
    one_line(&without_rows(&error.shown()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_ranges() {
        let keys = Keys(KeySet::from_ranges([(10, 20), (30, 31)]));
        assert_eq!(keys.to_string(), "{[10,20),[30,31)}");
        assert_eq!(keys.ranges().collect::<Vec<_>>(), [10..20, 30..31]);
        assert_eq!((keys.len(), keys.is_empty()), (11, false));
        assert!(keys.contains(19) && !keys.contains(20));
        assert_eq!((Keys::default().to_string().as_str(), Keys::default().is_empty()), ("{}", true));
    }
}
