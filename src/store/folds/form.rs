//! Creates the tables of folds, and refuses those of another form.

use postgres::types::Type;
use postgres::{Client, GenericClient};

use super::table::{FoldColumn, FoldTable, OWN};
use crate::error::{Error, describe};
use crate::store::migrations;
use crate::store::names::Names;

const DOING: &str = "examining the tables of folds";

/// The privileges that a worker needs on the table of a fold.
const PRIVILEGES: [&str; 4] = ["SELECT", "INSERT", "UPDATE", "DELETE"];

/// Creates the tables that do not exist yet, and adds the extracted columns that they lack. Does
/// not write anything if nothing is missing, so the user then needs no privilege to create.
pub(crate) fn migrate(client: &mut Client, names: &Names, tables: &[FoldTable]) -> Result<(), Error> {
    if missing(client, tables)?.is_empty() {
        return Ok(());
    }
    let doing = "creating the tables of folds";
    migrations::begin_turn_of_application(client, names)?;
    for sql in missing(client, tables)? {
        client.batch_execute(&sql).map_err(Error::database(doing))?;
    }
    client.batch_execute("COMMIT").map_err(Error::database(doing))
}

/// Refuses tables that do not exist, are of another form, or that this user may not write.
pub(crate) fn verify(client: &mut Client, tables: &[FoldTable]) -> Result<(), Error> {
    for table in tables {
        if let Some(missing) = missing_of(client, table)?.first() {
            return Err(refused(
                table,
                format!("is not complete: run migrate(), or execute with a tool of your own: {missing}"),
            ));
        }
        privileges(client, table)?;
    }
    Ok(())
}

/// The statements that create what is missing.
fn missing(client: &mut Client, tables: &[FoldTable]) -> Result<Vec<String>, Error> {
    let mut statements = Vec::new();
    for table in tables {
        statements.extend(missing_of(client, table)?);
    }
    Ok(statements)
}

fn missing_of(client: &mut impl GenericClient, table: &FoldTable) -> Result<Vec<String>, Error> {
    for column in &table.columns {
        known_type(client, table, column)?;
    }
    let Some(found) = Found::read(client, table).map_err(Error::database(DOING))? else {
        return Ok(vec![table.create()]);
    };
    found.judge(table)
}

/// Refuses a type that the server does not know.
fn known_type(client: &mut impl GenericClient, table: &FoldTable, column: &FoldColumn) -> Result<(), Error> {
    let FoldColumn { name, sql_type } = column;
    let sql = "SELECT pg_catalog.to_regtype($1) IS NOT NULL";
    let why = match client.query_typed_one(sql, &[(&column.plain_type(), Type::TEXT)]) {
        Ok(row) if row.get(0) => return Ok(()),
        Ok(_) => "there is no such type on the search path".to_owned(),
        // Older servers raise an error if it has not the form of a type.
        Err(error) if error.code().is_some_and(|code| code.code().starts_with("42")) => describe(&error),
        Err(error) => return Err(Error::database(DOING)(error)),
    };
    Err(refused(table, format!("cannot have column {name:?} of type {sql_type:?}: {why}")))
}

fn privileges(client: &mut impl GenericClient, table: &FoldTable) -> Result<(), Error> {
    let sql = "SELECT privilege.name, current_user::pg_catalog.text FROM pg_catalog.unnest($2::pg_catalog.text[]) AS privilege (name)
               WHERE NOT pg_catalog.has_table_privilege($1, privilege.name)";
    let needed: &[&str] = &PRIVILEGES;
    let lacking = client
        .query_typed(sql, &[(&table.quoted(), Type::TEXT), (&needed, Type::TEXT_ARRAY)])
        .map_err(Error::database(DOING))?;
    match lacking.first() {
        None => Ok(()),
        Some(row) => Err(Error::MissingPrivilege {
            user: row.get(1),
            privilege: row.get(0),
            object: format!("table {} of fold {:?}", table.quoted(), table.fold),
        }),
    }
}

fn refused(table: &FoldTable, problem: impl AsRef<str>) -> Error {
    let FoldTable { fold, name, .. } = table;
    Error::Schema { problem: format!("table {name:?} of fold {fold:?} {}", problem.as_ref()) }
}

