//! What a coordinator sees of its replica set in one snapshot of the database.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

/// A worker's identity, chosen at random when its orchestrator is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub Uuid);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A moment on the server's clock, in microseconds. It is compared only with other moments on that
/// clock (I6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct ServerTime(pub(crate) i64);

impl ServerTime {
    /// How long ago `earlier` was; zero if it is in the future.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// The state of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WorkerState {
    /// Registered, or given a partition of a generation for which it is not ready yet.
    Pending,
    /// Its runners are paused; it waits for the others of its generation.
    Ready,
    /// Its generation is active and it may process its partition.
    Running,
    /// It was asked to leave and finishes what it has begun.
    Stopping,
    /// It left, or was evicted.
    Stopped,
}

impl WorkerState {
    /// Every state, in the order a worker goes through them.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Ready, Self::Running, Self::Stopping, Self::Stopped];

    /// The state's name in the database, the metrics and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
        }
    }

    /// The state with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The state of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum GenerationState {
    /// Its workers are pausing.
    Pending,
    /// Its workers own their partitions.
    Active,
}

impl GenerationState {
    /// The state of the newest generation that has this name in the database. A generation is
    /// superseded only when a newer one is created. If that newer one was deleted by hand, no
    /// worker owns anything, as in a pending one.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "pending" | "superseded" => Some(Self::Pending),
            "active" => Some(Self::Active),
            _ => None,
        }
    }
}

/// The newest generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct GenerationView {
    pub(crate) number: i64,
    pub(crate) state: GenerationState,
    pub(crate) total_partitions: usize,
    pub(crate) created_at: ServerTime,
}

/// The state of a worker's session lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Session {
    /// Held: the process is connected.
    Held,
    /// Not held, and no worker has recorded that yet.
    Missing,
    /// Not held; the loss was recorded at this moment.
    LostSince(ServerTime),
    /// Held again, but its loss is still recorded.
    Regained,
    /// This worker takes no session lock: its liveness relies on heartbeats alone.
    Unused,
}

/// One registered worker that has not stopped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct WorkerView {
    pub(crate) id: WorkerId,
    pub(crate) state: WorkerState,
    /// The newest generation in which it was given a partition; 0 before the first.
    pub(crate) generation: i64,
    pub(crate) partition: Option<usize>,
    pub(crate) session: Session,
    pub(crate) registered_at: ServerTime,
    pub(crate) last_heartbeat: ServerTime,
    /// The projections whose code it has.
    pub(crate) projections: Arc<[Code]>,
    /// Which build of the program it is, if it says so.
    pub(crate) build: Option<Arc<str>>,
}

impl WorkerView {
    /// Whether it has the code of a projection, of any version.
    pub(crate) fn has_code(&self, base: &str) -> bool {
        self.version_of(base).is_some()
    }

    /// The version of its code of a projection.
    pub(crate) fn version_of(&self, base: &str) -> Option<i32> {
        self.code_of(base).map(|code| code.version)
    }

    /// The number of lanes into which it cuts its share of a projection.
    pub(crate) fn lanes_of(&self, base: &str) -> usize {
        self.code_of(base).map_or(1, |code| code.lanes.max(1))
    }

    fn code_of(&self, base: &str) -> Option<&Code> {
        self.projections.iter().find(|code| &*code.name == base)
    }

    /// Whether it may handle events for this projection.
    pub(crate) fn knows(&self, projection: &ProjectionView) -> bool {
        // The handler would write to the live tables.
        let is_kept = Kind::of(&projection.name) == Kind::Old;
        let is_same_build = projection.build.is_none() || projection.build == self.build;
        !is_kept && is_same_build && self.version_of(base_of(&projection.name)) == Some(projection.version)
    }
}

/// The code of a projection that a worker has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Code {
    pub(crate) name: Arc<str>,
    pub(crate) version: i32,
    /// The number of lanes into which the worker cuts its share.
    pub(crate) lanes: usize,
}

/// Which checkpoints of a projection these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    /// Those of the read model that readers use.
    Live,
    /// Those of the copies that a rebuild fills.
    Rebuild,
    /// Those of the former tables that a rebuild has kept.
    Old,
}

