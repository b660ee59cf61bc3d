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

/// Where a worker works, and the cells through which its threads inform each other. Clones are the
/// same.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) database: Database,
    pub(crate) names: Names,
    pub(crate) sessions: Sessions,
    pub(crate) stop: Stop,
    pub(crate) board: Board,
    pub(crate) metrics: ReplicaSetMetrics,
    /// Where the worker stops, if it was asked to.
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
