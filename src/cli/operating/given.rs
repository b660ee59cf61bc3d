//! Gives a command, and shows what it has done.

use std::process::ExitCode;
use std::time::Duration;

use postgres::Client;
use serde_json::{Value, json};

use super::super::failure::Failure;
use super::super::output;
use super::rebuilding::needs;
use super::watch::{Watched, left, watch};
use crate::error::{Error, one_line};
use crate::operator::{Applied, Command, Operator, OperatorError};
use crate::orchestrator::Orchestrator;
use crate::store::operations;

/// Who gives a command, if no person is named: the database user and this host.
pub(super) fn default_author(orchestrator: &Orchestrator, client: &mut Client) -> Result<String, Error> {
    let user = operations::user(client).map_err(Error::database("asking for the database user"))?;
    Ok(format!("{user}@{}", orchestrator.host()))
}

/// Gives a command, and waits for it if there is a timeout. A rebuild is watched until it is done.
pub(super) fn give(
    orchestrator: &Orchestrator,
    operator: &Operator,
    client: &mut Client,
    command: &Command,
    timeout: Option<Duration>,
    json: bool,
) -> Result<ExitCode, Failure> {
    let outcome = match timeout {
        Some(timeout) => match operator.execute(client, command, timeout) {
            Ok(begun) if !begun.is_done => return followed(orchestrator, operator, client, command, &begun, json),
            outcome => outcome.map(|applied| shown(&applied, json)),
        },
        None => operator.submit(client, command).map(|id| {
            if json { recorded(id, command) } else { format!("{} is recorded as command {id}", command.name()) }
        }),
    };
    match outcome {
        Ok(text) => _ = output::write(&text),
        Err(error) => return Err(failed(error, command, json)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the outcome of a command that has not done what it should, if scripts want to read it.
fn failed(error: OperatorError, command: &Command, json: bool) -> Failure {
    if let Some(id) = error.id().filter(|_| json) {
        output::write(&without_success(&error, id, command));
    }
    error.into()
}

/// Watches a rebuild that has begun.
fn followed(
    orchestrator: &Orchestrator,
    operator: &Operator,
    client: &mut Client,
    command: &Command,
    begun: &Applied,
    json: bool,
) -> Result<ExitCode, Failure> {
    let bytes = begun.result.get("bytes").and_then(Value::as_i64).unwrap_or(0);
    let lock_seconds = begun.result.get("lock_seconds").and_then(Value::as_f64);
    let needs = command.rebuilds().map(|rebuild| needs(rebuild, bytes, lock_seconds));
    output::complain(&format!("{}: {}", one_line(&begun.to_string()), needs.unwrap_or_default()));
    match watch(orchestrator, operator, client, command, begun.id)? {
        Watched::Done(applied) => {
            output::write(&shown(&applied, json));
            Ok(ExitCode::SUCCESS)
        }
        Watched::Failed(error) => Err(failed(error, command, json)),
        Watched::Left => {
            if json {
                output::write(&recorded(begun.id, command));
            }
            Ok(left())
        }
    }
}

/// A command that is not done yet, as JSON.
fn recorded(id: i64, command: &Command) -> String {
    json!({ "id": id, "projection": command.projection(), "command": command.name(), "outcome": "pending" }).to_string()
}

fn shown(applied: &Applied, json: bool) -> String {
    let Applied { id, command, projection, result, .. } = applied;
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
