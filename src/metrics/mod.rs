//! The registry, and every metric's name.
//!
//! Names and labels are a published interface. Every name begins with `pupsourcing_orchestrator_`:
//!
//! | name | type | labels | meaning |
//! |---|---|---|---|
//! | `generations_total` | counter | `replica_set` | generations this process has created |
//! | `workers_registered_total` | counter | `replica_set` | workers this process has registered |
//! | `partition_assignments_total` | counter | `replica_set` | partitions the workers of this process have been given |
//! | `reconfiguration_total` | counter | `replica_set` | reconfigurations the workers of this process went through: paused, dealt anew, resumed |
//! | `stale_workers_cleaned_total` | counter | `replica_set` | dead workers this process has evicted |
//! | `active_workers` | gauge | `replica_set` | live workers of the replica set |
//! | `current_generation_partitions` | gauge | `replica_set` | partitions of the current generation |
//! | `worker_state` | gauge | `replica_set`, `worker_id`, `state` | 1 for the state the worker is in; its other states have no series |
//! | `coordination_duration_seconds` | histogram | `replica_set` | from the moment a worker stops processing, or registers, to the moment it processes again |
//! | `heartbeat_latency_seconds` | histogram | `replica_set` | from sending a heartbeat to its answer |
//! | `events_processed_total` | counter | `replica_set`, `projection` | events whose effects were committed |
//! | `projection_errors_total` | counter | `replica_set`, `projection` | failed attempts: the handler's error or panic, or what the server refused it; what is tried again at once does not count |
//! | `event_processing_duration_seconds` | histogram | `replica_set`, `projection` | time of the handler for one event; of a batch handler, its time divided by the events |
//! | `batch_events` | histogram | `replica_set`, `projection` | events committed together in one transaction |
//! | `commit_duration_seconds` | histogram | `replica_set`, `projection` | time of the checkpoint's update and the commit of one batch |
//! | `retries_total` | counter | `replica_set`, `projection` | batches tried again after an error |
//! | `fenced_batches_total` | counter | `replica_set`, `projection` | batches rolled back because their keys had a new owner |
//! | `lag_events` | gauge | `replica_set`, `projection` | events the whole replica set has yet to process; each worker reports the same figure: use `max by (projection)` |
//! | `lag_seconds` | gauge | `replica_set`, `projection` | age of the oldest event yet to process, 0 when there is none; each worker reports the same figure |
//! | `checkpoint_position` | gauge | `replica_set`, `projection` | lowest checkpoint of the projection: all events up to here are processed |
//! | `projection_position` | gauge | `replica_set`, `worker_id`, `projection` | this worker's own position: all events of its keys up to here are processed |
//! | `projection_halted` | gauge | `replica_set`, `worker_id`, `projection` | 1 when the attempts are used up and the projection stands still on this worker |
//! | `safe_head_position` | gauge | `replica_set` | all events up to this global position are visible for good |
//! | `head_blocked_seconds` | gauge | `replica_set` | how long an open transaction has kept the safe head back; 0 when it is free |
//! | `head_blocker_age_seconds` | gauge | `replica_set`, `pid`, `application_name` | age of each transaction that keeps the safe head back, the oldest ones; `pid` is empty for a prepared one |
//! | `reconnects_total` | counter | `replica_set`, `connection` | connections made anew after a loss, by what they serve |
//! | `database_up` | gauge | `replica_set`, `worker_id` | 1 when the last heartbeat got through |
//! | `pool_size` | gauge | `replica_set`, `worker_id` | most connections the pool may hold |
//! | `pool_connections` | gauge | `replica_set`, `worker_id`, `state` | connections the pool holds, by state: `idle` or `in_use` |
//!
//! Gauges have no series before their first value, so that nobody takes "not yet known" for 0, and none after their
//! worker, or the last worker of their replica set in this process, has ended. Counters and histograms stay.
//!
//! *Invariant:* a handle in a runner's hands is an atomic cell; no lock is taken to count an event.

mod families;
mod family;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::core::{AtomicF64, AtomicI64};
use prometheus::{Histogram, IntCounter, IntGauge, Registry, TextEncoder};

use self::families::{Families, Maker};
use self::family::Reading;
use crate::error::Error;

/// More blockers than this say nothing a person would act on, and each would be a series.
const MOST_BLOCKERS: usize = 10;

/// The metrics of all orchestrators that share one registry. Clones are the same metrics.
#[derive(Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

struct Inner {
    registry: Option<Registry>,
    families: Families,
    /// Who still reports on which replica set: the last one takes the gauges with it.
    reporters: Mutex<HashMap<String, Weak<Reporter>>>,
}

impl Metrics {
    /// Metrics in a registry of their own.
    pub fn new() -> Result<Self, Error> {
        Self::in_registry(&Registry::new())
    }

