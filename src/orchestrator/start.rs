//! Starts the threads of a worker.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};

use crate::config::Config;
use crate::context::Context;
use crate::coordinator::{Coordinator, Parts, Runners};
use crate::database::{Pool, PoolOptions};
use crate::error::Error;
use crate::feed::Feed;
use crate::feed::prefetch::Reader;
use crate::feed::tailer::Tailer;
use crate::listener::Listener;
use crate::metrics::WorkerMetrics;
use crate::overview::Overview;
use crate::projection::Projection;
use crate::runner::Runner;
use crate::scope::Scope;
use crate::store::Registration;
use crate::store::session::Session;
use crate::threads::{Crew, Waker};
use crate::trust::Trust;

/// Everything from which the threads of a worker are made.
pub(super) struct Start {
    pub(super) context: Context,
    pub(super) config: Config,
    pub(super) projections: Vec<Arc<dyn Projection>>,
    pub(super) registration: Registration,
    pub(super) crew: Crew,
    pub(super) overview: Overview,
    /// The waker of the coordinator, and the receiver on which it is woken.
    pub(super) coordination: (Waker, Receiver<()>),
    /// When the registration began.
    pub(super) begun: Instant,
}

impl Start {
    /// Starts all threads. `session` is the one in which the worker was registered.
    pub(super) fn threads(self, session: Session) -> Result<(), Error> {
        let trust = Trust::new(self.config.stale_worker_timeout);
        trust.renew(self.begun);
        let metrics = self.context.metrics.worker(&self.context.worker().to_string());
        let (feed, hints) = Feed::new(self.config.bounds());
        let pool = self.context.database.pool(PoolOptions {
            size: self.config.pool_size(self.projections.len()),
            reset: self.context.sessions.reset_sql(),
        })?;
        let runners = self.runners(&pool, &feed, &trust, &metrics)?;
        let (wakes_coordinator, woken) = self.coordination;
        let (says_missing, missing) = Waker::new();

        let listener =
            Listener { context: self.context.clone(), coordinator: wakes_coordinator, tailer: feed.hint().clone() };
        self.crew.spawn("pup-listen", move |pulse| listener.run(pulse))?;

        let tailer = Tailer {
            context: self.context.clone(),
            projections: self.registration.projections.clone(),
            feed: feed.clone(),
            scope: union(self.projections.iter().map(|projection| projection.scope())),
            bounds: self.config.bounds(),
            poll: self.config.event_poll,
            // For operators, the report is also a sign that the worker is alive.
            report_every: self.config.heartbeat_interval,
            hints,
            missing: says_missing,
        };
        self.crew.spawn("pup-tail", move |pulse| tailer.run(pulse))?;

        let parts = Parts {
            context: self.context,
            registration: self.registration,
            policy: self.config.policy(),
            heartbeat_interval: self.config.heartbeat_interval,
            poll_interval: self.config.poll_interval,
            pool,
            feed,
            trust,
            overview: self.overview,
            metrics,
            woken,
            missing,
        };
        let coordinator = Coordinator::new(parts, runners, self.begun);
        self.crew.spawn("pup-coord", move |pulse| coordinator.run(session, pulse))
    }

    fn runners(&self, pool: &Pool, feed: &Feed, trust: &Trust, metrics: &WorkerMetrics) -> Result<Runners, Error> {
        let Self { context, config, .. } = self;
        let lanes =
            self.projections.iter().flat_map(|projection| (0..config.lanes).map(move |lane| (projection, lane)));
        // A runner sends at most two reports between two commands.
        let (reports, inbox) = bounded(4 * config.lanes * self.projections.len());
        let mut runners = Runners::new(inbox);
        for (index, (projection, lane)) in lanes.enumerate() {
            let reader = Reader {
                pool: pool.clone(),
                sessions: context.sessions,
                names: context.names.clone(),
                scope: projection.scope(),
                bounds: config.bounds(),
            };
            let runner = Runner {
                context: context.clone(),
                index,
                lane,
                projection: projection.clone(),
                scope: projection.scope(),
                pool: pool.clone(),
                feed: feed.clone(),
                follower: feed.follow(),
                requests: reader.spawn(&self.crew, format!("pup-read-{index:02}"))?,
                retry: projection.retry().unwrap_or_else(|| config.retry.clone()),
                idle_limit: config.stale_worker_timeout,
                trust: trust.clone(),
                metrics: context.metrics.projection(projection.name()),
                own_metrics: metrics.projection(projection.name()),
                commands: runners.add(projection.name()),
                reports: reports.clone(),
            };
            self.crew.spawn(format!("pup-run-{index:02}"), move |pulse| {
                runner.run(pulse);
                Ok(())
            })?;
        }
        Ok(runners)
    }
}

/// Returns a scope that contains everything that any of these contains, and possibly more.
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
