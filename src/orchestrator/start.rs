//! Starting the threads of a worker.

use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};

use super::Orchestrator;
use super::handle::Handle;
use crate::backoff::Mentions;
use crate::coordinator::{Coordinator, Runners};
use crate::database::{Pool, PoolOptions};
use crate::error::Error;
use crate::feed::Feed;
use crate::feed::prefetch::Reader;
use crate::feed::tailer::Tailer;
use crate::listener::Listener;
use crate::metrics::{ReplicaSetMetrics, WorkerMetrics};
use crate::projection::Scope;
use crate::runner::Runner;
use crate::store::Registration;
use crate::store::session::{Session, Sessions};
use crate::threads::Waker;
use crate::trust::Trust;

/// What the threads of a worker are made from.
pub(super) struct Start {
    pub(super) orchestrator: Orchestrator,
    pub(super) sessions: Sessions,
    pub(super) feed: Feed,
    pub(super) hints: Receiver<()>,
    pub(super) trust: Trust,
    pub(super) metrics: ReplicaSetMetrics,
    pub(super) worker_metrics: WorkerMetrics,
}

impl Start {
    pub(super) fn threads(self, session: Session, registration: Registration, begun: Instant) -> Result<Handle, Error> {
        let config = &self.orchestrator.config;
        let pool = self.pool()?;
        let runners = self.runners(&pool)?;
        let (wake_coordinator, woken_coordinator) = self.orchestrator.coordination;
        let (miss_somebody, missing) = Waker::new();
        let listener = Listener {
            database: self.orchestrator.database.clone(),
            names: config.names.clone(),
            sessions: self.sessions,
            coordination: wake_coordinator,
            events: self.feed.hint().clone(),
            stop: self.orchestrator.crew.stop().clone(),
            board: self.orchestrator.board.clone(),
            metrics: self.metrics.clone(),
        };
        self.orchestrator.crew.spawn("pup-listen", move |pulse| {
            listener.run(pulse);
            Ok(())
        })?;
        let tailer = Tailer {
            database: self.orchestrator.database.clone(),
            names: config.names.clone(),
            sessions: self.sessions,
            projections: registration.projections.clone(),
            feed: self.feed.clone(),
            scope: union(self.orchestrator.projections.iter().map(|projection| projection.scope())),
            bounds: config.bounds(),
            poll: config.event_poll,
            hints: self.hints,
            missing: miss_somebody,
            stop: self.orchestrator.crew.stop().clone(),
            board: self.orchestrator.board.clone(),
            metrics: self.metrics.clone(),
        };
        self.orchestrator.crew.spawn("pup-tail", move |pulse| tailer.run(pulse))?;
        let coordinator = Coordinator {
            database: self.orchestrator.database.clone(),
            names: config.names.clone(),
            policy: config.policy(),
            heartbeat_interval: config.heartbeat_interval,
            poll_interval: config.poll_interval,
            registration,
            runners,
            pool,
            wake: woken_coordinator,
            missing,
            feed: self.feed,
            trust: self.trust,
            stop: self.orchestrator.crew.stop().clone(),
            board: self.orchestrator.board.clone(),
            overview: self.orchestrator.overview.clone(),
            metrics: self.metrics,
            worker_metrics: self.worker_metrics,
            interrupted: Some(begun),
            loss_is_logged: false,
            complaints: Mentions::default(),
        };
        self.orchestrator.crew.spawn("pup-coord", move |pulse| {
            coordinator.run(session, pulse);
            Ok(())
        })?;
        Ok(Handle {
            crew: self.orchestrator.crew,
            board: self.orchestrator.board,
            overview: self.orchestrator.overview,
            metrics: self.orchestrator.metrics,
            waited_for: false,
        })
    }

    fn pool(&self) -> Result<Pool, Error> {
        let config = &self.orchestrator.config;
        self.orchestrator.database.pool(PoolOptions {
            size: config.pool_size(self.orchestrator.projections.len()),
            reset: self.sessions.reset_sql(),
        })
    }

    fn runners(&self, pool: &Pool) -> Result<Runners, Error> {
        let config = &self.orchestrator.config;
        let lanes = self
            .orchestrator
            .projections
            .iter()
            .flat_map(|projection| (0..config.lanes).map(move |lane| (projection, lane)));
        // A runner says two things at most between two commands.
        let (reports, inbox) = bounded(4 * config.lanes * self.orchestrator.projections.len());
        let mut runners = Runners::new(inbox);
        for (index, (projection, lane)) in lanes.enumerate() {
            let scope = projection.scope();
            let reader = Reader {
                pool: pool.clone(),
                sessions: self.sessions,
                names: config.names.clone(),
                scope: scope.clone(),
                bounds: config.bounds(),
            };
            let runner = Runner {
                index,
                lane,
                projection: projection.clone(),
                scope,
                names: config.names.clone(),
                pool: pool.clone(),
                sessions: self.sessions,
                feed: self.feed.clone(),
                follower: self.feed.follow(),
                requests: reader.spawn(&self.orchestrator.crew, format!("pup-read-{index:02}"))?,
                retry: config.retry.clone(),
                idle_limit: config.stale_worker_timeout,
                trust: self.trust.clone(),
                stop: self.orchestrator.crew.stop().clone(),
                board: self.orchestrator.board.clone(),
                metrics: self.metrics.projection(projection.name()),
                own_metrics: self.worker_metrics.projection(projection.name()),
                commands: runners.add(projection.name()),
                reports: reports.clone(),
            };
            self.orchestrator.crew.spawn(format!("pup-run-{index:02}"), move |pulse| {
                runner.run(pulse);
                Ok(())
            })?;
        }
        Ok(runners)
    }
}

/// What any of the scopes contains, and maybe more.
fn union(scopes: impl Iterator<Item = Scope>) -> Scope {
    let join = |a: Option<Vec<String>>, b: Option<Vec<String>>| {
        a.zip(b).map(|(a, b)| {
            let mut all = [a, b].concat();
            all.sort();
            all.dedup();
            all
        })
    };
    scopes
        .reduce(|a, b| Scope {
            aggregate_types: join(a.aggregate_types, b.aggregate_types),
            bounded_contexts: join(a.bounded_contexts, b.bounded_contexts),
        })
        .unwrap_or_default()
}
