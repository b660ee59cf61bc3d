//! The commands for operators: what they ask for, and how their results are shown.

mod asked;
mod given;
mod listed;
mod rebuild;
mod rebuilding;
mod remedy;
mod watch;

use std::process::ExitCode;

pub(super) use self::asked::{Asked, asked, subcommands};
pub(super) use self::remedy::remedies;
use super::failure::Failure;
use crate::operator::Operator;
use crate::orchestrator::Orchestrator;

pub(super) fn operate(orchestrator: &Orchestrator, asked: Asked) -> Result<ExitCode, Failure> {
    let operator = Operator::new(orchestrator.names().clone())?.replica_set(orchestrator.replica_set());
    let mut client = orchestrator.client()?;
    match asked {
        Asked::Projections { rate, json } => listed::projections(&operator, &mut client, rate, json)?,
        Asked::History { projection, last, json } => {
            listed::history(&operator, &mut client, projection.as_deref(), last, json)?;
        }
        Asked::Parked { projection, json } => {
            listed::parked(&operator, &mut client, projection.as_deref(), json)?;
        }
        Asked::Rebuild { projection, json } => listed::rebuild(&operator, &mut client, &projection, json)?,
        Asked::Command { command, by, timeout, json } => {
            let by = by.map_or_else(|| given::default_author(orchestrator, &mut client), Ok)?;
            return given::give(orchestrator, &operator, &mut client, &command.by(by), timeout, json);
        }
    }
    Ok(ExitCode::SUCCESS)
}
