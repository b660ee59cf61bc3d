//! What a projection has in the library's tables, moved from one of its names to another. The
//! caller has locked the projection's rows and its checkpoints.

use postgres::Transaction;
use postgres::types::{ToSql, Type};

use crate::store::inspection;
use crate::store::names::Names;

/// The tables in which rows belong to a projection by its name.
const OF_PROJECTION: [&str; 3] = ["{checkpoints}", "{parked}", "{discarded}"];

/// Creates a row of projections that is like another one, but paused.
pub(super) fn copy_projection(
    tx: &mut Transaction<'_>,
    names: &Names,
    from: &str,
    to: &str,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "INSERT INTO {projections} (name, replica_set, version, scope, tables, desired_state, dealt_state, counted_from)
         SELECT $2, replica_set, version, scope, tables, 'paused', 'paused', counted_from FROM {projections} WHERE name = $1",
    );
    tx.execute_typed(&sql, &[(&from, Type::TEXT), (&to, Type::TEXT)])?;
    Ok(())
}

/// Gives everything that belongs to one name to another. Each checkpoint gets a new token, so no
/// batch that was begun before can commit.
pub(super) fn rename(tx: &mut Transaction<'_>, names: &Names, from: &str, to: &str) -> Result<(), postgres::Error> {
    let renamed: [(&(dyn ToSql + Sync), Type); 2] = [(&from, Type::TEXT), (&to, Type::TEXT)];
    let checkpoints = names.sql("UPDATE {checkpoints} SET projection = $2, token = DEFAULT WHERE projection = $1");
    tx.execute_typed(&checkpoints, &renamed)?;
    for table in ["{parked}", "{discarded}"] {
        let sql = names.sql(&format!("UPDATE {table} SET projection = $2 WHERE projection = $1"));
        tx.execute_typed(&sql, &renamed)?;
    }
    Ok(())
}

/// Deletes everything that belongs to a name, except its row of projections.
pub(super) fn delete(tx: &mut Transaction<'_>, names: &Names, name: &str) -> Result<(), postgres::Error> {
    for table in OF_PROJECTION {
        tx.execute_typed(&names.sql(&format!("DELETE FROM {table} WHERE projection = $1")), &[(&name, Type::TEXT)])?;
    }
    Ok(())
}

/// Deletes a row of projections.
pub(super) fn delete_projection(tx: &mut Transaction<'_>, names: &Names, name: &str) -> Result<(), postgres::Error> {
    tx.execute_typed(&names.sql("DELETE FROM {projections} WHERE name = $1"), &[(&name, Type::TEXT)])?;
    Ok(())
}

/// Refuses the pending commands for a name that is about to vanish: nothing could apply them.
pub(super) fn refuse_commands(
    tx: &mut Transaction<'_>,
    names: &Names,
    name: &str,
    why: &str,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {commands} SET applied_at = clock_timestamp(), outcome = 'refused', error = $2 WHERE projection = $1 AND applied_at IS NULL",
    );
    tx.execute_typed(&sql, &[(&name, Type::TEXT), (&why, Type::TEXT)])?;
    Ok(())
}

/// Lets a projection be what the row of another name says: its version, its scope, how it is dealt.
/// Its desired state is not changed. The checkpoints have been renamed before.
pub(super) fn take_over(tx: &mut Transaction<'_>, names: &Names, from: &str, to: &str) -> Result<(), postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {projections} p SET version = o.version, build_id = NULL, scope = o.scope, tables = o.tables,
                counted_from = o.counted_from, caught_up_at = NULL, dealt_state = o.dealt_state, fault = NULL, deal = DEFAULT, dealt_as = {digest}
         FROM {projections} o WHERE p.name = $2 AND o.name = $1",
        &[("digest", &inspection::digest_sql(names))],
    );
    tx.execute_typed(&sql, &[(&from, Type::TEXT), (&to, Type::TEXT)])?;
    Ok(())
}

/// Locks the rows of a projection and of its rebuild or former state, then their checkpoints, in
/// the order of a deal.
pub(super) fn lock(tx: &mut Transaction<'_>, names: &Names, base: &str) -> Result<(), postgres::Error> {
    let base: [(&(dyn ToSql + Sync), Type); 1] = [(&base, Type::TEXT)];
    let projections = names.sql("SELECT FROM {projections} WHERE base = $1 ORDER BY name FOR UPDATE");
    tx.query_typed(&projections, &base)?;
    let checkpoints = names.sql(
        "SELECT FROM {checkpoints} WHERE projection IN (SELECT name FROM {projections} WHERE base = $1) ORDER BY token FOR UPDATE",
    );
    tx.query_typed(&checkpoints, &base)?;
    Ok(())
}
