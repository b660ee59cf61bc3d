//! The registry, and what each part of a worker counts in it.
//!
//! *Invariant:* a counter or histogram that a runner holds is an atomic cell; no lock is taken to
//! count an event.

mod common;
mod declare;
mod families;
mod family;
mod handle;

use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use prometheus::{IntCounter, Registry, TextEncoder};

use self::families::{
    Families, ProjectionSeries, Registered, ReplicaSetSeries, WaitSeries, WorkerProjectionSeries, WorkerSeries,
};
use crate::error::Error;

/// The metrics of all orchestrators that share one registry. Clones share the same metrics.
///
#[doc = include_str!("metrics.md")]
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registered: Registered,
    families: Families,
    /// The reporters of each replica set: when the last one is dropped, the gauges are removed.
    reporters: Mutex<HashMap<String, Weak<Reporter>>>,
}

impl Metrics {
    /// Creates metrics in a registry of their own.
    pub fn new() -> Result<Self, Error> {
        Self::in_registry(&Registry::new())
    }

    /// Creates metrics in the application's registry.
    ///
    /// Create one per registry, and clone it for each orchestrator. When the application and all
    /// orchestrators have dropped their clones, the metrics are removed from the registry. Then
    /// others may be created in it.
    ///
    /// # Errors
    ///
    /// [`Error::Metrics`] if the registry already has one of the metrics, from another `Metrics` or
    /// from the application; the error names it. [`Error::InvalidConfig`] if the registry gives all
    /// its series a label that these metrics have themselves. In both cases, the registry is
    /// unchanged.
    pub fn in_registry(registry: &Registry) -> Result<Self, Error> {
        let made = Self::make(Some(registry))?;
        common::refuse_labels(registry, &made.inner.families)?;
        Ok(made)
    }

    /// Creates metrics that are counted, but not registered anywhere.
    pub fn disabled() -> Result<Self, Error> {
        Self::make(None)
    }

    fn make(registry: Option<&Registry>) -> Result<Self, Error> {
        let mut registered = Registered::new(registry);
        let families = Families::make(&mut registered)?;
        Ok(Self { inner: Arc::new(Inner { registered, families, reporters: Mutex::default() }) })
    }

    /// The registry of these metrics; `None` if they are disabled.
    pub fn registry(&self) -> Option<&Registry> {
        self.inner.registered.registry()
    }

    /// Renders everything in the registry, including the application's own metrics, in Prometheus's
    /// text format 0.0.4; nothing if the metrics are disabled.
    ///
    /// # Errors
    ///
    /// [`Error::Render`], which names the metric.
    pub fn render(&self) -> Result<String, Error> {
        let families = self.registry().map(Registry::gather).unwrap_or_default();
        TextEncoder::new().encode_to_string(&families).map_err(|source| Error::Render { source })
    }

    /// Creates the metrics of a replica set as a whole. `place` is the database and the tables that
    /// it works on: replica sets with the same name in different places would overwrite each
    /// other's gauges.
    pub(crate) fn for_replica_set(&self, replica_set: &str, place: &str) -> Result<ReplicaSetMetrics, Error> {
        let by = self.reporter(replica_set, place)?;
        Ok(Held { series: ReplicaSetSeries::new(&self.inner.families, &[replica_set]), by })
    }

    /// Creates the metrics of the calls that have waited for projections with this outcome.
    pub(crate) fn waits(&self, outcome: &str) -> WaitSeries {
        WaitSeries::new(&self.inner.families, &[outcome])
    }

