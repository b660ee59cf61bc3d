//! The tables of folds: their form, and the statements that a batch executes on them.
//!
//! A table has no schema in these statements: it is found through the search path of the
//! application, which in a rebuild leads to a copy.

mod form;
mod statements;
mod table;

pub(crate) use form::{migrate, verify};
pub(crate) use statements::{ByIndex, Statements, read_one};
pub(crate) use table::{FoldColumn, FoldTable};
