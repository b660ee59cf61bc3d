//! How a rebuild and the live projection become level, so that the switch takes nothing away from
//! a reader.

use postgres::types::Type;
use postgres::{GenericClient, Transaction};

use super::holding::hold;
use super::record::State;
use crate::plan::{Errand, Kind, WorkerId};
use crate::store::execution;
use crate::store::names::Names;
use crate::store::releasing::{release, reload};

use super::{reading, rows};

/// How far a rebuild is from the live projection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gap {
    /// How many positions it is behind, at most.
    pub(crate) positions: i64,
    /// Whether some live checkpoint is above that of the rebuild for one of its keys.
    pub(crate) is_behind: bool,
    /// Whether the rebuild has parked what the live projection has handled.
    pub(crate) parked_only: bool,
    /// The highest token of the rebuild's checkpoints. Where an aggregate is parked, or is no
    /// longer parked, there is a new one.
    pub(crate) token: i64,
}

/// Compares the checkpoints of a rebuild with the live ones.
pub(crate) fn gap(client: &mut impl GenericClient, names: &Names, base: &str) -> Result<Gap, postgres::Error> {
    let sql = names.sql_with(
        "SELECT (SELECT max(position) FROM {checkpoints} WHERE projection = $1)
                - (SELECT min(position) FROM {checkpoints} WHERE projection = $2),
                EXISTS (SELECT FROM {checkpoints} live JOIN {checkpoints} rebuild ON rebuild.keys && live.keys
                        WHERE live.projection = $1 AND rebuild.projection = $2 AND rebuild.position < live.position),
                EXISTS ({parked_only}), (SELECT max(token) FROM {checkpoints} WHERE projection = $2)",
        &[("parked_only", &reading::parked_only_sql(names, "$1"))],
    );
    let row = client.query_typed_one(&sql, &[(&base, Type::TEXT), (&Kind::Rebuild.name(base), Type::TEXT)])?;
    Ok(Gap {
        positions: row.get::<_, Option<i64>>(0).unwrap_or(i64::MAX),
        is_behind: row.get(1),
        parked_only: row.get(2),
        token: row.get::<_, Option<i64>>(3).unwrap_or(i64::MAX),
    })
}

/// Lifts the limit of the rate. Returns false if another worker has taken over.
pub(crate) fn catch_up(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
) -> Result<bool, postgres::Error> {
    if !hold(tx, names, errand, worker)? {
        return Ok(false);
    }
    set_state(tx, names, errand.command, State::CatchingUp)?;
    reload(tx, names, &Kind::Rebuild.name(&errand.projection))?;
    Ok(true)
}

/// Lets the live checkpoints go no further than those of the rebuild. They get new tokens, so no
/// batch that was begun before can commit. Returns false if another worker has taken over.
pub(crate) fn follow(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
) -> Result<bool, postgres::Error> {
    if !hold(tx, names, errand, worker)? {
        return Ok(false);
    }
    rows::lock(tx, names, &errand.projection)?;
    set_state(tx, names, errand.command, State::Following)?;
    let renew = names.sql("UPDATE {checkpoints} SET token = DEFAULT WHERE projection = $1");
    tx.execute_typed(&renew, &[(&&*errand.projection, Type::TEXT)])?;
    reload(tx, names, &errand.projection)?;
    Ok(true)
}

/// Puts the switch off: the live checkpoints are free again, and the reason is recorded. Returns
/// false if another worker has taken over.
pub(crate) fn put_off(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    why: &str,
    seconds: f64,
) -> Result<bool, postgres::Error> {
    if !hold(tx, names, errand, worker)? {
        return Ok(false);
    }
    rows::lock(tx, names, &errand.projection)?;
    release(tx, names, (errand.command, &errand.projection), why, seconds)?;
    Ok(true)
}

/// Records what the switch waits for, for operators. Returns false if another worker has taken
/// over.
pub(crate) fn record_blocked(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    why: &str,
) -> Result<bool, postgres::Error> {
    if !execution::hold(tx, names, errand, worker)? {
        return Ok(false);
    }
    let sql = names.sql("UPDATE {rebuilds} SET blocked = $2 WHERE id = $1");
    tx.execute_typed(&sql, &[(&errand.command, Type::INT8), (&why, Type::TEXT)])?;
    Ok(true)
}

fn set_state(tx: &mut Transaction<'_>, names: &Names, id: i64, state: State) -> Result<(), postgres::Error> {
    let sql = names.sql("UPDATE {rebuilds} SET state = $2, blocked = NULL, retry_at = NULL WHERE id = $1");
    tx.execute_typed(&sql, &[(&id, Type::INT8), (&state.as_str(), Type::TEXT)])?;
    Ok(())
}