impl Kind {
    /// Each kind except [`Live`](Self::Live), with what is appended to the projection's name.
    const SUFFIXES: [(Self, &'static str); 2] = [(Self::Rebuild, "@rebuild"), (Self::Old, "@old")];

    /// The kind of the checkpoints that have this name.
    pub(crate) fn of(name: &str) -> Self {
        Self::SUFFIXES.iter().find(|(_, suffix)| name.ends_with(suffix)).map_or(Self::Live, |(kind, _)| *kind)
    }

    /// The name of the checkpoints of this kind of a projection.
    pub(crate) fn name(self, base: &str) -> String {
        let suffix = Self::SUFFIXES.iter().find(|(kind, _)| *kind == self).map_or("", |(_, suffix)| suffix);
        format!("{base}{suffix}")
    }
}

/// The name of a projection in the code, without what is appended for a rebuild.
pub(crate) fn base_of(name: &str) -> &str {
    Kind::SUFFIXES.iter().find_map(|(_, suffix)| name.strip_suffix(suffix)).unwrap_or(name)
}

/// What an operator wants of a projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum DesiredState {
    /// It is processed.
    Running,
    /// No worker processes it.
    Paused,
}

impl DesiredState {
    const ALL: [Self; 2] = [Self::Running, Self::Paused];

    /// The state's name in the database and the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }

    /// The state with this name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Asked {
    Pause,
    Resume,
    Rewind,
    Remove,
    Replay,
    Discard,
    Rebuild,
    RebuildAggregate,
    Cancel,
    Revert,
    DropOld,
}

impl Asked {
    pub(crate) const ALL: [Self; 11] = [
        Self::Pause,
        Self::Resume,
        Self::Rewind,
        Self::Remove,
        Self::Replay,
        Self::Discard,
        Self::Rebuild,
        Self::RebuildAggregate,
        Self::Cancel,
        Self::Revert,
        Self::DropOld,
    ];

    /// The command's name in the database, the metrics and the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Rewind => "rewind",
            Self::Remove => "remove",
            Self::Replay => "replay",
            Self::Discard => "discard",
            Self::Rebuild => "rebuild",
            Self::RebuildAggregate => "rebuild_aggregate",
            Self::Cancel => "cancel",
            Self::Revert => "revert",
            Self::DropOld => "drop_old",
        }
    }

    /// The command with this name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|asked| asked.as_str() == name)
    }
}

/// How far a command has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Step {
    /// Nothing has happened yet.
    Queued,
    /// This worker executes it. While a read model is cleared, no worker owns the projection's
    /// checkpoints.
    Executing { executor: WorkerId, attempt: i32 },
    /// The worker has done its part: the read model is cleared, and the checkpoints are moved.
    Executed,
    /// Workers fill the copies of the tables. It is due when the switch may be tried: the rebuild
    /// has caught up.
    Loading { is_due: bool },
    /// This worker switches to the copies.
    Finishing { executor: WorkerId, attempt: i32 },
}

impl Step {
    /// Whether other commands of the projection go on meanwhile.
    pub(crate) fn is_in_background(self) -> bool {
        matches!(self, Self::Loading { .. } | Self::Finishing { .. })
    }

    /// The worker that executes it now.
    pub(crate) fn executor(self) -> Option<WorkerId> {
        match self {
            Self::Executing { executor, .. } | Self::Finishing { executor, .. } => Some(executor),
            Self::Queued | Self::Executed | Self::Loading { .. } => None,
        }
    }
}

/// A command that is not finished.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct CommandView {
    pub(crate) id: i64,
    pub(crate) projection: Arc<str>,
    pub(crate) asked: Asked,
    pub(crate) step: Step,
    /// The version for which a read model is to be rebuilt, if not for the live one.
    pub(crate) version: Option<i32>,
    /// The build that is to rebuild it, if only that one is.
    pub(crate) build: Option<Arc<str>>,
}

/// Why a projection cannot be distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Fault {
    /// It has no checkpoints.
    Missing,
    /// Its checkpoints overlap or leave keys out.
    Torn,
}

