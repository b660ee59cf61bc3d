//! Applies the commands of operators, under the replica set's lock.
//!
//! *Invariant (I10):* a command's effect and the record that it is done are committed by one
//! transaction. Whoever reads that it is done, reads a state in which it is.

use postgres::Transaction;
use postgres::error::SqlState;
use postgres::types::{ToSql, Type};
use serde_json::json;
use uuid::Uuid;

use super::names::Names;
use super::outcome::{Outcome, conclude};
use super::releasing::{release, reload};
use super::{deal, discarding, forgetting};
use crate::error::Error;
use crate::plan::{Deal, DesiredState, Effect, Fault, Refusal, WorkerId};

const APPLYING: &str = "applying a command";

/// A command, and the generation in which it is applied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) id: i64,
    pub(crate) projection: &'a str,
    pub(crate) replica_set: &'a str,
    pub(crate) generation: i64,
}

/// Applies a command, and records its outcome if it has one now. A command that the server refuses
/// changes nothing, and is recorded as failed: it must not hold up the commands behind it.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    names: &Names,
    target: Target<'_>,
    effect: &Effect,
) -> Result<Option<Outcome>, Error> {
    let mut nested = tx.transaction().map_err(Error::database(APPLYING))?;
    let outcome = match try_apply(&mut nested, names, target, effect) {
        // What a refused command has done before it was refused is undone.
        Ok(Some(refused @ Outcome::Refused(_))) => {
            drop(nested);
            Some(refused)
        }
        Ok(outcome) => {
            nested.commit().map_err(Error::database(APPLYING))?;
            outcome
        }
        Err(error) if is_final(&error) => {
            drop(nested);
            Some(Outcome::Failed(error.with_causes()))
        }
        Err(error) => return Err(error),
    };
    if let Some(outcome) = &outcome {
        conclude(tx, names, target.id, outcome).map_err(Error::database(APPLYING))?;
    }
    Ok(outcome)
}

/// Whether another attempt would fail in the same way. Everything passes that another transaction,
/// the connection or a shortage of the server causes.
pub(crate) fn is_final(error: &Error) -> bool {
    match error {
        Error::Database { source, .. } => source.code().is_some_and(|state| !is_passing(state)),
        Error::Schema { .. } => true,
        _ => false,
    }
}

/// Whether the server reports something that passes by itself.
pub(crate) fn is_passing(state: &SqlState) -> bool {
    *state == SqlState::LOCK_NOT_AVAILABLE
        || matches!(state.code().get(..2), Some("08" | "25" | "40" | "53" | "57" | "58"))
}

fn try_apply(
    tx: &mut Transaction<'_>,
    names: &Names,
    target: Target<'_>,
    effect: &Effect,
) -> Result<Option<Outcome>, Error> {
    let database = Error::database(APPLYING);
    // Another replica set may have taken the projection over since the view was loaded. This is the
    // first lock of a deal, too.
    let lock = names.sql("SELECT FROM {projections} WHERE name = $1 AND replica_set = $2 FOR UPDATE");
    let owned: [(&(dyn ToSql + Sync), Type); 2] = [(&target.projection, Type::TEXT), (&target.replica_set, Type::TEXT)];
    if tx.query_typed(&lock, &owned).map_err(Error::database(APPLYING))?.is_empty() {
        return Ok(Some(Outcome::Refused("another replica set has taken it over: give the command again".to_owned())));
    }
    match effect {
        Effect::Refuse(refusal) => refuse(tx, names, target, refusal).map(Some).map_err(database),
        Effect::Desire(state, deal) => desire(tx, names, target, *state, deal.as_ref()).map(Some),
        Effect::Begin(executor, deal) => {
            if let Some(refused) = nothing_to_rewind(tx, names, target).map_err(database)? {
                return Ok(Some(refused));
            }
            dealt(tx, names, target, deal.as_ref())?;
            assign(tx, names, target.id, *executor, "step = 'executing'")
                .map(|()| None)
                .map_err(Error::database(APPLYING))
        }
        // Waits for a transaction of the former executor that is committing.
        Effect::Again(executor) => {
            assign(tx, names, target.id, *executor, "step = step").map(|()| None).map_err(database)
        }
        Effect::Switch(executor) => {
            assign(tx, names, target.id, *executor, "step = 'finishing'").map(|()| None).map_err(database)
        }
        Effect::PutOff => {
            let why = "no running worker has the code for which it is rebuilt: start one, or cancel the rebuild";
            release(tx, names, (target.id, target.projection), why, 0.0).map(|()| None).map_err(database)
        }
        Effect::GiveUp(deal) => {
            dealt(tx, names, target, deal.as_ref())?;
            forgetting::release(tx, names, target.projection, target.id, false).map_err(database)?;
            let why = "each of the workers that began to execute it has ended before that was done: look into their logs; if it was a \
                       rewind, correct reset(); if an aggregate was rebuilt, correct forget() or the handler; if workers of another \
                       version have taken their place, rebuild the projection";
            Ok(Some(Outcome::Failed(why.to_owned())))
        }
        Effect::Finish(deal) => {
            dealt(tx, names, target, deal.as_ref())?;
            Ok(Some(Outcome::Done(json!({}))))
        }
        Effect::Remove => remove(tx, names, target).map(Some).map_err(database),
        Effect::Replay => replay(tx, names, target).map(Some).map_err(database),
        Effect::Discard => discarding::discard(tx, names, (target.id, target.projection)).map(Some).map_err(database),
    }
}