    fn reporter(&self, replica_set: &str, place: &str) -> Result<Arc<Reporter>, Error> {
        let mut reporters = self.inner.reporters.lock();
        let Some(reporter) = reporters.get(replica_set).and_then(Weak::upgrade) else {
            let (replica_set, place) = (replica_set.to_owned(), place.to_owned());
            let reporter = Arc::new(Reporter { metrics: self.clone(), replica_set: replica_set.clone(), place });
            reporters.insert(replica_set, Arc::downgrade(&reporter));
            return Ok(reporter);
        };
        // Dropping `reporter` takes the lock.
        drop(reporters);
        if reporter.place != place {
            return Err(Error::config(
                "metrics",
                format!("shared with replica set {replica_set:?} of {}", reporter.place),
                format!(
                    "this one is of {place}, and both would report to the same series: give the replica sets names \
                     of their own, or each database a Metrics and a registry of its own"
                ),
            ));
        }
        Ok(reporter)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("registry", &self.registry()).finish_non_exhaustive()
    }
}

/// Series, and the guard that removes the gauges among them when the last reporter is dropped.
#[derive(Debug, Clone)]
pub(crate) struct Held<S, B> {
    series: S,
    by: B,
}

impl<S, B> Deref for Held<S, B> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.series
    }
}

/// The metrics of a replica set as a whole.
pub(crate) type ReplicaSetMetrics = Held<ReplicaSetSeries, Arc<Reporter>>;
/// The metrics of one projection, over all workers.
pub(crate) type ProjectionMetrics = Held<ProjectionSeries, Arc<Reporter>>;
/// The metrics of one worker.
pub(crate) type WorkerMetrics = Held<WorkerSeries, Arc<Worker>>;
/// The metrics of one projection on one worker.
pub(crate) type WorkerProjectionMetrics = Held<WorkerProjectionSeries, Arc<Worker>>;

impl ReplicaSetMetrics {
    pub(crate) fn projection(&self, name: &str) -> ProjectionMetrics {
        let series = ProjectionSeries::new(self.by.families(), &[&self.by.replica_set, name]);
        Held { series, by: self.by.clone() }
    }

    pub(crate) fn worker(&self, worker_id: &str) -> WorkerMetrics {
        let worker = Worker { reporter: self.by.clone(), worker_id: worker_id.to_owned() };
        let series = WorkerSeries::new(self.by.families(), &[&self.by.replica_set, worker_id]);
        Held { series, by: Arc::new(worker) }
    }

    /// Returns the counter of how often the connection with this use was opened again.
    pub(crate) fn reconnects(&self, connection: &str) -> IntCounter {
        self.reconnects.child([connection])
    }

    /// Returns the counter of the commands with this name and outcome.
    pub(crate) fn commands(&self, command: &str, outcome: &str) -> IntCounter {
        self.commands.child([command, outcome])
    }

    /// Shows the lag of these projections, and removes that of all others: a value that is no
    /// longer measured would mislead.
    pub(crate) fn set_lags<'a>(&self, lags: impl Iterator<Item = Lag<'a>> + Clone) {
        let of = |lag: &Lag<'_>| [lag.projection.to_owned()];
        self.checkpoint_position.replace(lags.clone().map(|lag| (of(&lag), lag.position)));
        self.lag_events.replace(lags.clone().map(|lag| (of(&lag), lag.events)));
        self.lag_seconds.replace(lags.map(|lag| (of(&lag), lag.seconds)));
    }

    /// Shows what operators have to know of these projections, and removes that of all others.
    pub(crate) fn set_conditions<'a>(&self, conditions: &(impl Iterator<Item = Condition<'a>> + Clone)) {
        let of = |condition: &Condition<'_>| [condition.projection.to_owned()];
        let all = || conditions.clone();
        self.projection_paused.replace(all().map(|at| (of(&at), at.is_paused.into())));
        self.projection_rewinding.replace(all().map(|at| (of(&at), at.is_rewinding.into())));
        self.parked_aggregates.replace(all().map(|at| (of(&at), at.parked)));
        self.commands_pending.replace(all().map(|at| (of(&at), at.pending)));
    }
}