impl Fault {
    const ALL: [Self; 2] = [Self::Missing, Self::Torn];

    /// The fault's name in the database.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Torn => "torn",
        }
    }

    /// The fault with this name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.as_str() == name)
    }
}

/// What was found when the checkpoints of a projection were inspected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Rows {
    /// They were not inspected, to save time.
    NotInspected,
    /// They are owned as the last deal says.
    AsDealt,
    /// They are disjoint and cover the key space, but are not owned as the last deal says: they
    /// were changed by hand, or never dealt.
    Whole,
    /// They were changed by hand in a way that cannot be repaired without knowing why.
    Unusable(Fault),
}

/// One projection of the replica set.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ProjectionView {
    /// Its name in the code, with what is appended for a [`Kind`].
    pub(crate) name: Arc<str>,
    /// The version of the code that may handle its events, and the build, if only that one may.
    pub(crate) version: i32,
    pub(crate) build: Option<Arc<str>>,
    pub(crate) desired: DesiredState,
    /// Whether a command clears its read model. Meanwhile no worker may process it.
    pub(crate) is_clearing: bool,
    /// How it was last distributed.
    pub(crate) dealt: DesiredState,
    /// The number of its last distribution; no number is used twice. A runner that was told another
    /// number has to reload its checkpoints.
    pub(crate) deal: i64,
    pub(crate) rows: Rows,
    /// The fault for which it was withdrawn from all workers.
    pub(crate) withdrawn: Option<Fault>,
}

impl ProjectionView {
    /// How it is to be distributed.
    pub(crate) fn target(&self) -> DesiredState {
        if self.is_clearing { DesiredState::Paused } else { self.desired }
    }
}

/// A projection that workers of the replica set know, but that does not belong to it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Unclaimed {
    pub(crate) name: Arc<str>,
    /// The replica set to which it belongs. If there is none, its rows were deleted.
    pub(crate) owner: Option<Arc<str>>,
}

/// A replica set as one snapshot shows it, without the workers that have stopped.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ClusterView {
    pub(crate) now: ServerTime,
    /// When the observer's own session began. No worker is judged by what happened before: after a
    /// restart or a failover of the server every session is gone and every heartbeat is old, and
    /// the other workers need time to come back.
    pub(crate) observing_since: ServerTime,
    pub(crate) generation: Option<GenerationView>,
    pub(crate) workers: Vec<WorkerView>,
    pub(crate) projections: Vec<ProjectionView>,
    pub(crate) unclaimed: Vec<Unclaimed>,
    /// The pending commands in the order in which they were given: of each projection the first
    /// one, and a rebuild in the background.
    pub(crate) commands: Vec<CommandView>,
}

impl ClusterView {
    pub(crate) fn worker(&self, id: WorkerId) -> Option<&WorkerView> {
        self.workers.iter().find(|worker| worker.id == id)
    }

    pub(crate) fn standing(&self, id: WorkerId) -> Standing {
        let member = self.worker(id).map(|&WorkerView { state, generation, partition, .. }| Member {
            state,
            generation,
            partition,
        });
        let is_own = |projection: &&ProjectionView| match Kind::of(&projection.name) {
            Kind::Live => true,
            Kind::Rebuild => self.worker(id).is_some_and(|worker| worker.knows(projection)),
            Kind::Old => false,
        };
        let deals = self.projections.iter().filter(is_own);
        let deals = deals.map(|projection| (projection.name.clone(), projection.deal)).collect();
        let errand = errand(&self.commands, id);
        let is_command_due = self.commands.iter().any(|command| matches!(command.step, Step::Queued | Step::Executed));
        Standing { generation: self.generation.clone(), member, deals, errand, is_command_due }
    }
}

/// What one worker has to know to do its own part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    /// The newest generation.
    pub(crate) generation: Option<GenerationView>,
    /// None if it is not registered, or stopped.
    pub(crate) member: Option<Member>,
    /// The number of the last distribution of each projection of the replica set, and of the
    /// rebuilds in which the worker takes part.
    pub(crate) deals: BTreeMap<Arc<str>, i64>,
    /// The command that the worker has to execute.
    pub(crate) errand: Option<Errand>,
    /// Whether there is a command that a coordinator may have to apply.
    pub(crate) is_command_due: bool,
}

