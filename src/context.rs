//! What the threads of one worker share.

use crate::database::Database;
use crate::error::Error;
use crate::goal::Goal;
use crate::metrics::ReplicaSetMetrics;
use crate::plan::WorkerId;
use crate::status::Board;
use crate::store::Names;
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

    /// Opens a connection for the worker.
    pub(crate) fn open(&self) -> Result<Session, Error> {
        Session::open(&self.database, self.sessions)
    }
}
