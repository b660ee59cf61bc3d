//! The fence: what a runner loads, and the only statements that move a position.
//!
//! *Invariants.* A position changes only by [`advance`](Statements::advance), by [`follow`] after a
//! reaction, by [`pass`] if the event is parked, or by [`note`](Statements::note) if no event was
//! handled. All name the row's
//! token, the position from which it moves, the generation and the worker (I1, I4). A worker that
//! lost the row, or that did not learn that its commit succeeded, changes nothing and must not
//! commit. Because of the token, a batch that was begun before a row was taken away cannot commit
//! after the same worker has got the row back, at the same position. `advance` works only in the
//! transaction that [`mark`] has marked: a handler that ended this transaction has committed or
//! rolled back what belongs to the batch, so the rest must not be committed either.
//!
//! These statements are executed beside a handler, under the settings of the application: its
//! search path, its role. So each function, operator and type in them is qualified. To put
//! `pg_catalog` first in the path would not be enough: the server prefers a function whose argument
//! types match exactly, wherever it is in the path.

use std::fmt::Display;
use std::time::Duration;

use postgres::error::SqlState;
use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Transaction};
use uuid::Uuid;

use super::locks;
use super::names::Names;
use super::prepared::Prepared;
use super::session::Sessions;
use crate::plan::{KeySet, WorkerId};

/// One row: every event of these keys at or below the position has been processed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) token: i64,
    pub(crate) keys: KeySet,
    pub(crate) position: i64,
    /// The highest position that any of the keys ever had.
    pub(crate) highest: i64,
    /// The attempt that is recorded in it, if there is one.
    pub(crate) attempt: Option<Attempt>,
}

/// An attempt at an event, recorded before it was made. If it is still there when a row is loaded,
/// the attempt ended together with its session, its process or the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) event: EventMark,
    /// How many attempts there have been, this one included.
    pub(crate) number: u32,
}

/// Identifies an event by its position and its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventMark {
    pub(crate) position: i64,
    pub(crate) id: Uuid,
}

/// Proves that a row belongs to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) worker: WorkerId,
    pub(crate) generation: i64,
}

/// Distinguishes a transaction from all that follow it: a setting that the server resets when the
/// transaction ends, in any way. The transaction's id would also work, but a transaction that has
/// an id prevents the removal of dead rows, even while its handler has written nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mark(String);

/// The result of an attempt to move a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advanced {
    Moved,
    /// The row is no longer this worker's, or not at the expected position. Nothing of the
    /// transaction may be committed.
    Fenced,
    /// This is not the transaction that was marked, or there is none.
    OtherTransaction,
}

/// The checkpoints of a projection that were loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Owned {
    pub(crate) rows: Vec<Checkpoint>,
    /// Events above this position are counted when they are handled.
    pub(crate) counted_from: i64,
    /// Whether the rows may go no further than those of a rebuild.
    pub(crate) is_following: bool,
    /// Whether the projection has never caught up since its start, a rewind or a switch.
    pub(crate) is_catching_up: bool,
    /// A position at which there is another event than the one that was handled: these are not the
    /// events that were handled.
    pub(crate) other_event_at: Option<i64>,
}

/// The condition of the fence. It is on the row that is written, because READ COMMITTED rechecks
/// only that row after waiting for a lock.
pub(super) const FENCE: &str = "token OPERATOR(pg_catalog.=) $1 AND position OPERATOR(pg_catalog.=) $2 AND generation OPERATOR(pg_catalog.=) $3 \
     AND worker_id OPERATOR(pg_catalog.=) $4";

/// The columns in which an owner reports its work.
pub(super) const REPORTED: [&str; 6] =
    ["state", "error", "attempts", "attempt_position", "attempt_event_id", "attempted_at"];

/// The setting by which a transaction is marked.
const MARK: &str = "pupsourcing_orchestrator.batch";

