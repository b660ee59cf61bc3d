//! A database for one test.

use std::io::{self, Write as _};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::error::Error;
use super::server::{Server, shared};
use crate::backoff::Mentions;
use crate::database::{Connection, Database};
use crate::store::Names;
use crate::store::migrations::migrate;

/// Creates a database for one test alone, on the PostgreSQL server that all tests of this process
/// share.
///
/// The first call starts the server: see [`Postgres`](super::Postgres). If the server cannot be
/// started and `DATABASE_URL` names another one, the database is created there, and is removed when
/// the value is dropped.
///
/// ```
/// use pupsourcing_orchestrator::testing::database;
///
/// let database = database()?;
/// database.client()?.batch_execute("CREATE TABLE orders (id text PRIMARY KEY)")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// An error if no server can be started. It says why, and what to install. Later calls return the
/// same error at once.
pub fn database() -> Result<TestDatabase, Error> {
    TestDatabase::create(shared()?, None)
}

/// Creates a database that has the tables of events and of the orchestrator.
pub(super) fn database_with_schema() -> Result<TestDatabase, Error> {
    /// The database that is copied, which takes less than half the time of creating the tables.
    static TEMPLATE: OnceLock<Result<TestDatabase, Error>> = OnceLock::new();

    let server = shared()?;
    let migrated = || {
        let database = TestDatabase::create(server, None)?;
        migrate(database.database().client()?, &Names::default(), &mut Mentions::default())?;
        Ok(database)
    };
    if server.is_private() {
        TEMPLATE.get_or_init(migrated).as_ref().map_err(Error::clone)?.copy()
    } else {
        // The template is never dropped, so it would remain on the user's server.
        migrated()
    }
}

/// A database for one test alone. It is removed when the process ends.
#[derive(Debug)]
pub struct TestDatabase {
    server: &'static Server,
    database: Database,
    name: String,
    url: String,
}

impl TestDatabase {
    fn create(server: &'static Server, template: Option<&str>) -> Result<Self, Error> {
        static DATABASES: AtomicU32 = AtomicU32::new(0);

        // The database's name contains the test's name, so that the server's log and
        // pg_stat_activity show which test uses it.
        let number = DATABASES.fetch_add(1, Ordering::Relaxed) + 1;
        let test = thread::current().name().unwrap_or_default().to_owned();
        let mut name = format!("test_{number}_{}_{}", std::process::id(), test.replace("::", "_"));
        name.retain(|c| c.is_ascii_alphanumeric() || c == '_');
        name.truncate(63);
        let url = server.create_database(&name, template)?;
        Ok(Self { server, database: Database::from_url(&url)?, name, url })
    }

    /// Creates a database with the same content. No session may be connected to this one.
    pub(super) fn copy(&self) -> Result<Self, Error> {
        Self::create(self.server, Some(&self.name))
    }

    /// Removes the database now, instead of together with the server.
    pub(super) fn remove(self) -> Result<(), Error> {
        // On the user's server, dropping the value removes it.
        if self.server.is_private() { self.server.drop_database(&self.name) } else { Ok(()) }
    }

    /// The database's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The database's URL, for programs that connect by themselves.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The value from which an [`Orchestrator`](crate::Orchestrator) is built.
    pub fn database(&self) -> Database {
        self.database.clone()
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// The errors of [`Database::connect`], for example if the server has no connection left.
    pub fn client(&self) -> Result<Connection, Error> {
        Ok(self.database.connect()?)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if !self.server.is_private()
            && let Err(problem) = self.server.drop_database(&self.name)
        {
            // A destructor cannot return the error.
            _ = writeln!(io::stderr(), "{problem}");
        }
    }
}
