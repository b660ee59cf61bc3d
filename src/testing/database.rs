//! A database for one test.

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use super::error::Error;
use super::server::{Server, shared};
use crate::database::{Connection, Database};

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
    static DATABASES: AtomicU32 = AtomicU32::new(0);

    let server = shared()?;
    // The test's name is in the database's, so that the server's log and pg_stat_activity can be read.
    let number = DATABASES.fetch_add(1, Ordering::Relaxed) + 1;
    let test = thread::current().name().unwrap_or_default().to_owned();
    let mut name = format!("test_{number}_{}_{}", std::process::id(), test.replace("::", "_"));
    name.retain(|c| c.is_ascii_alphanumeric() || c == '_');
    name.truncate(63);
    let url = server.create_database(&name)?;
    Ok(TestDatabase { server, database: Database::from_url(&url)?, name, url })
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
        if let Err(problem) = self.server.drop_database(&self.name) {
            // The only place left to say it.
            _ = writeln!(io::stderr(), "{problem}");
        }
    }
}
