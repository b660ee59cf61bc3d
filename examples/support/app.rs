//! What every example program shares: a `main` that logs and exits with the right code, and a
//! shutdown on Ctrl-C and SIGTERM.
#![allow(dead_code, reason = "several programs compile this file, and few of them call every function")]

use std::process::ExitCode;

#[allow(unused_imports, reason = "as above")]
pub(crate) use pupsourcing_orchestrator::cli::shutdown_signal;
use pupsourcing_orchestrator::{BoxError, Error};

/// A setting that is missing or wrong.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

impl std::fmt::Display for Wrong {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

/// Runs the program. Exits with 0, with 1 if it failed, or with 2 if a setting is missing or wrong.
/// The log has the reason.
pub(crate) fn main(run: fn() -> Result<(), BoxError>) -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{}", explain(&*error));
            ExitCode::from(if is_wrong_setting(&*error) { 2 } else { 1 })
        }
    }
}

fn is_wrong_setting(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<Wrong>() || error.downcast_ref().is_some_and(Error::is_config)
}

/// Returns the error and its causes. The text of a `postgres::Error` alone is little more than "db
/// error".
pub(crate) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    if let Some(error) = error.downcast_ref::<Error>() {
        return error.with_causes();
    }
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Returns the value of an environment variable; `None` if it is not set or is empty, as a
/// deployment's template may leave it.
pub(crate) fn setting(name: &str) -> Result<Option<String>, Wrong> {
    match std::env::var(name) {
        Ok(value) => Ok(Some(value.trim().to_owned()).filter(|value| !value.is_empty())),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Wrong(format!("{name} is not valid UTF-8"))),
    }
}

/// Formats a wrong value for an error. Does not show a connection string, which may contain a
/// password.
pub(crate) fn shown(value: &str) -> String {
    let is_connection = value.contains("://") || value.to_lowercase().contains("password");
    if is_connection { "a connection string, which is not repeated here".to_owned() } else { format!("{value:?}") }
}

/// Returns the database URL, or an error if it is not set.
pub(crate) fn database_url() -> Result<String, Wrong> {
    setting("DATABASE_URL")?.ok_or_else(|| {
        let example = "postgres://user:password@host:5432/database?sslmode=require";
        Wrong(format!("DATABASE_URL is not set: it says where the events are, such as {example}"))
    })
}
