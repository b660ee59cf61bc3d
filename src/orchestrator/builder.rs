//! The builder of an orchestrator.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::hosted::{Change, Hosted};
use super::worker::Orchestrator;
use crate::config::{Bytes, Config, Declared, OnFailure, Options, Retry, setter, setters, variable, with_options};
use crate::database::Database;
use crate::error::Error;
use crate::fold::{Fold, Folded};
use crate::metrics::Metrics;
use crate::overview::Overview;
use crate::plan::WorkerId;
use crate::projection::{BatchProjection, Batches, Each, Effects, Handler, Projection, Reaction};
use crate::status::Board;
use crate::store::Names;
use crate::threads::{Crew, Waker};

/// Builds an [`Orchestrator`]. Every setter documents its default. [`build`](Self::build) validates
/// the settings.
#[must_use = "a builder does nothing until built"]
pub struct Builder {
    pub(super) database: Database,
    pub(super) owner: Option<Database>,
    pub(super) build_id: Option<String>,
    pub(super) config: Config,
    pub(super) projections: Vec<(Arc<dyn Handler>, Change)>,
    pub(super) metrics: Option<Metrics>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder")
            .field("database", &self.database)
            .field("config", &self.config)
            .field("projections", &self.projections.len())
            .finish_non_exhaustive()
    }
}

impl Orchestrator {
    /// Returns a builder for a worker of a replica set. The name has 1 to 255 bytes, and is the
    /// same for all workers that share the work.
    pub fn builder(database: Database, replica_set: impl Into<String>) -> Builder {
        Builder {
            database,
            owner: None,
            build_id: None,
            config: Config::new(replica_set.into()),
            projections: Vec::new(),
            metrics: None,
        }
    }
}

impl Builder {
    /// Adds a projection. At least one projection of any kind is needed, and each name may occur
    /// only once. To keep a reference to it, pass an [`Arc`].
    pub fn projection(self, projection: impl Projection + 'static) -> Self {
        self.projection_with(projection, |options| options)
    }

    /// Adds a projection, with other [options](Projection::options) than its own.
    ///
    /// ```
    /// # use pupsourcing_orchestrator::{Builder, Projection};
    /// # fn add(builder: Builder, invoices: impl Projection + 'static) -> Builder {
    /// builder.projection_with(invoices, |options| options.lanes(4).batch_size(100))
    /// # }
    /// ```
    pub fn projection_with(
        self,
        projection: impl Projection + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.handler(Arc::new(Each(projection)), change)
    }

    /// Adds a projection that handles many events at once.
    pub fn batch_projection(self, projection: impl BatchProjection + 'static) -> Self {
        self.batch_projection_with(projection, |options| options)
    }

    /// Adds a projection that handles many events at once, with other
    /// [options](BatchProjection::options) than its own.
    pub fn batch_projection_with(
        self,
        projection: impl BatchProjection + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.handler(Arc::new(Batches(projection)), change)
    }

    /// Adds a fold: a state per key, which the library loads and writes.
    pub fn fold(self, fold: impl Fold + 'static) -> Self {
        self.fold_with(fold, |options| options)
    }

    /// Adds a fold, with other [options](Fold::options) than its own.
    pub fn fold_with(
        self,
        fold: impl Fold + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.handler(Arc::new(Folded::new(fold)), change)
    }

    /// Adds a reaction: effects outside of the database.
    pub fn reaction(self, reaction: impl Reaction + 'static) -> Self {
        self.reaction_with(reaction, |options| options)
    }

    /// Adds a reaction, with other [options](Reaction::options) than its own.
    pub fn reaction_with(
        self,
        reaction: impl Reaction + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.handler(Arc::new(Effects(reaction)), change)
    }

    pub(crate) fn handler(
        mut self,
        handler: Arc<dyn Handler>,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.projections.push((handler, Box::new(change)));
        self
    }

