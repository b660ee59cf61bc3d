//! The arguments of the program, and `--help`, which is generated from the settings.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command, value_parser};

use super::failure::Failure;
use super::flags::{json, switch};
use super::operating::{self, Asked};
use super::output;
use super::settings::{self, Setting, Settings};
use super::wait::Wait;
use crate::config::duration;
use crate::error::redacted;

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Task {
    Run,
    Migrate { print: bool },
    Status { json: bool, watch: bool },
    Check { json: bool },
    CatchUp { to_position: Option<i64> },
    Operate(Asked),
    Wait(Wait),
}

impl Task {
    /// Whether the task runs in the background, with a log, and not for a user who waits for it.
    pub(super) fn is_service(&self) -> bool {
        match self {
            Self::Run | Self::Migrate { .. } | Self::CatchUp { .. } => true,
            Self::Status { .. } | Self::Check { .. } | Self::Wait(_) | Self::Operate(_) => false,
        }
    }
}

#[derive(Debug)]
pub(super) struct Arguments {
    pub(super) task: Task,
    pub(super) settings: Settings,
}

/// What the program writes instead of executing a task.
#[derive(Debug)]
pub(super) enum Answer {
    /// The answer to `--help`, to `--version`, or to a wrong argument.
    OfClap(clap::Error),
    Wrong(Failure),
}

impl Answer {
    /// Writes the answer, and returns the exit code.
    pub(super) fn give(&self) -> ExitCode {
        match self {
            Self::OfClap(answer) => {
                let text = answer.render().to_string();
                if answer.use_stderr() {
                    // A user may have given a connection string as a wrong argument.
                    output::complain(redacted(&text).trim_end());
                    ExitCode::from(2)
                } else {
                    output::write(text.trim_end());
                    ExitCode::SUCCESS
                }
            }
            Self::Wrong(failure) => {
                failure.report();
                failure.exit_code()
            }
        }
    }
}

/// Reads the arguments and the environment. The first argument is the program's name. `version` is
/// that of the application.
pub(super) fn read(arguments: &[OsString], version: Option<&str>) -> Result<Arguments, Answer> {
    let settings = settings::all();
    let program = arguments.first().and_then(|program| Path::new(program).file_stem());
    let program = program.map_or("worker".into(), |name| name.to_string_lossy());
    let matches = command(&program, version, &settings).try_get_matches_from(arguments).map_err(Answer::OfClap)?;
    let given = |variable: &str| matches.get_one::<OsString>(variable).map(OsString::as_os_str);
    let environment = |variable: &str| std::env::var_os(variable);
    let settings = Settings::of(&settings, given, environment).map_err(Answer::Wrong)?;
    Ok(Arguments { task: task(&matches), settings })
}

fn task(matches: &ArgMatches) -> Task {
    match matches.subcommand() {
        Some(("migrate", own)) => Task::Migrate { print: own.get_flag("print") },
        Some(("status", own)) => Task::Status { json: own.get_flag("json"), watch: own.get_flag("watch") },
        Some(("check", own)) => Task::Check { json: own.get_flag("json") },
        Some(("catch-up", own)) => Task::CatchUp { to_position: own.get_one("to_position").copied() },
        Some(("wait", own)) => Task::Wait(Wait {
            projections: own.get_many("projections").into_iter().flatten().cloned().collect(),
            position: own.get_one("position").copied(),
            timeout: own.get_one("timeout").copied().unwrap_or_default(),
        }),
        Some((name, own)) => operating::asked(name, own).map_or(Task::Run, Task::Operate),
        None => Task::Run,
    }
}

