//! `/status`: what workers know, as JSON. Its fields are documented in `http/status.md`.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::overview::Sight;
use crate::status::{Assignment, HeadBlocker, ProjectionStatus, Status};

/// What workers of this process know, as `/status` of the `MetricsServer` shows it.
///
/// It serialises to the JSON that is documented there, and displays as that JSON. `collect()`
/// combines the reports of several workers into one.
#[derive(Debug, Clone)]
pub struct StatusReport {
    workers: Vec<(Status, Option<Sight>)>,
}

impl StatusReport {
    pub(super) fn new(status: Status, sight: Option<Sight>) -> Self {
        Self { workers: vec![(status, sight)] }
    }

    /// What each worker knows about itself.
    pub fn workers(&self) -> impl Iterator<Item = &Status> {
        self.workers.iter().map(|(status, _)| status)
    }
}

impl FromIterator<StatusReport> for StatusReport {
    fn from_iter<T: IntoIterator<Item = StatusReport>>(reports: T) -> Self {
        Self { workers: reports.into_iter().flat_map(|report| report.workers).collect() }
    }
}

impl Serialize for StatusReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let workers = self.workers.iter().map(|(status, sight)| Watched::new(status, sight.as_ref())).collect();
        Answer { version: env!("CARGO_PKG_VERSION"), workers }.serialize(serializer)
    }
}

/// Writes the JSON in one line.
impl fmt::Display for StatusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    version: &'static str,
    workers: Vec<Watched<'a>>,
}

#[derive(Serialize)]
struct Watched<'a> {
    worker_id: String,
    replica_set: &'a str,
    state: &'static str,
    assignment: Option<Held>,
    database_reachable: bool,
    heartbeat_age_seconds: Option<f64>,
    safe_head: Option<i64>,
    head_blocked: Option<Blocked<'a>>,
    projections: Vec<Projection<'a>>,
    overview: Option<Overview<'a>>,
}

#[derive(Serialize)]
struct Held {
    generation: i64,
    partition: usize,
    total_partitions: usize,
}

#[derive(Serialize)]
struct Blocked<'a> {
    seconds: f64,
    blockers: Vec<Blocker<'a>>,
}

#[derive(Serialize)]
struct Blocker<'a> {
    pid: Option<i32>,
    name: &'a str,
    age_seconds: f64,
}

#[derive(Serialize)]
struct Projection<'a> {
    name: &'a str,
    state: &'static str,
    keys: String,
    position: Option<i64>,
    lag_events: Option<i64>,
    events: u64,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct Overview<'a> {
    age_seconds: f64,
    replica_set: &'a RawValue,
}

impl<'a> Watched<'a> {
    fn new(status: &'a Status, sight: Option<&'a Sight>) -> Self {
        Self {
            worker_id: status.worker_id.to_string(),
            replica_set: &status.replica_set,
            state: status.state.as_str(),
            assignment: status.assignment.map(Held::from),
            database_reachable: status.database_reachable,
            heartbeat_age_seconds: status.last_heartbeat.map(seconds),
            safe_head: status.safe_head,
            head_blocked: status.head_blocked.as_ref().map(|blocked| Blocked {
                seconds: seconds(blocked.duration),
                blockers: blocked.blockers.iter().map(Blocker::from).collect(),
            }),
            projections: status
                .projections
                .iter()
                .map(|(name, projection)| Projection::new(name, projection))
                .collect(),
            overview: sight
                .map(|sight| Overview { age_seconds: seconds(sight.at.elapsed()), replica_set: &sight.json }),
        }
    }
}

impl From<Assignment> for Held {
    fn from(held: Assignment) -> Self {
        let Assignment { generation, partition, total_partitions } = held;
        Self { generation, partition, total_partitions }
    }
}

impl<'a> From<&'a HeadBlocker> for Blocker<'a> {
    fn from(blocker: &'a HeadBlocker) -> Self {
        Self { pid: blocker.pid, name: &blocker.name, age_seconds: seconds(blocker.age) }
    }
}

impl<'a> Projection<'a> {
    fn new(name: &'a str, projection: &'a ProjectionStatus) -> Self {
        Self {
            name,
            state: projection.state.as_str(),
            keys: projection.keys.to_string(),
            position: projection.position,
            lag_events: projection.lag,
            events: projection.events,
            error: projection.error.as_deref(),
        }
    }
}

/// Returns a duration in seconds, rounded to milliseconds like the ages from the server.
fn seconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}
