//! Frees the live checkpoints from a rebuild that they follow. It has a file of its own, because
//! both the worker that finishes the rebuild and a command do it.

use postgres::Transaction;
use postgres::types::Type;

use super::names::Names;
use crate::plan::Kind;

/// Frees the live checkpoints from a rebuild, whose switch is tried again after this time. The
/// caller holds the lock of the replica set.
pub(super) fn release(
    tx: &mut Transaction<'_>,
    names: &Names,
    (command, base): (i64, &str),
    why: &str,
    seconds: f64,
) -> Result<(), postgres::Error> {
    let record = names.sql(
        "UPDATE {rebuilds} SET state = 'loading', blocked = $2, retry_at = clock_timestamp() + $3 * interval '1 second' WHERE id = $1",
    );
    tx.execute_typed(&record, &[(&command, Type::INT8), (&why, Type::TEXT), (&seconds, Type::FLOAT8)])?;
    let step = names.sql("UPDATE {commands} SET step = 'loading', executor = NULL WHERE id = $1");
    tx.execute_typed(&step, &[(&command, Type::INT8)])?;
    reload(tx, names, base)?;
    reload(tx, names, &Kind::Rebuild.name(base))
}

/// Lets the runners of a projection load again.
pub(super) fn reload(tx: &mut Transaction<'_>, names: &Names, name: &str) -> Result<(), postgres::Error> {
    tx.execute_typed(&names.sql("UPDATE {projections} SET deal = DEFAULT WHERE name = $1"), &[(&name, Type::TEXT)])?;
    Ok(())
}