fn command(program: &str, version: Option<&str>, settings: &[Setting]) -> Command {
    let to_position = Arg::new("to_position")
        .long("to-position")
        .value_name("N")
        .value_parser(value_parser!(i64).range(0..))
        .help("Stop at this global position instead of the newest one");
    let wait_for = [
        Arg::new("projections").value_name("NAME").required(true).num_args(1..).help("The projections"),
        Arg::new("position")
            .long("position")
            .value_name("N")
            .value_parser(value_parser!(i64).range(0..))
            .help("Wait for this global position instead of the newest one"),
        Arg::new("timeout")
            .long("timeout")
            .value_name("DURATION")
            .value_parser(duration)
            .default_value("10s")
            .help("Give up after this time"),
    ];
    let library = concat!("pupsourcing-orchestrator ", env!("CARGO_PKG_VERSION"));
    Command::new(program.to_owned())
        .version(version.map_or_else(|| format!("({library})"), |version| format!("{version} ({library})")))
        .about("Runs projections as a worker of a replica set, on PostgreSQL")
        .max_term_width(100)
        .after_help(format!(
            "Exit codes: 0 done; 1 failed, or an error was found; 2 a setting or an argument is missing or wrong; \
             3 the command for a projection is refused; 4 it is recorded, and not applied yet; 128 + n after a second signal n.\n\
             Each setting is a flag and an environment variable; the flag wins. A secret is only a variable, because other \
             users of the host can see flags:{}",
            settings.iter().filter(|setting| setting.flag.is_none()).map(secret).collect::<String>()
        ))
        .args(settings.iter().filter_map(argument))
        .subcommands([
            Command::new("run").about("Run the projections until SIGTERM or SIGINT; the default command"),
            Command::new("migrate")
                .about("Create the tables, or bring them up to date, and exit")
                .arg(switch("print", "Write the SQL instead of executing it; opens no connection")),
            Command::new("status")
                .about("Show the workers and the projections of the replica set")
                .args([json(), switch("watch", "Show it again every second, until SIGTERM or SIGINT")]),
            Command::new("check")
                .about("Check whether a worker could run here; exits with 1 if there is an error")
                .arg(json()),
            Command::new("catch-up")
                .about("Run as a worker until everything that is visible now is processed; exits with 1 if a projection halts")
                .arg(to_position),
            Command::new("wait")
                .about("Wait until projections have processed everything that is visible now; exits with 1 if they cannot")
                .args(wait_for),
        ])
        .subcommands(operating::subcommands())
}

fn secret(setting: &Setting) -> String {
    let Setting { variable, default, allowed, summary, .. } = setting;
    format!("\n\n  {variable}  {summary} [default: {default}] [allowed: {allowed}]")
}

/// The argument of a setting; `None` if the setting has no flag.
fn argument(setting: &Setting) -> Option<Arg> {
    let Setting { variable, flag, default, allowed, summary, more, option } = setting;
    let more = if more.is_empty() { String::new() } else { format!("\n\n{more}") };
    let default = if default == settings::REQUIRED { default.clone() } else { format!("default: {default}") };
    let long = format!("{summary}{more}\n\n[{default}] [allowed: {allowed}] [env: {variable}]");
    let argument = Arg::new(variable.clone())
        .long(flag.clone()?)
        .value_name("VALUE")
        .value_parser(value_parser!(OsString))
        // Lets the setting refuse a negative number. Otherwise clap would refuse it as an unknown
        // flag.
        .allow_hyphen_values(true)
        .global(true)
        .help_heading(if option.is_some() { "Options of the library" } else { "Settings" })
        .help(format!("{summary} [{default}] [env: {variable}]"))
        .long_help(long);
    Some(argument)
}

