//! The orchestrator: built, migrated, started; and the handle of a running worker. The only file that knows every other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::config::{Config, Retry};
use crate::coordinator::{self, Coordinator, Link, Runners};
use crate::database::{Database, Pool, PoolOptions};
use crate::error::Error;
use crate::feed::Feed;
use crate::feed::ahead::{Ahead, Reader};
use crate::feed::tailer::Tailer;
use crate::http::HealthProbe;
use crate::listener::Listener;
use crate::metrics::{Metrics, ReplicaSetMetrics, WorkerMetrics};
use crate::plan::{WorkerId, WorkerState};
use crate::projection::{Projection, Scope};
use crate::runner::Runner;
use crate::status::{Assignment, Board, Status};
use crate::store::{Names, Registration, coordination, migrations, preflight, session};
use crate::threads::Crew;
use crate::trust::Trust;

/// How long a worker that is being dropped waits for its threads: one batch of a well-behaved handler, and the goodbye.
const DROP_PATIENCE: Duration = Duration::from_secs(10);

/// Collects what an [`Orchestrator`] needs. Every setter documents its default; [`build`](Self::build) validates.
#[must_use = "a builder does nothing until built"]
pub struct Builder {
    database: Database,
    config: Config,
    projections: Vec<Arc<dyn Projection>>,
    metrics: Option<Metrics>,
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

    /// How often the worker looks for new events: the quickest while events come in, slowing down to the slowest while none do.
    /// Defaults to 5 ms and 250 ms.
    pub fn event_poll(mut self, quickest: Duration, slowest: Duration) -> Self {
        self.config.event_poll = (quickest, slowest);
        self
    }

    /// The most events of one transaction. Defaults to 1000.
    pub fn batch_size(mut self, events: usize) -> Self {
        self.config.batch_size = events;
        self
    }

    /// The most bytes of payload and metadata of one transaction; an event that is larger by itself is handled alone. Defaults to 8 MiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.config.batch_bytes = bytes;
        self
    }

    /// The most connections of the pool the projections work on. Three more are used beside it: for coordination, notifications and the
    /// live tail. Defaults to what is needed, two per projection.
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
        let metrics = match self.metrics {
            Some(metrics) => metrics,
            None => Metrics::new()?,
        };
        let application_name = format!("pupsourcing-orchestrator {}", self.config.replica_set);
        Ok(Orchestrator {
            database: self.database.with_default_application_name(&application_name),
            config: self.config,
            projections: self.projections,
            metrics,
        })
    }
}

/// A worker that can be started: it runs its projections as a member of a replica set.
///
/// ```no_run
/// use pupsourcing_orchestrator::{BoxError, Database, Event, Orchestrator, Projection};
/// # struct OrderCount;
/// # impl Projection for OrderCount {
/// #     fn name(&self) -> &str { "order_count" }
/// #     fn handle(&self, _: &mut postgres::Transaction<'_>, _: &Event) -> Result<(), BoxError> { Ok(()) }
/// # }
/// let database = Database::from_url("postgres://app@localhost/shop")?;
/// let orchestrator = Orchestrator::builder(database, "main-projections").projection(OrderCount).build()?;
/// orchestrator.migrate()?;
/// let handle = orchestrator.start()?;
/// println!("{:?}", handle.status());
/// handle.shutdown(std::time::Duration::from_secs(30))?;
/// # Ok::<(), pupsourcing_orchestrator::Error>(())
/// ```
pub struct Orchestrator {
    database: Database,
    config: Config,
    projections: Vec<Arc<dyn Projection>>,
    metrics: Metrics,
}

