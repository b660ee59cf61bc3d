//! Reads and changes what is parked, as the commands of operators do.

use std::time::Duration;

use postgres::{Client, GenericClient};

use super::eventually;

/// A row of the table of parked aggregates.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ParkedRow {
    pub(crate) aggregate: String,
    pub(crate) position: i64,
    pub(crate) attempts: i32,
    pub(crate) error: String,
    /// The last errors, newest first.
    pub(crate) errors: Vec<String>,
    pub(crate) is_requested: bool,
}

/// What is parked of a projection, by aggregate.
pub(crate) fn parked(client: &mut impl GenericClient, projection: &str) -> Vec<ParkedRow> {
    let sql = "SELECT aggregate_id, position, attempts, error,
                      ARRAY(SELECT entry->>'error' FROM jsonb_array_elements(errors) AS entry), replay_requested_at IS NOT NULL
               FROM orchestrator_parked WHERE projection = $1 ORDER BY aggregate_id";
    let rows = client.query(sql, &[&projection]).unwrap();
    let read = |row: &postgres::Row| ParkedRow {
        aggregate: row.get(0),
        position: row.get(1),
        attempts: row.get(2),
        error: row.get(3),
        errors: row.get(4),
        is_requested: row.get(5),
    };
    rows.iter().map(read).collect()
}

/// Waits until this many aggregates of a projection are parked.
#[track_caller]
pub(crate) fn await_parked(client: &mut Client, projection: &str, count: usize) -> Vec<ParkedRow> {
    eventually("aggregates are parked", Duration::from_secs(60), || {
        Some(parked(client, projection)).filter(|parked| parked.len() == count)
    })
}

/// Commands the replay of everything that is parked of a projection.
pub(crate) fn replay(client: &mut impl GenericClient, projection: &str) {
    let sql = r#"SELECT orchestrator_command($1, 'replay', '{"all": true}')"#;
    client.query_one(sql, &[&projection]).unwrap();
}

/// Commands that the event at a position is discarded.
pub(crate) fn discard(client: &mut impl GenericClient, projection: &str, position: i64) {
    let sql =
        "SELECT orchestrator_command($1, 'discard', jsonb_build_object('event', event_id), reason => 'it is wrong')
               FROM events WHERE global_position = $2";
    client.query_one(sql, &[&projection, &position]).unwrap();
}

/// The query of the guide that checks that every event is accounted for: for each projection, the
/// handled, waiting and discarded events, and those that its checkpoints have passed.
pub(crate) fn accounts(client: &mut impl GenericClient) -> Result<Vec<(String, [i64; 4])>, postgres::Error> {
    let guide = include_str!("../../../src/guide/failures.md");
    let (_, after) = guide.split_once("<!-- accounts -->\n```sql\n").expect("the guide has the query");
    let (sql, _) = after.split_once("```").unwrap();
    let rows = client.query(sql.trim().trim_end_matches(';'), &[])?;
    Ok(rows.iter().map(|row| (row.get(0), [1, 2, 3, 4].map(|column| row.get(column)))).collect())
}

/// Checks that every event that a checkpoint has passed was handled, waits or was discarded.
#[track_caller]
pub(crate) fn assert_accounts(client: &mut Client) {
    // All in one statement, so also while workers run.
    let accounts = accounts(client).unwrap();
    assert!(!accounts.is_empty(), "there is no projection to check");
    for (projection, [handled, waiting, discarded, passed]) in accounts {
        assert_eq!(handled + waiting + discarded, passed, "{projection}: {handled} + {waiting} + {discarded}");
    }
}