impl ReplicaSetMetrics {
    /// Shows the progress of these rebuilds, and removes that of all others.
    pub(crate) fn set_rebuilds<'a>(&self, rebuilds: &(impl Iterator<Item = Rebuild<'a>> + Clone)) {
        let of = |rebuild: &Rebuild<'_>| [rebuild.projection.to_owned()];
        let all = || rebuilds.clone();
        self.rebuild_progress.replace(all().map(|at| (of(&at), at.progress)));
        self.rebuild_events.replace(all().map(|at| (of(&at), at.events)));
        self.rebuild_positions_to_go.replace(all().map(|at| (of(&at), at.positions_to_go)));
        self.rebuild_blocked.replace(all().map(|at| (of(&at), at.is_blocked.into())));
    }

    /// Shows for how many seconds the former tables of these projections have been kept.
    pub(crate) fn set_old_tables<'a>(&self, old: impl Iterator<Item = (&'a str, f64)>) {
        self.old_tables_age.replace(old.map(|(projection, seconds)| ([projection.to_owned()], seconds)));
    }
}

/// The progress of a rebuild.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rebuild<'a> {
    pub(crate) projection: &'a str,
    pub(crate) progress: f64,
    pub(crate) events: i64,
    pub(crate) positions_to_go: i64,
    pub(crate) is_blocked: bool,
}

/// The lag of a projection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lag<'a> {
    pub(crate) projection: &'a str,
    /// The projection's lowest checkpoint.
    pub(crate) position: i64,
    pub(crate) events: i64,
    pub(crate) seconds: f64,
}

/// What operators have done to a projection, or have yet to look after.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Condition<'a> {
    pub(crate) projection: &'a str,
    pub(crate) is_paused: bool,
    pub(crate) is_rewinding: bool,
    pub(crate) parked: i64,
    /// How many commands are not applied yet.
    pub(crate) pending: i64,
}

impl WorkerMetrics {
    /// Sets the state of the worker, in place of the former one.
    pub(crate) fn set_state(&self, state: &str) {
        self.state.replace([([state.to_owned()], 1)]);
    }

    /// Sets the reason why the worker is not ready, in place of the former one.
    pub(crate) fn set_not_ready(&self, reason: Option<&str>) {
        self.not_ready.replace(reason.map(|reason| ([reason.to_owned()], 1)));
    }

    pub(crate) fn set_pool(&self, size: u32, connections: u32, idle: u32) {
        self.pool_size.set(size.into());
        self.pool_connections.child(["idle"]).set(idle.into());
        self.pool_connections.child(["in_use"]).set(connections.saturating_sub(idle).into());
    }

    /// Creates the metrics of a projection on this worker.
    pub(crate) fn projection(&self, name: &str) -> WorkerProjectionMetrics {
        let Worker { reporter, worker_id } = &*self.by;
        let series = WorkerProjectionSeries::new(reporter.families(), &[&reporter.replica_set, worker_id, name]);
        Held { series, by: self.by.clone() }
    }
}

/// Held by every part that reports on a replica set.
pub(crate) struct Reporter {
    metrics: Metrics,
    replica_set: String,
    place: String,
}

impl Reporter {
    fn families(&self) -> &Families {
        &self.metrics.inner.families
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let mut reporters = self.metrics.inner.reporters.lock();
        // Another reporter may have been created after the last reference to this one was dropped
        // and before the lock was taken.
        if reporters.get(&self.replica_set).is_some_and(|successor| successor.strong_count() > 0) {
            return;
        }
        reporters.remove(&self.replica_set);
        self.families().end(&[("replica_set", &self.replica_set)]);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reporter").field(&self.replica_set).finish()
    }
}

/// Held by every part that reports for a worker.
#[derive(Debug)]
pub(crate) struct Worker {
    reporter: Arc<Reporter>,
    worker_id: String,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let Self { reporter, worker_id } = self;
        reporter.families().end(&[("replica_set", &reporter.replica_set), ("worker_id", worker_id)]);
    }
}

#[cfg(test)]
mod tests;