impl std::fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orchestrator")
            .field("database", &self.database)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Orchestrator {
    /// Begins to set up a worker of a replica set: 1 to 255 bytes, the same for all workers that share the work.
    pub fn builder(database: Database, replica_set: impl Into<String>) -> Builder {
        Builder { database, config: Config::new(replica_set.into()), projections: Vec::new(), metrics: None }
    }

    /// Creates the tables that are not there yet, or brings them up to date. Any number of processes may do it at once.
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] if existing tables are of a form the library cannot use, or newer than it; [`Error::MissingPrivilege`] if the
    /// user may not create them. Then nothing has been changed.
    pub fn migrate(&self) -> Result<(), Error> {
        let (database, names) = (self.database.clone(), self.config.names.clone());
        apart("pup-migrate", move || {
            let mut client = database.connect()?;
            preflight::server(&mut client)?;
            migrations::migrate(&mut client, &names)
        })
    }

    /// The metrics this worker reports to.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Verifies server, schema and privileges, registers the worker, and starts its threads.
    ///
    /// May be called from anywhere, also from within an asynchronous runtime, though it blocks for some round trips.
    ///
    /// # Errors
    ///
    /// What is wrong with the server, the schema or the user's privileges, or [`Error::ProjectionClaimed`]; then no thread runs and the
    /// worker is not registered.
    pub fn start(self) -> Result<Handle, Error> {
        let begun = Instant::now();
        let worker = WorkerId(uuid::Uuid::new_v4());
        let registration = self.registration(worker);
        let link = {
            let (database, names, registration) =
                (self.database.clone(), self.config.names.clone(), registration.clone());
            apart("pup-start", move || register(&database, &names, &registration))?
        };
        let trust = Trust::new(self.config.stale_worker_timeout);
        trust.renew(begun);
        let projections = self.projections.iter().map(|projection| projection.name().to_owned());
        let board = Board::new(worker, &self.config.replica_set, projections);
        board.heartbeat_answered(begun);
        let metrics = self.metrics.for_replica_set(&self.config.replica_set);
        metrics.workers_registered.inc();
        log::info!(
            "registered: replica_set={} worker={worker} projections={} database={}",
            self.config.replica_set,
            self.projections.len(),
            self.database.target()
        );
        let start = Start {
            crew: Crew::new(),
            member: registration.has_session_lock.then_some(worker),
            feed: Feed::new(self.config.bounds()),
            worker_metrics: metrics.worker(&worker.to_string()),
            orchestrator: self,
            board,
            metrics,
            trust,
        };
        let crew = start.crew.clone();
        match start.threads(link, registration, begun) {
            Ok(handle) => Ok(handle),
            Err(error) => {
                crew.stop().raise();
                crew.join(Some(DROP_PATIENCE)).ok();
                Err(error)
            }
        }
    }

    /// Starts the worker and blocks until `shutdown` becomes ready or disconnected, or the worker fails; then leaves gracefully,
    /// taking as long as the handlers need for what they have begun.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start), and [`Error::ThreadPanicked`] if a thread failed.
    pub fn run(self, shutdown: &Receiver<()>) -> Result<(), Error> {
        self.start()?.run_until(shutdown)
    }

    fn registration(&self, worker: WorkerId) -> Registration {
        Registration {
            worker,
            replica_set: self.config.replica_set.clone(),
            host: host_name(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            projections: self.projections.iter().map(|p| (p.name().to_owned(), p.start_at())).collect(),
            has_session_lock: self.config.session_loss_grace.is_some(),
            stale_worker_timeout: self.config.stale_worker_timeout,
        }
    }
}

fn register(database: &Database, names: &Names, registration: &Registration) -> Result<Link, Error> {
    let mut link = coordinator::connect(database, registration)?;
    preflight::server(&mut link.client)?;
    preflight::schema(&mut link.client, names)?;
    coordination::register(&mut link.client, names, registration)?;
    Ok(link)
}

/// What the threads of a worker are made from.
struct Start {
    orchestrator: Orchestrator,
    crew: Crew,
    /// The worker, if its connections are to be found by session locks.
    member: Option<WorkerId>,
    feed: Feed,
    trust: Trust,
    board: Board,
    metrics: ReplicaSetMetrics,
    worker_metrics: WorkerMetrics,
}

