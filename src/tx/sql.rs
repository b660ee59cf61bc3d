//! The statements that a [`Tx`](super::Tx) executes.

use postgres::Statement;

/// A statement as text, or a prepared statement. The methods of [`Tx`](crate::Tx) take it. A text
/// is prepared on first use, and kept.
pub trait Sql: sealed::Sealed {
    #[doc(hidden)]
    fn form(&self) -> Form<'_>;
}

/// The forms of a statement.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub enum Form<'a> {
    Text(&'a str),
    Prepared(&'a Statement),
}

impl Sql for str {
    fn form(&self) -> Form<'_> {
        Form::Text(self)
    }
}

impl Sql for String {
    fn form(&self) -> Form<'_> {
        Form::Text(self)
    }
}

impl Sql for Statement {
    fn form(&self) -> Form<'_> {
        Form::Prepared(self)
    }
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for str {}
impl sealed::Sealed for String {}
impl sealed::Sealed for Statement {}
