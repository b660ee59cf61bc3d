//! What decides how the content of a table is replaced.

use postgres::Transaction;
use postgres::types::Type;

use super::definition::OWN;
use super::table::Copy;

/// A table, its copy, and how their rows can be matched. All names are quoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) table: String,
    pub(super) copy: String,
    /// The columns that are written: all except generated ones.
    pub(super) columns: Vec<String>,
    /// Those of them that may be updated: not GENERATED ALWAYS AS IDENTITY.
    pub(super) updatable: Vec<String>,
    /// The columns of the primary key, each with the operator by which its index compares.
    pub(super) key: Vec<(String, String)>,
    /// Whether rows that differ are deleted and inserted again, rather than updated.
    pub(super) is_reinserted: bool,
}

impl Shape {
    /// Whether rows that differ are updated.
    pub(super) fn is_updated(&self) -> bool {
        !self.key.is_empty() && !self.is_reinserted && !self.updatable.is_empty()
    }

    /// Deletes the rows that the copy does not have.
    pub(super) fn delete_gone(&self) -> String {
        let Self { table, copy, .. } = self;
        if self.key.is_empty() {
            return format!("DELETE FROM ONLY {table} AS live");
        }
        format!(
            "DELETE FROM ONLY {table} AS live WHERE NOT EXISTS (SELECT FROM {copy} AS copy WHERE {})",
            self.is_same_row()
        )
    }

    /// Deletes the rows that the copy has, but with other values.
    pub(super) fn delete_changed(&self) -> String {
        let Self { table, copy, .. } = self;
        format!(
            "DELETE FROM ONLY {table} AS live USING {copy} AS copy WHERE {} AND {}",
            self.is_same_row(),
            self.compared("*<>")
        )
    }

    /// Updates the rows that differ, as soon as the condition is true.
    pub(super) fn update(&self, condition: &str) -> String {
        let Self { table, copy, .. } = self;
        let values: Vec<String> = self.updatable.iter().map(|column| format!("{column} = copy.{column}")).collect();
        format!(
            "UPDATE ONLY {table} AS live SET {} FROM {copy} AS copy WHERE {} AND {}{condition}",
            values.join(", "),
            self.is_same_row(),
            self.compared("*<>")
        )
    }

    /// Inserts the rows that the table does not have, as soon as the condition is true.
    pub(super) fn insert(&self, condition: &str) -> String {
        let Self { table, copy, .. } = self;
        let columns = if self.columns.is_empty() { String::new() } else { format!("({}) ", self.columns.join(", ")) };
        let is_equal = if self.is_reinserted { format!(" AND {}", self.compared("*=")) } else { String::new() };
        let is_new = if self.key.is_empty() {
            "true".to_owned()
        } else {
            format!("NOT EXISTS (SELECT FROM ONLY {table} AS live WHERE {}{is_equal})", self.is_same_row())
        };
        format!(
            "INSERT INTO {table} {columns}OVERRIDING SYSTEM VALUE SELECT {} FROM {copy} AS copy WHERE {is_new}{condition}",
            self.of("copy")
        )
    }

    fn is_same_row(&self) -> String {
        let pairs = self.key.iter().map(|(column, operator)| format!("live.{column} {operator} copy.{column}"));
        pairs.collect::<Vec<_>>().join(" AND ")
    }

    /// Compares the binary images of two rows. As records: two row constructors would be compared
    /// column by column, with an operator of each type.
    fn compared(&self, operator: &str) -> String {
        format!(
            "ROW({})::pg_catalog.record OPERATOR(pg_catalog.{operator}) ROW({})::pg_catalog.record",
            self.of("live"),
            self.of("copy")
        )
    }

    fn of(&self, relation: &str) -> String {
        self.columns.iter().map(|column| format!("{relation}.{column}")).collect::<Vec<_>>().join(", ")
    }
}

/// Rows that are updated one by one may collide with each other in another unique index than the
/// primary key, and some columns cannot be updated at all. Such rows are deleted and inserted
/// again, unless a foreign key would act on the deletion: NO ACTION looks only at what there is at
/// the end of the statement.
const SHAPES: &str = "
    SELECT format('%I.%I', t.schema_name, t.relname), columns.written, columns.updatable,
           key.columns, key.operators,
           p.oid IS NOT NULL AND (columns.must_be_reinserted OR EXISTS (
               SELECT FROM own_index i WHERE i.indrelid = t.oid AND (i.indisunique OR i.indisexclusion) AND NOT i.indisprimary))
           AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.confrelid = t.oid AND c.contype = 'f' AND c.confdeltype <> 'a')
    FROM own_table t
    -- Not one that is WITHOUT OVERLAPS: its operators are those of another index.
    LEFT JOIN own_index p ON p.indrelid = t.oid AND p.indisprimary AND p.relam = (SELECT m.oid FROM pg_am m WHERE m.amname = 'btree')
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(quote_ident(a.attname) ORDER BY a.attnum), '{}'),
               coalesce(array_agg(quote_ident(a.attname) ORDER BY a.attnum) FILTER (WHERE a.attidentity <> 'a'), '{}'),
               coalesce(bool_or(a.attidentity = 'a' AND a.attnum <> ALL (p.indkey::int2[])), false)
        FROM own_column a WHERE a.attrelid = t.oid AND a.attgenerated = '') AS columns (written, updatable, must_be_reinserted)
    CROSS JOIN LATERAL (
        SELECT coalesce(array_agg(quote_ident(a.attname) ORDER BY k.number), '{}'),
               coalesce(array_agg(format('OPERATOR(%I.%s)', n.nspname, o.oprname) ORDER BY k.number), '{}')
        FROM unnest(p.indkey::int2[], p.indclass::oid[]) WITH ORDINALITY AS k (attnum, opclass, number)
        JOIN own_column a ON a.attrelid = t.oid AND a.attnum = k.attnum
        JOIN pg_opclass s ON s.oid = k.opclass
        JOIN pg_amop m ON m.amopfamily = s.opcfamily AND m.amoplefttype = s.opcintype AND m.amoprighttype = s.opcintype AND m.amopstrategy = 3
        JOIN pg_operator o ON o.oid = m.amopopr
        JOIN pg_namespace n ON n.oid = o.oprnamespace
        WHERE k.number <= p.indnkeyatts) AS key (columns, operators)
    WHERE t.oid = $3";

/// Reads the shape of a table. Has to be called within [`settled`](super::path::settled).
pub(super) fn read(tx: &mut Transaction<'_>, copy: &Copy) -> Result<Shape, postgres::Error> {
    let oids = vec![copy.table.oid];
    let row = tx.query_typed_one(
        &format!("{OWN} {SHAPES}"),
        &[(&oids, Type::OID_ARRAY), (&"", Type::TEXT), (&copy.table.oid, Type::OID)],
    )?;
    let name = tx.query_typed_one("SELECT $1::regclass::text", &[(&copy.oid, Type::OID)])?;
    let (key, operators): (Vec<String>, Vec<String>) = (row.get(3), row.get(4));
    Ok(Shape {
        table: row.get(0),
        copy: name.get(0),
        columns: row.get(1),
        updatable: row.get(2),
        key: key.into_iter().zip(operators).collect(),
        is_reinserted: row.get(5),
    })
}
