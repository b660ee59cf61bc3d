//! The server that all tests of this process share.

use std::sync::OnceLock;

use super::error::Error;
use super::private_postgres::Postgres;
use super::statement::execute;

/// Where databases can be created.
#[derive(Debug)]
pub(super) enum Server {
    /// Started for this process alone, and gone with it.
    Private(Postgres),
    /// The user's, with this URL: what is created on it has to be removed again.
    Given(String),
}

/// Returns the server of this process, which the first call starts. If it cannot be started, each call says why.
pub(super) fn shared() -> Result<&'static Server, Error> {
    static SERVER: OnceLock<Result<Server, Error>> = OnceLock::new();
    SERVER.get_or_init(Server::start).as_ref().map_err(Error::clone)
}

impl Server {
    /// Starts a private server; if that is not possible, takes the one that `DATABASE_URL` names.
    fn start() -> Result<Self, Error> {
        let missing = match Postgres::start() {
            Ok(server) => return Ok(Self::Private(server)),
            Err(problem) => problem,
        };
        match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => Ok(Self::Given(url)),
            _ => Err(missing),
        }
    }

    /// Creates a database, as a copy of another one if there is a template, and returns its URL.
    pub(super) fn create_database(&self, name: &str, template: Option<&str>) -> Result<String, Error> {
        let template = template.map_or_else(String::new, |template| format!(" TEMPLATE \"{template}\""));
        execute(&self.admin(), &format!("CREATE DATABASE \"{name}\"{template}"))?;
        self.url(name)
    }

    /// Removes a database, and ends the sessions that are connected to it.
    pub(super) fn drop_database(&self, name: &str) -> Result<(), Error> {
        execute(&self.admin(), &format!("DROP DATABASE \"{name}\" WITH (FORCE)"))
    }

    /// The URL of the database from which others are created and removed.
    fn admin(&self) -> String {
        match self {
            Self::Private(server) => server.url("postgres"),
            Self::Given(url) => url.clone(),
        }
    }

    /// The URL of a database of the server.
    fn url(&self, database: &str) -> Result<String, Error> {
        match self {
            Self::Private(server) => Ok(server.url(database)),
            Self::Given(url) => with_database(url, database),
        }
    }
}

/// The URL of another database on the same server.
fn with_database(url: &str, name: &str) -> Result<String, Error> {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let (scheme, rest) = base
        .split_once("://")
        .ok_or_else(|| Error::new("DATABASE_URL must be a URL: postgres://user@host:5432/database"))?;
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    Ok(format!("{scheme}://{authority}/{name}{}", query.map_or_else(String::new, |query| format!("?{query}"))))
}
