//! A whole worker program around projections: settings, signals, logging, the metrics server, the
//! migration and exit codes, and commands for operators. Needs the feature `cli`.
//!
//! ```no_run
//! use std::process::ExitCode;
//!
//! use pupsourcing_orchestrator::{BoxError, Event, Projection, Tx, cli};
//!
//! struct Orders;
//!
//! impl Projection for Orders {
//!     fn name(&self) -> &str {
//!         "orders"
//!     }
//!
//!     fn handle(&self, tx: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
//!         let sql = "INSERT INTO orders VALUES ($1) ON CONFLICT DO NOTHING";
//!         tx.execute(sql, &[&event.aggregate_id()])?;
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     let table = "CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)";
//!     cli::main(|worker| worker.projection(Orders).migration_sql(table))
//! }
//! ```
//!
//! # Commands
//!
//! | command | |
//! |---|---|
//! | `run`, or none | runs the projections as a worker, until SIGTERM or SIGINT |
//! | `migrate` | creates or updates the tables, then executes the application's migration |
//! | `migrate --print` | writes the SQL instead of executing it; connects to nothing |
//! | `status` | shows the replica set: its workers and its projections |
//! | `status --json` | the same as JSON, with the fields of `overview.replica_set` in `/status` |
//! | `status --watch` | shows it every second, until SIGTERM or SIGINT |
//! | `check` | checks whether a worker could run here; `--json` for scripts |
//! | `catch-up` | runs as a worker until the replica set has processed all events visible now |
//! | `catch-up --to-position N` | the same, up to a global position |
//! | `projections` | shows the projections, and how to go on with each that does not proceed |
//! | `pause NAME --reason …` | stops a projection on all workers, across restarts and deployments |
//! | `resume NAME` | continues a paused projection |
//! | `rewind NAME (--to-beginning \| --to-position N \| --to-time T) --reason …` | clears the read model with the projection's own code, and handles the events again |
//! | `rebuild NAME --reason … [--rate N\|unlimited] [--keep-old] [--copy]` | builds a read model anew while readers use the live one, then switches; shows the progress until then |
//! | `rebuild NAME --status` | shows how far it is, what blocks it, and which former tables are kept |
//! | `rebuild NAME --cancel --reason …` | ends it without a switch |
//! | `rebuild NAME --revert`, `--drop-old` | brings back, or drops, the former tables that `--keep-old` has kept |
//! | `rebuild NAME --aggregate CONTEXT/TYPE/ID` | rebuilds the rows of one aggregate, in place |
//! | `remove NAME` | forgets a projection that no running worker knows |
//! | `parked [NAME]` | shows the aggregates whose events are not handled, because one failed |
//! | `replay NAME (--all \| --aggregate CONTEXT/TYPE/ID \| --error-like TEXT)` | asks for a retry of them; `parked` shows the result |
//! | `discard NAME --event ID --reason …` | never handles an event that fails; the aggregate goes on after it |
//! | `history [NAME]` | shows the last commands: who gave them, why, and what they did |
//! | `wait NAME…` | waits until the running workers have processed all events visible now |
//! | `wait NAME… --position N --timeout 1m` | the same, up to a global position; by default for 10 s at most |
//!
//! `run` and `catch-up` migrate first, and wait for a server that is away. Each line of `check` is
//! ok, a warning or an error, with the remedy.
//!
//! The commands from `projections` to `history` have `--json`, and work on the projections of
//! `REPLICA_SET`. `wait` works on those of all replica sets, and has no `--json`.
//! `pause`, `resume`, `rewind`, `rebuild`, `remove`, `replay` and `discard` wait until a worker has
//! applied the command, for up to `--timeout` (30 s), and print what it has done: "orders is paused
//! at position 81,234 on 3 workers". With `--no-wait` they print its number. `rebuild` waits that
//! long until it has begun, and then shows the progress until it is done: a bar on a terminal,
//! otherwise a line a minute, on standard error. The first signal ends only the watching, with code
//! 4; the rebuild goes on. `--by` says who gives the
//! command; it defaults to the database user and the host. [`operator`](crate::operator) offers the
//! same to programs, and [the page on operating](crate::guide::operating) has the same in SQL.
//!
//! Results are written to standard output, errors and the log to standard error. Tables have
//! colours only on a terminal, and not if `NO_COLOR` is set.
//!
//! # Exit codes
//!
//! | code | |
//! |---|---|
//! | 0 | success: a graceful stop, tables up to date, no error found, the position reached |
//! | 1 | failure; or `check` found an error |
//! | 2 | a setting or an argument is missing or wrong; its name is in the message |
//! | 3 | the command for a projection is refused: there is no such projection, it belongs to another replica set, or its state does not allow it |
//! | 4 | the command is recorded, and not applied yet: the time is over, or no worker runs |
//! | 128 + n | a second signal n ended the process at once |
//!
//! `catch-up` fails if a projection halts or is paused, or if a signal comes before the position is
//! reached. `wait` fails if a projection does not get there in time, or cannot. `migrate` fails if
//! a signal comes before the tables are up to date. If a second signal ends a process, other
//! workers process what it has not committed.
//!
//! # Settings
//!
//! Each setting is a flag and an environment variable; the flag wins. An empty variable is ignored.
//! A variable that begins with `ORCHESTRATOR_` and is not a setting is ignored with a line in the
//! log. Other users of the machine may see the flags of a process, so set a password in the
//! variable.
//!
#![doc = include_str!("settings.md")]

