//! A worker that can be started.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, select};

use super::handle::{DROP_PATIENCE, Handle, probe};
use super::reach::once_reached;
use super::start::Start;
use crate::backoff::Mentions;
use crate::config::Config;
use crate::context::Context;
use crate::database::Database;
use crate::error::Error;
use crate::http::HealthProbe;
use crate::metrics::Metrics;
use crate::overview::Overview;
use crate::projection::Projection;
use crate::status::Board;
use crate::store::session::{Session, Sessions};
use crate::store::{Known, Registration, coordination, migrations, notifications, preflight};
use crate::threads::{Crew, Waker};

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
    pub(super) board: Board,
    pub(super) overview: Overview,
    /// The waker of the coordinator, and the receiver on which it is woken.
    pub(super) coordination: (Waker, Receiver<()>),
    pub(super) crew: Crew,
    pub(super) database: Database,
    pub(super) config: Config,
    pub(super) projections: Vec<Arc<dyn Projection>>,
    pub(super) metrics: Metrics,
}

/// A worker that has been registered.
struct Registered {
    registration: Registration,
    /// The session whose lock means that the worker is alive.
    session: Session,
    /// When the registration began.
    begun: Instant,
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
    /// Creates the tables that do not exist yet, or brings them up to date. Any number of processes
    /// may do it at once: they wait for one another, for up to
    /// [`database_wait`](crate::Builder::database_wait).
    ///
    /// # Errors
    ///
    /// [`Error::Schema`] if existing tables have a form that the library cannot use, or are newer
    /// than the library; [`Error::MissingPrivilege`] if the user may not create them. Then nothing
    /// has been changed.
    pub fn migrate(&self) -> Result<(), Error> {
        let mut waits = Mentions::default();
        once_reached("pup-migrate", self.config.database_wait, pause, || {
            let mut client = self.database.connect()?;
            preflight::server(&mut client)?;
            migrations::migrate(client, &self.config.names, &mut waits)
        })
    }

    /// A probe with which a [`MetricsServer`](crate::MetricsServer) answers for this worker's
    /// health, also while the worker waits for the database to migrate or to start. The same as
    /// [`Handle::health`] returns later.
    pub fn health(&self) -> HealthProbe {
        probe(&self.crew, &self.board, &self.overview)
    }

    /// The metrics this worker reports to.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Verifies server, schema and privileges, registers the worker, and starts its threads.
    ///
    /// May be called from any thread, also from within an asynchronous runtime, although it blocks:
    /// for some round trips, and while the server is away for up to
    /// [`database_wait`](crate::Builder::database_wait).
    ///
    /// # Errors
    ///
    /// What is wrong with the server, the schema or the user's privileges, or
    /// [`Error::ProjectionClaimed`]. Then no thread runs and the worker is not registered.
    pub fn start(self) -> Result<Handle, Error> {
        let registered = self.register(pause)?;
        self.begin(registered)
    }

    fn begin(self, Registered { registration, session, begun }: Registered) -> Result<Handle, Error> {
        let context = Context {
            database: self.database,
            names: self.config.names.clone(),
            sessions: registration.sessions,
            stop: self.crew.stop().clone(),
            board: self.board.clone(),
            metrics: self.metrics.for_replica_set(&self.config.replica_set),
        };
        self.board.heartbeat_answered(begun);
        context.metrics.workers_registered.inc();
        log::info!(
            "registered: replica_set={} worker={} projections={} database={}",
            context.replica_set(),
            context.worker(),
            self.projections.len(),
            context.database.target()
        );
        let start = Start {
            context,
            config: self.config,
            projections: self.projections,
            registration,
            crew: self.crew.clone(),
            overview: self.overview.clone(),
            coordination: self.coordination,
            begun,
        };
        if let Err(error) = start.threads(session) {
            self.crew.stop().raise();
            self.crew.join(Some(DROP_PATIENCE)).ok();
            return Err(error);
        }
        Ok(Handle {
            crew: self.crew,
            board: self.board,
            overview: self.overview,
            metrics: self.metrics,
            waited_for: false,
        })
    }

    /// Starts the worker and blocks until `shutdown` becomes ready or disconnected, or the worker
    /// fails. Then leaves gracefully, and waits for the handlers to finish what they have begun.
    ///
    /// # Errors
    ///
    /// Those of [`start`](Self::start), and those of [`Handle::join`].
    pub fn run(self, shutdown: &Receiver<()>) -> Result<(), Error> {
        let mut is_asked_to_stop = false;
        let registered = self.register(|delay| {
            select! {
                recv(shutdown) -> _ => is_asked_to_stop = true,
                default(delay) => {}
            }
            !is_asked_to_stop
        });
        if is_asked_to_stop {
            return Ok(());
        }
        self.begin(registered?)?.run_until(shutdown)
    }

    /// Waits until the server can be reached, verifies that this worker can work there, and
    /// registers it.
    fn register(&self, pause: impl FnMut(Duration) -> bool + Send) -> Result<Registered, Error> {
        let names = &self.config.names;
        once_reached("pup-start", self.config.database_wait, pause, || {
            let (begun, registration) = (Instant::now(), self.registration());
            // Read before the library sets its own path: handlers will have this one.
            let mut client = self.database.connect()?;
            preflight::server(&mut client)?;
            preflight::pooler(&mut client, &mut self.database.connect()?, registration.sessions)?;
            let path = preflight::path(&mut client)?;
            let session = Session::of(client, registration.sessions)?;
            let mut session = session.with_generic_plans()?;
            let warnings = preflight::schema(&mut session, names, &path)?;
            coordination::register(&mut session, names, &registration)?;
            notifications::notify_coordination(
                &mut session,
                names,
                &registration.replica_set,
                &mut Mentions::default(),
            );
            for warning in warnings {
                warning.log(&self.config.replica_set);
            }
            Ok(Registered { registration, session, begun })
        })
    }

    fn registration(&self) -> Registration {
        Registration {
            worker: self.board.worker_id(),
            replica_set: self.config.replica_set.clone(),
            host: host_name(),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            projections: (self.projections.iter())
                .map(|p| Known { name: p.name().to_owned(), start_at: p.start_at() })
                .collect(),
            lanes: self.config.lanes,
            sessions: match self.config.session_loss_grace {
                Some(_) => Sessions::Own(self.board.worker_id()),
                None => Sessions::Shared,
            },
            stale_worker_timeout: self.config.stale_worker_timeout,
        }
    }
}

/// Waits for the next attempt.
fn pause(delay: Duration) -> bool {
    _ = after(delay).recv();
    true
}

fn host_name() -> String {
    let from_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    from_kernel
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map_or_else(|| "unknown".into(), |name| name.trim().to_owned())
}