/// Clears what the owner has reported in a row, unless the recorded attempt is above the new
/// position: the report was about events that are now processed.
const NOTHING_REPORTED: &str =
    "state = CASE WHEN attempt_position OPERATOR(pg_catalog.>) $5 THEN state ELSE 'running' END,
     error = CASE WHEN attempt_position OPERATOR(pg_catalog.>) $5 THEN error END,
     attempts = CASE WHEN attempt_position OPERATOR(pg_catalog.>) $5 THEN attempts ELSE 0 END,
     attempt_event_id = CASE WHEN attempt_position OPERATOR(pg_catalog.>) $5 THEN attempt_event_id END,
     attempted_at = CASE WHEN attempt_position OPERATOR(pg_catalog.>) $5 THEN attempted_at END,
     attempt_position = CASE WHEN attempt_position OPERATOR(pg_catalog.>) $5 THEN attempt_position END";

/// Token, position, generation and worker; the new position, the last event and its id; the mark;
/// how many of the handled events are counted.
type Advance = (i64, i64, i64, Uuid, i64, i64, Uuid, String, i64);

/// What a batch has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The position to which the row moves.
    pub(crate) to: i64,
    /// The last event, whether it was handled or parked.
    pub(crate) last: EventMark,
    /// How many events were handled that are to be counted.
    pub(crate) handled: i64,
}

/// The statements that a runner executes often, prepared on its connection.
pub(crate) struct Statements {
    owned: Prepared<(String, i64, Uuid, i32)>,
    advance: Prepared<Advance>,
    note: Prepared<(i64, i64, i64, Uuid, i64)>,
}

impl Statements {
    pub(crate) fn prepare(client: &mut impl GenericClient, names: &Names) -> Result<Self, postgres::Error> {
        let owned = names.sql(
            "SELECT token, keys, position, last_event_position,
                    (SELECT event.event_id OPERATOR(pg_catalog.<>) last_event_id FROM {events} AS event
                     WHERE event.global_position OPERATOR(pg_catalog.=) last_event_position),
                    attempt_position, attempt_event_id, attempts, highest,
                    coalesce((SELECT projection.counted_from FROM {projections} AS projection
                              WHERE projection.name OPERATOR(pg_catalog.=) $1), 0),
                    EXISTS (SELECT FROM {rebuilds} AS rebuild WHERE rebuild.projection OPERATOR(pg_catalog.=) $1
                            AND rebuild.state OPERATOR(pg_catalog.=) 'following'),
                    EXISTS (SELECT FROM {projections} AS projection WHERE projection.name OPERATOR(pg_catalog.=) $1
                            AND projection.caught_up_at IS NULL)
             FROM {checkpoints}
             WHERE projection OPERATOR(pg_catalog.=) $1 AND generation OPERATOR(pg_catalog.=) $2
               AND worker_id OPERATOR(pg_catalog.=) $3 AND lane OPERATOR(pg_catalog.=) $4 ORDER BY position, token",
        );
        let fence: (&str, &dyn Display) = ("fence", &FENCE);
        let nothing_reported: (&str, &dyn Display) = ("nothing_reported", &NOTHING_REPORTED);
        let advance = names.sql_with(
            "UPDATE {checkpoints} SET position = $5, last_event_position = $6, last_event_id = $7,
                    highest = greatest(highest, $5), handled = handled OPERATOR(pg_catalog.+) $9, {nothing_reported}, updated_at = pg_catalog.clock_timestamp()
             WHERE {fence} AND pg_catalog.current_setting('{mark}', true) OPERATOR(pg_catalog.=) $8",
            &[fence, nothing_reported, ("mark", &MARK)],
        );
        let note = names.sql_with(
            "UPDATE {checkpoints} SET position = $5, highest = greatest(highest, $5), {nothing_reported}, updated_at = pg_catalog.clock_timestamp()
             WHERE {fence}",
            &[fence, nothing_reported],
        );
        Ok(Self {
            owned: Prepared::on(client, &owned)?,
            advance: Prepared::on(client, &advance)?,
            note: Prepared::on(client, &note)?,
        })
    }

