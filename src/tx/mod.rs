//! The transaction of a handler.
//!
//! *Invariant:* a transaction in which a kept statement was outdated is never committed. The runner
//! finds this in [`Kept`], and repeats the batch.

mod kept;
mod memory;
mod sql;

use std::error::Error as _;
use std::fmt;
use std::ops::{Deref, DerefMut};

use postgres::error::SqlState;
use postgres::types::{BorrowToSql, ToSql};
use postgres::{Error, Row, RowIter, Statement, Transaction};

use self::kept::Kept;
pub(crate) use self::memory::Memory;
use self::sql::Form;
pub use self::sql::Sql;
use crate::database::{AsClient, sealed};

/// The transaction in which a projection's handler writes.
///
/// It is a [`postgres::Transaction`] with the same methods and two additions. First, a statement
/// that is given as text is prepared when it is first used, and stays prepared on the connection:
/// up to 128 statements, with at most 8 KiB of text each. So a text with placeholders costs one
/// round trip, and the server parses it once. As with each prepared statement, the server plans
/// each of the first five executions, and then may keep one plan for all parameters;
/// `SET LOCAL plan_cache_mode` changes this. Second, it has information for the handler, such as
/// [`is_pause_requested`](Self::is_pause_requested).
///
/// A kept statement can become outdated, for example when a table that it reads is altered. Then
/// the batch is rolled back and repeated, up to three times without being counted as a failed
/// attempt. After any failure all kept statements are dropped, so the next attempt prepares them
/// again.
///
/// ```
/// use pupsourcing_orchestrator::{BoxError, Event, Tx};
///
/// fn handle(tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
///     let sql = "INSERT INTO orders (id) VALUES ($1) ON CONFLICT DO NOTHING";
///     tx.execute(sql, &[&event.aggregate_id()])?;
///     Ok(())
/// }
/// ```
///
/// A `&mut Tx` can be passed to functions that take a `&mut postgres::Transaction`; the statements
/// that they execute are not kept.
#[must_use = "a nested transaction that is not committed is rolled back"]
pub struct Tx<'a> {
    transaction: Transaction<'a>,
    kept: &'a mut KeptStatements,
    memory: &'a mut Memory,
    about: About<'a>,
}

/// The statements that are kept on a connection.
pub(crate) type KeptStatements = Kept<Statement>;

/// The information that a handler may ask for.
#[derive(Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) projection: &'a str,
    pub(crate) generation: i64,
    pub(crate) is_replay: bool,
    pub(crate) is_pause_requested: &'a (dyn Fn() -> bool + Sync),
}

impl<'a> Tx<'a> {
    /// Whether a kept statement was outdated in this transaction.
    pub(crate) fn was_outdated(&self) -> bool {
        self.kept.was_outdated()
    }

    pub(crate) fn new(
        transaction: Transaction<'a>,
        kept: &'a mut KeptStatements,
        memory: &'a mut Memory,
        about: About<'a>,
    ) -> Self {
        kept.begin();
        Self { transaction, kept, memory, about }
    }

    /// What the handler keeps in memory from one transaction to the next.
    pub(crate) fn memory(&mut self) -> &mut Memory {
        self.memory
    }

    /// The name of the projection that the handler belongs to.
    pub fn projection(&self) -> &str {
        self.about.projection
    }

    /// The number of the generation in which the projection is processed.
    pub fn generation(&self) -> i64 {
        self.about.generation
    }

    /// Whether the projection has handled these events before, and handles them again after a
    /// rewind. A handler can then omit what must not be repeated, such as a message to a customer.
    ///
    /// The answer is the same for all events of the transaction. It compares positions: an event is
    /// handled again if its position is not above the highest that its checkpoint ever had. Where
    /// checkpoints are merged, the highest of them counts for all their keys. So the answer may be
    /// true for an event that was never handled, if the rewind came while some keys were behind
    /// others. It is never false for an event that was handled before.
    pub fn is_replay(&self) -> bool {
        self.about.is_replay
    }

    /// Whether the worker has been asked to pause or to leave. A long-running [batch
    /// handler](crate::BatchProjection::handle_batch) can then return early, with the number of
    /// events that it has handled.
    pub fn is_pause_requested(&self) -> bool {
        (self.about.is_pause_requested)()
    }

    /// Executes a statement, and returns the number of rows that it changed.
    pub fn execute<S: Sql + ?Sized>(&mut self, sql: &S, params: &[&(dyn ToSql + Sync)]) -> Result<u64, Error> {
        self.run(sql, |transaction, statement| transaction.execute(statement, params))
    }

    /// Executes a statement, and returns its rows.
    pub fn query<S: Sql + ?Sized>(&mut self, sql: &S, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        self.run(sql, |transaction, statement| transaction.query(statement, params))
    }

