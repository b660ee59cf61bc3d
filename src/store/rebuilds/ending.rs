//! What ends a rebuild without a switch, brings the former state back, or drops it.

use postgres::Transaction;
use postgres::types::Type;
use serde_json::json;

use super::holding::hold;
use super::record::Rebuild;
use super::rows;
use super::switching::disown;
use crate::error::Error;
use crate::plan::{Errand, Kind, WorkerId};
use crate::store::deal;
use crate::store::names::Names;
use crate::store::outcome::{self, Outcome};
use crate::store::releasing::reload;

const DOING: &str = "ending a rebuild";

/// Ends a rebuild: its checkpoints are deleted. The caller has dropped the copies, in the same
/// transaction, and commits only if an outcome is returned; `None` means that another worker has
/// taken over.
pub(crate) fn cancel(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    rebuild: &Rebuild,
) -> Result<Option<Outcome>, Error> {
    let database = || Error::database(DOING);
    if !begin(tx, names, errand, worker).map_err(database())? {
        return Ok(None);
    }
    let name = Kind::Rebuild.name(&errand.projection);
    let why =
        names.sql("SELECT concat('it was cancelled by ', requested_by, ': ' || reason) FROM {commands} WHERE id = $1");
    let why: String = tx.query_typed_one(&why, &[(&errand.command, Type::INT8)]).map_err(database())?.get(0);
    rows::delete(tx, names, &name)
        .and_then(|()| rows::refuse_commands(tx, names, &name, "the rebuild was cancelled before"))
        .and_then(|()| rows::delete_projection(tx, names, &name))
        .and_then(|()| forget(tx, names, rebuild.id))
        // The live checkpoints may have followed it.
        .and_then(|()| reload(tx, names, &errand.projection))
        .and_then(|()| outcome::conclude(tx, names, rebuild.id, &Outcome::Failed(why)))
        .map_err(database())?;
    conclude(tx, names, errand, Outcome::Done(json!({"rebuild": rebuild.id}))).map(Some).map_err(database())
}

/// Brings the former checkpoints back. The caller has brought the former tables back, in the same
/// transaction; `schema` is where those that were live are now.
pub(crate) fn revert(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    rebuild: &Rebuild,
    schema: &str,
) -> Result<Option<Outcome>, Error> {
    let database = || Error::database(DOING);
    if !begin(tx, names, errand, worker).map_err(database())? {
        return Ok(None);
    }
    let base = &*errand.projection;
    // The name of a rebuild is free, because there is none.
    let (old, between) = (Kind::Old.name(base), Kind::Rebuild.name(base));
    rows::copy_projection(tx, names, base, &between)
        .and_then(|()| rows::rename(tx, names, base, &between))
        .and_then(|()| rows::rename(tx, names, &old, base))
        // It belongs to no worker, so it is dealt next.
        .and_then(|()| rows::take_over(tx, names, &old, base))
        .and_then(|()| rows::delete_projection(tx, names, &old))
        .and_then(|()| rows::copy_projection(tx, names, &between, &old))
        .and_then(|()| rows::rename(tx, names, &between, &old))
        .and_then(|()| rows::delete_projection(tx, names, &between))
        .and_then(|()| disown(tx, names, &old))
        .and_then(|()| {
            let sql = names.sql(
                "UPDATE {rebuilds} SET copies_schema = $2, live_oids = copy_oids, copy_oids = live_oids WHERE id = $1",
            );
            tx.execute_typed(&sql, &[(&rebuild.id, Type::INT8), (&schema, Type::TEXT)])
        })
        .map_err(database())?;
    deal::verify_cover(tx, names, &[base])?;
    let position = names.sql("SELECT min(position) FROM {checkpoints} WHERE projection = $1");
    let position: Option<i64> = tx.query_typed_one(&position, &[(&base, Type::TEXT)]).map_err(database())?.get(0);
    let outcome = Outcome::Done(json!({"position": position, "old_schema": schema}));
    conclude(tx, names, errand, outcome).map(Some).map_err(database())
}

/// Deletes the former checkpoints. The caller has dropped the former tables, in the same
/// transaction.
pub(crate) fn drop_old(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    worker: WorkerId,
    rebuild: &Rebuild,
) -> Result<Option<Outcome>, Error> {
    let database = || Error::database(DOING);
    if !begin(tx, names, errand, worker).map_err(database())? {
        return Ok(None);
    }
    let old = Kind::Old.name(&errand.projection);
    rows::delete(tx, names, &old)
        .and_then(|()| rows::refuse_commands(tx, names, &old, "the former tables were dropped before"))
        .and_then(|()| rows::delete_projection(tx, names, &old))
        .and_then(|()| forget(tx, names, rebuild.id))
        .map_err(database())?;
    conclude(tx, names, errand, Outcome::Done(json!({"schema": rebuild.schema}))).map(Some).map_err(database())
}

fn begin(tx: &mut Transaction<'_>, names: &Names, errand: &Errand, worker: WorkerId) -> Result<bool, postgres::Error> {
    let is_held = hold(tx, names, errand, worker)?;
    if is_held {
        rows::lock(tx, names, &errand.projection)?;
    }
    Ok(is_held)
}

fn forget(tx: &mut Transaction<'_>, names: &Names, id: i64) -> Result<(), postgres::Error> {
    tx.execute_typed(&names.sql("DELETE FROM {rebuilds} WHERE id = $1"), &[(&id, Type::INT8)])?;
    Ok(())
}

fn conclude(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    outcome: Outcome,
) -> Result<Outcome, postgres::Error> {
    outcome::conclude(tx, names, errand.command, &outcome)?;
    Ok(outcome)
}
