//! The settings under which the statements of this module are executed.

use postgres::types::Type;
use postgres::{GenericClient, Transaction};

/// The settings, by name and value.
///
/// - *Path*: functions and operators are the server's own, and the server qualifies every other
///   name in a definition, as for `pg_dump`.
/// - *Tablespace*: the default one of the database, unless a statement names another one.
/// - *Literals*: a backslash is an ordinary character.
const SETTINGS: [(&str, &str); 4] = [
    ("search_path", "pg_catalog, pg_temp"),
    ("default_tablespace", ""),
    ("standard_conforming_strings", "on"),
    ("quote_all_identifiers", "off"),
];

/// The current user. [`create`](super::create()) changes it for a moment.
const ROLE: &str = "role";

/// Executes statements under the settings, and restores those of the caller's transaction.
pub(super) fn settled<T, E: From<postgres::Error>>(
    client: &mut impl GenericClient,
    statements: impl FnOnce(&mut Transaction<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let mut tx = client.transaction()?;
    let names: Vec<&str> = SETTINGS.iter().map(|(name, _)| *name).chain([ROLE]).collect();
    let former: Vec<String> = tx
        .query_typed_one(
            "SELECT pg_catalog.array_agg(pg_catalog.current_setting(name) ORDER BY number)
             FROM pg_catalog.unnest($1) WITH ORDINALITY AS setting (name, number)",
            &[(&names, Type::TEXT_ARRAY)],
        )?
        .get(0);
    let values: Vec<&str> = SETTINGS.iter().map(|(_, value)| *value).collect();
    set(&mut tx, &names[..SETTINGS.len()], &values)?;
    let outcome = statements(&mut tx)?;
    set(&mut tx, &names, &former.iter().map(String::as_str).collect::<Vec<_>>())?;
    tx.commit()?;
    Ok(outcome)
}

fn set(tx: &mut Transaction<'_>, names: &[&str], values: &[&str]) -> Result<(), postgres::Error> {
    tx.query_typed(
        "SELECT pg_catalog.set_config(name, value, true) FROM ROWS FROM (pg_catalog.unnest($1), pg_catalog.unnest($2)) AS setting (name, value)",
        &[(&names, Type::TEXT_ARRAY), (&values, Type::TEXT_ARRAY)],
    )?;
    Ok(())
}