mod arguments;
mod catch_up;
mod check;
mod failure;
mod flags;
mod migration;
mod operating;
mod output;
mod overview;
mod run;
mod settings;
mod shell;
mod signals;
mod status;
mod table;
mod wait;
mod worker;

use std::process::ExitCode;

use arguments::Task;
use failure::Failure;
pub use signals::shutdown_signal;
pub use worker::Worker;

use crate::error::field;

/// Runs the worker program: reads the arguments and the environment, and executes the command that
/// they ask for. The closure adds the projections.
///
/// Returns the [exit code](self#exit-codes) for `main` to return.
pub fn main(set_up: impl FnOnce(Worker) -> Worker) -> ExitCode {
    let worker = set_up(Worker::default());
    let arguments: Vec<_> = std::env::args_os().collect();
    let arguments = match arguments::read(&arguments, worker.own_version()) {
        Ok(arguments) => arguments,
        Err(answer) => return answer.give(),
    };
    match start_log(&arguments).and_then(|()| execute(worker, arguments)) {
        Ok(code) => code,
        Err(failure) => {
            failure.report();
            failure.exit_code()
        }
    }
}

fn execute(worker: Worker, arguments: arguments::Arguments) -> Result<ExitCode, Failure> {
    let arguments::Arguments { task, settings } = arguments;
    let service = run::Service::of(&settings)?;
    let url = match task {
        // `migrate --print` does not connect, so it needs no URL.
        Task::Migrate { print: true } => settings.text(settings::DATABASE_URL).unwrap_or("postgres://localhost"),
        _ => settings.database_url()?,
    };
    let program = worker.assemble(url, &settings)?;
    match task {
        Task::Run => run::run(program, &service),
        Task::Migrate { print: false } => migration::migrate(program),
        Task::Migrate { print: true } => Ok(migration::print(&program)),
        Task::Status { json, watch } => status::status(&program.orchestrator, json, watch),
        Task::Check { json } => check::check(&program.orchestrator, json),
        Task::Wait(wait) => wait::wait(&program.orchestrator, &wait),
        Task::CatchUp { to_position } => catch_up::catch_up(program, to_position),
        Task::Operate(asked) => operating::operate(&program.orchestrator, asked),
    }
}

/// Starts the log. A command that writes results or shows its progress logs only warnings and
/// errors.
fn start_log(arguments: &arguments::Arguments) -> Result<(), Failure> {
    let is_shown = matches!(arguments.task, Task::CatchUp { .. }) && output::shows_progress();
    let usual = if arguments.task.is_service() && !is_shown { "info" } else { "warn" };
    let filter = arguments.settings.log_filter()?.unwrap_or(usual);
    // Fails if the application has set a logger; then that logger is used.
    _ = env_logger::Builder::new().parse_filters(filter).try_init();
    for variable in settings::unknown(std::env::vars_os().map(|(name, _)| name)) {
        log::warn!("unknown setting, ignored: variable={}", field(&variable));
    }
    Ok(())
}
