//! What a runner is given, what it is told and what it reports.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use crate::config::Settings;
use crate::context::Context;
use crate::database::Pool;
use crate::feed::prefetch::Request;
use crate::feed::{Feed, Follower};
use crate::metrics::{ProjectionMetrics, WorkerProjectionMetrics};
use crate::projection::Handler;
use crate::scope::Scope;
use crate::store::fence::Owner;
use crate::trust::Trust;

/// What a runner is told to process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Task {
    pub(crate) owner: Owner,
    /// The number of the deal that gave the owner its checkpoints. If it changes, the runner has to
    /// reload them.
    pub(crate) deal: i64,
}

/// What the coordinator asks of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Load the checkpoints of this owner and process them, instead of what it processes now.
    Run(Task),
    /// Stop at the next event boundary and report it.
    Pause,
}

/// What a runner tells the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// It has stopped processing, as asked, or has ended.
    Paused(usize),
    /// It found that its worker no longer owns the checkpoints, and has stopped processing the
    /// task.
    Fenced(usize, Task),
}

/// Everything a runner works with.
pub(crate) struct Runner {
    pub(crate) context: Context,
    pub(crate) index: usize,
    pub(crate) lane: usize,
    /// The projection's name.
    pub(crate) name: Box<str>,
    pub(crate) handler: Arc<dyn Handler>,
    pub(crate) scope: Scope,
    pub(crate) pool: Pool,
    pub(crate) feed: Feed,
    pub(crate) follower: Follower,
    /// Sends requests to its reader.
    pub(crate) requests: Sender<Request>,
    pub(crate) settings: Settings,
    /// How long other workers wait for a call of a reaction.
    pub(crate) call_limit: Duration,
    /// See [`mark`](crate::store::fence::mark).
    pub(crate) idle_limit: Duration,
    pub(crate) trust: Trust,
    pub(crate) metrics: ProjectionMetrics,
    pub(crate) own_metrics: WorkerProjectionMetrics,
    pub(crate) commands: Receiver<Command>,
    pub(crate) reports: Sender<Report>,
}
