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

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use prometheus::core::{Atomic, AtomicF64, AtomicI64, Collector, Desc, GenericGauge};
use prometheus::proto::MetricFamily;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder};

use crate::error::Error;

const PREFIX: &str = "pupsourcing_orchestrator_";

/// Half a millisecond, a good network's round trip, to the default coordination timeout.
const COORDINATION_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const ROUND_TRIP_SECONDS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Handlers that make one statement on a near server take tens of microseconds.
const HANDLER_SECONDS: &[f64] = &[
    0.00001, 0.000_025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];
const BATCH_EVENTS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0];

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

/// A gauge that shows itself with its first value.
pub(crate) struct Reading<P: Atomic> {
    family: Family<GenericGauge<P>>,
    labels: Vec<String>,
    child: Arc<OnceLock<GenericGauge<P>>>,
}

impl<P: Atomic + 'static> Reading<P> {
    pub(crate) fn set(&self, value: P::T) {
        self.child.get_or_init(|| self.family.child(&self.labels)).set(value);
    }
}

impl<P: Atomic> Clone for Reading<P> {
    fn clone(&self) -> Self {
        Self { family: self.family.clone(), labels: self.labels.clone(), child: self.child.clone() }
    }
}

impl<P: Atomic> fmt::Debug for Reading<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reading").field(&self.family.0.name).field(&self.labels).finish()
    }
}

struct Families {
    generations: Family<IntCounter>,
    workers_registered: Family<IntCounter>,
    partition_assignments: Family<IntCounter>,
    reconfiguration: Family<IntCounter>,
    stale_workers_cleaned: Family<IntCounter>,
    active_workers: Family<IntGauge>,
    current_generation_partitions: Family<IntGauge>,
    worker_state: Family<IntGauge>,
    coordination_duration: Family<Histogram>,
    heartbeat_latency: Family<Histogram>,
    events_processed: Family<IntCounter>,
    projection_errors: Family<IntCounter>,
    event_processing_duration: Family<Histogram>,
    batch_events: Family<Histogram>,
    commit_duration: Family<Histogram>,
    retries: Family<IntCounter>,
    fenced_batches: Family<IntCounter>,
    lag_events: Family<IntGauge>,
    lag_seconds: Family<Gauge>,
    checkpoint_position: Family<IntGauge>,
    projection_position: Family<IntGauge>,
    projection_halted: Family<IntGauge>,
    safe_head_position: Family<IntGauge>,
    head_blocked: Family<Gauge>,
    head_blocker_age: Family<Gauge>,
    reconnects: Family<IntCounter>,
    database_up: Family<IntGauge>,
    pool_size: Family<IntGauge>,
    pool_connections: Family<IntGauge>,
}

