//! The orchestrator: built, migrated, started; and the handle of a running worker. The only module that knows every other.

mod builder;
mod handle;
mod start;

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Receiver;

pub use self::builder::Builder;
use self::handle::DROP_PATIENCE;
pub use self::handle::Handle;
use self::start::Start;
use crate::config::Config;
use crate::coordinator::{self, Link};
use crate::database::Database;
use crate::error::Error;
use crate::feed::Feed;
use crate::metrics::Metrics;
use crate::plan::WorkerId;
use crate::projection::Projection;
use crate::status::Board;
use crate::store::{Names, Registration, coordination, migrations, preflight};
use crate::threads::Crew;
use crate::trust::Trust;

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
        let (feed, hints) = Feed::new(self.config.bounds());
        let start = Start {
            crew: Crew::new(),
            member: registration.has_session_lock.then_some(worker),
            feed,
            hints,
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

fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_kernel
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "unknown".into(), |name| name.trim().to_owned())
}
