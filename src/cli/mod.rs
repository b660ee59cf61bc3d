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
//!         tx.execute("INSERT INTO orders VALUES ($1) ON CONFLICT DO NOTHING", &[&event.aggregate_id()])?;
//!         Ok(())
//!     }
//! }
//!
//! fn main() -> ExitCode {
//!     cli::main(|worker| {
//!         worker.projection(Orders).migration_sql("CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY)")
//!     })
//! }
//! ```
//!
//! # Commands
//!
//! | command | |
//! |---|---|
//! | `run`, or none | runs the projections as a worker of the replica set, until SIGTERM or SIGINT |
//! | `migrate` | creates the tables or brings them up to date, then executes the application's migration |
//! | `migrate --print` | writes the SQL instead of executing it; connects to nothing |
//! | `status` | shows the replica set: its workers and its projections |
//! | `status --json` | the same as JSON, with the fields of `overview.replica_set` in `/status` |
//! | `status --watch` | shows it again every second, until SIGTERM or SIGINT |
//! | `check` | checks whether a worker could run here; each line is ok, a warning or an error, with the remedy; `--json` for scripts |
//! | `catch-up` | runs as a worker until everything that is visible now is processed by the whole replica set |
//! | `catch-up --to-position N` | the same, up to a global position |
//!
//! `run` and `catch-up` migrate first, and wait for a server that is away.
//!
//! Results are written to standard output, errors and the log to standard error. Tables have
//! colours only on a terminal, and not if `NO_COLOR` is set.
//!
//! # Exit codes
//!
//! | code | |
//! |---|---|
//! | 0 | it is done: a graceful stop, tables up to date, no error found, the position reached |
//! | 1 | it failed; for `check`, an error was found; for `catch-up`, a projection halted or is paused, or a signal came first; for `migrate`, a signal came first |
//! | 2 | a setting or an argument is missing or wrong; its name is in the message |
//! | 128 + n | a second signal n ended the process at once: what it has not committed, others process |
//!
//! # Settings
//!
//! Each is a flag and an environment variable; the flag wins. A variable that is empty is ignored; so
//! is one that begins with `ORCHESTRATOR_` and is no setting, with a line in the log.
//! Other users of the machine may see the flags of a process, so a password belongs into the variable.
//!
#![doc = include_str!("settings.md")]

mod arguments;
mod catch_up;
mod check;
mod failure;
mod migration;
mod output;
mod run;
mod settings;
mod signals;
mod status;
mod table;
mod worker;

use std::process::ExitCode;

use arguments::Task;
use failure::Failure;
pub use signals::shutdown_signal;
pub use worker::Worker;

use crate::error::field;

/// Runs the program: reads arguments and environment, and does what they ask for. The closure adds
/// the projections.
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
        // It connects to nothing.
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
        Task::CatchUp { to_position } => catch_up::catch_up(program, to_position),
    }
}

/// What writes results, or shows its progress, logs only what goes wrong.
fn start_log(arguments: &arguments::Arguments) -> Result<(), Failure> {
    let is_shown = matches!(arguments.task, Task::CatchUp { .. }) && output::shows_progress();
    let usual = if arguments.task.is_service() && !is_shown { "info" } else { "warn" };
    let filter = arguments.settings.log_filter()?.unwrap_or(usual);
    // The application may have set a logger.
    _ = env_logger::Builder::new().parse_filters(filter).try_init();
    for variable in settings::unknown(std::env::vars_os().map(|(name, _)| name)) {
        log::warn!("unknown setting, ignored: variable={}", field(&variable));
    }
    Ok(())
}
