//! Single statements for the server's administration.

use super::error::Error;
use crate::blocking::blocking;
use crate::database::Database;
use crate::error::describe;

/// Executes one statement on a connection of its own. May be called from within an asynchronous runtime.
pub(super) fn execute(url: &str, statement: &str) -> Result<(), Error> {
    let mut connection = Database::from_url(url)?.connect()?;
    blocking(|| connection.batch_execute(statement))
        .map_err(Error::cannot("start a thread"))?
        .map_err(|error| Error::new(format!("{statement} failed: {}", describe(&error))))
}
