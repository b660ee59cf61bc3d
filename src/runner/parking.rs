//! Parks the aggregate of an event at which the attempts are used up: records it, and moves the
//! checkpoint past the event, in one transaction. [`parked`] says what that means for everything
//! that may happen at the same time.

use super::failure::Failure;
use super::loaded::Loaded;
use crate::event::Event;
use crate::store::Names;
use crate::store::fence;
use crate::store::parked::{self, Failed};

/// The result of an attempt to park an aggregate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parking {
    /// It is parked. The checkpoint had the first of these tokens, and has the second.
    Done { before: i64, after: i64 },
    /// This many aggregates of the projection are parked, and no more are allowed.
    Full(u32),
}

/// Parks the aggregate of the first event that follows on the first row, unless this many are
/// parked.
pub(super) fn park(
    loaded: &mut Loaded,
    names: &Names,
    projection: &str,
    at_most: u32,
    event: &Event,
    failed: Failed<'_>,
) -> Result<Parking, Failure> {
    let Some(row) = loaded.rows.first() else { return Err(Failure::Fenced) };
    let before = row.stored.token;
    let mut tx = loaded.connection.session.transaction_of_library().map_err(Failure::outside)?;
    let count = parked::count(&mut tx, names, projection).map_err(Failure::outside)?;
    if count >= at_most {
        return Ok(Parking::Full(count));
    }
    let passed = fence::pass(&mut tx, names, &row.stored, loaded.owner, failed.event).map_err(Failure::outside)?;
    let Some(after) = passed else { return Err(Failure::Fenced) };
    let highest = row.stored.highest;
    parked::insert(&mut tx, names, projection, event, failed, highest).map_err(Failure::outside)?;
    tx.commit().map_err(Failure::outside)?;
    loaded.rows.renew_first(after);
    loaded.committed(failed.event.position);
    loaded.exceptions.park(&event.stream());
    Ok(Parking::Done { before, after })
}
