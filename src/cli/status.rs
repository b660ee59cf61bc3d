//! `status`: shows the replica set, as recorded in its tables.

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{bounded, select, tick};
use serde_json::value::RawValue;

use super::failure::Failure;
use super::output;
use super::overview::Overview;
use super::shell::program;
use super::signals::shutdown_signal;
use crate::error::{BoxError, Error};
use crate::orchestrator::Orchestrator;
use crate::rebuilding::Readings;
use crate::store::session::Session;
use crate::store::{migrations, overview};

/// How often `--watch` shows it again.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn status(orchestrator: &Orchestrator, json: bool, watch: bool) -> Result<ExitCode, Failure> {
    let shutdown = if watch { shutdown_signal()? } else { bounded(1).1 };
    let program = program();
    let show = |overview: &RawValue| -> Result<bool, Failure> {
        let text = if json {
            overview.get().to_owned()
        } else {
            let overview: Overview = serde_json::from_str(overview.get()).map_err(BoxError::from)?;
            overview.render(&program, orchestrator.replica_set(), output::has_colours())
        };
        Ok(match (watch, json) {
            (true, false) if output::is_terminal() => output::write_anew(&text),
            // An empty line separates it from the next one.
            (true, false) => output::write(&format!("{text}\n")),
            _ => output::write(&text),
        })
    };
    let (mut session, mut readings) = (None, Readings::default());
    if !watch {
        show(&load(orchestrator, &mut session, &mut readings)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let again = tick(EVERY);
    loop {
        match load(orchestrator, &mut session, &mut readings) {
            Ok(overview) => {
                if !show(&overview)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            // The server may become available again.
            Err(error) if error.is_away() => {
                session = None;
                output::complain(&format!("error: {}", error.with_causes()));
            }
            Err(error) => return Err(error.into()),
        }
        select! {
            recv(shutdown) -> _ => return Ok(ExitCode::SUCCESS),
            recv(again) -> _ => {}
        }
    }
}

/// Loads the overview. Opens a connection if there is none yet.
fn load(
    orchestrator: &Orchestrator,
    session: &mut Option<Session>,
    readings: &mut Readings,
) -> Result<Box<RawValue>, Error> {
    let names = orchestrator.names();
    let session = if let Some(session) = session {
        session
    } else {
        let mut opened = orchestrator.session()?;
        let mut tx = opened.reading().map_err(Error::database("reading the schema's version"))?;
        migrations::required(&mut tx, names)?;
        drop(tx);
        session.insert(opened)
    };
    let mut tx = session.reading().map_err(Error::database("loading the overview"))?;
    overview::load(&mut tx, names, orchestrator.replica_set(), readings)
        .map_err(Error::database("loading the overview"))
}