fn dealt(tx: &mut Transaction<'_>, names: &Names, target: Target<'_>, deal: Option<&Deal>) -> Result<(), Error> {
    deal.map_or(Ok(()), |deal| {
        deal::apply(tx, names, target.replica_set, target.generation, std::slice::from_ref(deal))
    })
}

fn assign(
    tx: &mut Transaction<'_>,
    names: &Names,
    id: i64,
    executor: WorkerId,
    step: &str,
) -> Result<(), postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {commands} SET {step}, executor = $2, attempt = attempt + 1 WHERE id = $1",
        &[("step", &step)],
    );
    tx.execute_typed(&sql, &[(&id, Type::INT8), (&executor.0, Type::UUID)])?;
    Ok(())
}

fn refuse(
    tx: &mut Transaction<'_>,
    names: &Names,
    target: Target<'_>,
    refusal: &Refusal,
) -> Result<Outcome, postgres::Error> {
    let why = match refusal {
        Refusal::AlreadyPaused => {
            let sql = names.sql(
                "SELECT concat_ws(' ', 'it is paused already, since', date_trunc('second', desired_at), 'by ' || desired_by,
                                  '(' || desired_reason || ')')
                 FROM {projections} WHERE name = $1",
            );
            tx.query_typed_one(&sql, &[(&target.projection, Type::TEXT)])?.get(0)
        }
        Refusal::NotPaused => "it is not paused".to_owned(),
        Refusal::NobodyKnows => "no running worker has its code, of the version that is needed: start one".to_owned(),
        Refusal::StillKnown(workers) => {
            let ids: Vec<Uuid> = workers.iter().map(|worker| worker.0).collect();
            let sql = names.sql(
                "SELECT 'workers that run know it, and would create it again: stop them, or deploy them without it: '
                        || string_agg(host || ' pid ' || pid, ', ' ORDER BY host, pid)
                 FROM {workers} WHERE id = ANY ($1)",
            );
            tx.query_typed_one(&sql, &[(&ids, Type::UUID_ARRAY)])?.get(0)
        }
        Refusal::Unusable(fault) => match fault {
            Fault::Missing => "its checkpoints are missing: they were deleted by hand".to_owned(),
            Fault::Torn => "its checkpoints overlap or leave keys out: they were changed by hand".to_owned(),
        },
        Refusal::AlreadyRebuilt => "it is being rebuilt: wait for that, or cancel it".to_owned(),
        Refusal::NotRebuilt => "it is not being rebuilt".to_owned(),
        Refusal::NothingKept => "no former tables are kept".to_owned(),
        Refusal::OldKept => "its former tables are kept: drop them first".to_owned(),
        Refusal::NotNewer(version) => format!("its read model has version {version} already"),
    };
    Ok(Outcome::Refused(why))
}

/// The lowest checkpoint of a projection, and how many workers own one.
fn position_and_workers(
    tx: &mut Transaction<'_>,
    names: &Names,
    projection: &str,
) -> Result<(Option<i64>, i64), postgres::Error> {
    let sql = names.sql("SELECT min(position), count(DISTINCT worker_id) FROM {checkpoints} WHERE projection = $1");
    let row = tx.query_typed_one(&sql, &[(&projection, Type::TEXT)])?;
    Ok((row.get(0), row.get(1)))
}

