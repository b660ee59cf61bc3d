//! What the application adds to the program.

use std::fmt;

use super::failure::Failure;
use super::settings::{OWNER_URL, REPLICA_SET, Settings};
use crate::config::Options;
use crate::database::Database;
use crate::error::BoxError;
use crate::fold::Fold;
use crate::orchestrator::{Builder, Orchestrator};
use crate::projection::{BatchProjection, Projection, Reaction};

/// A part of the application's migration.
pub(super) enum Step {
    Sql(String),
    Code(Code),
}

type Code = Box<dyn FnOnce(&mut postgres::Client) -> Result<(), BoxError> + Send>;

/// A change of the builder, made before the settings are applied.
type Adjust = Box<dyn FnOnce(Builder) -> Builder>;

/// The projections of a worker program, and what else the application adds to it.
#[derive(Default)]
#[must_use = "the closure returns it"]
pub struct Worker {
    projections: Vec<Adjust>,
    migrations: Vec<Step>,
    replica_set: Option<String>,
    version: Option<String>,
    adjustments: Vec<Adjust>,
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("projections", &self.projections.len()).finish_non_exhaustive()
    }
}

/// What the commands operate on.
pub(super) struct Program {
    pub(super) orchestrator: Orchestrator,
    pub(super) migrations: Vec<Step>,
}

impl Worker {
    /// Adds a projection: see [`Builder::projection`].
    pub fn projection(self, projection: impl Projection + 'static) -> Self {
        self.add(|builder| builder.projection(projection))
    }

    /// Adds a projection with other options than its own: see [`Builder::projection_with`].
    pub fn projection_with(
        self,
        projection: impl Projection + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.add(|builder| builder.projection_with(projection, change))
    }

    /// Adds a projection that handles many events at once: see [`Builder::batch_projection`].
    pub fn batch_projection(self, projection: impl BatchProjection + 'static) -> Self {
        self.add(|builder| builder.batch_projection(projection))
    }

    /// Adds a projection that handles many events at once, with other options than its own: see
    /// [`Builder::batch_projection_with`].
    pub fn batch_projection_with(
        self,
        projection: impl BatchProjection + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.add(|builder| builder.batch_projection_with(projection, change))
    }

    /// Adds a reaction: see [`Builder::reaction`].
    pub fn reaction(self, reaction: impl Reaction + 'static) -> Self {
        self.add(|builder| builder.reaction(reaction))
    }

    /// Adds a reaction with other options than its own: see [`Builder::reaction_with`].
    pub fn reaction_with(
        self,
        reaction: impl Reaction + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.add(|builder| builder.reaction_with(reaction, change))
    }

    fn add(mut self, adjust: impl FnOnce(Builder) -> Builder + 'static) -> Self {
        self.projections.push(Box::new(adjust));
        self
    }

    /// Adds a fold: see [`Builder::fold`]. `migrate` creates its table.
    pub fn fold(self, fold: impl Fold + 'static) -> Self {
        self.fold_with(fold, |options| options)
    }

    /// Adds a fold with other options than its own: see [`Builder::fold_with`].
    pub fn fold_with(
        mut self,
        fold: impl Fold + 'static,
        change: impl FnOnce(Options) -> Options + Send + 'static,
    ) -> Self {
        self.projections.push(Box::new(|builder| builder.fold_with(fold, change)));
        self
    }

    /// Sets the name of the replica set, used unless `REPLICA_SET` or `--replica-set` sets another.
    /// Defaults to `main-projections`.
    pub fn replica_set(mut self, name: impl Into<String>) -> Self {
        self.replica_set = Some(name.into());
        self
    }

    /// Sets the program's version, for example `env!("CARGO_PKG_VERSION")`. `--version` writes it
    /// before the version of the library.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// Sets what identifies this build of the program, for example `env!("GIT_COMMIT")`: see
    /// [`Builder::build_id`]. It is a property of the program and not of its surroundings, so no
    /// variable sets it.
    pub fn build_id(self, build: impl Into<String>) -> Self {
        let build = build.into();
        self.configure(|builder| builder.build_id(build))
    }

    pub(super) fn own_version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Adds SQL that creates the application's own tables, or brings them up to date. `migrate`,
    /// `run` and `catch-up` execute it each time, after the library's migration, so it must not
    /// fail if the tables exist already. Processes that start at the same time take turns.
    ///
    /// All statements are one transaction. PostgreSQL requires the privilege `CREATE` for
    /// `CREATE TABLE IF NOT EXISTS` even if the table exists. If workers run as a user without this
    /// privilege, check for the table first, with `to_regclass`.
    pub fn migration_sql(mut self, sql: impl Into<String>) -> Self {
        self.migrations.push(Step::Sql(sql.into()));
        self
    }

    /// Adds code that creates the application's tables on a connection of its own: a migration
    /// tool, for example. It is executed at the same times as
    /// [`migration_sql`](Self::migration_sql). `migrate --print` cannot print it.
    pub fn migration(
        mut self,
        migrate: impl FnOnce(&mut postgres::Client) -> Result<(), BoxError> + Send + 'static,
    ) -> Self {
        self.migrations.push(Step::Code(Box::new(migrate)));
        self
    }

    /// Adjusts the builder: its names, its metrics, the defaults of its options. Flags and
    /// environment variables are applied afterwards, and win.
    pub fn configure(mut self, adjust: impl FnOnce(Builder) -> Builder + 'static) -> Self {
        self.adjustments.push(Box::new(adjust));
        self
    }

