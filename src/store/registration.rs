//! What a worker states when it registers. It has a file of its own, because both coordination and
//! checkpoints need it.

use std::time::Duration;

use super::folds::FoldTable;
use super::session::Sessions;
use crate::plan::WorkerId;
use crate::scope::{Scope, StartAt};

/// What a worker states when it registers.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    pub(crate) worker: WorkerId,
    pub(crate) replica_set: String,
    pub(crate) host: String,
    pub(crate) pid: i32,
    pub(crate) projections: Vec<Known>,
    /// Which build of the program it is, if the application says so.
    pub(crate) build: Option<String>,
    /// Whether its connections are sessions of its own, which other workers find by locks.
    pub(crate) sessions: Sessions,
    pub(crate) stale_worker_timeout: Duration,
}

/// A projection that a worker knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) name: String,
    pub(crate) start_at: StartAt,
    pub(crate) scope: Scope,
    pub(crate) version: i32,
    /// The number of lanes into which the worker cuts its part of it.
    pub(crate) lanes: usize,
    /// The names of the tables that it writes, without a schema, if it says so.
    pub(crate) tables: Vec<String>,
    /// The table that the library itself writes, if it is a fold.
    pub(crate) fold: Option<FoldTable>,
}

impl Known {
    /// The names of these projections.
    pub(crate) fn names(projections: &[Self]) -> Vec<&str> {
        projections.iter().map(|known| known.name.as_str()).collect()
    }
}
