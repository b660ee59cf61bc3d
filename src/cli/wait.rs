//! `wait`: waits until projections have processed everything up to a position.

use std::process::ExitCode;
use std::time::Duration;

use super::failure::Failure;
use super::output;
use crate::error::{BoxError, Error};
use crate::event_store::{EventStore, Goal};
use crate::orchestrator::Orchestrator;
use crate::store::migrations;
use crate::store::waiting::{Target, newest};

/// What a user waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) projections: Vec<String>,
    /// `None` stands for the newest visible event.
    pub(super) position: Option<i64>,
    pub(super) timeout: Duration,
}

pub(super) fn wait(orchestrator: &Orchestrator, wait: &Wait) -> Result<ExitCode, Failure> {
    let Wait { projections, position, timeout } = wait;
    let names = orchestrator.names();
    let mut session = orchestrator.session()?;
    let mut tx = session.reading().map_err(Error::database("reading the schema's version"))?;
    migrations::required(&mut tx, names)?;
    drop(tx);
    let position = match position {
        Some(position) => *position,
        None => session.run(|client| newest(client, names)).map_err(Error::database("reading the newest position"))?,
    };
    let projections: Vec<&str> = projections.iter().map(String::as_str).collect();
    let goal = Goal { projections: &projections, target: Target::Position(position), timeout: *timeout };
    // It needs none of the session's settings.
    EventStore::new(names.clone())?.wait_until(session.client(), &goal).map_err(BoxError::from)?;
    output::write(&format!("position {position} processed by {}", projections.join(", ")));
    Ok(ExitCode::SUCCESS)
}
