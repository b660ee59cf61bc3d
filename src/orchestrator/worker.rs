//! A worker that can be started.

use crossbeam_channel::{Receiver, select};

use super::handle::{Handle, probe};
use super::hosted::Hosted;
use super::reach::{Outcome, elsewhere, once_reached, settled};
use super::register::register;
use super::start::{RunTo, Start};
use crate::backoff::Mentions;
use crate::config::Config;
use crate::context::Context;
use crate::database::Database;
use crate::error::Error;
use crate::goal::Goal;
use crate::health::NotReady;
use crate::metrics::{Metrics, ReplicaSetMetrics, WorkerMetrics};
use crate::overview::Overview;
use crate::probe::HealthProbe;
use crate::status::Board;
use crate::store::session::Sessions;
use crate::store::{Registration, folds, migrations, preflight};
use crate::threads::{Crew, Gate, Waker};

/// A worker that can be started. It then runs its projections as a member of a replica set.
///
/// ```no_run
/// use pupsourcing_orchestrator::{BoxError, Database, Event, Orchestrator, Projection};
/// # struct OrderCount;
/// # impl Projection for OrderCount {
/// #     fn name(&self) -> &str { "order_count" }
/// #     fn handle(
/// #         &self,
/// #         _: &mut pupsourcing_orchestrator::Tx<'_>,
/// #         _: &Event,
/// #     ) -> Result<(), BoxError> {
/// #         Ok(())
/// #     }
/// # }
/// let database = Database::from_url("postgres://app@localhost/shop")?;
/// let orchestrator = Orchestrator::builder(database, "main-projections")
///     .projection(OrderCount)
///     .build()?;
/// orchestrator.migrate()?;
/// let handle = orchestrator.start()?;
/// println!("{:?}", handle.status());
/// handle.shutdown(std::time::Duration::from_secs(30))?;
/// # Ok::<(), pupsourcing_orchestrator::Error>(())
/// ```
pub struct Orchestrator {
    pub(super) board: Board,
    pub(super) overview: Overview,
    /// The waker of the coordinator, and the receiver on which it is woken.
    pub(super) coordination: (Waker, Receiver<()>),
    pub(super) crew: Crew,
    /// The gate at which the threads of the crew wait until the worker is registered.
    pub(super) gate: Gate,
    pub(super) database: Database,
    /// Connects as the owner of the read models' tables.
    pub(super) owner: Option<Database>,
    pub(super) build_id: Option<String>,
    pub(super) config: Config,
    pub(super) projections: Vec<Hosted>,
    pub(super) metrics: Metrics,
}

