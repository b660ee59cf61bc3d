//! The operator: gives commands, and lists what the tables say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::never;
use parking_lot::Mutex;
use postgres::Client;
use postgres::error::SqlState;

use super::applied::Applied;
use super::command::Command;
use super::error::OperatorError;
use super::patience::{Next, Patience};
use crate::blocking::blocking;
use crate::database::AsClient;
use crate::error::{Error, Shown as _, field};
use crate::plan::{Kind, base_of};
use crate::rebuilding::Readings;
use crate::store::operations::{self, CommandRecord, ParkedRecord, Progress, ProjectionRecord, Request};
use crate::store::{Names, notifications};
use crate::threads::safely;

/// Gives commands to the workers, and lists projections, commands and parked aggregates. It holds
/// no connection: the caller passes one to each method.
///
/// The methods may be called on any thread, including a thread of an asynchronous runtime. They
/// block.
///
/// ```no_run
/// use pupsourcing_orchestrator::operator::Operator;
/// use pupsourcing_orchestrator::{Database, Names};
///
/// let mut client = Database::from_url("postgres://shop_operator@localhost/shop")?.connect()?;
/// let operator = Operator::new(Names::default())?.replica_set("main-projections");
/// for projection in operator.projections(&mut client)? {
///     println!("{} is {}", projection.name, projection.state);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Operator {
    names: Names,
    replica_set: Option<String>,
    /// What was seen of rebuilds before, for their rate.
    readings: Arc<Mutex<Readings>>,
}

/// A command that was recorded.
struct Recorded {
    id: i64,
    replica_set: String,
}

impl Operator {
    /// Creates an operator that uses these tables.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidConfig`] if a name is not valid.
    pub fn new(names: Names) -> Result<Self, Error> {
        names.validate()?;
        Ok(Self { names, replica_set: None, readings: Arc::default() })
    }

    /// Restricts the operator to one replica set: it lists only that one, and refuses commands for
    /// a projection of another one. Defaults to all replica sets.
    pub fn replica_set(mut self, name: impl Into<String>) -> Self {
        self.replica_set = Some(name.into());
        self
    }

    /// Records a command, notifies the workers, and returns the command's number. A worker applies
    /// it at once if the notification arrives, and otherwise within its
    /// [`poll_interval`](crate::Builder::poll_interval).
    ///
    /// ```no_run
    /// # use pupsourcing_orchestrator::operator::{Command, Operator};
    /// # use pupsourcing_orchestrator::{Database, Names};
    /// # let mut client = Database::from_url("postgres://shop_operator@localhost/shop")?.connect()?;
    /// let operator = Operator::new(Names::default())?;
    /// let number = operator.submit(&mut client, &Command::resume("orders"))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// All errors but those that concern the outcome.
    pub fn submit(&self, client: &mut Client, command: &Command) -> Result<i64, OperatorError> {
        Ok(apart(|| self.record(client, command))?.id)
    }

    /// Submits a command, and waits until it is applied or has turned out to be impossible, for at
    /// most `timeout`. If the time is over, the command stays recorded.
    ///
    /// A rebuild may take hours, so it is waited for until it has begun, unless
    /// [`until_done`](Command::until_done) is asked for.
    ///
    /// If no worker of the replica set is running, it does not wait.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use pupsourcing_orchestrator::operator::{Command, Operator, OperatorError};
    /// # use pupsourcing_orchestrator::{Database, Names};
    /// # let mut client = Database::from_url("postgres://shop_operator@localhost/shop")?.connect()?;
    /// let operator = Operator::new(Names::default())?;
    /// match operator.execute(&mut client, &Command::pause("orders"), Duration::from_secs(30)) {
    ///     Ok(applied) => println!("{applied}"),
    ///     Err(OperatorError::Refused { why, .. }) => println!("not possible: {why}"),
    ///     Err(error) if error.is_pending() => println!("not yet: {error}"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OperatorError::Refused`] and [`OperatorError::Failed`] are outcomes;
    /// [`OperatorError::NoWorker`] and [`OperatorError::TimedOut`] say that there is none yet; with
    /// most other errors, no command was recorded.
    pub fn execute(&self, client: &mut Client, command: &Command, timeout: Duration) -> Result<Applied, OperatorError> {
        apart(|| {
            let recorded = self.record(client, command)?;
            self.wait(client, command, &recorded, timeout)
        })
    }

