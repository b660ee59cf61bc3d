//! Verifies that the user has the privileges for what the library is about to do. This happens
//! first, so that the error names the missing privilege.

use postgres::Transaction;
use postgres::types::Type;

use super::names::{Names, Own};
use crate::error::Error;

/// Refuses a user who may not read or write what a worker reads and writes. [`to_read`] has checked
/// the privileges for reading the schema's version.
pub(super) fn to_work(tx: &mut Transaction<'_>, names: &Names) -> Result<(), Error> {
    missing(tx, names)?.into_iter().next().map_or(Ok(()), Err)
}

/// Returns the privileges that a worker needs and this user lacks, as errors. If the user lacks
/// USAGE on a schema, the tables are not examined.
pub(super) fn missing(tx: &mut Transaction<'_>, names: &Names) -> Result<Vec<Error>, Error> {
    let lacking = lacking(tx, Object::Schema, &schemas(names))?;
    if lacking.is_empty() { self::lacking(tx, Object::Table, &tables(names)) } else { Ok(lacking) }
}

/// An object's name, and a privilege on it.
type Needed = (String, &'static str);

/// The schemas in which a worker looks for tables. Without USAGE it cannot look tables up.
fn schemas(names: &Names) -> Vec<Needed> {
    ["\"{schema}\"", "\"{events_schema}\""].map(|schema| (names.sql(schema), "USAGE")).into()
}

/// The privileges on tables that a worker needs.
fn tables(names: &Names) -> Vec<Needed> {
    let mut needed = vec![(names.events().to_string(), "SELECT")];
    for own in Own::ALL {
        let privileges: &[&str] = match own {
            // Their version has been read already.
            Own::Migrations => &[],
            // A worker gives commands if it knows a higher version, or if a rebuild has to be
            // cancelled.
            Own::ReplicaSets | Own::Commands => &["SELECT", "INSERT", "UPDATE"],
            Own::Discarded => &["SELECT", "INSERT", "DELETE"],
            Own::Generations | Own::Workers | Own::Projections | Own::Checkpoints | Own::Parked | Own::Rebuilds => {
                &["SELECT", "INSERT", "UPDATE", "DELETE"]
            }
        };
        needed.extend(privileges.iter().map(|privilege| (names.own(own).to_string(), *privilege)));
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

fn demand(tx: &mut Transaction<'_>, object: Object, name: &str, privilege: &'static str) -> Result<(), Error> {
    lacking(tx, object, &[(name.to_owned(), privilege)])?.into_iter().next().map_or(Ok(()), Err)
}

/// Returns false if there is no such object. It is an error to look for a table in a schema on
/// which the user has no USAGE.
fn demand_if_there(
    tx: &mut Transaction<'_>,
    object: Object,
    name: &str,
    privilege: &'static str,
) -> Result<bool, Error> {
    match demand(tx, object, name, privilege) {
        Ok(()) => Ok(true),
        Err(Error::Schema { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the privileges that the user lacks, as errors in the same order; also for objects that
/// do not exist. One statement examines all of them, because each statement costs a start one round
/// trip.
fn lacking(tx: &mut Transaction<'_>, object: Object, needed: &[Needed]) -> Result<Vec<Error>, Error> {
    // `to_regnamespace` reads an identifier; has_schema_privilege('"s"', …) would treat the quotes
    // as a part of the name.
    let has = match object {
        Object::Schema => "has_schema_privilege(to_regnamespace(name)::oid, privilege)",
        Object::Table => "has_table_privilege(to_regclass(name)::oid, privilege)",
    };
    let (names, privileges): (Vec<&str>, Vec<&str>) =
        needed.iter().map(|(name, privilege)| (name.as_str(), *privilege)).unzip();
    let sql = format!(
        "SELECT number, {has}, current_user::text
         FROM unnest($1, $2) WITH ORDINALITY AS needed (name, privilege, number)
         WHERE {has} IS NOT TRUE ORDER BY number"
    );
    let rows = tx
        .query_typed(&sql, &[(&names, Type::TEXT_ARRAY), (&privileges, Type::TEXT_ARRAY)])
        .map_err(Error::database("verifying the privileges"))?;
    let lacking = rows.iter().map(|row| {
        let number = usize::try_from(row.get::<_, i64>(0)).unwrap_or(1) - 1;
        let (name, privilege) = &needed[number];
        match row.get::<_, Option<bool>>(1) {
            None => Error::Schema { problem: format!("there is no {} {name}", object.kind()) },
            Some(_) => Error::MissingPrivilege {
                user: row.get(2),
                privilege: (*privilege).to_owned(),
                object: format!("{} {name}", object.kind()),
            },
        }
    });
    Ok(lacking.collect())
}
