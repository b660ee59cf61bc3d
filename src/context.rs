//! What the threads of one worker share.

use crate::database::Database;
use crate::error::{Error, field};
use crate::goal::Goal;
use crate::metrics::ReplicaSetMetrics;
use crate::plan::{Asked, WorkerId};
use crate::status::Board;
use crate::store::Names;
use crate::store::outcome::Outcome;
use crate::store::session::{Session, Sessions};
use crate::threads::Stop;

/// The database in which a worker works, and the cells through which its threads inform each other.
/// Clones share the same cells.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) sessions: Sessions,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) metrics: ReplicaSetMetrics,
    /// The position at which the worker stops, if it was asked to run to one.
    pub(crate) goal: Goal,
}

impl Context {
    pub(crate) fn replica_set(&self) -> &str {
        self.board.replica_set()
    }

    pub(crate) fn worker(&self) -> WorkerId {
        self.board.worker_id()
    }

    /// Reports that a command of an operator has this outcome.
    pub(crate) fn command_applied(&self, asked: Asked, projection: &str, id: i64, outcome: &Outcome) {
        let (replica_set, command) = (self.replica_set(), asked.as_str());
        self.metrics.commands(command, outcome.as_str()).inc();
        match outcome.why_not() {
            None => log::info!(
                "command applied: replica_set={replica_set} projection={projection} command={command} id={id}",
                replica_set = field(&replica_set),
                projection = field(&projection)
            ),
            Some(error) => log::warn!(
                "command not applied: replica_set={replica_set} projection={projection} command={command} id={id} outcome={} \
                 error={error}",
                outcome.as_str(),
                replica_set = field(&replica_set),
                projection = field(&projection),
                error = field(&error)
            ),
        }
    }

    /// Opens a connection for the worker.
    pub(crate) fn open(&self) -> Result<Session, Error> {
        Session::open(&self.database, self.sessions)
    }
}
