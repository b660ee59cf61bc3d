//! What an orchestrator is built from.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::Orchestrator;
use crate::config::{Config, Retry};
use crate::database::Database;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::overview::Overview;
use crate::plan::WorkerId;
use crate::projection::{Projection, StartAt};
use crate::status::Board;
use crate::store::Names;
use crate::threads::Crew;

/// Collects what an [`Orchestrator`] needs. Every setter documents its default; [`build`](Self::build) validates.
#[must_use = "a builder does nothing until built"]
pub struct Builder {
    pub(super) database: Database,
    pub(super) config: Config,
    pub(super) projections: Vec<Arc<dyn Projection>>,
    pub(super) metrics: Option<Metrics>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.projections.iter().map(|projection| projection.name()).collect();
        f.debug_struct("Builder")
            .field("database", &self.database)
            .field("config", &self.config)
            .field("projections", &names)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Adds a projection. At least one is needed, and each name may occur once.
    pub fn projection(self, projection: impl Projection + 'static) -> Self {
        self.shared_projection(Arc::new(projection))
    }

    /// Adds a projection that the application keeps a hold of.
    pub fn shared_projection(mut self, projection: Arc<dyn Projection>) -> Self {
        self.projections.push(projection);
        self
    }

    /// How often the worker says that it is alive. Defaults to 5 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.config.heartbeat_interval = interval;
        self
    }

    /// After how long without a heartbeat a worker is dead: the bound for a frozen process or a host that is cut off. At least three
    /// heartbeat intervals. Defaults to 30 s.
    pub fn stale_worker_timeout(mut self, timeout: Duration) -> Self {
        self.config.stale_worker_timeout = timeout;
        self
    }

    /// For how long a worker's session lock must be gone before the worker is dead: the bound for a killed process. Defaults to 1 s.
    pub fn session_loss_grace(mut self, grace: Duration) -> Self {
        self.config.session_loss_grace = Some(grace);
        self
    }

    /// Uses no session locks: heartbeats alone tell the living from the dead. For a pooler in transaction mode, where sessions mean
    /// nothing. A killed process is then noticed after `stale_worker_timeout`, notifications do not arrive (polling serves), and a handler
    /// that leaves its transaction idle for longer than that timeout loses it. The pooler must support prepared statements (`PgBouncer`
    /// does from 1.21 on). Defaults to using session locks.
    pub fn heartbeats_only(mut self) -> Self {
        self.config.session_loss_grace = None;
        self
    }

    /// How long the workers of a new generation have to become ready; whoever is later is left out. Longer than the longest call of a
    /// handler. Defaults to 60 s.
    pub fn coordination_timeout(mut self, timeout: Duration) -> Self {
        self.config.coordination_timeout = timeout;
        self
    }

    /// How often the worker looks at its replica set without being told to. Defaults to 1 s.
    pub fn poll_interval(mut self, interval: Duration) -> Self {
        self.config.poll_interval = interval;
        self
    }

    /// How long joins are gathered before a new generation is created; everybody keeps processing meanwhile. It delays neither the very
    /// first start nor the care for the partition of a worker that is gone. Defaults to 1 s.
    pub fn registration_wait(mut self, wait: Duration) -> Self {
        self.config.registration_wait = wait;
        self
    }

    /// How long [`migrate`](Orchestrator::migrate) and [`start`](Orchestrator::start) wait for a server that is away: refuses connections,
    /// does not answer, is starting up or shutting down, or is not the primary that `target_session_attrs` asks for. An answer that
    /// waiting does not change, such as a wrong password, is returned at once. Zero waits for nothing. Defaults to 1 min.
    pub fn database_wait(mut self, wait: Duration) -> Self {
        self.config.database_wait = wait;
        self
    }

    /// How often the worker looks for new events of its own accord: the quickest while it finds some, slowing down to the slowest while it
    /// does not. A [hint](crate::EventStore::hint) makes it look at once, and then after the quickest interval or 5 ms, whichever is less.
    /// Defaults to 5 ms and 250 ms.
    pub fn event_poll(mut self, quickest: Duration, slowest: Duration) -> Self {
        self.config.event_poll = (quickest, slowest);
        self
    }

    /// The most events of one transaction. Defaults to 2000. A transaction in which the handlers have taken 250 ms is committed with those
    /// it has.
    pub fn batch_size(mut self, events: usize) -> Self {
        self.config.batch_size = events;
        self
    }

    /// The most bytes of events in one transaction: payload, metadata and texts. An event that is
    /// larger by itself is handled alone. Defaults to 8 MiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.config.batch_bytes = bytes;
        self
    }

    /// The most bytes of one event. A projection that wants a larger one halts before it, and names
    /// its position: the worker would need several times as much memory to read it. Defaults to 64
    /// MiB.
    pub fn max_event_bytes(mut self, bytes: usize) -> Self {
        self.config.max_event_bytes = bytes;
        self
    }

    /// Into how many lanes this worker cuts its part of each projection, by aggregate. Each lane is a thread with a transaction of its own,
    /// so a handler that waits for the database, or computes, gets on faster; each event is still handled once, and those of an aggregate
    /// in order. [`handle`](Projection::handle) is then called from as many threads at once. At most 64. Defaults to 1.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.config.lanes = lanes;
        self
    }

    /// The most connections of the pool the projections work on. Three more are used beside it: for coordination, notifications and the
    /// live tail. Defaults to what is needed, two for each lane of each projection.
    pub fn pool_size(mut self, connections: u32) -> Self {
        self.config.pool_size = Some(connections);
        self
    }

    /// How failing projections are tried again. See [`Retry`] for the defaults.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.config.retry = retry;
        self
    }

    /// Schema and table names. See [`Names`] for the defaults.
    pub fn names(mut self, names: Names) -> Self {
        self.config.names = names;
        self
    }

    /// Where the metrics go: share one [`Metrics`] between the orchestrators of a registry. Defaults to a registry of its own.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Validates everything that can be validated without the database.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] names the first setting that is out of bounds or contradicts another, its value and the bound.
    pub fn build(self) -> Result<Orchestrator, Error> {
        let names: Vec<&str> = self.projections.iter().map(|projection| projection.name()).collect();
        self.config.validate(&names)?;
        let starts = self.projections.iter().map(|projection| (projection.name(), projection.start_at()));
        for (name, start) in starts {
            if let StartAt::Position(position @ ..0) = start {
                let problem = format!(
                    "projection {name:?} cannot start there: positions begin with 1, and 0 is before the first"
                );
                return Err(Error::config("start_at", position.to_string(), problem));
            }
        }
        let metrics = match self.metrics {
            Some(metrics) => metrics,
            None => Metrics::new()?,
        };
        let application_name = format!("pupsourcing-orchestrator {}", self.config.replica_set);
        let projections = self.projections.iter().map(|projection| projection.name().to_owned());
        let coordination = bounded(1);
        Ok(Orchestrator {
            overview: Overview::new(coordination.0.clone()),
            coordination,
            board: Board::new(WorkerId(uuid::Uuid::new_v4()), &self.config.replica_set, projections, self.config.lanes),
            crew: Crew::new(),
            database: self.database.with_default_application_name(&application_name),
            config: self.config,
            projections: self.projections,
            metrics,
        })
    }
}
