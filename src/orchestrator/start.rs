//! Creates the threads of a worker, and lets them begin once it is registered.
//!
//! *Invariant:* everything that can fail is done before the worker registers. So a start that fails
//! leaves nothing in the database, and nothing has to be undone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::hosted::Hosted;
use super::register::Registered;
use crate::catch_up::{CatchUp, Progress};
use crate::config::Config;
use crate::context::Context;
use crate::coordinator::{Coordinator, Parts, Runners};
use crate::database::{Database, Pool, PoolOptions};
use crate::errands::{Code, Errands};
use crate::error::{Error, field};
use crate::feed::Feed;
use crate::feed::prefetch::Reader;
use crate::feed::tailer::{self, Tailer};
use crate::leave;
use crate::listener::Listener;
use crate::measure::{Lags, Measuring};
use crate::metrics::WorkerMetrics;
use crate::overview::Overview;
use crate::plan::{Kind, base_of};
use crate::runner::{Command, Report, Runner};
use crate::scope::Scope;
use crate::store::Registration;
use crate::store::session::{Session, Sessions};
use crate::threads::{Crew, Gate, Waker, safely};
use crate::trust::Trust;
use crate::watch::Watch;

/// Everything from which the threads of a worker are created.
pub(super) struct Start {
    pub(super) context: Context,
    pub(super) metrics: WorkerMetrics,
    pub(super) config: Config,
    pub(super) projections: Vec<Hosted>,
    /// Connects as the owner of the read models' tables.
    pub(super) owner: Option<Database>,
    pub(super) registration: Registration,
    pub(super) crew: Crew,
    pub(super) overview: Overview,
    /// The waker of the coordinator, and the receiver on which it is woken.
    pub(super) coordination: (Waker, Receiver<()>),
}

/// The position at which a worker stops, and the channel for its progress.
pub(super) struct RunTo {
    /// The last position to process. If it is above the newest event, the worker stops at that
    /// event.
    pub(super) position: i64,
    pub(super) reports: Sender<Result<Progress, Error>>,
}

/// A worker whose threads wait until it is registered. If this is dropped, the threads end.
pub(super) struct Prepared {
    context: Context,
    trust: Trust,
    pub(super) pool: Pool,
    /// Sends the coordinator the session in which the worker was registered, and the time when the
    /// registration began.
    registered: Sender<(Session, Instant)>,
    for_tailer: Sender<Session>,
    for_listener: Sender<Session>,
    gate: Gate,
}

impl Prepared {
    /// Lets the threads begin.
    pub(super) fn begin(self, worker: Registered, projections: usize) {
        let Self { context, trust, registered, for_tailer, for_listener, gate, .. } = self;
        let Registered { session, begun, warnings, .. } = worker;
        trust.renew(begun);
        context.board.heartbeat_answered(begun);
        context.metrics.workers_registered.inc();
        // The channels have room, and the threads wait for the messages.
        _ = registered.try_send((session, begun));
        _ = for_tailer.try_send(worker.for_tailer);
        _ = for_listener.try_send(worker.for_listener);
        gate.open();
        let (replica_set, worker, database) = (context.replica_set(), context.worker(), context.database.target());
        safely(|| {
            for warning in warnings {
                warning.log(replica_set);
            }
            log::info!(
                "registered: replica_set={replica_set} worker={worker} projections={projections} database={database}",
                replica_set = field(&replica_set),
                projections = field(&projections),
                database = field(&database)
            );
        });
    }
}

impl Start {
    /// Creates the thread that watches the worker's progress towards its goal.
    pub(super) fn watch_progress(
        &self,
        reports: Sender<Result<Progress, Error>>,
        crossed: Receiver<()>,
    ) -> Result<(), Error> {
        let (context, projections) = (self.context.clone(), self.registration.projections.clone());
        let catch_up = CatchUp { context, projections, crossed, reports };
        self.crew.spawn("pup-goal", move |_| catch_up.run())
    }