    /// Loads what this owner holds of a projection for one of its lanes.
    pub(crate) fn owned(
        &self,
        client: &mut impl GenericClient,
        projection: &str,
        owner: Owner,
        lane: usize,
    ) -> Result<Owned, postgres::Error> {
        let lane = i32::try_from(lane).unwrap_or(0);
        let rows = self.owned.query(client, (projection, owner.generation, owner.worker.0, lane))?;
        let other_event = rows.iter().find(|row| row.get::<_, Option<bool>>(4) == Some(true));
        Ok(Owned {
            counted_from: rows.first().map_or(0, |row| row.get(9)),
            is_following: rows.first().is_some_and(|row| row.get(10)),
            is_catching_up: rows.first().is_some_and(|row| row.get(11)),
            other_event_at: other_event.map(|row| row.get(3)),
            rows: rows
                .iter()
                .map(|row| Checkpoint {
                    token: row.get(0),
                    keys: row.get(1),
                    position: row.get(2),
                    highest: row.get(8),
                    attempt: row.get::<_, Option<i64>>(5).zip(row.get(6)).map(|(position, id)| Attempt {
                        event: EventMark { position, id },
                        number: u32::try_from(row.get::<_, i32>(7)).unwrap_or(0),
                    }),
                })
                .collect(),
        })
    }

    /// Moves a row, in the transaction that was marked.
    pub(crate) fn advance(
        &self,
        client: &mut impl GenericClient,
        row: &Checkpoint,
        owner: Owner,
        progress: Progress,
        mark: &Mark,
    ) -> Result<Advanced, postgres::Error> {
        let Owner { worker, generation } = owner;
        let Progress { to, last, handled } = progress;
        let mark_text = mark.0.as_str();
        let values = (row.token, row.position, generation, worker.0, to, last.position, last.id, mark_text, handled);
        if self.advance.execute(client, values)? == 1 {
            return Ok(Advanced::Moved);
        }
        Ok(if is_marked(client, mark)? { Advanced::Fenced } else { Advanced::OtherTransaction })
    }

    /// Moves a row past events that do not concern the projection, or that wait because their
    /// aggregate is parked. Returns false if the row is no
    /// longer this worker's.
    pub(crate) fn note(
        &self,
        client: &mut impl GenericClient,
        row: &Checkpoint,
        owner: Owner,
        to: i64,
    ) -> Result<bool, postgres::Error> {
        let values = (row.token, row.position, owner.generation, owner.worker.0, to);
        Ok(self.note.execute(client, values)? == 1)
    }
}

/// The result of an attempt to move a row past events that a reaction has handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// The row is at the new position, perhaps by an earlier attempt whose outcome was not known.
    Moved,
    /// The row is no longer this worker's.
    Fenced,
    /// The last of the events is not on this server.
    Missing,
}

/// Moves a row past events that a reaction has handled. This may be another connection than the one
/// on which the events were read, and lead to another server, to which not all of them were
/// replicated. So the last event has to be there. Every position below it was given before it, so
/// no new event can get one of these.
pub(crate) fn follow(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
    progress: Progress,
) -> Result<Followed, postgres::Error> {
    let Progress { to, last, handled } = progress;
    let sql = names.sql_with(
        "UPDATE {checkpoints} SET position = $5, last_event_position = $6, last_event_id = $7,
                highest = greatest(highest, $5), handled = handled OPERATOR(pg_catalog.+) $8, {nothing_reported}, updated_at = pg_catalog.clock_timestamp()
         WHERE {fence} AND EXISTS (SELECT FROM {events} AS event WHERE event.global_position OPERATOR(pg_catalog.=) $6
                                   AND event.event_id OPERATOR(pg_catalog.=) $7) RETURNING token",
        &[("fence", &FENCE), ("nothing_reported", &NOTHING_REPORTED)],
    );
    let values = [
        (&to as &(dyn ToSql + Sync), Type::INT8),
        (&last.position, Type::INT8),
        (&last.id, Type::UUID),
        (&handled, Type::INT8),
    ];
    if fenced(client, &sql, row, owner, &values)?.is_some() {
        return Ok(Followed::Moved);
    }
    if is_held(client, names, row, owner)? {
        return Ok(Followed::Missing);
    }
    let is_moved = is_held(client, names, &Checkpoint { position: to, ..row.clone() }, owner)?;
    Ok(if is_moved { Followed::Moved } else { Followed::Fenced })
}

