//! Stub until the module is merged.
use crate::store::Names;
use postgres::{GenericClient, Transaction};
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
}
impl Table {
    pub(crate) fn quoted(&self) -> String {
        format!("\"{}\".\"{}\"", self.schema, self.name)
    }
}
impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) table: Table,
    pub(crate) oid: u32,
}
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("{0}")]
    Gone(String),
    #[error("db")]
    Database(#[from] postgres::Error),
}
pub(crate) fn find(c: &mut impl GenericClient, _names: &Names, tables: &[String]) -> Result<Vec<Table>, Refusal> {
    let mut found = vec![];
    for name in tables {
        let row = c.query_one("SELECT c.oid, n.nspname::text, c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)::oid", &[&name])?;
        found.push(Table { oid: row.get(0), schema: row.get(1), name: row.get(2) });
    }
    Ok(found)
}
pub(crate) fn obstacles(
    _c: &mut impl GenericClient,
    _n: &Names,
    _t: &[Table],
    _c2: bool,
) -> Result<Vec<String>, postgres::Error> {
    Ok(vec![])
}
pub(crate) fn create(
    tx: &mut Transaction<'_>,
    schema: &str,
    tables: &[Table],
    _role: &str,
) -> Result<Vec<Copy>, Refusal> {
    tx.batch_execute(&format!("CREATE SCHEMA \"{schema}\""))?;
    let mut copies = vec![];
    for table in tables {
        tx.batch_execute(&format!(
            "CREATE TABLE \"{schema}\".\"{}\" (LIKE {} INCLUDING ALL)",
            table.name,
            table.quoted()
        ))?;
        let oid = tx.query_one(&format!("SELECT '\"{schema}\".\"{}\"'::regclass::oid", table.name), &[])?.get(0);
        copies.push(Copy { table: table.clone(), oid });
    }
    Ok(copies)
}
pub(crate) fn swap(tx: &mut Transaction<'_>, tables: &[Table], copies: &[Copy], old: &str) -> Result<(), Refusal> {
    tx.batch_execute(&format!("CREATE SCHEMA \"{old}\""))?;
    let of: Vec<u32> = copies.iter().map(|c| c.oid).collect();
    let copied = by_oids(tx, &of)?;
    for t in tables {
        tx.batch_execute(&format!("ALTER TABLE {} SET SCHEMA \"{old}\"", t.quoted()))?;
    }
    for (t, c) in tables.iter().zip(&copied) {
        tx.batch_execute(&format!("ALTER TABLE {} SET SCHEMA \"{}\"", c.quoted(), t.schema))?;
    }
    if let Some(c) = copied.first() {
        tx.batch_execute(&format!("DROP SCHEMA \"{}\"", c.schema))?;
    }
    Ok(())
}
pub(crate) fn replace(_tx: &mut Transaction<'_>, _t: &[Table], _c: &[Copy]) -> Result<(), Refusal> {
    Ok(())
}
pub(crate) fn remove(tx: &mut Transaction<'_>, schema: &str) -> Result<(), Refusal> {
    tx.batch_execute(&format!("DROP SCHEMA \"{schema}\" CASCADE"))?;
    Ok(())
}
pub(crate) fn related(c: &mut impl GenericClient, oids: &[u32]) -> Result<Vec<u32>, postgres::Error> {
    let rows = c.query("SELECT indexrelid FROM pg_index WHERE indrelid = ANY ($1)", &[&oids])?;
    Ok(oids.iter().copied().chain(rows.iter().map(|r| r.get(0))).collect())
}
pub(crate) fn by_oids(c: &mut impl GenericClient, oids: &[u32]) -> Result<Vec<Table>, postgres::Error> {
    let rows = c.query("SELECT c.oid, n.nspname::text, c.relname::text FROM unnest($1::oid[]) WITH ORDINALITY o(oid, k) JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY k", &[&oids])?;
    Ok(rows.iter().map(|row| Table { oid: row.get(0), schema: row.get(1), name: row.get(2) }).collect())
}
pub(crate) fn size(c: &mut impl GenericClient, tables: &[Table]) -> Result<i64, postgres::Error> {
    let oids: Vec<u32> = tables.iter().map(|t| t.oid).collect();
    Ok(c.query_one("SELECT coalesce(sum(pg_total_relation_size(o)), 0)::int8 FROM unnest($1::oid[]) o", &[&oids])?
        .get(0))
}