fn desire(
    tx: &mut Transaction<'_>,
    names: &Names,
    target: Target<'_>,
    state: DesiredState,
    deal: Option<&Deal>,
) -> Result<Outcome, Error> {
    let sql = names.sql(
        "UPDATE {projections} p SET desired_state = $2, desired_at = clock_timestamp(), desired_by = c.requested_by,
                desired_reason = c.reason
         FROM {commands} c WHERE c.id = $1 AND p.name = c.projection",
    );
    tx.execute_typed(&sql, &[(&target.id, Type::INT8), (&state.as_str(), Type::TEXT)])
        .map_err(Error::database(APPLYING))?;
    let (_, before) = position_and_workers(tx, names, target.projection).map_err(Error::database(APPLYING))?;
    match (state, deal) {
        // Its rows cannot be dealt, because they were changed by hand. Nobody may go on with them.
        (DesiredState::Paused, None) => {
            deal::disown(tx, names, target.projection)
                .and_then(|()| reload(tx, names, target.projection))
                .map_err(Error::database(APPLYING))?;
        }
        _ => dealt(tx, names, target, deal)?,
    }
    let (position, after) = position_and_workers(tx, names, target.projection).map_err(Error::database(APPLYING))?;
    let workers = match state {
        DesiredState::Paused => before,
        DesiredState::Running => after,
    };
    Ok(Outcome::Done(json!({"position": position, "workers": workers})))
}

/// Refuses a rewind to a position above which there is no checkpoint. A rewind to a time is looked
/// up by the worker that executes it.
fn nothing_to_rewind(
    tx: &mut Transaction<'_>,
    names: &Names,
    target: Target<'_>,
) -> Result<Option<Outcome>, postgres::Error> {
    let sql = names.sql(
        "SELECT max(c.position), CASE WHEN k.arguments ? 'to_beginning' THEN 0 ELSE (k.arguments ->> 'to_position')::int8 END,
                k.arguments ->> 'to_time' IS NOT NULL
         FROM {commands} k LEFT JOIN {checkpoints} c ON c.projection = k.projection
         WHERE k.id = $1 AND k.command = 'rewind' GROUP BY k.arguments",
    );
    let Some(row) = tx.query_typed_opt(&sql, &[(&target.id, Type::INT8)])? else { return Ok(None) };
    let (highest, to): (Option<i64>, Option<i64>) = (row.get(0), row.get(1));
    if to.is_none() && !row.get::<_, bool>(2) {
        return Ok(Some(Outcome::Refused("it names neither a position nor a time".to_owned())));
    }
    if to.is_some_and(|to| to < 0) {
        return Ok(Some(Outcome::Refused("there are no positions below 0".to_owned())));
    }
    Ok(to.filter(|to| highest.is_none_or(|highest| highest <= *to)).map(|to| not_above(highest, to)))
}

/// The refusal of a rewind to a position that the projection has not passed.
pub(crate) fn not_above(highest: Option<i64>, to: i64) -> Outcome {
    let highest = highest.unwrap_or(0);
    Outcome::Refused(format!(
        "its highest checkpoint is at position {highest}, so there is nothing above {to} to rewind"
    ))
}

fn remove(tx: &mut Transaction<'_>, names: &Names, target: Target<'_>) -> Result<Outcome, postgres::Error> {
    let (position, _) = position_and_workers(tx, names, target.projection)?;
    let projection: [(&(dyn ToSql + Sync), Type); 1] = [(&target.projection, Type::TEXT)];
    for sql in [
        "SELECT FROM {checkpoints} WHERE projection = $1 ORDER BY token FOR UPDATE",
        "DELETE FROM {checkpoints} WHERE projection = $1",
        "DELETE FROM {parked} WHERE projection = $1",
        "DELETE FROM {discarded} WHERE projection = $1",
        "DELETE FROM {projections} WHERE name = $1",
    ] {
        tx.execute_typed(&names.sql(sql), &projection)?;
    }
    let others = names.sql(
        "UPDATE {commands} SET applied_at = clock_timestamp(), outcome = 'refused', error = 'the projection was removed before'
         WHERE projection = $1 AND applied_at IS NULL AND id <> $2",
    );
    tx.execute_typed(&others, &[(&target.projection, Type::TEXT), (&target.id, Type::INT8)])?;
    Ok(Outcome::Done(json!({"position": position})))
}