    /// Creates all threads, which wait at the gate.
    pub(super) fn threads(self, gate: Gate) -> Result<Prepared, Error> {
        let context = self.context.clone();
        let trust = Trust::new(self.config.stale_worker_timeout);
        let metrics = self.metrics.clone();
        let idle_limit = self.idle_limit();
        let (feed, hints) = Feed::new(self.config.bounds());
        let pool = self.context.database.pool(PoolOptions {
            size: self.config.pool_size(Hosted::lanes(&self.projections)),
            reset: self.context.sessions.reset_sql(),
        })?;
        leave::bound(&self.crew, &self.context, self.config.leave_timeout)?;
        let runners = self.runners(&pool, &feed, &trust, &metrics)?;
        let (wakes_coordinator, woken) = self.coordination;
        let (says_missing, missing) = Waker::new();
        let looks_again = says_missing.clone();

        let (for_listener, first_of_listener) = bounded(1);
        let listener = Listener {
            context: self.context.clone(),
            first: first_of_listener,
            coordinator: wakes_coordinator,
            tailer: feed.hint().clone(),
        };
        let lags = Lags::new(self.context.metrics.clone(), self.config.heartbeat_interval);
        let measuring = Measuring::new(self.context.clone(), lags.clone(), self.overview);
        self.crew.spawn("pup-listen", move |pulse| listener.run(measuring, pulse))?;

        let watch = Watch {
            context: self.context.clone(),
            metrics: metrics.clone(),
            lags,
            at_least_every: self.config.heartbeat_interval,
        };
        self.crew.spawn("pup-watch", move |_| {
            watch.run();
            Ok(())
        })?;

        let (for_tailer, first) = bounded(1);
        let tailer = Tailer {
            context: self.context.clone(),
            first,
            projections: self.registration.projections.clone(),
            feed: feed.clone(),
            scope: Scope::union(self.projections.iter().map(|hosted| hosted.known.scope.clone())),
            bounds: self.config.bounds(),
            poll: self.config.event_poll,
            // Reports at this interval also show operators that the worker is alive.
            report_every: self.config.heartbeat_interval,
            hints,
            missing: says_missing,
        };
        self.crew.spawn(tailer::THREAD, move |pulse| tailer.run(pulse))?;

        // The thread has one errand at a time, and there is room for the next.
        let (errands, orders) = bounded(1);
        let code = |hosted: &Hosted| {
            let Hosted { handler, known, .. } = hosted;
            (hosted.name().into(), Code { handler: handler.clone(), known: known.clone() })
        };
        let executing = Errands {
            context: self.context.clone(),
            code: self.projections.iter().map(code).collect(),
            owner: self.owner,
            build: self.registration.build.clone(),
            idle_limit,
            orders,
            finished: looks_again,
        };
        self.crew.spawn("pup-errand", move |_| {
            executing.run();
            Ok(())
        })?;

        let parts = Parts {
            context: self.context,
            registration: self.registration,
            policy: self.config.policy(),
            heartbeat_interval: self.config.heartbeat_interval,
            poll_interval: self.config.poll_interval,
            shortage_limit: self.config.stale_worker_timeout,
            pool: pool.clone(),
            feed,
            trust: trust.clone(),
            metrics,
            woken,
            missing,
            errands,
        };
        let (registered, registration) = bounded(1);
        self.crew.spawn("pup-coord", move |pulse| match registration.recv() {
            Ok((session, begun)) => Coordinator::new(parts, runners, begun).run(session, pulse),
            // The worker was never registered.
            Err(_) => Ok(()),
        })?;
        Ok(Prepared { context, trust, pool, registered, for_tailer, for_listener, gate })
    }

    /// How long a transaction of a handler may be idle. If the other workers cannot end its
    /// session, they wait for it at most as long as for a handler.
    fn idle_limit(&self) -> Duration {
        match self.context.sessions {
            Sessions::Own(_) => self.config.coordination_timeout,
            Sessions::Shared => self.config.stale_worker_timeout,
        }
    }

    /// Creates the runners of the projections. Those of a rebuild are created when it begins, and
    /// get connections of their own, so that live work never waits for them.
    fn runners(&self, pool: &Pool, feed: &Feed, trust: &Trust, metrics: &WorkerMetrics) -> Result<Runners, Error> {
        let Self { context, config, crew, .. } = self;
        // A runner sends at most two reports between two commands.
        let lanes = Hosted::lanes(&self.projections);
        let (reports, inbox) = bounded(8 * lanes);
        let for_rebuilds = context
            .database
            .pool(PoolOptions { size: config.pool_size(lanes), reset: context.sessions.reset_sql() })?;
        let common = Common {
            context: context.clone(),
            config: config.clone(),
            crew: crew.clone(),
            pool: pool.clone(),
            for_rebuilds,
            feed: feed.clone(),
            trust: trust.clone(),
            metrics: metrics.clone(),
            reports,
            idle_limit: self.idle_limit(),
            projections: self.projections.iter().map(|hosted| (hosted.name().into(), hosted.clone())).collect(),
        };
        let spawn = move |name: &str, lane, index, commands| common.spawn(name, lane, index, commands);
        let mut runners = Runners::new(inbox, Box::new(spawn));
        for hosted in &self.projections {
            runners.add(hosted.name(), hosted.settings.lanes)?;
        }
        Ok(runners)
    }
}

/// What the runners have in common.
struct Common {
    context: Context,
    config: Config,
    crew: Crew,
    pool: Pool,
    for_rebuilds: Pool,
    feed: Feed,
    trust: Trust,
    metrics: WorkerMetrics,
    reports: Sender<Report>,
    idle_limit: Duration,
    projections: BTreeMap<Box<str>, Hosted>,
}

impl Common {
    /// Starts a runner and its reader.
    fn spawn(&self, name: &str, lane: usize, index: usize, commands: Receiver<Command>) -> Result<(), Error> {
        let Self { context, config, feed, .. } = self;
        let Some(hosted) = self.projections.get(base_of(name)) else { return Ok(()) };
        let pool = if Kind::of(name) == Kind::Rebuild { &self.for_rebuilds } else { &self.pool };
        let reader = Reader {
            pool: pool.clone(),
            sessions: context.sessions,
            names: context.names.clone(),
            scope: hosted.known.scope.clone(),
            bounds: hosted.settings.bounds,
            shortage: context.board.shortage.clone(),
        };
        let runner = Runner {
            context: context.clone(),
            index,
            lane,
            name: name.into(),
            handler: hosted.handler.clone(),
            scope: hosted.known.scope.clone(),
            pool: pool.clone(),
            feed: feed.clone(),
            follower: feed.follow(),
            requests: reader.spawn(&self.crew, format!("pup-read-{index:02}"))?,
            settings: hosted.settings.clone(),
            call_limit: config.coordination_timeout,
            idle_limit: self.idle_limit,
            trust: self.trust.clone(),
            metrics: context.metrics.projection(name),
            own_metrics: self.metrics.projection(name),
            commands,
            reports: self.reports.clone(),
        };
        self.crew.spawn(format!("pup-run-{index:02}"), move |pulse| {
            runner.run(pulse);
            Ok(())
        })
    }
}