    /// Lists the projections, each with its rebuild and its former tables, if there are any. If it
    /// is called again within a minute, the rate of a rebuild is that since the earlier call.
    pub fn projections(&self, client: &mut impl AsClient) -> Result<Vec<ProjectionRecord>, OperatorError> {
        let client = client.as_client();
        apart(|| {
            operations::projections(client, &self.names, self.replica_set.as_deref(), &self.readings)
                .map_err(|error| self.explained(None, error))
        })
    }

    /// Describes one projection.
    ///
    /// # Errors
    ///
    /// [`OperatorError::Unknown`] or [`OperatorError::Elsewhere`] if it is none of this operator.
    pub fn projection(&self, client: &mut impl AsClient, projection: &str) -> Result<ProjectionRecord, OperatorError> {
        let client = client.as_client();
        apart(|| {
            let known = operations::known(client, &self.names).map_err(|error| self.explained(None, error))?;
            let owner = self.owner(&known, projection)?;
            let all = operations::projections(client, &self.names, Some(&owner), &self.readings)
                .map_err(|error| self.explained(None, error))?;
            let found = all.into_iter().find(|record| record.name == base_of(projection));
            found.ok_or_else(|| self.unknown(&known, projection))
        })
    }

    /// Lists the last commands, the newest first: those for one projection, even if it is removed,
    /// or all.
    ///
    /// ```no_run
    /// # use pupsourcing_orchestrator::operator::Operator;
    /// # use pupsourcing_orchestrator::{Database, Names};
    /// # let mut client = Database::from_url("postgres://shop_operator@localhost/shop")?.connect()?;
    /// let operator = Operator::new(Names::default())?;
    /// for command in operator.history(&mut client, Some("orders"), 10)? {
    ///     println!("{} by {}: {:?}", command.command, command.requested_by, command.outcome);
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn history(
        &self,
        client: &mut impl AsClient,
        projection: Option<&str>,
        last: u32,
    ) -> Result<Vec<CommandRecord>, OperatorError> {
        let client = client.as_client();
        apart(|| {
            operations::history(client, &self.names, self.replica_set.as_deref(), projection, last)
                .map_err(|error| self.explained(None, error))
        })
    }

    /// Lists the parked aggregates: those of one projection, or all.
    pub fn parked(
        &self,
        client: &mut impl AsClient,
        projection: Option<&str>,
    ) -> Result<Vec<ParkedRecord>, OperatorError> {
        let client = client.as_client();
        apart(|| {
            if let Some(projection) = projection {
                // A name that is misspelt must not look like one of which nothing is parked.
                let known = operations::known(client, &self.names).map_err(|error| self.explained(None, error))?;
                self.owner(&known, projection)?;
            }
            operations::parked(client, &self.names, self.replica_set.as_deref(), projection)
                .map_err(|error| self.explained(None, error))
        })
    }

    /// Looks once whether a rebuild that was begun is done.
    #[cfg(feature = "cli")]
    pub(crate) fn look(&self, client: &mut Client, command: &Command, id: i64) -> Result<Applied, OperatorError> {
        let recorded = Recorded { id, replica_set: self.replica_set.clone().unwrap_or_default() };
        apart(|| self.wait(client, command, &recorded, Duration::ZERO))
    }

    fn record(&self, client: &mut Client, command: &Command) -> Result<Recorded, OperatorError> {
        let known = operations::known(client, &self.names).map_err(|error| self.explained(None, error))?;
        let replica_set = self.owner(&known, command.projection())?;
        let request = Request {
            projection: command.projection(),
            command: command.name(),
            arguments: &command.arguments(),
            by: command.given_by(),
            reason: command.given_reason(),
        };
        let recorded = operations::record(client, &self.names, &request);
        let id = recorded.map_err(|error| match error.code() {
            // It was removed since it was looked up.
            Some(&SqlState::NO_DATA_FOUND) => self.unknown(&known, command.projection()),
            _ => self.explained(None, error),
        })?;
        if let Err(error) = notifications::notify_workers(client, &self.names, &replica_set) {
            let error = error.shown();
            safely(|| log::debug!("workers are not notified of a command: error={error}", error = field(&error)));
        }
        Ok(Recorded { id, replica_set })
    }

