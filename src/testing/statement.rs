//! Executes single statements for the server's administration.

use super::error::Error;
use crate::blocking::blocking;
use crate::database::{Connection, Database};
use crate::error::describe;

/// Executes a statement on a connection of its own. It may be called on a thread of an asynchronous
/// runtime.
pub(super) fn execute(url: &str, statement: &str) -> Result<(), Error> {
    execute_on(&mut Database::from_url(url)?.connect()?, statement)
}

/// Executes a statement. It may be called on a thread of an asynchronous runtime.
pub(super) fn execute_on(connection: &mut Connection, statement: &str) -> Result<(), Error> {
    blocking(|| connection.batch_execute(statement))
        .map_err(Error::cannot("start a thread"))?
        .map_err(|error| Error::new(format!("{statement} failed: {}", describe(&error))))
}
