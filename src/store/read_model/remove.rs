//! Drops a schema of copies or of old tables.

use postgres::Transaction;
use postgres::types::Type;

use super::path::settled;
use super::table::{identifier, qualified};

/// Drops the tables of these oids that are in the schema, with what belongs to them, and then the
/// schema. Tables that are gone already do not matter, and neither does a schema that is gone.
///
/// There is no CASCADE: if an object of somebody else depends on one of the tables, or is in the
/// schema, the server's error names it, and nothing is dropped.
pub(crate) fn remove(tx: &mut Transaction<'_>, schema: &str, tables: &[u32]) -> Result<(), postgres::Error> {
    settled(tx, |tx| {
        let rows = tx.query_typed(
            "SELECT c.relname::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = ANY ($1) AND n.nspname = $2 AND c.relkind = 'r' ORDER BY c.oid",
            &[(&tables, Type::OID_ARRAY), (&schema, Type::TEXT)],
        )?;
        let names: Vec<String> = rows.iter().map(|row| qualified(schema, row.get(0))).collect();
        // One statement, because foreign keys may connect the tables.
        if !names.is_empty() {
            tx.batch_execute(&format!("DROP TABLE {}", names.join(", ")))?;
        }
        tx.batch_execute(&format!("DROP SCHEMA IF EXISTS {}", identifier(schema)))
    })
}
