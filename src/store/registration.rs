//! What a worker brings with it. Apart from the SQL, since both coordination and checkpoints begin with it.

use std::time::Duration;

use crate::plan::WorkerId;
use crate::projection::StartAt;

/// What a worker says of itself when it registers.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) worker: WorkerId,
    pub(crate) replica_set: String,
    pub(crate) host: String,
    pub(crate) pid: i32,
    /// Name and start of each projection it knows.
    pub(crate) projections: Vec<(String, StartAt)>,
    /// Into how many lanes it cuts its part of each.
    pub(crate) lanes: usize,
    /// Whether it holds a session lock.
    pub(crate) has_session_lock: bool,
    pub(crate) stale_worker_timeout: Duration,
}
