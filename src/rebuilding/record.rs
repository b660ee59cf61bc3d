//! What operators see of a rebuild, and of former tables that are kept.

use serde::{Deserialize, Serialize};

/// A rebuild that is in progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RebuildRecord {
    /// The number of the command that has begun it.
    pub command_id: i64,
    /// `loading` while the copies are filled at the rate that was asked for, `catching_up` without
    /// a limit, then `following` while the live projection goes no further than the rebuild.
    pub state: String,
    /// The version of the code that handles its events.
    pub version: i32,
    /// The build of the program that may handle them, if only that one may.
    pub build_id: Option<String>,
    /// How many events per second it may handle; `None` is without a limit.
    pub rate_limit: Option<i32>,
    /// Whether the former tables are kept after the switch.
    pub keep_old: bool,
    /// Whether the content of the live tables is replaced, instead of the tables.
    pub copy: bool,
    /// The size of the live tables when it began.
    pub bytes: i64,
    /// How many seconds ago it began.
    pub age_seconds: f64,
    /// How much of the events it has passed, from 0 to 1: the average over its keys.
    pub progress: f64,
    /// Its lowest checkpoint.
    pub position: Option<i64>,
    /// How many positions it has yet to pass: the average over its keys.
    pub positions_left: i64,
    /// How many events its handlers have handled.
    pub events: i64,
    /// How many events they handle per second: within the last minute, as far as it was observed,
    /// else since it began.
    pub events_per_second: f64,
    /// After how many seconds it has passed all events, at the rate at which it gets closer to the
    /// newest one. `None` if it does not, or if a part of it stands still.
    pub seconds_to_go: Option<f64>,
    /// How many running workers may handle its events.
    pub workers: i64,
    /// How many aggregates it has parked.
    pub parked: i64,
    /// What keeps it from its switch, and what to do: one sentence each.
    pub blocked: Vec<String>,
    /// The last error of a checkpoint that does not proceed.
    pub error: Option<String>,
    /// The id of the event that fails there, if it is known.
    pub failing_event: Option<String>,
}

/// Former tables of a projection that a rebuild has kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OldRecord {
    /// The number of the command that has rebuilt the projection.
    pub command_id: i64,
    /// The schema in which they are.
    pub schema: String,
    /// Their names, as they were while they were live.
    pub tables: Vec<String>,
    /// Their size.
    pub bytes: i64,
    /// The version of the code that has filled them.
    pub version: i32,
    /// How many seconds ago they were replaced.
    pub age_seconds: f64,
}
