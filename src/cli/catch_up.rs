//! `catch-up`: a worker that leaves when everything is processed.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::failure::Failure;
use super::migration::{apply, unless_stopped};
use super::output;
use super::signals::shutdown_signal;
use super::table::time;
use super::worker::Program;
use crate::catch_up::Progress;
use crate::error::field;

/// How often the progress is logged if it cannot be shown on a terminal.
const LOG_EVERY: Duration = Duration::from_secs(10);

pub(super) fn catch_up(program: Program, to_position: Option<i64>) -> Result<ExitCode, Failure> {
    let Program { orchestrator, migrations } = program;
    let shutdown = shutdown_signal()?;
    let begun = Instant::now();
    let migrated = unless_stopped(&shutdown, move || {
        apply(&orchestrator, migrations)?;
        Ok(orchestrator)
    })?;
    let Some(orchestrator) = migrated else { return Err(stopped_early(None)) };
    let is_shown = output::shows_progress();
    let mut logged = begun;
    let replica_set = orchestrator.replica_set().to_owned();
    let end = orchestrator.run_to(to_position, &shutdown, |progress| {
        if is_shown {
            output::progress(&line(progress));
        } else if logged.elapsed() >= LOG_EVERY {
            logged = Instant::now();
            log_progress(&replica_set, progress);
        }
    });
    if is_shown {
        output::progress("");
    }
    let end = end?;
    if !end.is_complete() {
        return Err(stopped_early(end.target));
    }
    let position = end.target.unwrap_or(0);
    output::write(&format!("position {position} reached after {}", time(begun.elapsed().as_secs_f64())));
    Ok(ExitCode::SUCCESS)
}

fn stopped_early(target: Option<i64>) -> Failure {
    let position = target.map_or_else(|| "the position".to_owned(), |target| format!("position {target}"));
    Failure::Failed(format!("stopped before {position} was reached").into())
}

/// Formats the progress in one line for a terminal.
fn line(progress: &Progress) -> String {
    let Progress { position, target, left, events_per_second, time_to_go } = progress;
    let (Some(position), Some(target)) = (position, target) else { return "starting".to_owned() };
    let mut line = format!("position {position} of {target}, {left} events to go");
    if let Some(rate) = events_per_second {
        line = format!("{line}, {rate:.0}/s");
    }
    if let Some(left) = time_to_go {
        line = format!("{line}, {} to go", time(left.as_secs_f64()));
    }
    line
}

fn log_progress(replica_set: &str, progress: &Progress) {
    let Progress { position: Some(position), target: Some(target), left, events_per_second, .. } = progress else {
        return;
    };
    log::info!(
        "catching up: replica_set={replica_set} position={position} target={target} left={left} events_per_second={rate}",
        replica_set = field(replica_set),
        target = field(target),
        left = field(left),
        rate = field(&format!("{:.0}", events_per_second.unwrap_or(0.0)))
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_shows_what_is_known() {
        let mut progress = Progress::default();
        assert_eq!(line(&progress), "starting");
        progress.position = Some(40);
        progress.target = Some(100);
        progress.left = 120;
        assert_eq!(line(&progress), "position 40 of 100, 120 events to go");
        progress.events_per_second = Some(12.4);
        progress.time_to_go = Some(Duration::from_millis(9_700));
        assert_eq!(line(&progress), "position 40 of 100, 120 events to go, 12/s, 9.7 s to go");
    }
}
