//! Every metric, by name.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus::core::{Collector, Desc};
use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};

use super::family::{Child, Family, FamilyInner};

pub(super) const PREFIX: &str = "pupsourcing_orchestrator_";
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

pub(super) struct Families {
    pub(super) generations: Family<IntCounter>,
    pub(super) workers_registered: Family<IntCounter>,
    pub(super) partition_assignments: Family<IntCounter>,
    pub(super) reconfiguration: Family<IntCounter>,
    pub(super) stale_workers_cleaned: Family<IntCounter>,
    pub(super) active_workers: Family<IntGauge>,
    pub(super) current_generation_partitions: Family<IntGauge>,
    pub(super) worker_state: Family<IntGauge>,
    pub(super) coordination_duration: Family<Histogram>,
    pub(super) heartbeat_latency: Family<Histogram>,
    pub(super) events_processed: Family<IntCounter>,
    pub(super) projection_errors: Family<IntCounter>,
    pub(super) event_processing_duration: Family<Histogram>,
    pub(super) batch_events: Family<Histogram>,
    pub(super) commit_duration: Family<Histogram>,
    pub(super) retries: Family<IntCounter>,
    pub(super) fenced_batches: Family<IntCounter>,
    pub(super) lag_events: Family<IntGauge>,
    pub(super) lag_seconds: Family<Gauge>,
    pub(super) checkpoint_position: Family<IntGauge>,
    pub(super) projection_position: Family<IntGauge>,
    pub(super) projection_halted: Family<IntGauge>,
    pub(super) safe_head_position: Family<IntGauge>,
    pub(super) head_blocked: Family<Gauge>,
    pub(super) head_blocker_age: Family<Gauge>,
    pub(super) reconnects: Family<IntCounter>,
    pub(super) database_up: Family<IntGauge>,
    pub(super) pool_size: Family<IntGauge>,
    pub(super) pool_connections: Family<IntGauge>,
}

impl Families {
    /// Label order matters here only: what is removed together shares its first labels.
    #[rustfmt::skip]
    pub(super) fn make(m: &mut Maker<'_>) -> Result<Self, prometheus::Error> {
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

pub(super) struct Maker<'a> {
    pub(super) registry: Option<&'a Registry>,
    pub(super) registered: Vec<Box<dyn Collector>>,
}

impl Maker<'_> {
    pub(super) fn family<M: Child>(
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

    pub(super) fn undo(&mut self) {
        for family in self.registered.drain(..) {
            if let Some(Err(error)) = self.registry.map(|registry| registry.unregister(family)) {
                log::warn!("a metric stays registered: error={error}");
            }
        }
    }
}
