//! Declares every metric. To add one, add a row here, and set the metric where its value is known.
//!
//! A row also determines how the metric is registered and when the series of a gauge are removed. A
//! test checks that the table in `metrics.md` equals the rows;
//! `UPDATE_DOCS=1 cargo test --lib metrics::` writes it. Names and labels are a published
//! interface.

use prometheus::core::Collector;
use prometheus::{Gauge, Histogram, IntCounter, IntGauge, Registry};

use super::declare::declare;
use super::family::{AnyFamily, Child, Declared, Family, Kind, PREFIX};
use super::handle::{Handle, Reading, Series};
use crate::error::Error;

/// From half a millisecond, the round trip in a good network, to a minute, the default coordination
/// timeout.
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

declare! {
    /// What is counted for a replica set as a whole.
    ReplicaSetSeries (replica_set) {
        generations: IntCounter = "generations_total",
            "Generations that this process has created.";
        workers_registered: IntCounter = "workers_registered_total",
            "Workers that this process has registered.";
        partition_assignments: IntCounter = "partition_assignments_total",
            "Partitions assigned to the workers of this process.";
        reconfigurations: IntCounter = "reconfiguration_total",
            "Reconfigurations that the workers of this process went through: paused, redistributed, resumed.";
        stale_workers_cleaned: IntCounter = "stale_workers_cleaned_total",
            "Dead workers that this process has evicted.";
        active_workers: Reading<IntGauge> = "active_workers",
            "Live workers of the replica set.";
        partitions: Reading<IntGauge> = "current_generation_partitions",
            "Partitions of the current generation.";
        coordination_duration: Histogram = "coordination_duration_seconds",
            "Seconds from the moment a worker stops processing, or registers, to the moment it processes again.",
            COORDINATION_SECONDS;
        heartbeat_latency: Histogram = "heartbeat_latency_seconds",
            "Seconds from sending a heartbeat to its answer.", ROUND_TRIP_SECONDS;
        safe_head: Reading<IntGauge> = "safe_head_position",
            "The safe head: every event that will ever exist up to this global position is visible.";
        head_blocked: Reading<Gauge> = "head_blocked_seconds",
            "Seconds for which an open transaction has blocked the safe head; 0 when nothing blocks it.";
        head_blocker_age: Reading<Gauge> = "head_blocker_age_seconds",
            "Age in seconds of the oldest transaction that blocks the safe head; 0 when nothing blocks it. The log and \
             the status name it.";
        lag_events: Series<IntGauge> [projection] = "lag_events",
            "Events that the whole replica set has yet to process. Each worker reports the same figure: use \
             max by (projection), not sum.";
        lag_seconds: Series<Gauge> [projection] = "lag_seconds",
            "Age in seconds of the oldest event yet to process, 0 when there is none. Each worker reports the \
             same figure.";
        checkpoint_position: Series<IntGauge> [projection] = "checkpoint_position",
            "Lowest checkpoint of the projection: all events up to this global position are processed.";
        orphaned_projections: Reading<IntGauge> = "orphaned_projections",
            "Projections of the replica set that no living worker knows. They have no lag.";
        broken_projections: Reading<IntGauge> = "broken_projections",
            "Projections that are not processed because their rows were changed by hand, or because they belong to \
             another replica set. They have no lag.";
        projection_paused: Series<IntGauge> [projection] = "projection_paused",
            "1 while the projection is to be paused, because an operator has said so, else 0. Its lag grows meanwhile.";
        projection_rewinding: Series<IntGauge> [projection] = "projection_rewinding",
            "1 while a rewind clears the projection's read model, and until the events that were handled before are handled \
             again, else 0.";
        parked_aggregates: Series<IntGauge> [projection] = "parked_aggregates",
            "Aggregates that the projection has parked: one of their events fails, and the later ones wait behind it.";
        commands_pending: Series<IntGauge> [projection] = "commands_pending",
            "Commands of operators that no worker has applied yet.";
        rebuild_progress: Series<Gauge> [projection] = "rebuild_progress_ratio",
            "How much of the events the rebuild of the projection has passed, from 0 to 1. Only while it is being rebuilt; so are the \
             other metrics of the rebuild.";
        rebuild_events: Series<IntGauge> [projection] = "rebuild_events",
            "Events that the rebuild of the projection has handled.";
        rebuild_positions_to_go: Series<IntGauge> [projection] = "rebuild_positions_to_go",
            "Positions that the rebuild of the projection has yet to pass.";
        rebuild_blocked: Series<IntGauge> [projection] = "rebuild_blocked",
            "1 while something keeps the rebuild of the projection from its switch, else 0. The status page, the log and the command \
             `rebuild NAME --status` name it.";
        old_tables_age: Series<Gauge> [projection] = "old_tables_age_seconds",
            "Seconds since a rebuild has replaced the former tables of the projection, which are kept. No series if none are kept.";
        commands: Series<IntCounter> [command, outcome] = "commands_total",
            "Commands of operators that this process has applied, by outcome: done, refused or failed.";
        reconnects: Series<IntCounter> [connection] = "reconnects_total",
            "Connections opened again after a loss, by what they serve: coordinator, listener, tailer or catch-up.";
    }

    /// What is counted for one projection.
    ProjectionSeries (replica_set, projection) {
        events_processed: IntCounter = "events_processed_total",
            "Events whose effects were committed.";
        errors: IntCounter = "projection_errors_total",
            "Failed attempts that count: the handler's error or panic, or what the server refuses. Deadlocks, \
             serialisation failures and lost connections do not count.";
        processing_duration: Histogram = "event_processing_duration_seconds",
            "Seconds that the handler takes for one event; for a batch handler, its time divided by the events.", HANDLER_SECONDS;
        batch_events: Histogram = "batch_events",
            "Events committed together in one transaction.", BATCH_EVENTS;
        commit_duration: Histogram = "commit_duration_seconds",
            "Seconds that the checkpoint's update and the commit of one batch take.", ROUND_TRIP_SECONDS;
        retries: IntCounter = "retries_total",
            "Batches retried after an error.";
        parked: IntCounter = "parked_events_total",
            "Events at which their aggregate was parked.";
        replayed: IntCounter = "replayed_events_total",
            "Events of parked aggregates that were handled by a replay.";
        discarded: IntCounter = "discarded_events_total",
            "Events that a person has discarded, counted by the worker that applied the command.";
        fenced: IntCounter = "fenced_batches_total",
            "Batches rolled back because their keys had been redistributed.";
    }

    /// What is reported by one worker.
    WorkerSeries (replica_set, worker_id) {
        state: Series<IntGauge> [state] = "worker_state",
            "1 for the state the worker is in; its other states have no series.";
        ready: IntGauge = "ready",
            "1 while the worker is ready, as `/readyz` reports it, else 0.";
        not_ready: Series<IntGauge> [reason] = "not_ready",
            "1 for the reason why the worker is not ready; no series while it is ready. The table of the probes has \
             the reasons.";
        database_up: IntGauge = "database_up",
            "1 while a heartbeat of the worker was answered within the last half of `stale_worker_timeout`, else 0.";
        pool_size: Reading<IntGauge> = "pool_size",
            "The maximum number of connections in the worker's pool.";
        pool_connections: Series<IntGauge> [state] = "pool_connections",
            "Connections that the worker's pool holds, by state: `idle` or `in_use`.";
    }

    /// What one worker reports of one projection.
    WorkerProjectionSeries (replica_set, worker_id, projection) {
        position: Reading<IntGauge> = "projection_position",
            "This worker's own position: all events of its keys up to this global position are processed.";
        halted: IntGauge = "projection_halted",
            "1 when the attempts are used up and the projection has halted on this worker, else 0.";
    }

    /// What is counted for the callers that wait for projections.
    WaitSeries (outcome) {
        wait_duration: Histogram = "wait_duration_seconds",
            "Seconds that a call of `EventStore::wait_for` takes, by outcome: `done`, or the kind of the error.",
            COORDINATION_SECONDS;
    }
}

