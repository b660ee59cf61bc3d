//! The server that all tests of this process share.

use std::fmt;
use std::sync::OnceLock;

use parking_lot::Mutex;

use super::error::Error;
use super::private_postgres::Postgres;
use super::statement::execute_on;
use crate::database::{Connection, Database};

/// A server on which databases can be created.
pub(super) struct Server {
    place: Place,
    /// The session that creates and removes databases. It is kept, because a new session takes ten
    /// times as long for its first database: it has to map the server's memory.
    admin: Mutex<Option<Connection>>,
}

#[derive(Debug)]
enum Place {
    /// Started for this process alone, and removed when the process ends.
    Private(Postgres),
    /// The user's server, at this URL. Databases that are created on it have to be removed again.
    Given(String),
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)
    }
}

/// Returns the server of this process, which the first call starts. If it cannot be started, each
/// call returns the reason.
pub(super) fn shared() -> Result<&'static Server, Error> {
    static SERVER: OnceLock<Result<Server, Error>> = OnceLock::new();
    let start = || Place::find().map(|place| Server { place, admin: Mutex::default() });
    SERVER.get_or_init(start).as_ref().map_err(Error::clone)
}

impl Place {
    /// Starts a private server. If that is not possible, uses the server that `DATABASE_URL` names.
    fn find() -> Result<Self, Error> {
        let missing = match Postgres::start() {
            Ok(server) => return Ok(Self::Private(server)),
            Err(problem) => problem,
        };
        match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => Ok(Self::Given(url)),
            _ => Err(missing),
        }
    }
}

impl Server {
    /// Whether the server and its databases are removed when this process ends.
    pub(super) fn is_private(&self) -> bool {
        matches!(self.place, Place::Private(_))
    }

    /// Creates a database, as a copy of another one if there is a template, and returns its URL.
    pub(super) fn create_database(&self, name: &str, template: Option<&str>) -> Result<String, Error> {
        let template = template.map_or_else(String::new, |template| format!(" TEMPLATE \"{template}\""));
        self.execute(&format!("CREATE DATABASE \"{name}\"{template}"))?;
        match &self.place {
            Place::Private(server) => Ok(server.url(name)),
            Place::Given(url) => with_database(url, name),
        }
    }

    /// Removes a database, and ends the sessions that are connected to it.
    pub(super) fn drop_database(&self, name: &str) -> Result<(), Error> {
        self.execute(&format!("DROP DATABASE \"{name}\" WITH (FORCE)"))
    }

    fn execute(&self, statement: &str) -> Result<(), Error> {
        let mut admin = self.admin.lock();
        let connection = match admin.take().filter(|connection| !connection.is_closed()) {
            Some(connection) => connection,
            None => match &self.place {
                Place::Private(server) => Database::from_url(&server.url("postgres"))?.connect()?,
                Place::Given(url) => Database::from_url(url)?.connect()?,
            },
        };
        execute_on(admin.insert(connection), statement)
    }
}

/// Returns the URL of another database on the same server.
fn with_database(url: &str, name: &str) -> Result<String, Error> {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let (scheme, rest) = base
        .split_once("://")
        .ok_or_else(|| Error::new("DATABASE_URL must be a URL: postgres://user@host:5432/database"))?;
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    Ok(format!("{scheme}://{authority}/{name}{}", query.map_or_else(String::new, |query| format!("?{query}"))))
}
