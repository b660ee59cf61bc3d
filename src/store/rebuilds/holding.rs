//! Who may change a rebuild.

use postgres::Transaction;

use crate::plan::{Errand, WorkerId};
use crate::store::names::Names;
use crate::store::{execution, locks};

/// Locks the replica set of the projection, and then the command, if this is still the worker and
/// the attempt that executes it.
pub(crate) fn hold(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
) -> Result<bool, postgres::Error> {
    Ok(locks::hold_of_projection(tx, names, &errand.projection)? && execution::hold(tx, names, errand, worker)?)
}
