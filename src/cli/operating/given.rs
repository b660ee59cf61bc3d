//! Gives a command, and shows what it has done.

use std::time::Duration;

use postgres::Client;
use serde_json::json;

use super::super::failure::Failure;
use super::super::output;
use crate::error::{Error, one_line};
use crate::operator::{Applied, Command, Operator, OperatorError};
use crate::orchestrator::Orchestrator;
use crate::store::operations;

/// Who gives a command, if no person is named: the database user and this host.
pub(super) fn default_author(orchestrator: &Orchestrator, client: &mut Client) -> Result<String, Error> {
    let user = operations::user(client).map_err(Error::database("asking for the database user"))?;
    Ok(format!("{user}@{}", orchestrator.host()))
}

pub(super) fn give(
    operator: &Operator,
    client: &mut Client,
    command: &Command,
    timeout: Option<Duration>,
    json: bool,
) -> Result<(), Failure> {
    let outcome = match timeout {
        Some(timeout) => operator.execute(client, command, timeout).map(|applied| shown(&applied, json)),
        None => operator.submit(client, command).map(|id| {
            if json {
                json!({ "id": id, "projection": command.projection(), "command": command.name(), "outcome": "pending" })
                    .to_string()
            } else {
                format!("{} is recorded as command {id}", command.name())
            }
        }),
    };
    match outcome {
        Ok(text) => _ = output::write(&text),
        Err(error) => {
            if let Some(id) = error.id().filter(|_| json) {
                output::write(&without_success(&error, id, command));
            }
            return Err(error.into());
        }
    }
    Ok(())
}

fn shown(applied: &Applied, json: bool) -> String {
    let Applied { id, command, projection, result } = applied;
    if json {
        json!({ "id": id, "projection": projection, "command": command, "outcome": "done", "result": result })
            .to_string()
    } else {
        one_line(&applied.to_string())
    }
}

/// A command that was recorded, and has not done what it should, as JSON.
fn without_success(error: &OperatorError, id: i64, command: &Command) -> String {
    let outcome = match error {
        OperatorError::Refused { .. } => "refused",
        OperatorError::Failed { .. } => "failed",
        _ => "pending",
    };
    let error = error.with_causes();
    json!({ "id": id, "projection": command.projection(), "command": command.name(), "outcome": outcome, "error": error })
        .to_string()
}
