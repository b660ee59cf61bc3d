//! Watches a rebuild until it is done.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, select, tick};
use postgres::Client;

use super::super::failure::Failure;
use super::super::output;
use super::super::shell::program;
use super::super::signals::shutdown_signal;
use super::rebuilding::{bar, goes_on, progress};
use crate::error::one_line;
use crate::operator::{Applied, Command, Operator, OperatorError, RebuildRecord};
use crate::orchestrator::Orchestrator;

/// How often to look.
const EVERY: Duration = Duration::from_secs(1);
/// How often the progress is written, if it is not shown on a terminal.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// How watching has ended.
pub(super) enum Watched {
    Done(Applied),
    /// The rebuild has ended without a switch.
    Failed(OperatorError),
    /// A person does not want to watch any longer. The rebuild goes on.
    Left,
}

/// Watches a rebuild that has begun. A lost connection is opened again.
pub(super) fn watch(
    orchestrator: &Orchestrator,
    operator: &Operator,
    client: &mut Client,
    command: &Command,
    id: i64,
) -> Result<Watched, Failure> {
    let (shutdown, again) = (shutdown_signal()?, tick(EVERY));
    let command = command.clone().until_done();
    let mut shown = Shown::default();
    loop {
        match look(operator, client, &command, id, &mut shown) {
            Ok(None) => {}
            Ok(Some(applied)) => {
                remove_bar();
                return Ok(Watched::Done(applied));
            }
            Err(error) if error.is_transient() || client.is_closed() => {
                shown.say(&format!("the database cannot be asked, will retry: {}", error.with_causes()));
                if let Ok(opened) = orchestrator.client() {
                    *client = opened;
                }
            }
            Err(error) => {
                remove_bar();
                return Ok(Watched::Failed(error));
            }
        }
        if is_stopped(&shutdown, &again) {
            remove_bar();
            output::complain(&goes_on(&program(), command.projection(), id));
            return Ok(Watched::Left);
        }
    }
}

/// The exit code of a person who has stopped watching: the command is recorded, and not done yet.
pub(super) fn left() -> ExitCode {
    Failure::Pending(String::new()).exit_code()
}

fn is_stopped(shutdown: &Receiver<()>, again: &Receiver<Instant>) -> bool {
    select! {
        recv(shutdown) -> _ => true,
        recv(again) -> _ => false,
    }
}

fn look(
    operator: &Operator,
    client: &mut Client,
    command: &Command,
    id: i64,
    shown: &mut Shown,
) -> Result<Option<Applied>, OperatorError> {
    match operator.look(client, command, id) {
        Ok(applied) => return Ok(Some(applied)),
        // The status says that there is no worker.
        Err(OperatorError::TimedOut { .. } | OperatorError::NoWorker { .. }) => {}
        Err(error) => return Err(error),
    }
    // It is gone if the rebuild has just ended. Then the next look has the outcome.
    if let Some(record) = operator.projection(client, command.projection())?.rebuild {
        shown.show(command.projection(), &record);
    }
    Ok(None)
}

/// What a person has been shown.
#[derive(Default)]
struct Shown {
    written: Option<Instant>,
    said: Vec<String>,
}

impl Shown {
    fn show(&mut self, projection: &str, record: &RebuildRecord) {
        for why in &record.blocked {
            self.say(&format!("blocked: {}", one_line(why)));
        }
        if record.blocked.is_empty() {
            self.said.clear();
        }
        if output::shows_progress() {
            output::progress(&bar(record));
        } else if self.written.is_none_or(|at| at.elapsed() >= WRITE_EVERY) {
            self.written = Some(Instant::now());
            output::complain(&progress(projection, record));
        }
    }

    /// Says what is new.
    fn say(&mut self, text: &str) {
        if !self.said.iter().any(|said| said == text) {
            remove_bar();
            output::complain(text);
            self.said.push(text.to_owned());
        }
    }
}

/// Removes the bar.
fn remove_bar() {
    if output::shows_progress() {
        output::progress("");
    }
}
