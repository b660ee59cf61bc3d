//! Why tables cannot be copied or swapped.

use std::fmt;

use super::table::Table;

/// Why tables cannot be found, copied or swapped. Each names the table.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A name of a projection's `tables()` cannot be used.
    #[error("table {name:?} of a projection's tables() {problem}")]
    Name { name: String, problem: String },
    /// A live table has been dropped, renamed or moved since its name was resolved.
    #[error("table {0} was dropped, renamed or moved in the meantime: cancel the rebuild and begin it again")]
    Gone(Table),
    /// The copy's definition differs from the table's.
    #[error(
        "table {table} and its copy are defined differently: {differences}. Undo the change, or cancel the rebuild and begin it again"
    )]
    Different { table: Table, differences: Differences },
    /// The server refused a statement.
    #[error("{}", crate::error::describe(.0))]
    Database(#[from] postgres::Error),
}

/// Statements that define only the table, or only its copy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Differences {
    pub(crate) of_table: Vec<String>,
    pub(crate) of_copy: Vec<String>,
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sides = [("the table", &self.of_table), ("the copy", &self.of_copy)];
        let sides = sides.into_iter().filter(|(_, statements)| !statements.is_empty());
        let texts: Vec<String> =
            sides.map(|(side, statements)| format!("only {side} has {:?}", statements.join("; "))).collect();
        f.write_str(&texts.join(", "))
    }
}