impl Start {
    fn threads(self, link: Link, registration: Registration, begun: Instant) -> Result<Handle, Error> {
        let config = &self.orchestrator.config;
        let pool = self.pool()?;
        let runners = self.runners(&pool)?;
        let (wake_coordinator, woken_coordinator) = bounded(1);
        let (hint, hints) = bounded(1);
        let listener = Listener {
            database: self.orchestrator.database.clone(),
            names: config.names.clone(),
            replica_set: config.replica_set.clone(),
            worker: self.member,
            coordination: wake_coordinator.clone(),
            events: hint,
            stop: self.crew.stop().clone(),
            metrics: self.metrics.clone(),
        };
        self.crew.spawn("pup-listen", move |pulse| listener.run(pulse))?;
        let tailer = Tailer {
            database: self.orchestrator.database.clone(),
            names: config.names.clone(),
            worker: self.member,
            feed: self.feed.clone(),
            scope: union(self.orchestrator.projections.iter().map(|projection| projection.scope())),
            bounds: config.bounds(),
            poll: config.event_poll,
            hints,
            coordination: wake_coordinator,
            stop: self.crew.stop().clone(),
            board: self.board.clone(),
            metrics: self.metrics.clone(),
        };
        self.crew.spawn("pup-tail", move |pulse| tailer.run(pulse))?;
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
            feed: self.feed,
            trust: self.trust,
            stop: self.crew.stop().clone(),
            board: self.board.clone(),
            metrics: self.metrics,
            worker_metrics: self.worker_metrics,
            interrupted: Some(begun),
        };
        self.crew.spawn("pup-coord", move |pulse| coordinator.run(link, pulse))?;
        Ok(Handle { crew: self.crew, board: self.board, metrics: self.orchestrator.metrics, waited_for: false })
    }

    fn pool(&self) -> Result<Pool, Error> {
        let config = &self.orchestrator.config;
        let member = self.member;
        self.orchestrator.database.pool(PoolOptions {
            size: config.pool_size(self.orchestrator.projections.len()),
            on_acquire: Box::new(move |client| match member {
                Some(worker) => session::hold_member(client, worker),
                None => Ok(()),
            }),
        })
    }

    fn runners(&self, pool: &Pool) -> Result<Runners, Error> {
        let config = &self.orchestrator.config;
        let mut commands = Vec::new();
        // A runner says two things at most between two commands.
        let (reports, inbox) = bounded(4 * self.orchestrator.projections.len());
        for (index, projection) in self.orchestrator.projections.iter().enumerate() {
            let scope = projection.scope();
            let reader = Reader {
                pool: pool.clone(),
                names: config.names.clone(),
                scope: scope.clone(),
                bounds: config.bounds(),
            };
            // Room for a command that replaces one not yet taken.
            let (sender, receiver) = bounded(2);
            commands.push(sender);
            let runner = Runner {
                index,
                projection: projection.clone(),
                scope,
                names: config.names.clone(),
                pool: pool.clone(),
                feed: self.feed.clone(),
                follower: self.feed.follow(),
                ahead: Ahead::spawn(&self.crew, format!("pup-read-{index:02}"), reader)?,
                retry: config.retry.clone(),
                idle_limit: self.member.is_none().then_some(config.stale_worker_timeout),
                trust: self.trust.clone(),
                stop: self.crew.stop().clone(),
                board: self.board.clone(),
                metrics: self.metrics.projection(projection.name()),
                own_metrics: self.worker_metrics.projection(projection.name()),
                commands: receiver,
                reports: reports.clone(),
            };
            self.crew.spawn(format!("pup-run-{index:02}"), move |pulse| runner.run(pulse))?;
        }
        Ok(Runners::new(commands, inbox))
    }
}

