//! An overview of the whole replica set, for operators. The database server produces the JSON,
//! which is passed on unchanged.

use postgres::GenericClient;
use postgres::types::{Json, Type};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::ages::age;
use super::lags;
use super::names::Names;
use super::rebuilds;
use crate::rebuilding::{Reading, Readings};

/// How many of the last generations are shown.
const MOST_GENERATIONS: u32 = 20;
/// How many parked aggregates are shown, the oldest first.
const MOST_PARKED: u32 = 100;
/// How many of the last commands are shown.
const MOST_COMMANDS: u32 = 20;
/// The most characters of an error of which the overview may have many.
const LONGEST_ERROR: u32 = 1000;
/// How long a stopped worker is shown.
const STOPPED_SHOWN: &str = "1 minute";

/// Loads a replica set's generations, workers and projections, its first parked aggregates and its
/// last commands, as JSON.
/// [`MetricsServer`](crate::MetricsServer) documents its fields.
pub(crate) fn load(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: &str,
    readings: &mut Readings,
) -> Result<Box<RawValue>, postgres::Error> {
    let sql = names.sql_with(
        include_str!("sql/overview.sql"),
        &[
            ("lags", &lags::sql(names, "p.replica_set = $1")),
            ("most_generations", &MOST_GENERATIONS),
            ("stopped_shown", &STOPPED_SHOWN),
            ("created_age", &age("g.created_at")),
            ("activated_age", &age("g.activated_at")),
            ("superseded_age", &age("g.superseded_at")),
            ("started_age", &age("w.started_at")),
            ("heartbeat_age", &age("w.last_heartbeat")),
            ("stopped_age", &age("w.stopped_at")),
            ("moved_age", &age("c.updated_at")),
            ("attempted_age", &age("c.attempted_at")),
            ("desired_age", &age("p.desired_at")),
            ("requested_age", &age("k.requested_at")),
            ("applied_age", &age("k.applied_at")),
            ("parked_age", &age("k.parked_at")),
            ("replay_requested_age", &age("k.replay_requested_at")),
            ("error", &shortened("k.error")),
            ("most_parked", &MOST_PARKED),
            ("most_commands", &MOST_COMMANDS),
            ("state", &lags::state_sql(names)),
            ("is_measured", &lags::is_measured_sql(names)),
            ("rebuild", &rebuilds::rebuild_sql(names)),
            ("old", &rebuilds::old_sql(names)),
            ("pending", &rebuilds::pending_sql(names)),
        ],
    );
    let row = client.query_typed_one(&sql, &[(&replica_set, Type::TEXT)])?;
    let overview = row.try_get::<_, Json<Box<RawValue>>>(0)?.0;
    Ok(if row.try_get(1)? { with_progress(&overview, readings).unwrap_or(overview) } else { overview })
}

/// Replaces what was read of each rebuild by what operators see of it. `None` if the overview is
/// not as expected.
fn with_progress(overview: &RawValue, readings: &mut Readings) -> Option<Box<RawValue>> {
    let mut overview: Value = serde_json::from_str(overview.get()).ok()?;
    for projection in overview.get_mut("projections")?.as_array_mut()? {
        let rebuild = projection.get_mut("rebuild")?;
        if !rebuild.is_null() {
            let reading = Reading::deserialize(&*rebuild).ok()?;
            *rebuild = serde_json::to_value(readings.record(&reading)).ok()?;
        }
    }
    serde_json::value::to_raw_value(&overview).ok()
}

/// The beginning of a text, in SQL.
fn shortened(text: &str) -> String {
    format!("left({text}, {LONGEST_ERROR})")
}
