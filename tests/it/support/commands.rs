//! Commands, given with SQL alone.

use std::time::Duration;

use postgres::Client;
use serde_json::Value;

use super::eventually;

/// The outcome of a command: its name, the result, and the error.
pub(crate) type Outcome = (String, Option<Value>, Option<String>);

/// Gives a command, and returns its number.
#[track_caller]
pub(crate) fn give(client: &mut Client, projection: &str, command: &str, arguments: &Value) -> i64 {
    let sql = "SELECT orchestrator_command($1, $2, $3, 'tester', 'a test')";
    client.query_one(sql, &[&projection, &command, &arguments]).unwrap().get(0)
}

/// Waits until a command has an outcome.
#[track_caller]
pub(crate) fn outcome(client: &mut Client, id: i64) -> Outcome {
    outcome_within(client, id, Duration::from_secs(20))
}

/// Waits for so long until a command has an outcome.
#[track_caller]
pub(crate) fn outcome_within(client: &mut Client, id: i64, patience: Duration) -> Outcome {
    let sql = "SELECT outcome, result, error FROM orchestrator_commands WHERE id = $1 AND applied_at IS NOT NULL";
    eventually("the command has an outcome", patience, || {
        client.query_opt(sql, &[&id]).unwrap().map(|row| (row.get(0), row.get(1), row.get(2)))
    })
}

/// Gives a command, and returns its result.
#[track_caller]
pub(crate) fn done(client: &mut Client, projection: &str, command: &str, arguments: &Value) -> Value {
    let id = give(client, projection, command, arguments);
    let (outcome, result, error) = outcome(client, id);
    assert_eq!((outcome.as_str(), &error), ("done", &None), "{command} {projection}");
    result.unwrap()
}

/// Gives a command, and returns why it was refused.
#[track_caller]
pub(crate) fn refused(client: &mut Client, projection: &str, command: &str, arguments: &Value) -> String {
    let id = give(client, projection, command, arguments);
    let (outcome, _, error) = outcome(client, id);
    assert_eq!(outcome, "refused", "{command} {projection}: {error:?}");
    error.unwrap()
}
