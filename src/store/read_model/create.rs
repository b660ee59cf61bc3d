//! Creates empty copies of tables.

use postgres::Transaction;
use postgres::types::Type;

use super::definition::{self, OWN, PRIVILEGES};
use super::path::settled;
use super::refusal::Refusal;
use super::table::{Copy, Table, identifier, qualified};

/// Creates `schema` and, in it, empty copies of the tables with the same names.
///
/// Autovacuum works on the copies as on any table, because a rebuild may take days, and a handler
/// may change a row many times. Whoever has a privilege on one of the tables may look things up in
/// the schema, and so may the roles `readers`: a worker's handlers write to the copies.
///
/// A foreign key to a table that is not among `tables` is no part of the copies. It hinders a swap,
/// see [`obstacles`](super::obstacles()); the live table still has it when its content is replaced.
pub(crate) fn create(
    tx: &mut Transaction<'_>,
    schema: &str,
    tables: &[Table],
    readers: &[&str],
) -> Result<Vec<Copy>, Refusal> {
    settled(tx, |tx| {
        definition::are_in_place(tx, &tables.iter().collect::<Vec<_>>())?;
        let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
        let statements = definition::read(tx, &oids, schema)?;
        let owners = owners(tx, &oids)?;
        let quoted = identifier(schema);
        tx.batch_execute(&format!("CREATE SCHEMA {quoted}"))?;
        // The new owner of a table needs CREATE on its schema at that moment.
        for owner in &owners {
            tx.batch_execute(&format!("GRANT CREATE ON SCHEMA {quoted} TO {}", identifier(owner)))?;
        }
        for statement in statements.iter().filter(|statement| !statement.is_grant) {
            tx.batch_execute(&statement.sql)?;
        }
        for owner in &owners {
            tx.batch_execute(&format!("REVOKE CREATE ON SCHEMA {quoted} FROM {}", identifier(owner)))?;
        }
        let copies = found(tx, schema, tables)?;
        admit(tx, &oids, schema, readers)?;
        without_privileges(tx, &copies, schema)?;
        grant(tx, statements.iter().filter(|statement| statement.is_grant).map(|statement| statement.sql.as_str()))?;
        definition::compare(tx, &copies)?;
        Ok(copies)
    })
}

/// The owners of tables, except for the current user.
fn owners(tx: &mut Transaction<'_>, tables: &[u32]) -> Result<Vec<String>, postgres::Error> {
    let rows = tx.query_typed(
        "SELECT DISTINCT r.rolname::text FROM pg_class c JOIN pg_roles r ON r.oid = c.relowner
         WHERE c.oid = ANY ($1) AND r.rolname <> current_user ORDER BY 1",
        &[(&tables, Type::OID_ARRAY)],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

fn found(tx: &mut Transaction<'_>, schema: &str, tables: &[Table]) -> Result<Vec<Copy>, postgres::Error> {
    let copy = |table: &Table| {
        let name = qualified(schema, &table.name);
        let row = tx.query_typed_one("SELECT $1::regclass::oid", &[(&name, Type::TEXT)])?;
        Ok(Copy { table: table.clone(), oid: row.get(0) })
    };
    tables.iter().map(copy).collect()
}

/// Lets roles look things up in the schema: those with a privilege on one of the tables, and the
/// given ones.
fn admit(tx: &mut Transaction<'_>, tables: &[u32], schema: &str, readers: &[&str]) -> Result<(), postgres::Error> {
    let sql = format!(
        "{OWN}, {PRIVILEGES}
         SELECT DISTINCT CASE p.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(p.grantee)) END FROM privilege p
         UNION SELECT quote_ident(pg_get_userbyid(t.relowner)) FROM own_table t
         UNION SELECT quote_ident(reader) FROM unnest($3) AS reader"
    );
    let rows =
        tx.query_typed(&sql, &[(&tables, Type::OID_ARRAY), (&schema, Type::TEXT), (&readers, Type::TEXT_ARRAY)])?;
    let roles: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    tx.batch_execute(&format!("GRANT USAGE ON SCHEMA {} TO {}", identifier(schema), roles.join(", ")))
}

/// Takes away what default privileges have granted on the copies and their sequences.
fn without_privileges(tx: &mut Transaction<'_>, copies: &[Copy], schema: &str) -> Result<(), postgres::Error> {
    let sql = format!(
        "{OWN}, {PRIVILEGES}
         SELECT DISTINCT format('REVOKE ALL ON %s %s FROM %s', p.kind, p.target,
             CASE p.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(p.grantee)) END)
         FROM privilege p"
    );
    let oids: Vec<u32> = copies.iter().map(|copy| copy.oid).collect();
    for row in tx.query_typed(&sql, &[(&oids, Type::OID_ARRAY), (&schema, Type::TEXT)])? {
        tx.batch_execute(row.get(0))?;
    }
    Ok(())
}

/// Executes the grants. Those of other grantors change the role, which is restored afterwards: the
/// owner's grants come first.
fn grant<'a>(tx: &mut Transaction<'_>, grants: impl Iterator<Item = &'a str>) -> Result<(), postgres::Error> {
    let former: String = tx.query_typed_one("SELECT current_setting('role')", &[])?.get(0);
    for grant in grants {
        tx.batch_execute(grant)?;
    }
    tx.query_typed("SELECT set_config('role', $1, true)", &[(&former, Type::TEXT)])?;
    Ok(())
}