/// Moves a row past an event that is parked in the same transaction, and gives the row a new token,
/// which is returned. Returns `None` if the row is no longer this worker's.
pub(crate) fn pass(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
    event: EventMark,
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {checkpoints} SET token = DEFAULT, position = $5, last_event_position = $5, last_event_id = $6,
                highest = greatest(highest, $5), {nothing_reported}, updated_at = pg_catalog.clock_timestamp()
         WHERE {fence} RETURNING token",
        &[("fence", &FENCE), ("nothing_reported", &NOTHING_REPORTED)],
    );
    let values = [(&event.position as &(dyn ToSql + Sync), Type::INT8), (&event.id, Type::UUID)];
    fenced(client, &sql, row, owner, &values)
}

/// Counts events of a parked aggregate that were handled in the transaction that was marked. With
/// the last of them the parking ends, and the row gets a new token: a batch that has skipped later
/// events of the aggregate must not be committed any more. Returns the row's token; `None` if the
/// row is no longer this worker's, or if this is not the transaction that was marked.
pub(crate) fn replayed(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
    (handled, is_last): (i64, bool),
    mark: &Mark,
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {checkpoints} SET {renewed}handled = handled OPERATOR(pg_catalog.+) $5, updated_at = pg_catalog.clock_timestamp()
         WHERE {fence} AND pg_catalog.current_setting('{mark}', true) OPERATOR(pg_catalog.=) $6 RETURNING token",
        &[("fence", &FENCE), ("mark", &MARK), ("renewed", &if is_last { "token = DEFAULT, " } else { "" })],
    );
    fenced(client, &sql, row, owner, &[(&handled, Type::INT8), (&mark.0, Type::TEXT)])
}

/// Locks a row until the transaction ends. Returns false if it is no longer this worker's.
pub(crate) fn lock(
    tx: &mut Transaction<'_>,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
) -> Result<bool, postgres::Error> {
    let sql = names.sql_with("SELECT token FROM {checkpoints} WHERE {fence} FOR NO KEY UPDATE", &[("fence", &FENCE)]);
    Ok(fenced(tx, &sql, row, owner, &[])?.is_some())
}

/// Whether a row is still this worker's, at the same position.
pub(crate) fn is_held(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
) -> Result<bool, postgres::Error> {
    let sql = names.sql_with("SELECT token FROM {checkpoints} WHERE {fence}", &[("fence", &FENCE)]);
    Ok(fenced(client, &sql, row, owner, &[])?.is_some())
}

/// Executes a statement on one row, with the values of the fence followed by these. Returns the
/// row's token, if the row is still this worker's.
fn fenced(
    client: &mut impl GenericClient,
    sql: &str,
    row: &Checkpoint,
    owner: Owner,
    values: &[(&(dyn ToSql + Sync), Type)],
) -> Result<Option<i64>, postgres::Error> {
    let fence: [(&(dyn ToSql + Sync), Type); 4] = [
        (&row.token, Type::INT8),
        (&row.position, Type::INT8),
        (&owner.generation, Type::INT8),
        (&owner.worker.0, Type::UUID),
    ];
    let all: Vec<_> = fence.into_iter().chain(values.iter().cloned()).collect();
    Ok(client.query_typed_opt(sql, &all)?.map(|row| row.get(0)))
}

/// Marks the transaction, so that [`advance`](Statements::advance) recognises it. A frozen process
/// must not keep its row locks, so the server ends the transaction if it is idle for `idle_limit`.
/// Other workers end it sooner if they have the privilege: they find the worker's own sessions by
/// a lock. A handler may release that lock by mistake, so the transaction holds one as well. In a
/// rebuild, the schema of the copies comes first in the search path until the transaction ends.
pub(crate) fn mark(
    tx: &mut Transaction<'_>,
    sessions: Sessions,
    idle_limit: Duration,
    schema: Option<&str>,
) -> Result<Mark, postgres::Error> {
    let mark = Mark(format!("{:016x}", fastrand::u64(..)));
    let findable = match sessions.member() {
        Some(worker) => format!("; SELECT pg_catalog.pg_try_advisory_xact_lock_shared({})", locks::own(worker)),
        None => String::new(),
    };
    let path = schema.map_or_else(String::new, |schema| {
        format!(
            "; SELECT pg_catalog.set_config('search_path', pg_catalog.concat_ws(', ', '\"{schema}\"',
                 nullif(pg_catalog.current_setting('search_path'), '')), true)"
        )
    });
    // A prepared statement would leave the transaction with a snapshot until the next statement.
    tx.batch_execute(&format!(
        "SET LOCAL {MARK} = '{}'; SET LOCAL idle_in_transaction_session_timeout = {}{findable}{path}",
        mark.0,
        idle_limit.as_millis()
    ))?;
    Ok(mark)
}