impl Families {
    /// Removes the gauges of a replica set or a worker that has ended, because an outdated value
    /// would mislead. `ended` has its labels and their values. Counters and histograms stay.
    pub(super) fn end(&self, ended: &[(&str, &str)]) {
        let (labels, values): (Vec<&str>, Vec<&str>) = ended.iter().copied().unzip();
        for family in self.all() {
            let declared = family.declared();
            if declared.kind == Kind::Gauge && declared.labels.starts_with(&labels) {
                family.remove(&values);
            }
        }
    }
}

/// The families that are in a registry. Dropping this removes them from the registry.
pub(super) struct Registered {
    registry: Option<Registry>,
    families: Vec<Box<dyn Collector>>,
}

impl Registered {
    pub(super) fn new(registry: Option<&Registry>) -> Self {
        Self { registry: registry.cloned(), families: Vec::new() }
    }

    pub(super) fn registry(&self) -> Option<&Registry> {
        self.registry.as_ref()
    }

    /// Makes a family, and registers it if there is a registry.
    fn family<M: Child>(&mut self, declared: Declared) -> Result<Family<M>, Error> {
        let name = format!("{PREFIX}{}", declared.name);
        let refused = |source| Error::Metrics { metric: name, source };
        let family = match Family::new(declared) {
            Ok(family) => family,
            Err(error) => return Err(refused(error)),
        };
        if let Some(registry) = &self.registry {
            registry.register(Box::new(family.clone())).map_err(refused)?;
            self.families.push(Box::new(family.clone()));
        }
        Ok(family)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        for family in self.families.drain(..) {
            // Fails only if the application has removed the family itself.
            _ = self.registry.as_ref().map(|registry| registry.unregister(family));
        }
    }
}