/// Returns the text of `--help`, for the tests.
#[cfg(test)]
fn help() -> String {
    command("worker", None, &settings::all()).render_long_help().to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::{Config, variable};

    fn read_as(arguments: &[&str]) -> Result<Arguments, Answer> {
        let arguments = ["worker"].iter().chain(arguments).map(OsString::from).collect::<Vec<_>>();
        read(&arguments, None)
    }

    #[test]
    fn the_arguments_are_consistent() {
        command("worker", None, &settings::all()).debug_assert();
    }

    #[test]
    fn a_program_has_its_own_name_and_version() {
        for (program, version, said) in [
            ("/usr/bin/shop-worker", Some("1.2.3"), "shop-worker 1.2.3 (pupsourcing-orchestrator "),
            ("worker", None, "worker (pupsourcing-orchestrator "),
        ] {
            let Err(Answer::OfClap(answer)) = read(&[program, "--version"].map(OsString::from), version) else {
                panic!("--version is no answer")
            };
            assert!(answer.to_string().starts_with(said), "{answer}");
        }
        let Err(Answer::OfClap(help)) = read(&["./shop", "--help"].map(OsString::from), None) else {
            panic!("--help is no answer")
        };
        assert!(help.to_string().contains("Usage: shop "), "{help}");
    }

    #[test]
    fn help_names_every_option_its_variable_and_its_default() {
        // Removes the line breaks, because clap wraps its lines.
        let help = help().split_whitespace().collect::<Vec<_>>().join(" ");
        for option in Config::declared() {
            let flag = format!("--{} <VALUE>", option.name.replace(['_', '.'], "-"));
            let default = format!("[default: {}]", option.documented.default);
            for part in [flag.as_str(), &variable("ORCHESTRATOR_", option.name), &default, option.documented.bounds] {
                assert!(help.contains(part), "{part} in: {help}");
            }
        }
        for part in ["DATABASE_URL", "METRICS_ADDR", "RUST_LOG", "catch-up", "Exit codes: 0 done"] {
            assert!(help.contains(part), "{part} in: {help}");
        }
        assert!(!help.contains("](") && !help.contains('`'), "{help}");
    }

    #[test]
    fn a_command_is_read_with_what_belongs_to_it() {
        let wait = |projections: &[&str], position, timeout| {
            let projections = projections.iter().map(|&name| name.to_owned()).collect();
            Task::Wait(Wait { projections, position, timeout })
        };
        for (arguments, task) in [
            (&[][..], Task::Run),
            (&["run"], Task::Run),
            (&["migrate"], Task::Migrate { print: false }),
            (&["migrate", "--print"], Task::Migrate { print: true }),
            (&["status"], Task::Status { json: false, watch: false }),
            (&["status", "--watch", "--json"], Task::Status { json: true, watch: true }),
            (&["check", "--json"], Task::Check { json: true }),
            (&["catch-up"], Task::CatchUp { to_position: None }),
            (&["catch-up", "--to-position", "7"], Task::CatchUp { to_position: Some(7) }),
            (&["wait", "p"], wait(&["p"], None, Duration::from_secs(10))),
            (
                &["wait", "p", "q", "--position=7", "--timeout", "500ms"],
                wait(&["p", "q"], Some(7), Duration::from_millis(500)),
            ),
        ] {
            assert_eq!(read_as(arguments).unwrap().task, task, "{arguments:?}");
        }
        // Before and after the command.
        for arguments in [["--replica-set=a", "status", "--lanes=2"], ["status", "--replica-set=a", "--lanes=2"]] {
            let settings = read_as(&arguments).unwrap().settings;
            assert_eq!(settings.text(settings::REPLICA_SET), Some("a"), "{arguments:?}");
            assert!(settings.options().any(|option| option == ("lanes", "--lanes", "2")), "{arguments:?}");
        }
    }

    #[test]
    fn a_wrong_argument_is_refused_by_name() {
        for (arguments, part) in [
            (&["migrat"][..], "migrat"),
            (&["migrate", "now"], "now"),
            (&["--lane=1"], "--lane"),
            (&["--lanes"], "--lanes"),
            (&["--lanes=1", "--lanes=2"], "--lanes"),
            (&["catch-up", "--to-position", "x"], "--to-position"),
            (&["catch-up", "--to-position=-1"], "--to-position"),
            (&["wait"], "<NAME>"),
            (&["wait", "p", "--timeout", "10"], "a duration such as 500ms"),
            (&["wait", "p", "--position=-1"], "--position"),
            (&["status", "--print"], "--print"),
            (&["check", "--watch"], "--watch"),
        ] {
            let Err(Answer::OfClap(answer)) = read_as(arguments) else { panic!("{arguments:?} is accepted") };
            assert!(answer.use_stderr() && answer.to_string().contains(part), "{arguments:?}: {answer}");
        }
    }
}