    /// Metrics in the application's registry.
    ///
    /// Make one per registry, and clone it for each orchestrator. Doing so twice on one registry is an
    /// [`Error::Metrics`], as it is when the application has registered one of the names itself; the registry is then left
    /// as it was.
    pub fn in_registry(registry: &Registry) -> Result<Self, Error> {
        let mut maker = Maker { registry: Some(registry), registered: Vec::new() };
        let families = Families::make(&mut maker).inspect_err(|_| maker.undo())?;
        Ok(Self::of(Some(registry.clone()), families))
    }

    /// Metrics nobody can read: they are counted, and registered nowhere.
    pub fn disabled() -> Result<Self, Error> {
        Ok(Self::of(None, Families::make(&mut Maker { registry: None, registered: Vec::new() })?))
    }

    fn of(registry: Option<Registry>, families: Families) -> Self {
        Self { inner: Arc::new(Inner { registry, families, reporters: Mutex::default() }) }
    }

    /// The registry these metrics are in; none if they are disabled.
    pub fn registry(&self) -> Option<&Registry> {
        self.inner.registry.as_ref()
    }

    /// Everything in the registry, the application's own metrics included, in Prometheus's text format 0.0.4.
    pub(crate) fn render(&self) -> Result<String, Error> {
        let families = self.registry().map(Registry::gather).unwrap_or_default();
        Ok(TextEncoder::new().encode_to_string(&families)?)
    }

    /// What is counted for a replica set as a whole.
    pub(crate) fn for_replica_set(&self, replica_set: &str) -> ReplicaSetMetrics {
        let of = &self.inner.families;
        let set = [replica_set];
        ReplicaSetMetrics {
            generations: of.generations.child(&set),
            workers_registered: of.workers_registered.child(&set),
            partition_assignments: of.partition_assignments.child(&set),
            reconfigurations: of.reconfiguration.child(&set),
            stale_workers_cleaned: of.stale_workers_cleaned.child(&set),
            active_workers: of.active_workers.reading(&set),
            partitions: of.current_generation_partitions.reading(&set),
            coordination_duration: of.coordination_duration.child(&set),
            heartbeat_latency: of.heartbeat_latency.child(&set),
            safe_head: of.safe_head_position.reading(&set),
            head_blocked: of.head_blocked.reading(&set),
            reporter: self.reporter(replica_set),
        }
    }

    fn reporter(&self, replica_set: &str) -> Arc<Reporter> {
        let mut reporters = self.inner.reporters.lock();
        if let Some(reporter) = reporters.get(replica_set).and_then(Weak::upgrade) {
            return reporter;
        }
        let reporter = Arc::new(Reporter { metrics: self.clone(), replica_set: replica_set.to_owned() });
        reporters.insert(replica_set.to_owned(), Arc::downgrade(&reporter));
        reporter
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("registry", &self.inner.registry).finish_non_exhaustive()
    }
}

/// Held by whoever reports on a replica set. With the last holder go the set's gauges: a figure that nobody keeps up to date
/// would mislead whoever scales by it.
struct Reporter {
    metrics: Metrics,
    replica_set: String,
}

impl Reporter {
    fn families(&self) -> &Families {
        &self.metrics.inner.families
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let mut reporters = self.metrics.inner.reporters.lock();
        // Another one may have begun between this one's last reference going and the lock.
        if reporters.get(&self.replica_set).is_some_and(|successor| successor.strong_count() > 0) {
            return;
        }
        reporters.remove(&self.replica_set);
        let (of, set) = (self.families(), [self.replica_set.as_str()]);
        of.active_workers.remove(&set);
        of.current_generation_partitions.remove(&set);
        of.safe_head_position.remove(&set);
        of.head_blocked.remove(&set);
        of.head_blocker_age.remove(&set);
        of.lag_events.remove(&set);
        of.lag_seconds.remove(&set);
        of.checkpoint_position.remove(&set);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reporter").field(&self.replica_set).finish()
    }
}

/// What is counted for a replica set as a whole.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaSetMetrics {
    pub(crate) generations: IntCounter,
    pub(crate) workers_registered: IntCounter,
    pub(crate) partition_assignments: IntCounter,
    pub(crate) reconfigurations: IntCounter,
    pub(crate) stale_workers_cleaned: IntCounter,
    pub(crate) active_workers: Reading<AtomicI64>,
    pub(crate) partitions: Reading<AtomicI64>,
    pub(crate) coordination_duration: Histogram,
    pub(crate) heartbeat_latency: Histogram,
    pub(crate) safe_head: Reading<AtomicI64>,
    pub(crate) head_blocked: Reading<AtomicF64>,
    reporter: Arc<Reporter>,
}

impl ReplicaSetMetrics {
    /// What is counted for one projection, whichever worker runs it.
    pub(crate) fn projection(&self, name: &str) -> ProjectionMetrics {
        let of = self.reporter.families();
        let projection = [self.reporter.replica_set.as_str(), name];
        ProjectionMetrics {
            events_processed: of.events_processed.child(&projection),
            errors: of.projection_errors.child(&projection),
            processing_duration: of.event_processing_duration.child(&projection),
            batch_events: of.batch_events.child(&projection),
            commit_duration: of.commit_duration.child(&projection),
            retries: of.retries.child(&projection),
            fenced: of.fenced_batches.child(&projection),
            lag_events: of.lag_events.reading(&projection),
            lag_seconds: of.lag_seconds.reading(&projection),
            checkpoint_position: of.checkpoint_position.reading(&projection),
            _reporter: self.reporter.clone(),
        }
    }