/// The worker's own row. See [`WorkerView`] for the fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) state: WorkerState,
    pub(crate) generation: i64,
    pub(crate) partition: Option<usize>,
}

/// A command that a worker executes, without the replica set's lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Errand {
    pub(crate) command: i64,
    pub(crate) asked: Asked,
    /// Whether it is the last part of a rebuild: the switch.
    pub(crate) is_finishing: bool,
    pub(crate) attempt: i32,
    pub(crate) projection: Arc<str>,
}

/// Returns the first command that this worker has to execute. A worker executes one at a time. The
/// switch of a rebuild comes last: it may take long, and be cancelled by one of the others.
pub(super) fn errand(commands: &[CommandView], worker: WorkerId) -> Option<Errand> {
    let errands = commands.iter().filter_map(|command| match command.step {
        Step::Executing { executor, attempt } | Step::Finishing { executor, attempt } if executor == worker => {
            let is_finishing = command.step.is_in_background();
            let CommandView { id, asked, ref projection, .. } = *command;
            Some(Errand { command: id, asked, is_finishing, attempt, projection: projection.clone() })
        }
        _ => None,
    });
    errands.min_by_key(|errand| (errand.is_finishing, errand.command))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::{projection, view, worker};

    #[test]
    fn kinds_are_told_apart_by_the_end_of_the_name() {
        for (name, kind, base) in [
            ("orders", Kind::Live, "orders"),
            ("orders@rebuild", Kind::Rebuild, "orders"),
            ("orders@old", Kind::Old, "orders"),
            ("rebuild", Kind::Live, "rebuild"),
            ("@old", Kind::Old, ""),
            ("orders@older", Kind::Live, "orders@older"),
            ("old@rebuild", Kind::Rebuild, "old"),
        ] {
            assert_eq!((Kind::of(name), base_of(name)), (kind, base), "{name}");
            assert_eq!(kind.name(base), name);
        }
    }

    fn of(name: &str, version: i32, build: Option<&str>) -> ProjectionView {
        let (desired, dealt) = (DesiredState::Running, DesiredState::Running);
        ProjectionView { version, build: build.map(Arc::from), ..projection(name, desired, dealt) }
    }

    #[test]
    fn a_worker_knows_only_what_has_its_version_and_build() {
        let known = worker(1, WorkerState::Running, 5, Some(0));
        let built = WorkerView { build: Some("b".into()), ..known.clone() };
        for (name, version, build, by_any, by_built) in [
            ("orders", 1, None, true, true),
            ("orders@rebuild", 1, None, true, true),
            ("orders", 2, None, false, false),
            ("orders", 0, None, false, false),
            ("orders@rebuild", 2, None, false, false),
            ("orders@rebuild", 1, Some("b"), false, true),
            ("orders@rebuild", 1, Some("c"), false, false),
            ("orders@rebuild", 2, Some("b"), false, false),
            ("customers", 1, None, false, false),
        ] {
            let projection = of(name, version, build);
            let both = (known.knows(&projection), built.knows(&projection));
            assert_eq!(both, (by_any, by_built), "{name} {version} {build:?}");
        }
        assert!(known.has_code("orders") && !known.has_code("customers"));
        assert_eq!((known.version_of("invoices"), known.version_of("customers")), (Some(1), None));
    }

    #[test]
    fn a_standing_has_the_rebuilds_in_which_the_worker_takes_part() {
        let mut view = view(GenerationState::Active, 2, vec![worker(1, WorkerState::Running, 5, Some(0))]);
        view.projections = vec![
            of("orders", 2, None),
            of("orders@old", 1, None),
            of("orders@rebuild", 1, None),
            of("x@rebuild", 1, None),
        ];
        let deals = |view: &ClusterView| {
            let standing = view.standing(view.workers[0].id);
            standing.deals.into_keys().map(|name| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(deals(&view), ["orders", "orders@rebuild"], "the live ones always");
        view.projections[2].version = 2;
        assert_eq!(deals(&view), ["orders"]);
    }
}
