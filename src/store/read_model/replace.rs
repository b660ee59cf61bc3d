//! Makes the content of the live tables equal to that of their copies.

use std::fmt::Write as _;

use postgres::Transaction;
use postgres::types::Type;

use super::definition::{self, OWN};
use super::path::settled;
use super::refusal::Refusal;
use super::shape::{self, Shape};
use super::table::Copy;

/// How many rows of the live tables were changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Replaced {
    pub(crate) deleted: u64,
    pub(crate) updated: u64,
    pub(crate) inserted: u64,
}

/// Makes the content of each live table equal to that of its copy. Readers see all of it at the
/// commit, and nothing before; other writers wait. The caller's transaction is READ COMMITTED.
///
/// Rows are matched by the primary key, and only those that differ are touched. A table without one
/// is emptied and filled again. Two rows differ if their binary images do, so every type can be
/// compared, and 1.0 differs from 1.00.
///
/// One statement changes all tables: the server checks foreign keys at its end, so neither those
/// between the tables nor those of other tables see a state in between.
///
/// One case is left to the server's error, and changes nothing: values of another unique index move
/// between rows, and a foreign key that cascades keeps these rows from being inserted again.
///
/// The sequences of the tables are advanced to those of the copies. A sequence does not take part
/// in the transaction, so none is set back: after a rollback, values of the table would be handed
/// out again.
pub(crate) fn replace(tx: &mut Transaction<'_>, copies: &[Copy]) -> Result<Replaced, Refusal> {
    let shapes = settled(tx, |tx| {
        lock(tx, copies)?;
        definition::are_in_place(tx, &copies.iter().map(|copy| &copy.table).collect::<Vec<_>>())?;
        copies.iter().map(|copy| shape::read(tx, copy)).collect::<Result<Vec<Shape>, _>>().map_err(Refusal::from)
    })?;
    if shapes.is_empty() {
        return Ok(Replaced::default());
    }
    // Triggers and constraints may rely on the application's search path.
    let row = tx.query_typed_one(&statement(&shapes), &[])?;
    let count = |column| u64::try_from(row.get::<_, i64>(column)).unwrap_or(0);
    let replaced = Replaced { deleted: count(0), updated: count(1), inserted: count(2) };
    settled(tx, |tx| advance(tx, copies))?;
    Ok(replaced)
}

/// Locks the tables in the order of their oids, so that two of these transactions cannot wait for
/// each other.
fn lock(tx: &mut Transaction<'_>, copies: &[Copy]) -> Result<(), postgres::Error> {
    let mut tables: Vec<_> = copies.iter().map(|copy| &copy.table).collect();
    tables.sort_unstable_by_key(|table| table.oid);
    for table in tables {
        tx.batch_execute(&format!("LOCK TABLE ONLY {} IN SHARE ROW EXCLUSIVE MODE", table.quoted()))?;
    }
    Ok(())
}

/// Sets each sequence of the live tables to the value of the copy's, if that is farther.
fn advance(tx: &mut Transaction<'_>, copies: &[Copy]) -> Result<(), Refusal> {
    for copy in copies {
        let sequences = tx.query_typed(
            &format!(
                "{OWN} SELECT format('%I.%I', l.schema_name, l.relname), format('%I.%I', c.schema_name, c.relname), l.seqincrement > 0
                 FROM own_sequence l JOIN own_sequence c ON c.attrelid <> l.attrelid AND (c.relname, c.attname) = (l.relname, l.attname)
                 WHERE l.attrelid = $3"
            ),
            &[(&vec![copy.table.oid, copy.oid], Type::OID_ARRAY), (&"", Type::TEXT), (&copy.table.oid, Type::OID)],
        )?;
        for row in sequences {
            let (live, of_copy): (String, String) = (row.get(0), row.get(1));
            let is_farther = if row.get(2) { ">" } else { "<" };
            tx.query_typed(
                &format!(
                    "SELECT setval($1::regclass, c.last_value, c.is_called) FROM {live} l, {of_copy} c
                     WHERE c.last_value {is_farther} l.last_value OR c.last_value = l.last_value AND c.is_called AND NOT l.is_called"
                ),
                &[(&live, Type::TEXT)],
            )?;
        }
    }
    Ok(())
}

/// The statement that replaces the content of all tables. It returns how many rows were deleted,
/// updated and inserted.
///
/// All its parts see the tables as they were before. They wait for each other: deletions come first
/// and insertions last, so that values of unique columns are free when they are needed.
fn statement(shapes: &[Shape]) -> String {
    let mut parts = Parts::default();
    for shape in shapes {
        parts.add(Change::Delete, &shape.delete_gone());
        if shape.is_reinserted {
            parts.add(Change::Reinsert, &shape.delete_changed());
        }
    }
    let deleted = parts.finished();
    for shape in shapes.iter().filter(|shape| shape.is_updated()) {
        parts.add(Change::Update, &shape.update(&deleted));
    }
    let updated = parts.finished();
    for shape in shapes {
        parts.add(Change::Insert, &shape.insert(&updated));
    }
    parts.statement()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Delete,
    /// A deletion of a row that is inserted again, which counts as an update.
    Reinsert,
    Update,
    Insert,
}

/// The parts of a statement: each changes rows, and is followed by one that counts them.
#[derive(Default)]
struct Parts {
    sql: Vec<String>,
    changes: Vec<Change>,
}

impl Parts {
    fn add(&mut self, change: Change, sql: &str) {
        let number = self.changes.len();
        self.sql.push(format!(
            "change_{number} AS ({sql} RETURNING 1), count_{number} (rows) AS (SELECT pg_catalog.count(*) FROM change_{number})"
        ));
        self.changes.push(change);
    }

    /// A condition that is true as soon as all parts have finished.
    fn finished(&self) -> String {
        (0..self.changes.len()).fold(String::new(), |mut condition, number| {
            _ = write!(condition, " AND (SELECT rows FROM count_{number}) IS NOT NULL");
            condition
        })
    }

    fn count(&self, change: Change) -> String {
        let of = |number: usize| format!("(SELECT rows FROM count_{number})");
        let numbers = (0..self.changes.len()).filter(|number| self.changes[*number] == change);
        let counts: Vec<String> = numbers.map(of).chain(["0::pg_catalog.int8".to_owned()]).collect();
        format!("({})", counts.join(" OPERATOR(pg_catalog.+) "))
    }

    fn statement(&self) -> String {
        format!(
            "WITH {} SELECT {}, {} OPERATOR(pg_catalog.+) {reinserted}, {} OPERATOR(pg_catalog.-) {reinserted}",
            self.sql.join(",\n"),
            self.count(Change::Delete),
            self.count(Change::Update),
            self.count(Change::Insert),
            reinserted = self.count(Change::Reinsert),
        )
    }
}
