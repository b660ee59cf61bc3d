//! Puts the copies in the place of the live tables.

use postgres::Transaction;
use postgres::types::Type;

use super::definition;
use super::path::settled;
use super::refusal::Refusal;
use super::table::{Copy, identifier, qualified};

/// The options of a table and of its TOAST table: `RESET` for those of the copy $1, and `SET` for
/// those of the table $2, in the same order.
const OPTIONS: &str = "
    WITH option AS (
        SELECT c.oid, o.prefix || split_part(o.text, '=', 1) AS name, substr(o.text, strpos(o.text, '=') + 1) AS value, o.prefix, o.number
        FROM pg_class c
        LEFT JOIN pg_class w ON w.oid = c.reltoastrelid
        CROSS JOIN LATERAL (
            SELECT '', r.text, r.number FROM unnest(c.reloptions) WITH ORDINALITY AS r (text, number)
            UNION ALL SELECT 'toast.', r.text, r.number FROM unnest(w.reloptions) WITH ORDINALITY AS r (text, number)) AS o (prefix, text, number)
        WHERE c.oid IN ($1, $2))
    SELECT (SELECT format('RESET (%s)', string_agg(name, ', ')) FROM option WHERE oid = $1 HAVING count(*) > 0),
           (SELECT format('SET (%s)', string_agg(format('%s=%L', name, value), ', ' ORDER BY prefix, number)) FROM option WHERE oid = $2 HAVING count(*) > 0)";

/// Refuses tables that have been changed since they were copied. The caller holds SHARE UPDATE
/// EXCLUSIVE on the tables and on the copies, which keeps nearly all changes away, but no readers.
pub(crate) fn verify(tx: &mut Transaction<'_>, copies: &[Copy]) -> Result<(), Refusal> {
    settled(tx, |tx| {
        definition::are_in_place(tx, &copies.iter().map(|copy| &copy.table).collect::<Vec<_>>())?;
        definition::compare(tx, copies)
    })
}

/// Moves the live tables to `old_schema`, which it creates, and the copies to the place of the
/// tables. The copies get the tables' options, autovacuum included, and their empty schema is
/// dropped.
///
/// The caller has [verified](verify) them in the same transaction, and holds ACCESS EXCLUSIVE on
/// the tables and on the copies.
///
/// The same function swaps back: what is live is then `table`, and what is old is the copy.
pub(crate) fn swap(tx: &mut Transaction<'_>, copies: &[Copy], old_schema: &str) -> Result<(), Refusal> {
    settled(tx, |tx| {
        let schemas = schemas(tx, copies)?;
        let old = identifier(old_schema);
        tx.batch_execute(&format!("CREATE SCHEMA {old}"))?;
        for copy in copies {
            tx.batch_execute(&format!("ALTER TABLE {} SET SCHEMA {old}", copy.table.quoted()))?;
        }
        for (copy, schema) in copies.iter().zip(&schemas) {
            let options = tx.query_typed_one(OPTIONS, &[(&copy.oid, Type::OID), (&copy.table.oid, Type::OID)])?;
            let name = qualified(schema, &copy.table.name);
            for change in [0, 1].iter().filter_map(|column| options.get::<_, Option<String>>(column)) {
                tx.batch_execute(&format!("ALTER TABLE {name} {change}"))?;
            }
            tx.batch_execute(&format!("ALTER TABLE {name} SET SCHEMA {}", identifier(&copy.table.schema)))?;
        }
        let mut emptied: Vec<&String> = schemas.iter().collect();
        emptied.sort_unstable();
        emptied.dedup();
        for schema in emptied {
            tx.batch_execute(&format!("DROP SCHEMA {}", identifier(schema)))?;
        }
        Ok(())
    })
}

/// The schemas in which the copies are.
fn schemas(tx: &mut Transaction<'_>, copies: &[Copy]) -> Result<Vec<String>, postgres::Error> {
    let oids: Vec<u32> = copies.iter().map(|copy| copy.oid).collect();
    let rows = tx.query_typed(
        "SELECT n.nspname::text FROM unnest($1) WITH ORDINALITY AS wanted (oid, number)
         JOIN pg_class c ON c.oid = wanted.oid JOIN pg_namespace n ON n.oid = c.relnamespace ORDER BY wanted.number",
        &[(&oids, Type::OID_ARRAY)],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