    pub(super) fn assemble(self, url: &str, settings: &Settings) -> Result<Program, Failure> {
        let database = Database::from_url(url)?;
        let replica_set = settings.text(REPLICA_SET).map(str::to_owned).or(self.replica_set);
        let builder = Orchestrator::builder(database, replica_set.unwrap_or_else(|| "main-projections".into()));
        let adjustments = self.projections.into_iter().chain(self.adjustments);
        let builder = adjustments.fold(builder, |builder, adjust| adjust(builder));
        let builder = match settings.text(OWNER_URL) {
            Some(url) => builder.owner(owner(url)?),
            None => builder,
        };
        let builder = settings
            .options()
            .try_fold(builder, |builder, (option, called, text)| builder.option_called(option, called, text))?;
        Ok(Program { orchestrator: builder.build()?, migrations: self.migrations })
    }
}

/// The database with the role that owns the read models.
fn owner(url: &str) -> Result<Database, Failure> {
    Database::from_url(url).map_err(|error| Failure::Setting(format!("{OWNER_URL}: {}", error.with_causes())))
}

#[cfg(test)]
pub(super) mod tests {
    use std::ffi::OsStr;

    use super::super::settings::all;
    use super::*;
    use crate::event::Event;
    use crate::projection::Call;
    use crate::store::Names;
    use crate::tx::Tx;

    /// A projection for tests that process nothing.
    pub(in crate::cli) struct Nothing;

    impl Projection for Nothing {
        fn name(&self) -> &str {
            "nothing"
        }

        fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
            Ok(())
        }
    }

    impl BatchProjection for Nothing {
        fn name(&self) -> &str {
            "nothing_of_many"
        }

        fn handle_batch(&self, _: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
            Ok(events.len())
        }
    }

    impl Reaction for Nothing {
        fn name(&self) -> &str {
            "no_effect"
        }

        fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
            Ok(events.len())
        }
    }

    fn assemble(worker: Worker, flags: &[(&str, &'static str)]) -> Result<Program, Failure> {
        let given = |variable: &str| {
            let flag = flags.iter().find(|(name, _)| *name == variable);
            flag.map(|(_, text)| OsStr::new(text))
        };
        worker.assemble("postgres://u@h/d", &Settings::of(&all(), given, |_| None)?)
    }

    #[test]
    fn settings_win_over_what_the_application_configures() {
        let worker = || {
            let names = Names::default().prefix("theirs_");
            let worker = Worker::default().projection(Nothing).replica_set("its");
            worker.configure(|builder| builder.names(names).lanes(3))
        };
        let program = assemble(worker(), &[]).ok().unwrap();
        let shown = format!("{:?}", program.orchestrator);
        assert_eq!(program.orchestrator.replica_set(), "its");
        assert!(shown.contains("lanes: 3") && shown.contains("theirs_"), "{shown}");

        let program = assemble(worker(), &[("ORCHESTRATOR_LANES", "2"), (REPLICA_SET, "set")]).ok().unwrap();
        let shown = format!("{:?}", program.orchestrator);
        assert_eq!(program.orchestrator.replica_set(), "set");
        assert!(shown.contains("lanes: 2") && shown.contains("theirs_"), "{shown}");
    }

    #[test]
    fn each_kind_is_added_with_options_of_its_own() {
        let worker = Worker::default()
            .projection_with(Nothing, |options| options.lanes(2))
            .batch_projection_with(Nothing, |options| options.lanes(3))
            .reaction_with(Nothing, |options| options.lanes(4));
        let lanes = assemble(worker, &[("ORCHESTRATOR_POOL_SIZE", "17")]);
        let Err(failure) = lanes else { panic!("the pool is too small for 2 + 3 + 4 lanes") };
        assert!(failure.to_string().contains("= 18 connections"), "{failure}");
        let worker = Worker::default().projection(Nothing).batch_projection(Nothing).reaction(Nothing);
        assert!(assemble(worker, &[("ORCHESTRATOR_POOL_SIZE", "6")]).is_ok());
    }

    #[test]
    fn url_of_the_owner_is_a_setting() {
        let assemble = |url| assemble(Worker::default().projection(Nothing), &[(OWNER_URL, url)]);
        let program = assemble("postgres://theirs:secret@h/d").ok().unwrap();
        let shown = format!("{:?}", program.orchestrator);
        assert!(shown.contains("as theirs") && !shown.contains("secret"), "{shown}");
        let Err(failure) = assemble("postgres://theirs:secret@h/d?sslmode=maybe") else { panic!("it is accepted") };
        let text = failure.to_string();
        assert!(text.starts_with("ORCHESTRATOR_OWNER_URL: ") && text.contains("sslmode"), "{text}");
        assert!(matches!(failure, Failure::Setting(_)) && !text.contains("secret"), "{text}");
    }

    #[test]
    fn a_worker_without_a_projection_is_refused() {
        let Err(failure) = assemble(Worker::default(), &[]) else { panic!("it is accepted") };
        assert!(failure.to_string().contains("at least one projection is needed"), "{failure}");
        assert_eq!(
            assemble(Worker::default().projection(Nothing), &[]).ok().unwrap().orchestrator.replica_set(),
            "main-projections"
        );
    }
}
