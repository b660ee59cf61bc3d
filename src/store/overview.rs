//! An overview of the whole replica set, for operators. The database server produces the JSON,
//! which is passed on unchanged.

use postgres::GenericClient;
use postgres::types::{Json, Type};
use serde_json::value::RawValue;

use super::lags;
use super::names::Names;

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
        ],
    );
    let row = client.query_typed_one(&sql, &[(&replica_set, Type::TEXT)])?;
    Ok(row.try_get::<_, Json<Box<RawValue>>>(0)?.0)
}

/// The beginning of a text, in SQL.
fn shortened(text: &str) -> String {
    format!("left({text}, {LONGEST_ERROR})")
}

/// How long ago a timestamp was, in SQL: seconds, to the millisecond.
fn age(timestamp: &str) -> String {
    format!("round(extract(epoch FROM clock_timestamp() - {timestamp})::numeric, 3)")
}
