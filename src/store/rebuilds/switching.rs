//! The switch: the copies take the place of the live tables, and the checkpoints of the rebuild
//! that of the live ones, in one transaction.

use postgres::Transaction;
use postgres::types::Type;
use serde_json::json;

use super::following::gap;
use super::rows;
use crate::error::Error;
use crate::plan::{Errand, Kind};
use crate::store::deal;
use crate::store::names::Names;
use crate::store::outcome::{self, Outcome};

const DOING: &str = "switching to a rebuilt read model";

const PARKED_ONLY: &str = "the rebuild has parked aggregates whose events the live projection has handled: replay or discard them, or cancel the \
                           rebuild";

/// How an attempt to switch has ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Switched {
    /// It is done, with this outcome of the command.
    Done(Outcome),
    /// Another worker has taken over.
    Superseded,
    /// It cannot be done now, for this reason.
    NotNow(String),
}

/// Lets the checkpoints of a rebuild become the live ones. The caller [holds](hold) the command,
/// and has put the copies in the place of the live tables, in the same transaction. It commits only
/// if this is done.
///
/// `token` is the highest of the rebuild's checkpoints when both were level. If there is a higher
/// one now, the copies may lack for a while what the live tables had. `old_schema` is where the
/// former tables are kept, if they are.
pub(crate) fn switch(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    token: i64,
    old_schema: Option<&str>,
) -> Result<Switched, Error> {
    let database = || Error::database(DOING);
    let (base, rebuild, old) =
        (&*errand.projection, Kind::Rebuild.name(&errand.projection), Kind::Old.name(&errand.projection));
    rows::lock(tx, names, base).map_err(database())?;
    if !is_running(tx, names, base).map_err(database())? {
        return Ok(Switched::NotNow(
            "the projection is paused, or is being rewound, or an aggregate is being rebuilt".to_owned(),
        ));
    }
    let gap = gap(tx, names, base).map_err(database())?;
    if gap.parked_only {
        return Ok(Switched::NotNow(PARKED_ONLY.to_owned()));
    }
    if gap.token > token {
        return Ok(Switched::NotNow(
            "checkpoints of the rebuild were given to other workers meanwhile, or an aggregate was parked".to_owned(),
        ));
    }
    if gap.is_behind {
        return Ok(Switched::NotNow("the rebuild is behind the live projection".to_owned()));
    }
    let outcome = replace_rows(tx, names, errand, (base, &rebuild, &old), old_schema).map_err(database())?;
    deal::verify_cover(tx, names, &[base])?;
    outcome::conclude(tx, names, errand.command, &outcome).map_err(database())?;
    Ok(Switched::Done(outcome))
}

fn is_running(tx: &mut Transaction<'_>, names: &Names, base: &str) -> Result<bool, postgres::Error> {
    let sql = names.sql(
        "SELECT p.desired_state = 'running' AND p.dealt_state = 'running' AND p.fault IS NULL
                AND NOT EXISTS (SELECT FROM {commands} k WHERE k.projection = p.name AND k.applied_at IS NULL
                                AND k.command IN ('rewind', 'rebuild_aggregate') AND k.step IS NOT NULL)
         FROM {projections} p WHERE p.name = $1",
    );
    Ok(tx.query_typed_opt(&sql, &[(&base, Type::TEXT)])?.is_some_and(|row| row.get(0)))
}

fn replace_rows(
    tx: &mut Transaction<'_>,
    names: &Names,
    errand: &Errand,
    (base, rebuild, old): (&str, &str, &str),
    old_schema: Option<&str>,
) -> Result<Outcome, postgres::Error> {
    // The highest position stays, so that a handler is told of events that are handled again.
    let highest = names.sql(
        "UPDATE {checkpoints} SET highest = greatest(position, highest, (SELECT max(highest) FROM {checkpoints} WHERE projection = $1))
         WHERE projection = $2",
    );
    tx.execute_typed(&highest, &[(&base, Type::TEXT), (&rebuild, Type::TEXT)])?;
    if old_schema.is_some() {
        rows::copy_projection(tx, names, base, old)?;
        rows::rename(tx, names, base, old)?;
        disown(tx, names, old)?;
    } else {
        rows::delete(tx, names, base)?;
    }
    rows::rename(tx, names, rebuild, base)?;
    rows::take_over(tx, names, rebuild, base)?;
    rows::refuse_commands(tx, names, rebuild, "the rebuild was finished before")?;
    rows::delete_projection(tx, names, rebuild)?;
    let record = names.sql(match old_schema {
        Some(_) => {
            "UPDATE {rebuilds} SET state = 'old', copies_schema = $2, live_oids = copy_oids, copy_oids = live_oids, blocked = NULL,
                    retry_at = NULL WHERE id = $1"
        }
        None => "DELETE FROM {rebuilds} WHERE id = $1 AND ($2::text IS NULL)",
    });
    tx.execute_typed(&record, &[(&errand.command, Type::INT8), (&old_schema, Type::TEXT)])?;
    let reached = names.sql("SELECT min(position), sum(handled)::int8 FROM {checkpoints} WHERE projection = $1");
    let reached = tx.query_typed_one(&reached, &[(&base, Type::TEXT)])?;
    let (position, handled): (Option<i64>, Option<i64>) = (reached.get(0), reached.get(1));
    Ok(Outcome::Done(json!({"position": position, "handled": handled, "old_schema": old_schema})))
}

/// Takes checkpoints from their owners.
pub(super) fn disown(tx: &mut Transaction<'_>, names: &Names, name: &str) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {checkpoints} SET token = DEFAULT, worker_id = NULL, generation = 0, lane = 0, state = 'running', error = NULL,
                attempts = 0, attempt_position = NULL, attempt_event_id = NULL, attempted_at = NULL
         WHERE projection = $1",
    );
    tx.execute_typed(&sql, &[(&name, Type::TEXT)])?;
    Ok(())
}
