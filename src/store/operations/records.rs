//! What operators see: projections, commands and parked aggregates.

use std::fmt::Display;
use std::time::SystemTime;

use parking_lot::Mutex;
use postgres::types::{Json, Type};
use postgres::{GenericClient, Row};
use serde::{Serialize, Serializer};
use serde_json::Value;
use uuid::Uuid;

use super::reading::reading;
use crate::event::StreamId;
use crate::moment;
use crate::rebuilding::{OldRecord, Reading, Readings, RebuildRecord};
use crate::store::lags;
use crate::store::names::Names;
use crate::store::rebuilds;

/// A projection, as the tables describe it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ProjectionRecord {
    /// Its name.
    pub name: String,
    /// The replica set that processes it.
    pub replica_set: String,
    /// `running`, `retrying`, `halted`, `paused`, `broken`, `stopped` (no worker runs) or
    /// `orphaned` (no worker knows it).
    pub state: String,
    /// Whether operators want it `running` or `paused`.
    pub desired_state: String,
    /// When the desired state was last set.
    #[serde(serialize_with = "moment::serialize")]
    pub desired_at: SystemTime,
    /// Who set the desired state, if an operator did.
    pub desired_by: Option<String>,
    /// Why it was set.
    pub desired_reason: Option<String>,
    /// Why it is `broken`.
    pub fault: Option<String>,
    /// The versions of the library in the workers that know it.
    pub versions: Vec<String>,
    /// How many workers process it.
    pub workers: i64,
    /// Its lowest checkpoint.
    pub position: Option<i64>,
    /// The newest position minus its lowest checkpoint.
    pub lag_events: Option<i64>,
    /// The age of the first event above its lowest checkpoint.
    pub lag_seconds: Option<f64>,
    /// How many events its handlers have handled since the count began.
    pub handled: i64,
    /// How many aggregates it has parked.
    pub parked: i64,
    /// How many commands for it wait to be applied.
    pub pending_commands: i64,
    /// The last error of a checkpoint that does not proceed.
    pub error: Option<String>,
    /// The event that fails there, if it is known.
    #[serde(serialize_with = "option_as_text")]
    pub failing_event: Option<Uuid>,
    /// Its rebuild, if one is in progress.
    pub rebuild: Option<RebuildRecord>,
    /// Its former tables, if a rebuild has kept them.
    pub old: Option<OldRecord>,
}

/// Loads the projections of a replica set, or all of them.
pub(crate) fn projections(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: Option<&str>,
    readings: &Mutex<Readings>,
) -> Result<Vec<ProjectionRecord>, postgres::Error> {
    let which = "($1 IS NULL OR p.replica_set = $1)";
    let sql = names.sql_with(
        include_str!("../sql/projections.sql"),
        &[
            ("which", &which),
            ("state", &lags::state_sql(names)),
            ("is_measured", &lags::is_measured_sql(names)),
            ("lags", &lags::sql(names, which)),
            ("rebuild", &rebuilds::rebuild_sql(names)),
            ("old", &rebuilds::old_sql(names)),
            ("pending", &rebuilds::pending_sql(names)),
        ],
    );
    let rows = reading(client)?.query_typed(&sql, &[(&replica_set, Type::TEXT)])?;
    let mut readings = readings.lock();
    rows.iter().map(|row| projection(row, &mut readings)).collect()
}

fn projection(row: &Row, readings: &mut Readings) -> Result<ProjectionRecord, postgres::Error> {
    Ok(ProjectionRecord {
        name: row.try_get("name")?,
        replica_set: row.try_get("replica_set")?,
        state: row.try_get("state")?,
        desired_state: row.try_get("desired_state")?,
        desired_at: row.try_get("desired_at")?,
        desired_by: row.try_get("desired_by")?,
        desired_reason: row.try_get("desired_reason")?,
        fault: row.try_get("fault")?,
        versions: row.try_get("versions")?,
        workers: row.try_get("workers")?,
        position: row.try_get("position")?,
        lag_events: row.try_get("lag_events")?,
        lag_seconds: row.try_get("lag_seconds")?,
        handled: row.try_get("handled")?,
        parked: row.try_get("parked")?,
        pending_commands: row.try_get("pending_commands")?,
        error: row.try_get("error")?,
        failing_event: row.try_get("failing_event")?,
        rebuild: row.try_get::<_, Option<Json<Reading>>>("rebuild")?.map(|read| readings.record(&read.0)),
        old: row.try_get::<_, Option<Json<OldRecord>>>("old")?.map(|read| read.0),
    })
}

/// A command that an operator has given.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct CommandRecord {
    /// Its number.
    pub id: i64,
    /// The projection that it is for.
    pub projection: String,
    /// `pause`, `resume`, `rewind`, `remove`, `replay`, `discard`, `rebuild`, `rebuild_aggregate`,
    /// `cancel`, `revert` or `drop_old`.
    pub command: String,
    /// Its arguments, as the SQL function takes them.
    pub arguments: Value,
    /// Who gave it, in their own words.
    pub requested_by: String,
    /// The database role that the server has authenticated.
    pub requested_as: String,
    /// Why it was given.
    pub reason: Option<String>,
    /// When it was given.
    #[serde(serialize_with = "moment::serialize")]
    pub requested_at: SystemTime,
    /// The step in which it is, if it is executed in steps: `executing` and `executed`; of a
    /// rebuild also `loading` and `finishing`.
    pub step: Option<String>,
    /// When it was applied.
    #[serde(serialize_with = "moment::serialize_option")]
    pub applied_at: Option<SystemTime>,
    /// `done`, `refused` or `failed`; `None` until it is applied.
    pub outcome: Option<String>,
    /// What it has done.
    pub result: Option<Value>,
    /// Why it was refused, or why it failed.
    pub error: Option<String>,
}