    /// What is reported by one worker. Its series go when the last clone does.
    pub(crate) fn worker(&self, worker_id: &str) -> WorkerMetrics {
        let of = self.reporter.families();
        let worker = [self.reporter.replica_set.as_str(), worker_id];
        let pool = |state| of.pool_connections.reading(&[worker[0], worker_id, state]);
        WorkerMetrics {
            database_up: of.database_up.child(&worker),
            pool_size: of.pool_size.reading(&worker),
            pool_idle: pool("idle"),
            pool_in_use: pool("in_use"),
            worker: Arc::new(Worker { reporter: self.reporter.clone(), worker_id: worker_id.to_owned() }),
        }
    }

    /// How often the connection of this use was made anew.
    pub(crate) fn reconnects(&self, connection: &str) -> IntCounter {
        self.reporter.families().reconnects.child(&[&self.reporter.replica_set, connection])
    }

    /// Who keeps the safe head back, and the age of each one's transaction, in place of those named before.
    pub(crate) fn head_blockers<N: Into<String>>(
        &self,
        blockers: impl IntoIterator<Item = (Option<i32>, N, Duration)>,
    ) {
        let mut oldest: Vec<_> = blockers.into_iter().collect();
        oldest.sort_by_key(|(_, _, age)| std::cmp::Reverse(*age));
        oldest.truncate(MOST_BLOCKERS);
        let set = &self.reporter.replica_set;
        let series = oldest.into_iter().map(|(pid, name, age)| {
            let pid = pid.map_or_else(String::new, |pid| pid.to_string());
            (vec![set.clone(), pid, name.into()], age.as_secs_f64())
        });
        self.reporter.families().head_blocker_age.replace(&[set], series);
    }
}

/// What is counted for one projection.
#[derive(Debug, Clone)]
pub(crate) struct ProjectionMetrics {
    pub(crate) events_processed: IntCounter,
    pub(crate) errors: IntCounter,
    pub(crate) processing_duration: Histogram,
    pub(crate) batch_events: Histogram,
    pub(crate) commit_duration: Histogram,
    pub(crate) retries: IntCounter,
    pub(crate) fenced: IntCounter,
    pub(crate) lag_events: Reading<AtomicI64>,
    pub(crate) lag_seconds: Reading<AtomicF64>,
    pub(crate) checkpoint_position: Reading<AtomicI64>,
    _reporter: Arc<Reporter>,
}

/// What is reported by one worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerMetrics {
    /// 1 or 0.
    pub(crate) database_up: IntGauge,
    pool_size: Reading<AtomicI64>,
    pool_idle: Reading<AtomicI64>,
    pool_in_use: Reading<AtomicI64>,
    worker: Arc<Worker>,
}

impl WorkerMetrics {
    /// Names the state the worker is in, in place of the one before.
    pub(crate) fn set_state(&self, state: &str) {
        let [set, worker] = self.worker.labels();
        let series = [(vec![set.to_owned(), worker.to_owned(), state.to_owned()], 1)];
        self.worker.reporter.families().worker_state.replace(&[set, worker], series);
    }

    pub(crate) fn set_pool(&self, size: u32, connections: u32, idle: u32) {
        self.pool_size.set(size.into());
        self.pool_idle.set(idle.into());
        self.pool_in_use.set(connections.saturating_sub(idle).into());
    }

    /// What this worker reports of a projection.
    pub(crate) fn projection(&self, name: &str) -> WorkerProjectionMetrics {
        let of = self.worker.reporter.families();
        let [set, worker] = self.worker.labels();
        WorkerProjectionMetrics {
            halted: of.projection_halted.child(&[set, worker, name]),
            position: of.projection_position.reading(&[set, worker, name]),
            _worker: self.worker.clone(),
        }
    }
}

/// What one worker reports of one projection.
#[derive(Debug, Clone)]
pub(crate) struct WorkerProjectionMetrics {
    /// 1 or 0.
    pub(crate) halted: IntGauge,
    pub(crate) position: Reading<AtomicI64>,
    _worker: Arc<Worker>,
}

/// Held by whoever reports for a worker. With the last holder go the worker's series.
#[derive(Debug)]
struct Worker {
    reporter: Arc<Reporter>,
    worker_id: String,
}

impl Worker {
    fn labels(&self) -> [&str; 2] {
        [&self.reporter.replica_set, &self.worker_id]
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let (of, worker) = (self.reporter.families(), self.labels());
        of.worker_state.remove(&worker);
        of.projection_halted.remove(&worker);
        of.projection_position.remove(&worker);
        of.database_up.remove(&worker);
        of.pool_size.remove(&worker);
        of.pool_connections.remove(&worker);
    }
}

#[cfg(test)]
mod tests;