    /// Uses no session locks: liveness relies on heartbeats alone.
    ///
    /// This is for a pooler in transaction mode, which shares sessions between clients. A killed
    /// process is then detected after `stale_worker_timeout`. Notifications do not arrive, so
    /// workers rely on polling. A handler that leaves its transaction idle for longer than
    /// `stale_worker_timeout` loses the transaction. The pooler must support prepared statements
    /// (PgBouncer does from 1.21 on, with `max_prepared_statements` above 0); otherwise a worker
    /// refuses to start. Without this option, a worker refuses to start behind any pooler in
    /// transaction mode. Defaults to using session locks.
    pub fn heartbeats_only(mut self) -> Self {
        self.config.session_loss_grace = None;
        self
    }

    /// Sets an option from text, by the name of its setter.
    ///
    /// ```
    /// # use pupsourcing_orchestrator::{Database, Orchestrator};
    /// # let database = Database::from_url("postgres://app@localhost/shop")?;
    /// let builder = Orchestrator::builder(database, "main").option("heartbeat_interval", "2s")?;
    /// let error = builder.option("batch_bytes", "8MB").unwrap_err();
    /// assert!(error.to_string().contains("8MiB"));
    /// # Ok::<(), pupsourcing_orchestrator::Error>(())
    /// ```
    ///
    /// A duration is `500ms`, `10s`, `2m` or `1h`; a size is `8388608`, `64KiB`, `8MiB` or `1GiB`.
    /// `session_loss_grace` may be `off`, which means [`heartbeats_only`](Self::heartbeats_only).
    /// `event_poll` is written as `5ms..250ms`, `on_failure` as `halt`, `park:100` or
    /// `park:100:replay-at-start`. The options of [`Retry`] are `retry.attempts`,
    /// `retry.first_delay`, `retry.longest_delay` and `retry.halted_interval`; the last may be
    /// `off` ([`stay_halted`](Retry::stay_halted)).
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] names the option, the text and the expected form.
    /// [`build`](Self::build) checks the bounds.
    pub fn option(self, name: &str, text: &str) -> Result<Self, Error> {
        self.option_called(name, name, text)
    }

    /// Sets an option from text. Errors name the option `called`.
    pub(crate) fn option_called(mut self, name: &str, called: &str, text: &str) -> Result<Self, Error> {
        self.config.set(name, called, text)?;
        Ok(self)
    }

    /// Sets options from environment variables: with the prefix `ORCHESTRATOR_`, the variable
    /// `ORCHESTRATOR_HEARTBEAT_INTERVAL` sets `heartbeat_interval`, and
    /// `ORCHESTRATOR_RETRY_ATTEMPTS` sets `retry.attempts`. An empty variable is ignored.
    ///
    /// # Errors
    ///
    /// As [`option`](Self::option), with the variable's name.
    pub fn options_from_env(mut self, prefix: &str) -> Result<Self, Error> {
        for Declared { name, .. } in Config::declared() {
            let variable = variable(prefix, name);
            let Some(text) = std::env::var_os(&variable) else { continue };
            let Some(text) = text.to_str() else {
                return Err(Error::config(variable, text.to_string_lossy(), "it must be valid UTF-8"));
            };
            if !text.trim().is_empty() {
                self.config.set(name, &variable, text.trim())?;
            }
        }
        Ok(self)
    }

    /// Sets how a failing projection is retried, unless it has settings of its own
    /// ([`Projection::options`]). See [`Retry`] for the defaults.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.config.retry = retry;
        self
    }

    /// Sets the schema and table names. See [`Names`] for the defaults.
    pub fn names(mut self, names: Names) -> Self {
        self.config.names = names;
        self
    }

    /// Sets the database with the URL of the role that owns the tables of the read models. A worker
    /// whose own role does not own them connects as this one to prepare a
    /// [rebuild](crate::guide::rebuilding) and to switch to it. Defaults to the worker's own role.
    pub fn owner(mut self, database: Database) -> Self {
        self.owner = Some(database);
        self
    }

    /// Sets what identifies this build of the program, for example a commit: 1 to 255 bytes.
    /// Workers take part in a [rebuild](crate::guide::rebuilding) only if they are of the build
    /// that has begun it, so that two programs that claim one [version](crate::Projection::version)
    /// do not fill one read model. While workers of one version have different builds, the log says
    /// so.
    ///
    /// A worker of another build that starts while such a rebuild is not finished has it begun
    /// again by its own build, once for each build. So if each deployment has another build id, a
    /// deployment in the middle of a rebuild begins the rebuild again. Once the read model is live,
    /// only the version counts.
    ///
    /// Defaults to none. Then only the version is compared, and the log says so when a rebuild
    /// begins.
    pub fn build_id(mut self, build: impl Into<String>) -> Self {
        self.build_id = Some(build.into());
        self
    }

    /// Sets the metrics that the worker reports to. Share one [`Metrics`] between the orchestrators
    /// of a registry. Replica sets that share it need different names, even on different databases,
    /// because the series are distinguished by the name. Defaults to metrics in a registry of their
    /// own.
    pub fn metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Validates everything that can be validated without the database.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] names the first setting that is out of bounds or contradicts
    /// another, its value and the bound; or it names the method of a projection that panicked.
    pub fn build(self) -> Result<Orchestrator, Error> {
        // First, so that an error names the option of the worker.
        self.config.validate_options()?;
        let projections: Vec<Hosted> = self
            .projections
            .into_iter()
            .map(|(handler, change)| Hosted::new(handler, change, &self.config))
            .collect::<Result<_, _>>()?;
        let names: Vec<&str> = projections.iter().map(Hosted::name).collect();
        self.config.validate(&names)?;
        self.config.validate_pool(Hosted::lanes(&projections))?;
        let metrics = match self.metrics {
            Some(metrics) => metrics,
            None => Metrics::new()?,
        };
        distinct_tables(&projections)?;
        self.build_id.as_deref().map_or(Ok(()), valid_build)?;
        let application_name = format!("pupsourcing-orchestrator {}", self.config.replica_set);
        let lanes = projections.iter().map(|hosted| (hosted.name().to_owned(), hosted.settings.lanes));
        let (crew, gate) = Crew::new();
        Ok(Orchestrator {
            overview: Overview::default(),
            coordination: Waker::new(),
            board: Board::new(WorkerId(uuid::Uuid::new_v4()), &self.config.replica_set, self.config.limits(), lanes),
            crew,
            gate,
            owner: self.owner.map(|owner| owner.for_worker(&application_name)),
            build_id: self.build_id,
            database: self.database.for_worker(&application_name),
            config: self.config,
            projections,
            metrics,
        })
    }
}

/// The longest build id, in bytes.
const LONGEST_BUILD: usize = 255;

fn valid_build(build: &str) -> Result<(), Error> {
    let problem = match build {
        "" => "it must not be empty",
        _ if build.len() > LONGEST_BUILD => "it has more than 255 bytes",
        _ if build.contains('\0') => "it contains a NUL character, which PostgreSQL cannot store",
        _ => return Ok(()),
    };
    Err(Error::config("build_id", build, problem))
}

/// Refuses two projections that name the same table: a rebuild of one would replace what the other
/// has written.
fn distinct_tables(projections: &[Hosted]) -> Result<(), Error> {
    let mut owners = BTreeMap::new();
    for known in projections.iter().map(|hosted| &hosted.known) {
        for table in &known.tables {
            if let Some(other) = owners.insert(table, &known.name) {
                let problem = format!("projection {other:?} names it, too, and no two projections may write one table");
                return Err(Error::config(format!("tables of projection {:?}", known.name), table, problem));
            }
        }
    }
    Ok(())
}

with_options! { setters! { Builder (config) } }