    /// Executes a statement that returns exactly one row; any other number is an error.
    pub fn query_one<S: Sql + ?Sized>(&mut self, sql: &S, params: &[&(dyn ToSql + Sync)]) -> Result<Row, Error> {
        self.run(sql, |transaction, statement| transaction.query_one(statement, params))
    }

    /// Executes a statement that returns at most one row; more rows are an error.
    pub fn query_opt<S: Sql + ?Sized>(
        &mut self,
        sql: &S,
        params: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, Error> {
        self.run(sql, |transaction, statement| transaction.query_opt(statement, params))
    }

    /// Executes a statement, and returns its rows as they arrive.
    pub fn query_raw<S, P, I>(&mut self, sql: &S, params: I) -> Result<RowIter<'_>, Error>
    where
        S: Sql + ?Sized,
        P: BorrowToSql,
        I: IntoIterator<Item = P>,
        I::IntoIter: ExactSizeIterator,
    {
        let statement = self.statement(sql)?;
        let Self { transaction, kept, .. } = self;
        let rows = transaction.query_raw(&statement, params);
        rows.inspect_err(|error| note(kept, sql, error))
    }

    /// Prepares a statement, or returns the one that is kept for this text.
    pub fn prepare(&mut self, text: &str) -> Result<Statement, Error> {
        if let Some(statement) = self.kept.get(text) {
            return Ok(statement);
        }
        let statement = self.transaction.prepare(&self.kept.marked(text))?;
        self.kept.put(text, statement.clone());
        Ok(statement)
    }

    /// Begins a nested transaction: a savepoint, to which the outer transaction rolls back unless
    /// the nested one is [committed](Self::commit).
    pub fn transaction(&mut self) -> Result<Tx<'_>, Error> {
        let Self { transaction, kept, memory, about } = self;
        Ok(Tx { transaction: transaction.transaction()?, kept, memory, about: *about })
    }

    /// Begins a nested transaction with a name of its own.
    pub fn savepoint(&mut self, name: &str) -> Result<Tx<'_>, Error> {
        let Self { transaction, kept, memory, about } = self;
        Ok(Tx { transaction: transaction.savepoint(name)?, kept, memory, about: *about })
    }

    /// Commits a nested transaction: what it wrote is committed together with the outer
    /// transaction.
    pub fn commit(self) -> Result<(), Error> {
        self.transaction.commit()
    }

    /// Rolls back a nested transaction. Dropping it does the same.
    pub fn rollback(self) -> Result<(), Error> {
        self.transaction.rollback()
    }

    fn run<S: Sql + ?Sized, T>(
        &mut self,
        sql: &S,
        execute: impl FnOnce(&mut Transaction<'a>, &Statement) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let statement = self.statement(sql)?;
        let outcome = execute(&mut self.transaction, &statement);
        outcome.inspect_err(|error| note(self.kept, sql, error))
    }

    fn statement<S: Sql + ?Sized>(&mut self, sql: &S) -> Result<Statement, Error> {
        match sql.form() {
            Form::Text(text) => self.prepare(text),
            Form::Prepared(statement) => Ok(statement.clone()),
        }
    }
}

/// Records a statement that failed because it is outdated.
fn note<S: Sql + ?Sized>(kept: &mut KeptStatements, sql: &S, error: &Error) {
    if is_outdated(error) {
        kept.found_outdated(match sql.form() {
            Form::Text(text) => Some(text),
            Form::Prepared(_) => None,
        });
    }
}

/// Whether a prepared statement failed because the tables that it reads were altered, so that its
/// rows now have other columns, or because the session no longer has the statement.
fn is_outdated(error: &Error) -> bool {
    let Some(error) = error.as_db_error() else { return !error.is_closed() && has_other_columns(error) };
    match *error.code() {
        SqlState::FEATURE_NOT_SUPPORTED => error.routine() == Some("RevalidateCachedQuery"),
        SqlState::INVALID_SQL_STATEMENT_NAME => true,
        _ => false,
    }
}

/// Whether the client could not read a row. A pooler may have prepared the statement on another
/// session after the tables were altered. Then the rows have columns that the client does not
/// expect.
fn has_other_columns(error: &Error) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidData)
}

impl sealed::Sealed for Tx<'_> {}

impl<'a> AsClient for Tx<'a> {
    type Client = Transaction<'a>;

    fn as_client(&mut self) -> &mut Transaction<'a> {
        self
    }
}

impl<'a> Deref for Tx<'a> {
    type Target = Transaction<'a>;

    fn deref(&self) -> &Transaction<'a> {
        &self.transaction
    }
}

impl<'a> DerefMut for Tx<'a> {
    fn deref_mut(&mut self) -> &mut Transaction<'a> {
        &mut self.transaction
    }
}

impl fmt::Debug for Tx<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let About { projection, generation, .. } = self.about;
        f.debug_struct("Tx").field("projection", &projection).field("generation", &generation).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A handler may pass it to another thread, as it may with the client's own transaction.
    #[test]
    fn it_may_be_sent_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<Tx<'_>>();
    }
}
