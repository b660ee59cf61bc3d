//! Lists what stands in the way of a rebuild.

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row, Transaction};

use super::definition::{OWN, PRIVILEGES};
use super::obstacle::{Hinders, Kind, Obstacle};
use super::path::settled;
use super::table::Table;

const FOUND: &str = include_str!("sql/obstacles.sql");

/// Tables of a schema are published from PostgreSQL 15 on.
const OF_SCHEMA: &str = "
    SELECT t.oid, 'publication_of_schema', format('publication %I', p.pubname), 'swap'
    FROM own_table t
    JOIN pg_publication_namespace n ON n.pnnspid = t.relnamespace
    JOIN pg_publication p ON p.oid = n.pnpubid";

/// Lists everything that a rebuild of these tables cannot carry over, and the privileges that this
/// user lacks for it. `others` are the tables of other projections, with the projection's name.
///
/// A swap needs copies that are defined like their tables, and nothing else may refer to these.
/// Where the live tables stay, most of that does not matter:
///
/// - *Triggers* of the live table fire for each row that is replaced, as they do for a handler.
///   They do not fire for the copy. So after the replacement, a row is as its triggers left it.
/// - *Foreign keys* of the live table are checked.
/// - *Rules* would rewrite the statements that replace the content, *policies* would hide rows, and
///   rows of *children* are a part of the content. These are obstacles there as well.
/// - A publication `FOR ALL TABLES` would publish the copies, which no subscriber has.
pub(crate) fn obstacles(
    client: &mut impl GenericClient,
    tables: &[Table],
    others: &[(&str, &Table)],
) -> Result<Vec<Obstacle>, postgres::Error> {
    settled(client, |tx| read(tx, tables, others))
}

fn read(
    tx: &mut Transaction<'_>,
    tables: &[Table],
    others: &[(&str, &Table)],
) -> Result<Vec<Obstacle>, postgres::Error> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let (projections, claimed): (Vec<&str>, Vec<u32>) = others.iter().map(|(name, table)| (*name, table.oid)).unzip();
    let has_schemas: bool =
        tx.query_typed_one("SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL", &[])?.get(0);
    let of_schema = if has_schemas { format!("UNION ALL {OF_SCHEMA}") } else { String::new() };
    let sql = format!(
        "{OWN}, {PRIVILEGES}, {FOUND}
         SELECT all_found.*, t.schema_name::text, t.relname::text
         FROM (SELECT * FROM found {of_schema}) AS all_found (table_oid, kind, object, hinders)
         JOIN own_table t ON t.oid = all_found.table_oid
         ORDER BY t.schema_name, t.relname, kind, object"
    );
    let values: [(&(dyn ToSql + Sync), Type); 4] =
        [(&oids, Type::OID_ARRAY), (&"", Type::TEXT), (&projections, Type::TEXT_ARRAY), (&claimed, Type::OID_ARRAY)];
    let mut obstacles: Vec<Obstacle> = tx.query_typed(&sql, &values)?.iter().map(obstacle).collect();
    let gone = tx.query_typed(
        "SELECT wanted.number::int4 FROM ROWS FROM (unnest($1), unnest($2), unnest($3)) WITH ORDINALITY AS wanted (oid, schema, name, number)
         WHERE NOT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                           WHERE c.oid = wanted.oid AND n.nspname = wanted.schema AND c.relname = wanted.name)",
        &[
            (&oids, Type::OID_ARRAY),
            (&tables.iter().map(|table| &*table.schema).collect::<Vec<_>>(), Type::TEXT_ARRAY),
            (&tables.iter().map(|table| &*table.name).collect::<Vec<_>>(), Type::TEXT_ARRAY),
        ],
    )?;
    let numbers = gone.iter().filter_map(|row| usize::try_from(row.get::<_, i32>(0)).ok()?.checked_sub(1));
    obstacles.extend(numbers.filter_map(|number| tables.get(number)).map(|table| Obstacle {
        kind: Kind::Gone,
        table: table.to_string(),
        object: String::new(),
        hinders: Hinders::Both,
    }));
    Ok(obstacles)
}

fn obstacle(row: &Row) -> Obstacle {
    let table = Table { oid: row.get(0), schema: row.get(4), name: row.get(5) };
    Obstacle {
        // An unknown name is an obstacle in any case.
        kind: Kind::named(row.get(1)).unwrap_or(Kind::Dependent),
        table: table.to_string(),
        object: row.get(2),
        hinders: match row.get(3) {
            "swap" => Hinders::Swap,
            "copy" => Hinders::Copy,
            _ => Hinders::Both,
        },
    }
}