/// Returns whether this is still the transaction that was marked. If a statement has failed in the
/// transaction, the server refuses to answer, and the transaction is assumed to be the marked one.
pub(crate) fn is_marked(client: &mut impl GenericClient, mark: &Mark) -> Result<bool, postgres::Error> {
    let sql = format!("SELECT pg_catalog.current_setting('{MARK}', true)");
    match client.query_typed_one(&sql, &[]) {
        Ok(row) => Ok(row.get::<_, Option<String>>(0).as_ref() == Some(&mark.0)),
        Err(error) if error.code() == Some(&SqlState::IN_FAILED_SQL_TRANSACTION) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Merges a row into another at the same position, and keeps the report of the row with more
/// attempts. Returns false if either row is no longer this worker's. Locks the rows in the order of
/// their tokens, as a deal does.
pub(crate) fn merge(
    client: &mut impl GenericClient,
    names: &Names,
    into: &Checkpoint,
    from: &Checkpoint,
    owner: Owner,
) -> Result<bool, postgres::Error> {
    let gone_is_later =
        "coalesce(gone.last_event_position OPERATOR(pg_catalog.>) coalesce(kept.last_event_position, 0), false)";
    // A row with a recorded attempt comes first, as in a deal and in a runner's memory.
    let gone_is_worse = "ROW(gone.attempt_position IS NOT NULL, gone.attempts)
        OPERATOR(pg_catalog.>) ROW(kept.attempt_position IS NOT NULL, kept.attempts)";
    let reported = REPORTED
        .map(|column| format!("{column} = CASE WHEN {gone_is_worse} THEN gone.{column} ELSE kept.{column} END"));
    let sql = names.sql_with(
        "WITH pair AS MATERIALIZED (
             SELECT FROM {checkpoints}
             WHERE token OPERATOR(pg_catalog.=) ANY (ARRAY[$1, $5]) AND position OPERATOR(pg_catalog.=) $2
               AND generation OPERATOR(pg_catalog.=) $3 AND worker_id OPERATOR(pg_catalog.=) $4
             ORDER BY token FOR UPDATE
         ), gone AS (
             DELETE FROM {checkpoints} WHERE token OPERATOR(pg_catalog.=) $5 AND position OPERATOR(pg_catalog.=) $2
             AND generation OPERATOR(pg_catalog.=) $3 AND worker_id OPERATOR(pg_catalog.=) $4
             AND (SELECT pg_catalog.count(*) FROM pair) OPERATOR(pg_catalog.=) 2
             RETURNING keys, highest, handled, last_event_position, last_event_id, {reported}
         )
         UPDATE {checkpoints} AS kept
         SET keys = kept.keys OPERATOR(pg_catalog.+) gone.keys, highest = greatest(kept.highest, gone.highest),
             handled = kept.handled OPERATOR(pg_catalog.+) gone.handled,
             last_event_position = CASE WHEN {gone_is_later} THEN gone.last_event_position ELSE kept.last_event_position END,
             last_event_id = CASE WHEN {gone_is_later} THEN gone.last_event_id ELSE kept.last_event_id END,
             {report_of_worse}, updated_at = pg_catalog.clock_timestamp()
         FROM gone WHERE {fence}",
        &[
            ("fence", &FENCE),
            ("gone_is_later", &gone_is_later),
            ("reported", &REPORTED.join(", ")),
            ("report_of_worse", &reported.join(", ")),
        ],
    );
    let updated = client.execute_typed(
        &sql,
        &[
            (&into.token, Type::INT8),
            (&into.position, Type::INT8),
            (&owner.generation, Type::INT8),
            (&owner.worker.0, Type::UUID),
            (&from.token, Type::INT8),
        ],
    )?;
    Ok(updated == 1)
}