impl std::fmt::Debug for Orchestrator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orchestrator")
            .field("database", &self.database)
            .field("owner", &self.owner)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Orchestrator {
    /// Creates the tables that do not exist yet, those of [folds](crate::Fold) too, or brings them
    /// up to date. Any number of processes may call this at the same time: they wait for one
    /// another, for up to [`database_wait`](crate::Builder::database_wait).
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] if existing tables have a form that the library cannot use, or are newer
    /// than the library; [`Error::MissingPrivilege`] if the user may not create them;
    /// [`Error::InvalidConfig`] if a replica set of the same name, but of another database, reports
    /// to the same [`Metrics`]. In each case, nothing has been changed.
    pub fn migrate(&self) -> Result<(), Error> {
        let (database, names, wait) = (self.database.clone(), self.config.names.clone(), self.config.database_wait);
        let stop = self.crew.stop().clone();
        let folds = Hosted::folds(&self.projections);
        // Reports until the migration has ended.
        let _reported = self.report()?;
        let outcome = elsewhere("pup-migrate", move || {
            let mut waits = Mentions::default();
            once_reached(wait, &stop, || {
                let mut client = database.client()?;
                preflight::server(&mut client)?;
                migrations::migrate(client, &names, &mut waits)?;
                // On a connection of its own, because this one looks for tables as the application.
                if folds.is_empty() { Ok(()) } else { folds::migrate(&mut database.client()?, &names, &folds) }
            })
        })?;
        settled(&outcome)
    }

    /// Returns a probe, with which a [`MetricsServer`](crate::MetricsServer) reports this worker's
    /// health, even while the worker waits for the database to migrate or to start.
    /// [`Handle::health`] later returns the same probe.
    pub fn health(&self) -> HealthProbe {
        probe(&self.crew, &self.board, &self.overview, &self.database, &self.config.names)
    }

    /// The metrics that this worker reports to.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Verifies server, schema and privileges, registers the worker, and starts its threads.
    ///
    /// It may be called on any thread, including a thread of an asynchronous runtime. It blocks for
    /// some round trips, and while the server is away, for up to
    /// [`database_wait`](crate::Builder::database_wait).
    ///
    /// # Errors
    ///
    /// An error that says what is wrong with the server, the schema or the user's privileges;
    /// [`Error::ProjectionClaimed`]; [`Error::CannotRebuild`]; [`Error::Spawn`] if the operating system refuses to start a
    /// thread; [`Error::InvalidConfig`] if a replica set of the same name, but of another database,
    /// reports to the same [`Metrics`]. In each case, no thread runs and the worker is not
    /// registered.
    pub fn start(self) -> Result<Handle, Error> {
        let (handle, started) = self.begin(None)?;
        settled(&started)?;
        Ok(handle)
    }

    /// Starts the worker and blocks until `shutdown` becomes ready or disconnected, or the worker
    /// fails. Then leaves gracefully, and waits for the handlers to finish what they have begun.
    ///
    /// If `shutdown` becomes ready during the start, the start is given up within a second, even if
    /// the server does not answer.
    ///
    /// # Errors
    ///
    /// The errors of [`start`](Self::start) and of [`Handle::join`].
    pub fn run(self, shutdown: &Receiver<()>) -> Result<(), Error> {
        let (handle, started) = self.begin(None)?;
        select! {
            recv(started) -> outcome => outcome.unwrap_or_else(|_| settled(&started))?,
            recv(shutdown) -> _ => return handle.give_up(&started),
        }
        handle.run_until(shutdown)
    }

    /// Begins the start on a thread of its own. If it fails, dropping the handle ends the threads.
    pub(super) fn begin(self, run_to: Option<RunTo>) -> Result<(Handle, Outcome<()>), Error> {
        let (metrics, own_metrics) = self.report()?;
        let handle = Handle {
            crew: self.crew.clone(),
            board: self.board.clone(),
            overview: self.overview.clone(),
            database: self.database.clone(),
            names: self.config.names.clone(),
            metrics: self.metrics.clone(),
            _own_metrics: own_metrics.clone(),
            waited_for: false,
        };
        let started = elsewhere("pup-start", move || {
            let (registration, wait) = (self.registration(), self.config.database_wait);
            let (goal, crossed) = Goal::nowhere();
            let context = Context {
                metrics,
                database: self.database,
                names: self.config.names.clone(),
                sessions: registration.sessions,
                stop: self.crew.stop().clone(),
                board: self.board,
                goal,
            };
            let replays = |hosted: &&Hosted| hosted.settings.on_failure.replays_at_start();
            let replayed: Vec<String> =
                self.projections.iter().filter(replays).map(|hosted| hosted.name().to_owned()).collect();
            let up_to = run_to.as_ref().map(|run_to| run_to.position);
            let owner = self.owner.clone();
            let start = Start {
                context: context.clone(),
                metrics: own_metrics,
                config: self.config,
                projections: self.projections,
                owner: self.owner,
                registration: registration.clone(),
                crew: self.crew,
                overview: self.overview,
                coordination: self.coordination,
            };
            if let Some(run_to) = run_to {
                start.watch_progress(run_to.reports, crossed)?;
            }
            let prepared = start.threads(self.gate)?;
            let attempt = || {
                let registered = register(&context, &registration, (&prepared.pool, owner.as_ref()), up_to, &replayed);
                // Closes connections that the pool has opened since the worker gave up waiting for
                // them.
                registered.inspect_err(|_| prepared.pool.close_idle())
            };
            // `None` if the worker was asked to stop.
            if let Some(registered) = once_reached(wait, &context.stop, attempt)? {
                prepared.begin(registered, registration.projections.len());
            }
            Ok(())
        })?;
        Ok((handle, started))
    }

    /// Begins to report the metrics of a worker that has not registered.
    fn report(&self) -> Result<(ReplicaSetMetrics, WorkerMetrics), Error> {
        let place = format!("{}, table {}", self.database.place(), self.config.names.workers());
        let metrics = self.metrics.for_replica_set(&self.config.replica_set, &place)?;
        let own = metrics.worker(&self.board.worker_id().to_string());
        own.set_not_ready(Some(NotReady::NotRegistered.label()));
        Ok((metrics, own))
    }

    pub(super) fn sessions(&self) -> Sessions {
        match self.config.session_loss_grace {
            Some(_) => Sessions::Own(self.board.worker_id()),
            None => Sessions::Shared,
        }
    }

    pub(super) fn registration(&self) -> Registration {
        Registration {
            worker: self.board.worker_id(),
            replica_set: self.config.replica_set.clone(),
            host: host_name(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            projections: self.projections.iter().map(|hosted| hosted.known.clone()).collect(),
            build: self.build_id.clone(),
            sessions: self.sessions(),
            stale_worker_timeout: self.config.stale_worker_timeout,
        }
    }
}

fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_kernel
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "unknown".into(), |name| name.trim().to_owned())
}
