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

/// Creates a database for one test alone, on the PostgreSQL server that all tests of this process share.
///
/// The first call starts the server: see [`Postgres`](super::Postgres). If it cannot be started and `DATABASE_URL` names a
/// server, the database is created there, and removed when the value is dropped.
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
/// No server can be started: the error says why, and what to install. Later calls return the same error at once.
pub fn database() -> Result<TestDatabase, Error> {
    TestDatabase::create(shared()?, None)
}

/// A database that has the tables of events and of the orchestrator.
pub(super) fn database_with_schema() -> Result<TestDatabase, Error> {
    /// To copy a database takes less than half the time of creating the tables.
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
        // A template is never dropped, and would remain on the user's server.
        migrated()
    }
}

/// A database for one test alone. It goes with the process.
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

        // The test's name is in the database's, so that the server's log and pg_stat_activity can be read.
        let number = DATABASES.fetch_add(1, Ordering::Relaxed) + 1;
        let test = thread::current().name().unwrap_or_default().to_owned();
        let mut name = format!("test_{number}_{}_{}", std::process::id(), test.replace("::", "_"));
        name.retain(|c| c.is_ascii_alphanumeric() || c == '_');
        name.truncate(63);
        let url = server.create_database(&name, template)?;
        Ok(Self { server, database: Database::from_url(&url)?, name, url })
    }

    /// A database with the same content. Nothing may be connected to this one.
    pub(super) fn copy(&self) -> Result<Self, Error> {
        Self::create(self.server, Some(&self.name))
    }

    /// Removes the database now, and not with the server.
    pub(super) fn remove(self) -> Result<(), Error> {
        // On the user's server, the drop does it.
        if self.server.is_private() { self.server.drop_database(&self.name) } else { Ok(()) }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its URL, for programs that connect by themselves.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What an [`Orchestrator`](crate::Orchestrator) is built with.
    pub fn database(&self) -> Database {
        self.database.clone()
    }

    /// Opens a connection.
    ///
    /// # Errors
    ///
    /// Those of [`Database::connect`], for instance if the server has no connection left.
    pub fn client(&self) -> Result<Connection, Error> {
        Ok(self.database.connect()?)
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        if !self.server.is_private()
            && let Err(problem) = self.server.drop_database(&self.name)
        {
            // The only place left to say it.
            _ = writeln!(io::stderr(), "{problem}");
        }
    }
}
