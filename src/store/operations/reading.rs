//! What the statements of operators rely on, on a connection with any settings.

use postgres::{GenericClient, Transaction};

/// A policy that hides rows is an error, and no lock is waited for without limit.
pub(super) const SETTINGS: &str = "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL row_security = off; \
     SET LOCAL lock_timeout = '3s'";

/// Begins a transaction, or a savepoint, with these settings. It is always rolled back: so the
/// settings of a transaction around it are as before.
pub(super) fn reading(client: &mut impl GenericClient) -> Result<Transaction<'_>, postgres::Error> {
    let mut tx = client.transaction()?;
    tx.batch_execute(SETTINGS)?;
    Ok(tx)
}
