//! The definition of tables: the statements that create them in another schema, written by the
//! server from its catalog.
//!
//! A definition contains everything that belongs to a table and can be carried over: columns,
//! sequences, constraints, indexes, options, comments, owner and privileges. Two tables with the
//! same definition differ only in what is an [obstacle](super::obstacles()).

use postgres::Transaction;
use postgres::types::Type;

use super::refusal::{Differences, Refusal};
use super::table::{Copy, Table};

/// What belongs to the tables; the other parts rely on it.
pub(super) const OWN: &str = include_str!("sql/own.sql");
pub(super) const PRIVILEGES: &str = include_str!("sql/privileges.sql");

const PARTS: [&str; 7] = [
    include_str!("sql/tables.sql"),
    include_str!("sql/sequences.sql"),
    include_str!("sql/columns.sql"),
    include_str!("sql/constraints.sql"),
    include_str!("sql/indexes.sql"),
    include_str!("sql/comments.sql"),
    include_str!("sql/grants.sql"),
];

/// Statements from this step on concern privileges.
const FIRST_GRANT: i32 = 70;

/// One statement of a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// The table to which it belongs.
    pub(super) table: u32,
    pub(super) is_grant: bool,
    pub(super) sql: String,
}

/// Reads the statements that create these tables in `schema`, in the order in which they can be
/// executed. Has to be called within [`settled`](super::path::settled).
pub(super) fn read(tx: &mut Transaction<'_>, tables: &[u32], schema: &str) -> Result<Vec<Statement>, postgres::Error> {
    let sql = format!(
        "{OWN}, {PRIVILEGES} SELECT table_oid, step, sql FROM ({}) AS definition (table_oid, step, number, sql) ORDER BY step, number, sql COLLATE \"C\"",
        PARTS.join("\nUNION ALL\n")
    );
    let rows = tx.query_typed(&sql, &[(&tables, Type::OID_ARRAY), (&schema, Type::TEXT)])?;
    let references = references(tx, tables, schema)?;
    let statement = |row: &postgres::Row| Statement {
        table: row.get(0),
        is_grant: row.get::<_, i32>(1) >= FIRST_GRANT,
        sql: references.iter().fold(row.get(2), |sql: String, (from, to)| sql.replace(from, to)),
    };
    Ok(rows.iter().map(statement).collect())
}

/// How expressions refer to the tables, their indexes and the sequences that they own, and how the
/// expressions of a copy have to refer to those of the copy: as in
/// `nextval('public.orders_id_seq'::regclass)`.
///
/// In a longer literal each quote is doubled, so no other text of a statement looks like this.
fn references(
    tx: &mut Transaction<'_>,
    tables: &[u32],
    schema: &str,
) -> Result<Vec<(String, String)>, postgres::Error> {
    let sql = format!(
        "{OWN} SELECT format('%I.%I', own.schema_name, own.relname), own.target
         FROM (SELECT schema_name, relname, target FROM own_table UNION ALL SELECT schema_name, relname, target FROM own_sequence
               UNION ALL SELECT schema_name, relname, target FROM own_index) AS own"
    );
    let rows = tx.query_typed(&sql, &[(&tables, Type::OID_ARRAY), (&schema, Type::TEXT)])?;
    let literal = |name: &str| format!("'{}'::regclass", name.replace('\'', "''"));
    Ok(rows.iter().map(|row| (literal(row.get(0)), literal(row.get(1)))).collect())
}

/// Refuses copies whose definition differs from that of their table.
pub(super) fn compare(tx: &mut Transaction<'_>, copies: &[Copy]) -> Result<(), Refusal> {
    // Any name will do, as long as it is the same for both.
    let schema = "copies";
    let (tables, own): (Vec<u32>, Vec<u32>) = copies.iter().map(|copy| (copy.table.oid, copy.oid)).unzip();
    let of_tables = read(tx, &tables, schema)?;
    let of_copies = read(tx, &own, schema)?;
    for copy in copies {
        let of = |all: &[Statement], oid| -> Vec<String> {
            let of_one = all.iter().filter(|statement| statement.table == oid);
            let mut sql: Vec<String> = of_one.map(|statement| statement.sql.clone()).collect();
            // Indexes may have been created again since then, in another order.
            sql.sort_unstable();
            sql
        };
        let (of_table, of_copy) = (of(&of_tables, copy.table.oid), of(&of_copies, copy.oid));
        let only = |these: &[String], others: &[String]| -> Vec<String> {
            these.iter().filter(|sql| !others.contains(sql)).cloned().collect()
        };
        if of_table != of_copy {
            let differences = Differences { of_table: only(&of_table, &of_copy), of_copy: only(&of_copy, &of_table) };
            return Err(Refusal::Different { table: copy.table.clone(), differences });
        }
    }
    Ok(())
}

/// Refuses tables that are no longer what their names were resolved to.
pub(super) fn are_in_place(tx: &mut Transaction<'_>, tables: &[&Table]) -> Result<(), Refusal> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = tx.query_typed(
        "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1)",
        &[(&oids, Type::OID_ARRAY)],
    )?;
    let found: Vec<Table> =
        rows.iter().map(|row| Table { oid: row.get(0), schema: row.get(1), name: row.get(2) }).collect();
    match tables.iter().find(|table| !found.contains(table)) {
        Some(table) => Err(Refusal::Gone((*table).clone())),
        None => Ok(()),
    }
}
