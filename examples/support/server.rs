//! A server to make databases on: a private one, or where PostgreSQL's server binaries are missing, the one `DATABASE_URL` names.
#![allow(dead_code, reason = "not every program that includes this file uses all of it")]

use pupsourcing_orchestrator::Database;

use super::private_postgres::{Options, PrivatePostgres};

/// Where databases can be made.
#[derive(Debug)]
pub(crate) enum Server {
    /// Started for this program alone, and gone with it.
    Private(PrivatePostgres),
    /// Somebody's, with this URL: what is made on it has to be removed again.
    Given(String),
}

impl Server {
    /// Starts a private server; if that is not possible, takes the one that `DATABASE_URL` names.
    pub(crate) fn start() -> Result<Self, String> {
        let missing = match PrivatePostgres::start(Options::default()) {
            Ok(server) => return Ok(Self::Private(server)),
            Err(problem) => problem,
        };
        match std::env::var("DATABASE_URL") {
            Ok(url) if !url.is_empty() => Ok(Self::Given(url)),
            _ => Err(missing),
        }
    }

    /// Makes a database and returns its URL.
    pub(crate) fn create_database(&self, name: &str) -> Result<String, String> {
        match self {
            Self::Private(server) => server.create_database(name),
            Self::Given(url) => {
                let made = with_database(url, name)?;
                execute(url, &format!("CREATE DATABASE \"{name}\""))?;
                Ok(made)
            }
        }
    }

    /// Removes a database that was made, where it does not go with the server.
    pub(crate) fn drop_database(&self, name: &str) -> Result<(), String> {
        match self {
            Self::Private(_) => Ok(()),
            Self::Given(url) => execute(url, &format!("DROP DATABASE \"{name}\" WITH (FORCE)")),
        }
    }
}

fn execute(url: &str, statement: &str) -> Result<(), String> {
    let mut client = Database::from_url(url).and_then(|given| given.connect()).map_err(|e| e.with_causes())?;
    client.batch_execute(statement).map_err(|error| format!("{statement}: {error:?}"))
}

/// The URL of another database on the same server.
fn with_database(url: &str, name: &str) -> Result<String, String> {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let (scheme, rest) =
        base.split_once("://").ok_or("DATABASE_URL must be a URL: postgres://user@host:5432/database")?;
    let authority = rest.split_once('/').map_or(rest, |(authority, _)| authority);
    Ok(format!("{scheme}://{authority}/{name}{}", query.map_or_else(String::new, |query| format!("?{query}"))))
}
