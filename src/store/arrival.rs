//! Records that a projection has caught up for the first time.
//!
//! These statements are executed beside code of the application, under its settings. So each
//! function, operator and type in them is qualified, as in [`fence`].

use postgres::types::Type;
use postgres::{GenericClient, Transaction};

use super::fence::{self, Checkpoint, Owner};
use super::names::Names;

/// Whether every key of a projection has come to a position.
pub(crate) fn is_level(
    client: &mut impl GenericClient,
    names: &Names,
    projection: &str,
    position: i64,
) -> Result<bool, postgres::Error> {
    let sql = names.sql(
        "SELECT coalesce(pg_catalog.bool_and(checkpoint.position OPERATOR(pg_catalog.>=) $2), false) FROM {checkpoints} AS checkpoint
         WHERE checkpoint.projection OPERATOR(pg_catalog.=) $1",
    );
    Ok(client.query_typed_one(&sql, &[(&projection, Type::TEXT), (&position, Type::INT8)])?.get(0))
}

/// Begins to record that a projection has caught up. Returns false if that is recorded already, or
/// if another worker is about to record it. Until the transaction ends, no other worker begins.
pub(crate) fn begin(client: &mut impl GenericClient, names: &Names, projection: &str) -> Result<bool, postgres::Error> {
    let sql = names.sql(
        "SELECT projection.caught_up_at IS NULL FROM {projections} AS projection
         WHERE projection.name OPERATOR(pg_catalog.=) $1 AND pg_catalog.pg_try_advisory_xact_lock(
             pg_catalog.hashtextextended(pg_catalog.concat('{projections} caught up ', projection.name), 0))",
    );
    let row = client.query_typed_opt(&sql, &[(&projection, Type::TEXT)])?;
    Ok(row.is_some_and(|row| row.get(0)))
}

/// Records that a projection has caught up, in the transaction that is marked, if the row is still
/// this worker's. Returns false if it is not.
pub(crate) fn record(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
    row: &Checkpoint,
    owner: Owner,
) -> Result<bool, postgres::Error> {
    if !fence::lock(tx, names, row, owner)? {
        return Ok(false);
    }
    let sql = names.sql(
        "UPDATE {projections} AS projection SET caught_up_at = pg_catalog.clock_timestamp()
         WHERE projection.name OPERATOR(pg_catalog.=) $1 AND projection.caught_up_at IS NULL",
    );
    Ok(tx.execute_typed(&sql, &[(&projection, Type::TEXT)])? == 1)
}