fn replay(tx: &mut Transaction<'_>, names: &Names, target: Target<'_>) -> Result<Outcome, postgres::Error> {
    let sql = names.sql(
        "UPDATE {parked} p SET replay_requested_at = clock_timestamp(), replays_begun = 0
         FROM (SELECT projection, arguments, arguments -> 'aggregate' AS aggregate FROM {commands} WHERE id = $1) k
         WHERE p.projection = k.projection
         AND (k.arguments ? 'all' OR p.error LIKE k.arguments ->> 'error_like'
              OR (p.bounded_context, p.aggregate_type, p.aggregate_id)
                 = (k.aggregate ->> 0, k.aggregate ->> 1, k.aggregate ->> 2))",
    );
    let aggregates = tx.execute_typed(&sql, &[(&target.id, Type::INT8)])?;
    if aggregates == 0 {
        return Ok(Outcome::Refused("no parked aggregate matches the command".to_owned()));
    }
    reload(tx, names, target.projection)?;
    Ok(Outcome::Done(json!({"aggregates": aggregates})))
}

#[cfg(test)]
mod tests {
    use postgres::Client;

    use super::*;
    use crate::store::testing;

    /// A projection `p` of the replica set `set` whose checkpoint a worker owns, and a pending
    /// command for it.
    fn given(command: &str) -> (Client, i64) {
        let mut client = testing::connect_with_projection();
        client
            .batch_execute(
                "INSERT INTO orchestrator_checkpoints (projection, keys, position, generation, worker_id)
                 VALUES ('p', '{[0,65536)}', 7, 1, gen_random_uuid())",
            )
            .unwrap();
        let sql = "INSERT INTO orchestrator_commands (projection, command) VALUES ('p', $1) RETURNING id";
        let id = client.query_one(sql, &[&command]).unwrap().get(0);
        (client, id)
    }

    fn applied(client: &mut Client, id: i64, replica_set: &str, effect: &Effect) -> Option<Outcome> {
        let mut tx = client.transaction().unwrap();
        let target = Target { id, projection: "p", replica_set, generation: 1 };
        let outcome = apply(&mut tx, &Names::default(), target, effect).unwrap();
        tx.commit().unwrap();
        outcome
    }

    #[test]
    fn a_command_does_not_reach_another_replica_set() {
        for effect in [Effect::Remove, Effect::Desire(DesiredState::Paused, None), Effect::Replay, Effect::Discard] {
            let (mut client, id) = given("remove");
            let outcome = applied(&mut client, id, "another", &effect);
            assert!(matches!(outcome, Some(Outcome::Refused(_))), "{effect:?}: {outcome:?}");
            let sql = "SELECT desired_state FROM orchestrator_projections WHERE name = 'p'";
            assert_eq!(client.query_one(sql, &[]).unwrap().get::<_, &str>(0), "running");
        }
    }

    /// Its checkpoints were changed by hand, so they are not dealt. Their owner must stop
    /// nevertheless.
    #[test]
    fn pause_takes_the_checkpoints_that_cannot_be_dealt() {
        let (mut client, id) = given("pause");
        let sql = "SELECT token, worker_id IS NULL FROM orchestrator_checkpoints";
        let row = |client: &mut Client| {
            let row = client.query_one(sql, &[]).unwrap();
            (row.get::<_, i64>(0), row.get::<_, bool>(1))
        };
        let before = row(&mut client);
        let outcome = applied(&mut client, id, "set", &Effect::Desire(DesiredState::Paused, None));
        assert!(matches!(outcome, Some(Outcome::Done(_))), "{outcome:?}");
        let after = row(&mut client);
        assert!(after.0 != before.0 && after.1, "{before:?} {after:?}");
    }

    /// The function refuses these, but an operator may insert rows without it.
    #[test]
    fn a_malformed_command_fails_and_does_not_hold_up_others() {
        for (command, arguments, effect, part) in [
            ("discard", "{}", Effect::Discard, "no event with this id"),
            ("discard", r#"{"event": "x"}"#, Effect::Discard, "invalid input syntax for type uuid"),
            ("replay", r#"{"error_like": 7, "all": false}"#, Effect::Replay, "no parked aggregate matches"),
        ] {
            let (mut client, id) = given(command);
            let sql = "UPDATE orchestrator_commands SET arguments = $1::text::jsonb";
            client.execute(sql, &[&arguments]).unwrap();
            let outcome = applied(&mut client, id, "set", &effect).unwrap();
            let why = outcome.why_not().unwrap();
            assert!(why.contains(part), "{command} {arguments}: {why}");
            let sql = "SELECT outcome, error FROM orchestrator_commands";
            let row = client.query_one(sql, &[]).unwrap();
            assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(1)), (outcome.as_str(), why));
        }
    }
}
