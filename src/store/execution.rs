//! What a worker executes itself, as its errand: whether it still may, and how it ends without
//! success.
//!
//! *Invariant:* nothing of an attempt is committed unless [`hold`] has locked the command in the
//! same transaction.
//!
//! A rewind executes these statements beside code of the application, under its settings. So each
//! function, operator and type in them is qualified, as in [`fence`](super::fence).

use postgres::Transaction;
use postgres::types::{ToSql, Type};

use super::names::Names;
use super::outcome::{self, Outcome};
use crate::plan::{Errand, WorkerId};

/// Locks the command, if this is still the worker and the attempt that executes it.
pub(crate) fn hold(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
) -> Result<bool, postgres::Error> {
    let sql = names.sql(
        "SELECT FROM {commands} AS command
         WHERE command.id OPERATOR(pg_catalog.=) $1 AND command.executor OPERATOR(pg_catalog.=) $2
           AND command.attempt OPERATOR(pg_catalog.=) $3 AND command.step OPERATOR(pg_catalog.=) $4
           AND command.applied_at IS NULL
         FOR UPDATE",
    );
    let step = if errand.is_finishing { "finishing" } else { "executing" };
    let values: [(&(dyn ToSql + Sync), Type); 4] =
        [(&errand.command, Type::INT8), (&worker.0, Type::UUID), (&errand.attempt, Type::INT4), (&step, Type::TEXT)];
    Ok(tx.query_typed_opt(&sql, &values)?.is_some())
}

/// Records the outcome of the command. Returns false if another worker has taken over.
pub(crate) fn conclude(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    outcome: &Outcome,
) -> Result<bool, postgres::Error> {
    let is_held = hold(tx, names, errand, worker)?;
    if is_held {
        outcome::conclude(tx, names, errand.command, outcome)?;
    }
    Ok(is_held)
}
