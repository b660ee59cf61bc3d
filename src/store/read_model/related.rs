//! The relations that belong to tables.

use postgres::GenericClient;
use postgres::types::Type;

/// Returns the relations that a transaction locks if it writes only to these tables: the tables,
/// their indexes, their TOAST tables with the indexes of these, and the sequences that their
/// columns own.
pub(crate) fn related(client: &mut impl GenericClient, tables: &[u32]) -> Result<Vec<u32>, postgres::Error> {
    // Runs beside code of the application, under its settings.
    let rows = client.query_typed(
        "WITH heap AS (
             SELECT class.oid FROM pg_catalog.pg_class AS class WHERE class.oid OPERATOR(pg_catalog.=) ANY ($1)
             UNION ALL
             SELECT class.reltoastrelid FROM pg_catalog.pg_class AS class
             WHERE class.oid OPERATOR(pg_catalog.=) ANY ($1) AND class.reltoastrelid OPERATOR(pg_catalog.<>) 0)
         SELECT heap.oid FROM heap
         UNION ALL
         SELECT index.indexrelid FROM heap JOIN pg_catalog.pg_index AS index ON index.indrelid OPERATOR(pg_catalog.=) heap.oid
         UNION ALL
         SELECT sequence.oid FROM pg_catalog.pg_depend AS depend
         JOIN pg_catalog.pg_class AS sequence ON sequence.oid OPERATOR(pg_catalog.=) depend.objid
         WHERE depend.refobjid OPERATOR(pg_catalog.=) ANY ($1) AND depend.refobjsubid OPERATOR(pg_catalog.>) 0
           AND depend.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
           AND depend.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
           AND depend.deptype OPERATOR(pg_catalog.=) ANY (ARRAY['a', 'i']::pg_catalog.\"char\"[])
           AND sequence.relkind OPERATOR(pg_catalog.=) 'S'
         ORDER BY 1",
        &[(&tables, Type::OID_ARRAY)],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