    /// The replica set of a projection.
    fn owner(&self, known: &[(String, String)], projection: &str) -> Result<String, OperatorError> {
        let Some((_, owner)) = known.iter().find(|(name, _)| name == projection) else {
            return Err(self.unknown(known, projection));
        };
        match &self.replica_set {
            Some(expected) if expected != owner => Err(OperatorError::Elsewhere {
                projection: projection.to_owned(),
                owner: owner.clone(),
                expected: expected.clone(),
            }),
            _ => Ok(owner.clone()),
        }
    }

    fn unknown(&self, known: &[(String, String)], projection: &str) -> OperatorError {
        let own = known.iter().filter(|(name, owner)| {
            name != projection
                && Kind::of(name) == Kind::Live
                && self.replica_set.as_ref().is_none_or(|replica_set| replica_set == owner)
        });
        OperatorError::Unknown { projection: projection.to_owned(), known: own.map(|(name, _)| name.clone()).collect() }
    }

    fn wait(
        &self,
        client: &mut Client,
        command: &Command,
        recorded: &Recorded,
        timeout: Duration,
    ) -> Result<Applied, OperatorError> {
        let Recorded { id, replica_set } = recorded;
        let id = *id;
        let explained = |error| self.explained(Some(id), error);
        let begun = Instant::now();
        let mut patience = Patience::new(timeout);
        loop {
            // Before the outcome is read: a worker may apply the command and leave.
            if patience.counts(begun.elapsed()) {
                let workers = operations::workers(client, &self.names, replica_set).map_err(explained)?;
                patience.counted(begun.elapsed(), workers);
            }
            let found = operations::progress(client, &self.names, id).map_err(explained)?;
            let why = || "its row was deleted by hand; give the command again".to_owned();
            let Progress { outcome, result, error, step } =
                found.ok_or_else(|| OperatorError::Failed { id, why: why() })?;
            let why = error.unwrap_or_else(|| "the worker has recorded no reason".to_owned());
            let applied = |is_done| Applied {
                id,
                command: command.name(),
                projection: command.projection().to_owned(),
                result: result.unwrap_or_default(),
                is_done,
            };
            match outcome.as_deref() {
                Some("done") => return Ok(applied(true)),
                Some("refused") => return Err(OperatorError::Refused { id, why }),
                Some(_) => return Err(OperatorError::Failed { id, why }),
                None if command.is_begun(step.as_deref()) => return Ok(applied(false)),
                None => {}
            }
            match patience.next(begun.elapsed()) {
                Next::LookAfter(delay) => _ = never::<()>().recv_timeout(delay),
                Next::NoWorker => return Err(OperatorError::NoWorker { id, replica_set: replica_set.clone() }),
                Next::TimedOut => return Err(OperatorError::TimedOut { id, waited: timeout, step }),
            }
        }
    }

    /// Groups what the server refuses by what the operator can do about it.
    fn explained(&self, id: Option<i64>, source: postgres::Error) -> OperatorError {
        let Some(error) = source.as_db_error() else { return OperatorError::Database { id, source } };
        let missing = [
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::UNDEFINED_COLUMN,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        let code = error.code();
        if missing.contains(code) {
            let problem = format!(
                "{}: the tables of this version are created by Orchestrator::migrate() or by the command `migrate` of a \
                 worker program, with {} as the function for commands",
                error.message(),
                self.names.command()
            );
            return OperatorError::Schema { problem };
        }
        if *code == SqlState::INSUFFICIENT_PRIVILEGE {
            return OperatorError::Forbidden { problem: error.message().to_owned() };
        }
        // Data exceptions: the function for commands refuses the arguments.
        if id.is_none() && code.code().starts_with("22") {
            let hint = error.hint().map_or_else(String::new, |hint| format!(". {hint}"));
            return OperatorError::Invalid { problem: format!("{}{hint}", error.message()) };
        }
        OperatorError::Database { id, source }
    }
}

/// Executes work that waits for the database, on a thread that may.
fn apart<T: Send>(work: impl FnOnce() -> Result<T, OperatorError> + Send) -> Result<T, OperatorError> {
    blocking(work).map_err(|source| OperatorError::Thread { source })?
}
