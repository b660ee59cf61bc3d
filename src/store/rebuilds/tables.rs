//! The tables of a rebuild: how they are locked, vacuumed and exchanged.

use postgres::error::SqlState;
use postgres::{Client, Transaction};

use super::Rebuild;
use crate::error::Error;
use crate::store::read_model::{self, Copy, Refusal, Table};

/// How long a lock that delays no reader may take. It is longer than PostgreSQL's `deadlock_timeout`
/// usually is: after that time, the server cancels an autovacuum that is in the way.
const PATIENT: &str = "5s";
/// How long the lock that delays readers may take, all tables together. A reader that comes
/// meanwhile waits behind it.
const IMPATIENT: &str = "60ms";

/// Vacuums and analyses the copies, so that readers find them in order. It cannot be executed in a
/// transaction.
pub(crate) fn vacuum(client: &mut Client, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    for copy in read_model::by_oids(client, &rebuild.copies)? {
        client.batch_execute(&format!("VACUUM (ANALYZE) {}", copy.quoted()))?;
    }
    Ok(())
}

/// Locks the copies, which no reader uses. Waits for batches that are in flight.
pub(crate) fn lock_copies(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    let copies = read_model::by_oids(tx, &rebuild.copies)?;
    lock(tx, &copies, "ACCESS EXCLUSIVE", PATIENT)
}

/// Locks the copies and the live tables, so that they can be exchanged.
///
/// First it takes a lock that delays neither readers nor writers, but makes the server cancel an
/// autovacuum, and keeps the next one away. Then it takes the lock that delays readers. That one
/// fails after so short a time that no reader is delayed for long.
pub(crate) fn lock_for_switch(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    let live = read_model::by_oids(tx, &rebuild.live)?;
    lock(tx, &live, "SHARE UPDATE EXCLUSIVE", PATIENT)?;
    lock_copies(tx, rebuild)?;
    tx.batch_execute(&format!("SET LOCAL statement_timeout = '{IMPATIENT}'"))?;
    lock(tx, &live, "ACCESS EXCLUSIVE", IMPATIENT)?;
    // From here on, readers wait, and nothing else may.
    tx.batch_execute(&format!("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{IMPATIENT}'"))
}

fn lock(tx: &mut Transaction<'_>, tables: &[Table], mode: &str, patience: &str) -> Result<(), postgres::Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let tables: Vec<String> = tables.iter().map(Table::quoted).collect();
    tx.batch_execute(&format!("SET LOCAL lock_timeout = '{patience}'; LOCK TABLE {} IN {mode} MODE", tables.join(", ")))
}

/// Exchanges the live tables and the copies. The former live tables are then in `schema`.
pub(crate) fn swap(tx: &mut Transaction<'_>, rebuild: &Rebuild, schema: &str) -> Result<(), Refusal> {
    let (tables, copies) = pairs(tx, rebuild)?;
    read_model::swap(tx, &tables, &copies, schema)
}

/// Replaces the content of the live tables by that of the copies, and drops the copies.
pub(crate) fn replace(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(), Refusal> {
    let (tables, copies) = pairs(tx, rebuild)?;
    read_model::replace(tx, &tables, &copies)?;
    read_model::remove(tx, &rebuild.schema)
}

fn pairs(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(Vec<Table>, Vec<Copy>), postgres::Error> {
    let tables = read_model::by_oids(tx, &rebuild.live)?;
    let copies = tables.iter().zip(&rebuild.copies).map(|(table, oid)| Copy { table: table.clone(), oid: *oid });
    let copies = copies.collect();
    Ok((tables, copies))
}

/// Whether a lock could not be taken in time.
pub(crate) fn is_lock_busy(error: &Error) -> bool {
    let code = error.as_postgres().and_then(postgres::Error::code);
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED, SqlState::T_R_DEADLOCK_DETECTED]
        .iter()
        .any(|busy| code == Some(busy))
}