/// Loads the last commands, the newest first: those for a projection and its rebuild, or those for
/// the projections of a replica set and for projections that are gone.
pub(crate) fn history(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: Option<&str>,
    projection: Option<&str>,
    last: u32,
) -> Result<Vec<CommandRecord>, postgres::Error> {
    let sql = names.sql(
        "SELECT c.id, c.projection, c.command, c.arguments, c.requested_by, c.requested_as, c.reason, c.requested_at,
                c.step, c.applied_at, c.outcome, c.result, c.error
         FROM {commands} c LEFT JOIN {projections} p ON p.name = regexp_replace(c.projection, '@(rebuild|old)$', '')
         WHERE ($1 IS NULL OR c.projection = $1 OR p.name = $1) AND ($2 IS NULL OR coalesce(p.replica_set, $2) = $2)
         ORDER BY c.id DESC LIMIT $3",
    );
    let values: &[(&(dyn postgres::types::ToSql + Sync), Type)] =
        &[(&projection, Type::TEXT), (&replica_set, Type::TEXT), (&i64::from(last), Type::INT8)];
    let rows = reading(client)?.query_typed(&sql, values)?;
    rows.iter().map(command).collect()
}

fn command(row: &Row) -> Result<CommandRecord, postgres::Error> {
    Ok(CommandRecord {
        id: row.try_get("id")?,
        projection: row.try_get("projection")?,
        command: row.try_get("command")?,
        arguments: row.try_get::<_, Json<Value>>("arguments")?.0,
        requested_by: row.try_get("requested_by")?,
        requested_as: row.try_get("requested_as")?,
        reason: row.try_get("reason")?,
        requested_at: row.try_get("requested_at")?,
        step: row.try_get("step")?,
        applied_at: row.try_get("applied_at")?,
        outcome: row.try_get("outcome")?,
        result: row.try_get::<_, Option<Json<Value>>>("result")?.map(|json| json.0),
        error: row.try_get("error")?,
    })
}

/// An aggregate whose events a projection does not handle, because one of them fails.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ParkedRecord {
    /// The projection that has parked it.
    pub projection: String,
    /// The aggregate.
    #[serde(serialize_with = "as_text")]
    pub aggregate: StreamId,
    /// The global position of the event that fails.
    pub position: i64,
    /// The id of the event that fails.
    #[serde(serialize_with = "as_text")]
    pub event_id: Uuid,
    /// The type of the event that fails.
    pub event_type: String,
    /// How many attempts at the event have failed.
    pub attempts: i32,
    /// The last error.
    pub error: String,
    /// The last errors with their times, the newest first.
    pub errors: Value,
    /// When the aggregate was parked.
    #[serde(serialize_with = "moment::serialize")]
    pub parked_at: SystemTime,
    /// When a replay was requested, if one is due.
    #[serde(serialize_with = "moment::serialize_option")]
    pub replay_requested_at: Option<SystemTime>,
}

fn as_text<S: Serializer>(value: &impl Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn option_as_text<S: Serializer>(value: &Option<impl Display>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// Loads the parked aggregates of a projection and its rebuild, or of all projections of a replica
/// set, in the order in which they were parked.
pub(crate) fn parked(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: Option<&str>,
    projection: Option<&str>,
) -> Result<Vec<ParkedRecord>, postgres::Error> {
    let sql = names.sql(
        "SELECT k.projection, k.bounded_context, k.aggregate_type, k.aggregate_id, k.position, k.event_id, k.event_type,
                k.attempts, k.error, k.errors, k.parked_at, k.replay_requested_at
         FROM {parked} k JOIN {projections} p ON p.name = k.projection
         WHERE ($1 IS NULL OR p.name = $1 OR p.base = $1) AND ($2 IS NULL OR p.replica_set = $2) AND p.kind <> 'old'
         ORDER BY k.projection, k.parked_at, k.position",
    );
    let rows = reading(client)?.query_typed(&sql, &[(&projection, Type::TEXT), (&replica_set, Type::TEXT)])?;
    rows.iter().map(aggregate).collect()
}

fn aggregate(row: &Row) -> Result<ParkedRecord, postgres::Error> {
    Ok(ParkedRecord {
        projection: row.try_get("projection")?,
        aggregate: StreamId {
            bounded_context: row.try_get("bounded_context")?,
            aggregate_type: row.try_get("aggregate_type")?,
            aggregate_id: row.try_get("aggregate_id")?,
        },
        position: row.try_get("position")?,
        event_id: row.try_get("event_id")?,
        event_type: row.try_get("event_type")?,
        attempts: row.try_get("attempts")?,
        error: row.try_get("error")?,
        errors: row.try_get::<_, Json<Value>>("errors")?.0,
        parked_at: row.try_get("parked_at")?,
        replay_requested_at: row.try_get("replay_requested_at")?,
    })
}
