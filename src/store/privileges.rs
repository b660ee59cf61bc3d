//! Verifies that the user has the privileges for what the library is about to do. Checked first, so
//! that the error names the missing privilege.

use postgres::Transaction;
use postgres::types::Type;

use super::names::{Names, Own};
use crate::error::Error;

/// Refuses to work as a user who may not read or write what a worker reads and writes. The
/// privileges for reading the schema's version have been checked by [`to_read`].
pub(super) fn to_work(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    needed(names).iter().try_for_each(|(object, name, privilege)| demand(tx, *object, name, privilege))
}

/// Returns the privileges that a worker needs and this user lacks, as errors. Without the use of a
/// schema it does not look into it.
#[cfg(feature = "cli")]
pub(super) fn missing(tx: &mut Transaction<'_>, names: &Names) -> Result<Vec<Error>, Error> {
    let mut missing = Vec::new();
    for (object, name, privilege) in needed(names) {
        if matches!(object, Object::Table) && missing.iter().any(is_of_schema) {
            break;
        }
        match demand(tx, object, &name, privilege) {
            Ok(()) => {}
            Err(lacking @ Error::MissingPrivilege { .. }) => missing.push(lacking),
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

#[cfg(feature = "cli")]
fn is_of_schema(lacking: &Error) -> bool {
    matches!(lacking, Error::MissingPrivilege { object, .. } if object.starts_with(Object::Schema.kind()))
}

/// The privileges that a worker needs: schemas first, because their tables cannot be looked up
/// without.
fn needed(names: &Names) -> Vec<(Object, String, &'static str)> {
    let schemas = ["\"{schema}\"", "\"{events_schema}\""].map(|schema| names.sql(schema));
    let mut needed: Vec<_> = schemas.into_iter().map(|schema| (Object::Schema, schema, "USAGE")).collect();
    needed.push((Object::Table, names.events().to_string(), "SELECT"));
    for own in [Own::ReplicaSets, Own::Generations, Own::Workers, Own::Projections, Own::Checkpoints] {
        let table = names.own(own).to_string();
        for privilege in ["SELECT", "INSERT", "UPDATE", "DELETE"] {
            // Replica sets and projections are never deleted.
            if privilege != "DELETE" || !matches!(own, Own::ReplicaSets | Own::Projections) {
                needed.push((Object::Table, table.clone(), privilege));
            }
        }
    }
    needed
}

/// Refuses a user who may not read the migrations. Returns false if there are none.
pub(super) fn to_read(tx: &mut Transaction<'_>, names: &Names) -> Result<bool, Error> {
    Ok(demand_if_there(tx, Object::Schema, &names.sql("\"{schema}\""), "USAGE")?
        && demand_if_there(tx, Object::Table, &names.migrations().to_string(), "SELECT")?)
}

/// Refuses to migrate as a user who may not create the missing objects.
pub(super) fn to_create(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    let doing = "verifying the privilege to create";
    let exists = |tx: &mut Transaction<'_>, function: &str, name: &str| -> Result<bool, Error> {
        let sql = format!("SELECT {function}($1) IS NOT NULL");
        Ok(tx.query_typed_one(&sql, &[(&name, Type::TEXT)]).map_err(Error::database(doing))?.get(0))
    };
    let schema = names.sql("\"{schema}\"");
    if !exists(tx, "to_regnamespace", &schema)? {
        let row = tx
            .query_typed_one(
                "SELECT has_database_privilege(current_database(), 'CREATE'), current_user::text, current_database()::text",
                &[],
            )
            .map_err(Error::database(doing))?;
        if !row.get::<_, bool>(0) {
            return Err(Error::MissingPrivilege {
                user: row.get(1),
                privilege: "CREATE".into(),
                object: format!("database {:?} (to create schema {schema})", row.get::<_, String>(2)),
            });
        }
        return Ok(());
    }
    demand(tx, Object::Schema, &schema, "CREATE")?;
    let events_schema = names.sql("\"{events_schema}\"");
    if events_schema != schema
        && demand_if_there(tx, Object::Schema, &events_schema, "USAGE")?
        && !(exists(tx, "to_regclass", &names.events().to_string())?
            && exists(tx, "to_regclass", &names.aggregate_heads().to_string())?)
    {
        demand(tx, Object::Schema, &events_schema, "CREATE")?;
    }
    Ok(())
}

/// The kind of object to which a privilege belongs.
#[derive(Debug, Clone, Copy)]
enum Object {
    Schema,
    Table,
}

impl Object {
    fn kind(self) -> &'static str {
        match self {
            Self::Schema => "schema",
            Self::Table => "table",
        }
    }
}

fn demand(tx: &mut Transaction<'_>, object: Object, name: &str, privilege: &str) -> Result<(), Error> {
    if demand_if_there(tx, object, name, privilege)? {
        return Ok(());
    }
    Err(Error::Schema { problem: format!("there is no {} {name}", object.kind()) })
}

/// Returns false if there is no such object. To look for a table in a schema on which the user has
/// no USAGE is an error.
fn demand_if_there(tx: &mut Transaction<'_>, object: Object, name: &str, privilege: &str) -> Result<bool, Error> {
    // By `to_regnamespace`, which reads an identifier: has_schema_privilege('"s"', …) would treat
    // the quotes as a part of the name.
    let has = match object {
        Object::Schema => "has_schema_privilege(to_regnamespace($1)::oid, $2)",
        Object::Table => "has_table_privilege(to_regclass($1)::oid, $2)",
    };
    let row = tx
        .query_typed_one(&format!("SELECT {has}, current_user::text"), &[(&name, Type::TEXT), (&privilege, Type::TEXT)])
        .map_err(Error::database("verifying the privileges"))?;
    match row.get::<_, Option<bool>>(0) {
        Some(true) => Ok(true),
        None => Ok(false),
        Some(false) => Err(Error::MissingPrivilege {
            user: row.get(1),
            privilege: privilege.into(),
            object: format!("{} {name}", object.kind()),
        }),
    }
}
