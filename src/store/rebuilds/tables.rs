//! The tables of a rebuild: how they are vacuumed and locked.

use postgres::error::SqlState;
use postgres::types::Type;
use postgres::{Client, Transaction};

use super::record::Rebuild;
use crate::error::Error;
use crate::store::read_model::{Copy, Table};

/// How long a lock that delays no reader may take. It is longer than PostgreSQL's
/// `deadlock_timeout` usually is: after that time, the server cancels an autovacuum that is in the
/// way.
const PATIENT: &str = "5s";
/// How long the lock that delays readers may take, all tables together. A reader that comes
/// meanwhile waits behind it.
const IMPATIENT: &str = "60ms";

/// Vacuums and analyses the copies, so that readers find them in order. It cannot be executed in a
/// transaction.
pub(crate) fn vacuum(client: &mut Client, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    for copy in copies(rebuild) {
        client.batch_execute(&format!("VACUUM (ANALYZE) {copy}"))?;
    }
    Ok(())
}

/// Locks the copies, which no reader uses. Waits for batches that are in flight. Copies that
/// somebody has dropped, renamed or moved do not matter here.
pub(crate) fn lock_copies(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    let sql = "SELECT pg_catalog.format('%I.%I', namespace.nspname, class.relname)
               FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS namespace ON namespace.oid = class.relnamespace
               WHERE class.oid = ANY ($1) ORDER BY class.oid";
    let rows = tx.query_typed(sql, &[(&rebuild.copy_oids(), Type::OID_ARRAY)])?;
    let found: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    if found.is_empty() { Ok(()) } else { lock(tx, &found, "ACCESS EXCLUSIVE", PATIENT) }
}

/// Takes a lock on the live tables and on the copies that delays neither readers nor writers. But
/// it makes the server cancel an autovacuum, and keeps the next one away.
pub(crate) fn lock_gently(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    lock(tx, &[live(rebuild), copies(rebuild)].concat(), "SHARE UPDATE EXCLUSIVE", PATIENT)
}

/// Takes the lock on the live tables that delays readers: it fails after so short a time that no
/// reader is delayed for long.
pub(crate) fn lock_live(tx: &mut Transaction<'_>, rebuild: &Rebuild) -> Result<(), postgres::Error> {
    tx.batch_execute(&format!("SET LOCAL statement_timeout = '{IMPATIENT}'"))?;
    lock(tx, &live(rebuild), "ACCESS EXCLUSIVE", IMPATIENT)?;
    // From here on, readers wait, and nothing else may.
    tx.batch_execute(&format!("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '{IMPATIENT}'"))
}

fn live(rebuild: &Rebuild) -> Vec<String> {
    rebuild.copies.iter().map(|copy| copy.table.quoted()).collect()
}

fn copies(rebuild: &Rebuild) -> Vec<String> {
    let in_schema = |copy: &Copy| Table { schema: rebuild.schema.clone(), ..copy.table.clone() }.quoted();
    rebuild.copies.iter().map(in_schema).collect()
}

fn lock(tx: &mut Transaction<'_>, tables: &[String], mode: &str, patience: &str) -> Result<(), postgres::Error> {
    tx.batch_execute(&format!("SET LOCAL lock_timeout = '{patience}'; LOCK TABLE {} IN {mode} MODE", tables.join(", ")))
}

/// Whether a lock could not be taken in time.
pub(crate) fn is_lock_busy(error: &Error) -> bool {
    let code = error.as_postgres().and_then(postgres::Error::code);
    [SqlState::LOCK_NOT_AVAILABLE, SqlState::QUERY_CANCELED, SqlState::T_R_DEADLOCK_DETECTED]
        .iter()
        .any(|busy| code == Some(busy))
}