/// What exists under the name of the table.
struct Found {
    is_table: bool,
    has_key: bool,
    columns: Vec<FoundColumn>,
}

struct FoundColumn {
    name: String,
    /// As the server writes it, and as the server writes the type that it should have.
    sql_type: String,
    wanted: Option<String>,
    is_filled: bool,
    is_generated: bool,
    is_not_null: bool,
}

impl Found {
    fn read(client: &mut impl GenericClient, table: &FoldTable) -> Result<Option<Self>, postgres::Error> {
        let of_table = "SELECT c.oid, c.relkind IN ('r', 'p'), EXISTS (
                            SELECT FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = i.indkey[0]
                            WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid AND i.indnkeyatts = 1
                            AND i.indpred IS NULL AND a.attname = 'key')
                        FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)";
        let Some(row) = client.query_typed_opt(of_table, &[(&table.quoted(), Type::TEXT)])? else { return Ok(None) };
        let (names, types): (Vec<&str>, Vec<String>) = OWN
            .iter()
            .map(|(name, sql_type)| (*name, format!("pg_catalog.{sql_type}")))
            .chain(table.columns.iter().map(|column| (column.name.as_str(), column.plain_type())))
            .unzip();
        let of_columns = "SELECT a.attname::pg_catalog.text, pg_catalog.format_type(a.atttypid, NULL),
                                 pg_catalog.format_type(pg_catalog.to_regtype(wanted.sql_type), NULL),
                                 a.atthasdef OR a.attidentity <> '', a.attgenerated <> '' OR a.attidentity = 'a', a.attnotnull
                          FROM pg_catalog.pg_attribute a
                          LEFT JOIN ROWS FROM (pg_catalog.unnest($2::pg_catalog.text[]), pg_catalog.unnest($3::pg_catalog.text[])) AS wanted (name, sql_type)
                          ON wanted.name = a.attname
                          WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";
        let oid: u32 = row.get(0);
        let rows = client
            .query_typed(of_columns, &[(&oid, Type::OID), (&names, Type::TEXT_ARRAY), (&types, Type::TEXT_ARRAY)])?;
        let column = |row: &postgres::Row| FoundColumn {
            name: row.get(0),
            sql_type: row.get(1),
            wanted: row.get(2),
            is_filled: row.get(3),
            is_generated: row.get(4),
            is_not_null: row.get(5),
        };
        Ok(Some(Self { is_table: row.get(1), has_key: row.get(2), columns: rows.iter().map(column).collect() }))
    }

    /// Returns the statements that add what is missing, or refuses the table.
    fn judge(&self, table: &FoldTable) -> Result<Vec<String>, Error> {
        const REMEDY: &str = "give the fold another table(), or rename or drop the one that exists";
        if !self.is_table {
            return Err(refused(table, format!("is not a table but a view or another relation: {REMEDY}")));
        }
        let has = |name: &str| self.columns.iter().any(|column| column.name == name);
        if let Some((name, sql_type)) = OWN.iter().find(|(name, _)| !has(name)) {
            return Err(refused(table, format!("exists without column {name:?} ({sql_type}): {REMEDY}")));
        }
        for column in &self.columns {
            let FoundColumn { name, sql_type, wanted, is_filled, is_generated, is_not_null } = column;
            let is_own = OWN.iter().any(|(own, _)| own == name);
            let problem = match wanted {
                Some(wanted) if wanted != sql_type => {
                    format!("exists with column {name:?} of type {sql_type} instead of {wanted}")
                }
                Some(_) if *is_generated => format!("exists with column {name:?}, whose values the server generates"),
                // A row that is only locked has no values in the extracted columns.
                Some(_) if *is_not_null && !is_own => format!("exists with column {name:?}, which is NOT NULL"),
                None if *is_not_null && !is_filled => {
                    format!(
                        "has a column {name:?} that is NOT NULL and has no default, and that the fold does not write"
                    )
                }
                _ => continue,
            };
            return Err(refused(table, format!("{problem}: change the column with ALTER TABLE, or {REMEDY}")));
        }
        if !self.has_key {
            return Err(refused(
                table,
                format!("has no primary key or unique constraint on \"key\" alone: add it, or {REMEDY}"),
            ));
        }
        Ok(table.columns.iter().filter(|column| !has(&column.name)).map(|column| table.add(column)).collect())
    }
}