impl Families {
    /// Label order matters here only: what is removed together shares its first labels.
    #[rustfmt::skip]
    fn make(m: &mut Maker<'_>) -> Result<Self, prometheus::Error> {
        const SET: &[&str] = &["replica_set"];
        const PROJECTION: &[&str] = &["replica_set", "projection"];
        const WORKER: &[&str] = &["replica_set", "worker_id"];
        const WORKER_STATE: &[&str] = &["replica_set", "worker_id", "state"];
        const WORKER_PROJECTION: &[&str] = &["replica_set", "worker_id", "projection"];
        Ok(Self {
            generations: m.family("generations_total", SET, "Generations this process has created.", &[])?,
            workers_registered: m.family("workers_registered_total", SET, "Workers this process has registered.", &[])?,
            partition_assignments: m.family("partition_assignments_total", SET, "Partitions the workers of this process have been given.", &[])?,
            reconfiguration: m.family("reconfiguration_total", SET, "Reconfigurations the workers of this process went through: paused, dealt anew, resumed.", &[])?,
            stale_workers_cleaned: m.family("stale_workers_cleaned_total", SET, "Dead workers this process has evicted.", &[])?,
            active_workers: m.family("active_workers", SET, "Live workers of the replica set.", &[])?,
            current_generation_partitions: m.family("current_generation_partitions", SET, "Partitions of the current generation.", &[])?,
            worker_state: m.family("worker_state", WORKER_STATE, "1 for the state the worker is in; its other states have no series.", &[])?,
            coordination_duration: m.family("coordination_duration_seconds", SET, "Seconds from the moment a worker stops processing, or registers, to the moment it processes again.", COORDINATION_SECONDS)?,
            heartbeat_latency: m.family("heartbeat_latency_seconds", SET, "Seconds from sending a heartbeat to its answer.", ROUND_TRIP_SECONDS)?,
            events_processed: m.family("events_processed_total", PROJECTION, "Events whose effects were committed.", &[])?,
            projection_errors: m.family("projection_errors_total", PROJECTION, "Batches that failed: the handler's error or panic, or the database's.", &[])?,
            event_processing_duration: m.family("event_processing_duration_seconds", PROJECTION, "Seconds of the handler for one event; of a batch handler, its time divided by the events.", HANDLER_SECONDS)?,
            batch_events: m.family("batch_events", PROJECTION, "Events committed together in one transaction.", BATCH_EVENTS)?,
            commit_duration: m.family("commit_duration_seconds", PROJECTION, "Seconds of the checkpoint's update and the commit of one batch.", ROUND_TRIP_SECONDS)?,
            retries: m.family("retries_total", PROJECTION, "Batches tried again after an error.", &[])?,
            fenced_batches: m.family("fenced_batches_total", PROJECTION, "Batches rolled back because their keys had a new owner.", &[])?,
            lag_events: m.family("lag_events", PROJECTION, "Events the whole replica set has yet to process. Each worker reports the same figure: use max by (projection), not sum.", &[])?,
            lag_seconds: m.family("lag_seconds", PROJECTION, "Age in seconds of the oldest event yet to process, 0 when there is none. Each worker reports the same figure.", &[])?,
            checkpoint_position: m.family("checkpoint_position", PROJECTION, "Lowest checkpoint of the projection: all events up to this global position are processed.", &[])?,
            projection_position: m.family("projection_position", WORKER_PROJECTION, "This worker's own position: all events of its keys up to this global position are processed.", &[])?,
            projection_halted: m.family("projection_halted", WORKER_PROJECTION, "1 when the attempts are used up and the projection stands still on this worker, else 0.", &[])?,
            safe_head_position: m.family("safe_head_position", SET, "All events up to this global position are visible for good.", &[])?,
            head_blocked: m.family("head_blocked_seconds", SET, "Seconds an open transaction has kept the safe head back; 0 when it is free.", &[])?,
            head_blocker_age: m.family("head_blocker_age_seconds", &["replica_set", "pid", "application_name"], "Age in seconds of each transaction that keeps the safe head back, the oldest ones; pid is empty for a prepared transaction.", &[])?,
            reconnects: m.family("reconnects_total", &["replica_set", "connection"], "Connections made anew after a loss, by what they serve.", &[])?,
            database_up: m.family("database_up", WORKER, "1 when the worker's last heartbeat got through, else 0.", &[])?,
            pool_size: m.family("pool_size", WORKER, "Most connections the worker's pool may hold.", &[])?,
            pool_connections: m.family("pool_connections", WORKER_STATE, "Connections the worker's pool holds, by state: idle or in_use.", &[])?,
        })
    }
}

struct Maker<'a> {
    registry: Option<&'a Registry>,
    registered: Vec<Box<dyn Collector>>,
}

impl Maker<'_> {
    fn family<M: Child>(
        &mut self,
        name: &str,
        labels: &'static [&'static str],
        help: &'static str,
        buckets: &'static [f64],
    ) -> Result<Family<M>, prometheus::Error> {
        let name = format!("{PREFIX}{name}");
        let desc = Desc::new(
            name.clone(),
            help.to_owned(),
            labels.iter().map(|&label| label.to_owned()).collect(),
            HashMap::new(),
        )?;
        let spare = M::build(&name, help, HashMap::new(), buckets)?;
        let children = RwLock::default();
        let family = Family(Arc::new(FamilyInner { name, help, labels, buckets, desc, spare, children }));
        if let Some(registry) = self.registry {
            registry.register(Box::new(family.clone()))?;
            self.registered.push(Box::new(family.clone()));
        }
        Ok(family)
    }

    fn undo(&mut self) {
        for family in self.registered.drain(..) {
            if let Some(Err(error)) = self.registry.map(|registry| registry.unregister(family)) {
                log::warn!("a metric stays registered: error={error}");
            }
        }
    }
}

/// All series of one name.
///
/// This stands in for `prometheus::core::MetricVec`, which tells series apart by a hash of their label values run together:
/// there, replica set "a" with projection "bc" and replica set "ab" with projection "c" count into one series.
struct Family<M>(Arc<FamilyInner<M>>);