/// A running worker. Dropping it stops the worker and waits for it, 10 s at most.
#[derive(Debug)]
pub struct Handle {
    crew: Crew,
    board: Board,
    metrics: Metrics,
    /// Whether somebody has waited for the end already, so that the drop does not wait again.
    waited_for: bool,
}

impl Handle {
    /// The worker's identity, as the table of workers and the metrics name it.
    pub fn worker_id(&self) -> WorkerId {
        self.board.worker_id()
    }

    /// The partition the worker holds at this moment, if it holds one.
    pub fn assignment(&self) -> Option<Assignment> {
        self.board.read().assignment
    }

    /// What the worker knows of itself. Never asks the database.
    pub fn status(&self) -> Status {
        self.board.read()
    }

    /// The metrics this worker reports to.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// What a [`MetricsServer`](crate::MetricsServer) asks to answer for this worker's health.
    pub fn health(&self) -> HealthProbe {
        let (crew, ready, status) = (self.crew.clone(), self.board.clone(), self.board.clone());
        HealthProbe::new(
            move || match crew.stuck() {
                Some(thread) => Err(format!("thread {thread} is stuck or has failed")),
                None => Ok(()),
            },
            move || is_ready(&ready.read()),
            move || status.read(),
        )
    }

    /// Asks the worker to leave, without waiting for it.
    pub fn request_shutdown(&self) {
        self.crew.stop().raise();
    }

    /// Blocks until `shutdown` becomes ready or disconnected, or the worker fails; then leaves gracefully, taking as long as the
    /// handlers need for what they have begun.
    ///
    /// # Errors
    ///
    /// [`Error::ThreadPanicked`] if that is why.
    pub fn run_until(self, shutdown: &Receiver<()>) -> Result<(), Error> {
        crossbeam_channel::select! {
            recv(shutdown) -> _ => {}
            recv(self.crew.stop().heard()) -> _ => {}
        }
        self.crew.stop().raise();
        self.join()
    }

    /// Leaves gracefully: the runners commit what they have handled, the partitions are handed over, the threads end.
    ///
    /// # Errors
    ///
    /// [`Error::ShutdownTimeout`] if a handler takes longer: the threads go on towards their end, and when the process exits before,
    /// what they have not committed is done by others. [`Error::ThreadPanicked`] if a thread had failed before.
    pub fn shutdown(mut self, timeout: Duration) -> Result<(), Error> {
        self.crew.stop().raise();
        self.waited_for = true;
        self.crew.join(Some(timeout))
    }

    /// Waits until the worker has ended: because it was asked to by [`request_shutdown`](Self::request_shutdown), or because a thread
    /// failed.
    ///
    /// # Errors
    ///
    /// [`Error::ThreadPanicked`] if that is why.
    pub fn join(mut self) -> Result<(), Error> {
        self.waited_for = true;
        self.crew.join(None)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.crew.stop().raise();
        if self.waited_for {
            return;
        }
        if let Err(error) = self.crew.join(Some(DROP_PATIENCE)) {
            log::warn!("worker dropped: worker={} error={error}", self.board.worker_id());
        }
    }
}

fn is_ready(status: &Status) -> Result<(), String> {
    if !status.database_reachable {
        return Err("the database is out of reach".into());
    }
    match status.state {
        WorkerState::Stopping | WorkerState::Stopped => Err(format!("the worker is {}", status.state)),
        // Registered and holding a partition, or coordinating.
        _ => Ok(()),
    }
}

/// Runs something that blocks on the database on a thread of its own: the database client refuses to block a thread that belongs to an
/// asynchronous runtime.
fn apart<T: Send>(name: &str, work: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| Error::Spawn { thread: name.to_owned(), source })?;
        thread.join().unwrap_or_else(|payload| {
            Err(Error::ThreadPanicked { thread: name.to_owned(), message: crate::error::panic_message(&*payload) })
        })
    })
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

fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_kernel
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "unknown".into(), |name| name.trim().to_owned())
}
