//! Discards an event, for a command of an operator.

use postgres::types::{ToSql, Type};
use postgres::{Row, Transaction};
use serde_json::json;

use super::names::Names;
use super::outcome::Outcome;
use super::releasing::reload;
use super::scopes;
use crate::plan::Kind;

/// The event that is to be discarded.
struct Doomed {
    position: i64,
    key: i32,
    aggregate: [String; 3],
    is_wanted: bool,
    is_discarded: bool,
    has_reason: bool,
}

impl Doomed {
    fn of(row: &Row) -> Self {
        Self {
            position: row.get(0),
            key: row.get(1),
            aggregate: [row.get(2), row.get(3), row.get(4)],
            is_wanted: row.get(5),
            is_discarded: row.get(6),
            has_reason: row.get(7),
        }
    }
}

/// Discards an event that was not handled. A rebuild of the projection does not handle it either,
/// unless it has handled it already.
pub(super) fn discard(
    tx: &mut Transaction<'_>,
    names: &Names,
    (command, projection): (i64, &str),
) -> Result<Outcome, postgres::Error> {
    let outcome = discard_from(tx, names, (command, projection))?;
    if let Outcome::Done(_) = outcome {
        let rebuild = Kind::Rebuild.name(projection);
        // If the rebuild has handled it, or if there is no rebuild, this is refused.
        discard_from(tx, names, (command, &rebuild))?;
    }
    Ok(outcome)
}

/// Discards an event that was not handled: the failed event of a parked aggregate, one that waits
/// behind it, or one above the checkpoint of its key.
///
/// The checkpoint is locked and gets a new token. So a batch or a replay that has begun with the
/// event cannot commit afterwards, and the event is either handled or discarded.
fn discard_from(
    tx: &mut Transaction<'_>,
    names: &Names,
    (command, projection): (i64, &str),
) -> Result<Outcome, postgres::Error> {
    let find = names.sql_with(
        "SELECT e.global_position, (SELECT {event_key} FROM (SELECT e.aggregate_id) AS event), e.bounded_context, e.aggregate_type,
                e.aggregate_id, {is_wanted}, EXISTS (SELECT FROM {discarded} d WHERE d.projection = p.name AND d.event_id = e.event_id),
                coalesce(btrim(k.reason), '') <> ''
         FROM {commands} k JOIN {projections} p ON p.name = $2
         JOIN {events} e ON e.event_id = (k.arguments ->> 'event')::uuid WHERE k.id = $1",
        &[("is_wanted", &scopes::contains_sql("p", "e"))],
    );
    let found = tx.query_typed(&find, &[(&command, Type::INT8), (&projection, Type::TEXT)])?;
    let [row] = found.as_slice() else {
        let why = if found.is_empty() { "there is no event with this id" } else { "several events have this id" };
        return Ok(Outcome::Refused(why.to_owned()));
    };
    let Doomed { position, key, aggregate, is_wanted, is_discarded, has_reason } = Doomed::of(row);
    if !has_reason {
        return Ok(Outcome::Refused("it needs a reason why the event is not to be handled".to_owned()));
    }
    if !is_wanted {
        return Ok(Outcome::Refused(
            "the event is not in the projection's scope, so it is not handled anyway".to_owned(),
        ));
    }
    if is_discarded {
        return Ok(Outcome::Refused("the event is discarded already".to_owned()));
    }
    // Locks all of them, in the order of a deal: a merge that is committing must not hide the row.
    let lock = names.sql("SELECT FROM {checkpoints} WHERE projection = $1 ORDER BY token FOR UPDATE");
    tx.query_typed(&lock, &[(&projection, Type::TEXT)])?;
    // The error of a failed attempt names its event.
    let covering = names.sql(
        "SELECT c.token, c.position, CASE WHEN c.attempt_event_id = d.id OR strpos(c.error, d.id::text) > 0 THEN coalesce(c.error, '') END
         FROM {checkpoints} c, (SELECT (arguments ->> 'event')::uuid FROM {commands} WHERE id = $3) AS d (id)
         WHERE c.projection = $1 AND c.keys @> $2",
    );
    let covering =
        tx.query_typed(&covering, &[(&projection, Type::TEXT), (&key, Type::INT4), (&command, Type::INT8)])?;
    let [checkpoint] = covering.as_slice() else {
        return Ok(Outcome::Refused("its checkpoints overlap or leave keys out: they were changed by hand".to_owned()));
    };
    let (token, reached): (i64, i64) = (checkpoint.get(0), checkpoint.get(1));
    // What is reported about the event, if something is.
    let reported: Option<String> = checkpoint.get(2);
    let [context, kind, id] = &aggregate;
    let of_aggregate: [(&(dyn ToSql + Sync), Type); 4] =
        [(&projection, Type::TEXT), (context, Type::TEXT), (kind, Type::TEXT), (id, Type::TEXT)];
    let parked = names.sql(
        "SELECT position, error FROM {parked}
         WHERE projection = $1 AND bounded_context = $2 AND aggregate_type = $3 AND aggregate_id = $4 FOR UPDATE",
    );
    let parked = tx.query_typed_opt(&parked, &of_aggregate)?;
    let failed_at: Option<i64> = parked.as_ref().map(|row| row.get(0));
    if reached >= position && failed_at.is_none_or(|failed_at| failed_at > position) {
        return Ok(Outcome::Refused("the event was handled already".to_owned()));
    }
    let error: Option<String> = parked.as_ref().filter(|_| failed_at == Some(position)).map(|row| row.get(1));
    let error = error.or_else(|| reported.clone().filter(|error| !error.is_empty()));
    let insert = names.sql(
        "INSERT INTO {discarded} (projection, event_id, bounded_context, aggregate_type, aggregate_id, key, position, event_type,
                                  error, discarded_by, reason, command_id)
         SELECT $4, e.event_id, e.bounded_context, e.aggregate_type, e.aggregate_id, $2, e.global_position, e.event_type,
                $3, k.requested_by, k.reason, k.id
         FROM {commands} k JOIN {events} e ON e.event_id = (k.arguments ->> 'event')::uuid WHERE k.id = $1",
    );
    tx.execute_typed(
        &insert,
        &[(&command, Type::INT8), (&key, Type::INT4), (&error, Type::TEXT), (&projection, Type::TEXT)],
    )?;
    let forget = "state = 'running', error = NULL, attempts = 0, attempt_position = NULL, attempt_event_id = NULL,";
    let renew = names.sql_with(
        "UPDATE {checkpoints} SET {forget} token = DEFAULT WHERE token = $1",
        &[("forget", if reported.is_some() { &forget } else { &"" })],
    );
    tx.execute_typed(&renew, &[(&token, Type::INT8)])?;
    if failed_at == Some(position) {
        let request = names.sql(
            "UPDATE {parked} SET replay_requested_at = clock_timestamp(), replays_begun = 0
             WHERE projection = $1 AND bounded_context = $2 AND aggregate_type = $3 AND aggregate_id = $4",
        );
        tx.execute_typed(&request, &of_aggregate)?;
    }
    reload(tx, names, projection)?;
    Ok(Outcome::Done(json!({"position": position, "aggregate": aggregate})))
}