struct FamilyInner<M> {
    name: String,
    help: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    desc: Desc,
    /// Counts where a series could not be made, so that nobody has to handle what does not happen: a series is refused only for
    /// its labels' names, and those are constants.
    spare: M,
    children: RwLock<BTreeMap<Vec<String>, M>>,
}

impl<M: Child> Family<M> {
    /// The series of these label values, made if there is none.
    fn child(&self, values: &[impl AsRef<str>]) -> M {
        let values: Vec<String> = values.iter().map(|value| value.as_ref().to_owned()).collect();
        let mut children = self.0.children.write();
        children.entry(values).or_insert_with_key(|values| self.build(values)).clone()
    }

    fn build(&self, values: &[String]) -> M {
        let of = &*self.0;
        debug_assert_eq!(of.labels.len(), values.len(), "labels of {}", of.name);
        let labels = of.labels.iter().map(|&label| label.to_owned()).zip(values.iter().cloned()).collect();
        M::build(&of.name, of.help, labels, of.buckets).unwrap_or_else(|error| {
            log::error!("a metric is not shown: name={} error={error}", of.name);
            of.spare.clone()
        })
    }

    /// Removes every series whose label values begin with these.
    fn remove(&self, prefix: &[&str]) {
        self.0.children.write().retain(|values, _| !begins_with(values, prefix));
    }
}

impl<P: Atomic + 'static> Family<GenericGauge<P>> {
    fn reading(&self, values: &[&str]) -> Reading<P> {
        let labels = values.iter().map(|&value| value.to_owned()).collect();
        Reading { family: self.clone(), labels, child: Arc::default() }
    }

    /// Puts these series in place of every one whose label values begin with `prefix`, at once: no scrape sees both, or neither.
    fn replace(&self, prefix: &[&str], series: impl IntoIterator<Item = (Vec<String>, P::T)>) {
        let mut children = self.0.children.write();
        children.retain(|values, _| !begins_with(values, prefix));
        for (values, value) in series {
            let child = self.build(&values);
            child.set(value);
            children.insert(values, child);
        }
    }
}

fn begins_with(values: &[String], prefix: &[&str]) -> bool {
    values.iter().zip(prefix).all(|(value, wanted)| value == wanted)
}

impl<M> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Child> Collector for Family<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    /// One family per series: the registry puts those of one name together.
    fn collect(&self) -> Vec<MetricFamily> {
        self.0.children.read().values().flat_map(Collector::collect).collect()
    }
}

/// A single series.
trait Child: Collector + Clone + 'static {
    fn build(
        name: &str,
        help: &str,
        labels: HashMap<String, String>,
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error>;
}

impl Child for IntCounter {
    fn build(name: &str, help: &str, labels: HashMap<String, String>, _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(Opts::new(name, help).const_labels(labels))
    }
}

impl<P: Atomic + 'static> Child for GenericGauge<P> {
    fn build(name: &str, help: &str, labels: HashMap<String, String>, _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(Opts::new(name, help).const_labels(labels))
    }
}

