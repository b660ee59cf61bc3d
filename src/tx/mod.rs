//! The transaction of a handler.
//!
//! *Invariant:* a handler never fails because a statement that was kept for it is outdated. The
//! runner finds that in [`Kept`], and repeats the batch without counting an attempt.

mod kept;
mod sql;

use std::fmt;
use std::ops::{Deref, DerefMut};

use postgres::error::SqlState;
use postgres::types::{BorrowToSql, ToSql};
use postgres::{Error, Row, RowIter, Statement, Transaction};

use self::kept::{Kept, Loss};
use self::sql::Form;
pub use self::sql::Sql;
use crate::database::{AsClient, sealed};

/// The transaction in which a projection writes, as its handler gets it.
///
/// It is a [`postgres::Transaction`], with the methods of that, and two additions. A statement that
/// is given as text is prepared when it is first used, and stays prepared on the connection, up to
/// 128 of them; so a text with placeholders costs one round trip, and no parsing or planning on the
/// server. And it tells what a handler may want to know.
///
/// A kept statement can become outdated, when a table that it reads is altered for example. Then the
/// batch is rolled back and repeated, without being counted as a failed attempt.
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
/// Functions that take a `&mut postgres::Transaction` can be given a `&mut Tx`; what they execute is
/// not kept.
pub struct Tx<'a> {
    transaction: Transaction<'a>,
    kept: &'a mut KeptStatements,
    about: About<'a>,
}

/// The statements that are kept on a connection.
pub(crate) type KeptStatements = Kept<Statement>;

/// What a handler may ask.
#[derive(Clone, Copy)]
pub(crate) struct About<'a> {
    pub(crate) projection: &'a str,
    pub(crate) generation: i64,
    pub(crate) is_pause_requested: &'a dyn Fn() -> bool,
}

impl<'a> Tx<'a> {
    pub(crate) fn new(transaction: Transaction<'a>, kept: &'a mut KeptStatements, about: About<'a>) -> Self {
        kept.begin();
        Self { transaction, kept, about }
    }

    /// The name of the projection that is being processed.
    pub fn projection(&self) -> &str {
        self.about.projection
    }

    /// The number of the generation in which it is processed.
    pub fn generation(&self) -> i64 {
        self.about.generation
    }

    /// Whether the worker has been asked to pause or to leave. A
    /// [batch handler](crate::BatchProjection::handle_batch) that takes long can then return
    /// early, with the number of events that it has handled.
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

    /// Executes a statement that returns at most one row; more are an error.
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
        let statement = self.transaction.prepare(text)?;
        self.kept.put(text, statement.clone());
        Ok(statement)
    }

    /// Begins a nested transaction: a savepoint, to which the outer one returns unless it is
    /// [committed](Self::commit).
    pub fn transaction(&mut self) -> Result<Tx<'_>, Error> {
        let Self { transaction, kept, about } = self;
        Ok(Tx { transaction: transaction.transaction()?, kept, about: *about })
    }

    /// Begins a nested transaction with a name of its own.
    pub fn savepoint(&mut self, name: &str) -> Result<Tx<'_>, Error> {
        let Self { transaction, kept, about } = self;
        Ok(Tx { transaction: transaction.savepoint(name)?, kept, about: *about })
    }

    /// Commits a nested transaction: what it wrote is committed with the outer one.
    pub fn commit(self) -> Result<(), Error> {
        self.transaction.commit()
    }

    /// Rolls a nested transaction back, as dropping it does.
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

/// Forgets a kept statement if it failed because it is outdated.
fn note<S: Sql + ?Sized>(kept: &mut KeptStatements, sql: &S, error: &Error) {
    if let (Form::Text(text), Some(loss)) = (sql.form(), loss(error)) {
        kept.forget(text, loss);
    }
}

/// What the session has lost, if that is why a prepared statement failed.
fn loss(error: &Error) -> Option<Loss> {
    let error = error.as_db_error()?;
    match *error.code() {
        // What the statement reads has been altered: its rows have other columns now.
        SqlState::FEATURE_NOT_SUPPORTED => (error.routine() == Some("RevalidateCachedQuery")).then_some(Loss::OfOne),
        // The session does not have it any more.
        SqlState::INVALID_SQL_STATEMENT_NAME => Some(Loss::OfAll),
        _ => None,
    }
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