impl Child for Histogram {
    fn build(
        name: &str,
        help: &str,
        labels: HashMap<String, String>,
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error> {
        Self::with_opts(HistogramOpts::new(name, help).const_labels(labels).buckets(buckets.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    type Named = BTreeMap<String, (String, BTreeSet<String>)>;

    /// Type and labels by name, without the prefix, as the rendered text shows them.
    fn published(text: &str) -> Named {
        let mut named = Named::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                named.insert(name.strip_prefix(PREFIX).unwrap().to_owned(), (kind.to_owned(), BTreeSet::new()));
            } else if !line.starts_with('#') {
                let (name, labels) = line.split_once('{').unwrap();
                let name = name.strip_prefix(PREFIX).unwrap();
                let family = named.keys().find(|family| {
                    let of_histogram = ["_bucket", "_sum", "_count"].map(|end| format!("{family}{end}"));
                    name == **family || of_histogram.iter().any(|series| series == name)
                });
                let family = family.unwrap().clone();
                let labels = labels.split_once('}').unwrap().0.split(',').map(|pair| pair.split_once('=').unwrap().0);
                named.get_mut(&family).unwrap().1.extend(labels.filter(|label| *label != "le").map(str::to_owned));
            }
        }
        named
    }

    /// The table in this file's own documentation.
    fn documented() -> Named {
        let rows = include_str!("metrics.rs").lines().filter_map(|line| line.strip_prefix("//! | `"));
        rows.map(|row| {
            let cells: Vec<&str> = row.split(" | ").collect();
            let labels = cells[2].split(", ").map(|label| label.trim_matches('`').to_owned()).collect();
            (cells[0].trim_matches('`').to_owned(), (cells[1].to_owned(), labels))
        })
        .collect()
    }

    fn touch_everything(
        metrics: &Metrics,
    ) -> (ReplicaSetMetrics, ProjectionMetrics, WorkerMetrics, WorkerProjectionMetrics) {
        let set = metrics.for_replica_set("main");
        set.active_workers.set(3);
        set.partitions.set(3);
        set.safe_head.set(41);
        set.head_blocked.set(0.5);
        set.head_blockers([(Some(7), "importer", Duration::from_secs(2))]);
        set.reconnects("listener").inc();
        set.coordination_duration.observe(0.02);
        let projection = set.projection("orders");
        projection.lag_events.set(5);
        projection.lag_seconds.set(0.25);
        projection.checkpoint_position.set(36);
        let worker = set.worker("w-1");
        worker.set_state("pending");
        worker.set_state("running");
        worker.set_pool(4, 3, 1);
        let own = worker.projection("orders");
        own.position.set(36);
        (set, projection, worker, own)
    }

    #[test]
    fn names_types_and_labels_are_the_published_ones() {
        let metrics = Metrics::new().unwrap();
        let _held = touch_everything(&metrics);
        let published = published(&metrics.render().unwrap());
        assert_eq!(published, documented());

        let fixed = [
            ("generations_total", "counter", "replica_set"),
            ("workers_registered_total", "counter", "replica_set"),
            ("partition_assignments_total", "counter", "replica_set"),
            ("reconfiguration_total", "counter", "replica_set"),
            ("stale_workers_cleaned_total", "counter", "replica_set"),
            ("events_processed_total", "counter", "projection replica_set"),
            ("projection_errors_total", "counter", "projection replica_set"),
            ("active_workers", "gauge", "replica_set"),
            ("current_generation_partitions", "gauge", "replica_set"),
            ("worker_state", "gauge", "replica_set state worker_id"),
            ("coordination_duration_seconds", "histogram", "replica_set"),
            ("event_processing_duration_seconds", "histogram", "projection replica_set"),
            ("heartbeat_latency_seconds", "histogram", "replica_set"),
        ];
        for (name, kind, labels) in fixed {
            let labels = labels.split(' ').map(str::to_owned).collect();
            assert_eq!(published[name], (kind.to_owned(), labels), "{name}");
        }
    }

    #[test]
    fn every_metric_has_a_help_text() {
        let metrics = Metrics::new().unwrap();
        let _held = touch_everything(&metrics);
        let text = metrics.render().unwrap();
        let helps = text.lines().filter(|line| line.starts_with("# HELP "));
        assert!(helps.clone().all(|help| help.ends_with('.')), "{text}");
        assert_eq!(helps.count(), documented().len());
    }

    #[test]
    fn a_workers_state_is_one_series() {
        let metrics = Metrics::new().unwrap();
        let _held = touch_everything(&metrics);
        let text = metrics.render().unwrap();
        let states: Vec<&str> = text.lines().filter(|line| line.contains("worker_state{")).collect();
        assert_eq!(
            states,
            ["pupsourcing_orchestrator_worker_state{replica_set=\"main\",state=\"running\",worker_id=\"w-1\"} 1"]
        );
    }

    #[test]
    fn a_workers_series_go_with_its_last_handle() {
        let metrics = Metrics::new().unwrap();
        let (set, _projection, worker, own) = touch_everything(&metrics);
        let other = set.worker("w-2");
        other.set_state("ready");
        drop(worker);
        assert!(metrics.render().unwrap().contains("w-1"), "a runner may still report");
        drop(own);
        let text = metrics.render().unwrap();
        assert!(!text.contains("w-1"), "{text}");
        assert!(text.contains("worker_state{replica_set=\"main\",state=\"ready\",worker_id=\"w-2\"} 1"), "{text}");
    }

    #[test]
    fn a_replica_sets_gauges_go_with_its_last_reporter_and_its_counters_stay() {
        let metrics = Metrics::new().unwrap();
        let first = touch_everything(&metrics);
        let second = metrics.for_replica_set("main");
        first.1.events_processed.inc_by(5);
        drop(first);
        assert!(metrics.render().unwrap().contains("lag_events{"));
        drop(second);
        let text = metrics.render().unwrap();
        assert!(published(&text).values().all(|(kind, _)| kind != "gauge"), "{text}");
        assert!(text.contains("events_processed_total{projection=\"orders\",replica_set=\"main\"} 5"), "{text}");

        let _again = touch_everything(&metrics);
        assert!(metrics.render().unwrap().contains("lag_events{projection=\"orders\",replica_set=\"main\"} 5"));
    }

    #[test]
    fn gauges_have_no_series_before_their_first_value() {
        let metrics = Metrics::new().unwrap();
        let set = metrics.for_replica_set("main");
        let _projection = set.projection("orders");
        let text = metrics.render().unwrap();
        assert!(!text.contains("lag_") && !text.contains("position"), "{text}");
        assert!(text.contains("retries_total{projection=\"orders\",replica_set=\"main\"} 0"), "{text}");
    }

    #[test]
    fn two_orchestrators_share_one_set_of_metrics() {
        let metrics = Metrics::new().unwrap();
        let (here, there) = (metrics.for_replica_set("main"), metrics.clone().for_replica_set("main"));
        here.generations.inc();
        there.generations.inc();
        metrics.for_replica_set("other").generations.inc();
        let text = metrics.render().unwrap();
        assert!(text.contains("generations_total{replica_set=\"main\"} 2"), "{text}");
        assert!(text.contains("generations_total{replica_set=\"other\"} 1"), "{text}");
    }

    #[test]
    fn label_values_that_run_together_alike_stay_apart() {
        let metrics = Metrics::new().unwrap();
        metrics.for_replica_set("a").projection("bc").events_processed.inc_by(1);
        metrics.for_replica_set("ab").projection("c").events_processed.inc_by(2);
        let text = metrics.render().unwrap();
        assert!(text.contains("events_processed_total{projection=\"bc\",replica_set=\"a\"} 1"), "{text}");
        assert!(text.contains("events_processed_total{projection=\"c\",replica_set=\"ab\"} 2"), "{text}");
    }

    #[test]
    fn blockers_are_replaced_bounded_and_escaped() {
        let metrics = Metrics::new().unwrap();
        let set = metrics.for_replica_set("main");
        set.head_blockers((0..50_u8).map(|n| (Some(n.into()), format!("app {n}"), Duration::from_secs(n.into()))));
        let count = |text: &str| text.lines().filter(|line| line.contains("head_blocker_age_seconds{")).count();
        let text = metrics.render().unwrap();
        assert_eq!(count(&text), MOST_BLOCKERS);
        assert!(text.contains("pid=\"49\"") && !text.contains("pid=\"1\""), "{text}");

        set.head_blockers([(None, "a \"quoted\"\nname\\", Duration::from_millis(1500))]);
        let text = metrics.render().unwrap();
        assert_eq!(count(&text), 1);
        let labels = r#"{application_name="a \"quoted\"\nname\\",pid="",replica_set="main"} 1.5"#;
        assert!(text.contains(labels), "{text}");

        set.head_blockers::<&str>([]);
        assert_eq!(count(&metrics.render().unwrap()), 0);
    }

    #[test]
    fn a_registry_takes_one_set_of_metrics_and_is_left_as_it_was_by_a_second() {
        let registry = Registry::new();
        let first = Metrics::in_registry(&registry).unwrap();
        assert!(matches!(Metrics::in_registry(&registry), Err(Error::Metrics { .. })));
        first.for_replica_set("main").generations.inc();
        assert_eq!(registry.gather().iter().filter(|family| family.name().ends_with("generations_total")).count(), 1);

        // A name of the application's own that comes late in the list: the ones before it are taken back.
        let registry = Registry::new();
        let own = IntGauge::new(format!("{PREFIX}pool_size"), "The application's own.").unwrap();
        registry.register(Box::new(own)).unwrap();
        assert!(matches!(Metrics::in_registry(&registry), Err(Error::Metrics { .. })));
        let generations = &Metrics::disabled().unwrap().inner.families.generations;
        registry.register(Box::new(generations.clone())).unwrap();
        assert_eq!(registry.gather().len(), 1, "the application's own");
    }

    #[test]
    fn disabled_metrics_are_counted_nowhere_visible() {
        let metrics = Metrics::disabled().unwrap();
        let _held = touch_everything(&metrics);
        assert!(metrics.registry().is_none());
        assert_eq!(metrics.render().unwrap(), "");
    }
}
