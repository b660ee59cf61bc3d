//! The arguments of the commands for operators.

use std::time::Duration;

use clap::{Arg, ArgGroup, ArgMatches, Command as Subcommand, value_parser};
use uuid::Uuid;

use super::super::flags::{aggregate, json, needed, switch, value};
use super::rebuild;
use crate::config::duration;
use crate::operator::{Command, Replay, RewindTo};

/// How many commands `history` shows by default.
const LAST: &str = "50";
/// How long a command waits by default.
const TIMEOUT: &str = "30s";

/// What an operator asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Projections {
        /// Whether the events per second are measured.
        rate: bool,
        json: bool,
    },
    History {
        projection: Option<String>,
        last: u32,
        json: bool,
    },
    Parked {
        projection: Option<String>,
        json: bool,
    },
    /// How far the rebuild of a projection is.
    Rebuild {
        projection: String,
        json: bool,
    },
    Command {
        command: Command,
        by: Option<String>,
        /// `None` if the command is only recorded.
        timeout: Option<Duration>,
        json: bool,
    },
}

/// Reads what is asked for; `None` if the name is not that of a command for operators.
pub(crate) fn asked(name: &str, own: &ArgMatches) -> Option<Asked> {
    let projection = own.try_get_one::<String>("name").ok().flatten().cloned();
    let json = own.try_get_one("json").ok().flatten().copied().unwrap_or(false);
    match name {
        "projections" => return Some(Asked::Projections { rate: !own.get_flag("no-rate"), json }),
        "history" => return Some(Asked::History { projection, last: *own.get_one("last")?, json }),
        "parked" => return Some(Asked::Parked { projection, json }),
        _ => {}
    }
    let projection = projection?;
    let command = match name {
        "pause" => Command::pause(projection),
        "resume" => Command::resume(projection),
        "rewind" => {
            let rewind = Command::rewind(projection, rewind_to(own)?);
            if own.get_flag("repeat-effects") { rewind.repeat_effects() } else { rewind }
        }
        "remove" => Command::remove(projection),
        "replay" => Command::replay(projection, replay(own)?),
        "discard" => Command::discard(projection, *own.get_one("event")?),
        "rebuild" => match rebuild::asked(projection.clone(), own) {
            Some(command) => command,
            None => return Some(Asked::Rebuild { projection, json }),
        },
        _ => return None,
    };
    let reason = own.get_one::<String>("reason").cloned();
    Some(Asked::Command {
        command: match reason {
            Some(reason) => command.reason(reason),
            None => command,
        },
        by: own.get_one("by").cloned(),
        timeout: if own.get_flag("no-wait") { None } else { own.get_one("timeout").copied() },
        json,
    })
}

fn rewind_to(own: &ArgMatches) -> Option<RewindTo> {
    if own.get_flag("to-beginning") {
        return Some(RewindTo::Beginning);
    }
    let position = own.get_one("to-position").copied().map(RewindTo::Position);
    position.or_else(|| own.get_one("to-time").copied())
}

fn replay(own: &ArgMatches) -> Option<Replay> {
    if own.get_flag("all") {
        return Some(Replay::All);
    }
    let aggregate = own.get_one("aggregate").cloned().map(Replay::Aggregate);
    aggregate.or_else(|| own.get_one("error-like").cloned().map(Replay::ErrorLike))
}

/// The commands for operators.
pub(crate) fn subcommands() -> [Subcommand; 10] {
    [
        Subcommand::new("projections")
            .about("Show the projections of the replica set, and how to go on with each that does not proceed")
            .args([switch("no-rate", "Do not measure the events per second, which takes a second"), json()]),
        Subcommand::new("history").about("Show the last commands: who gave them, why, and what they did").args([
            optional_name(),
            value("last", "N", LAST).value_parser(value_parser!(u32).range(1..)).help("How many to show"),
            json(),
        ]),
        Subcommand::new("parked")
            .about("Show the aggregates whose events are not handled, because one of them has failed")
            .args([optional_name(), json()]),
        command("pause", true).about("Stop a projection on all workers, until it is resumed"),
        command("resume", false).about("Continue a paused projection"),
        command("rewind", true)
            .about("Let a projection clear its read model, and handle the events from an earlier position on again")
            .args([
                switch("to-beginning", "Begin at the first event"),
                switch("repeat-effects", "Let a reaction react to the events again"),
                needed("to-position", "N")
                    .value_parser(value_parser!(i64).range(0..))
                    .help("Begin at the first event above this global position"),
                needed("to-time", "TIME")
                    .value_parser(|text: &str| RewindTo::time(text))
                    .help("Begin at the first event of this time or later, such as 2026-01-31T12:00:00Z"),
            ])
            .group(ArgGroup::new("to").args(["to-beginning", "to-position", "to-time"]).required(true)),
        rebuild::subcommand(command("rebuild", false)),
        command("remove", false).about("Forget a projection that no running worker knows; its read model stays"),
        command("replay", false)
            .about("Retry parked aggregates; returns when the replay is requested, and parked shows the result")
            .args([
                switch("all", "Replay all aggregates that the projection has parked"),
                needed("aggregate", "CONTEXT/TYPE/ID").value_parser(aggregate).help("Replay this aggregate"),
                needed("error-like", "TEXT")
                    .help("Replay those whose last error matches this pattern of SQL's LIKE, such as %timeout%"),
            ])
            .group(ArgGroup::new("which").args(["all", "aggregate", "error-like"]).required(true)),
        command("discard", true)
            .about("Never handle an event that fails; if its aggregate is parked, replay those after it")
            .arg(needed("event", "ID").required(true).value_parser(event).help("The id of the event")),
    ]
}

/// A command for one projection.
fn command(name: &'static str, needs_reason: bool) -> Subcommand {
    Subcommand::new(name).args([
        Arg::new("name").value_name("NAME").required(true).help("The projection"),
        needed("reason", "TEXT").required(needs_reason).help("Why, for the history"),
        needed("by", "WHO").help("Who gives the command, for the history [default: the database user and this host]"),
        switch("no-wait", "Print the number of the command, and do not wait until it is applied"),
        value("timeout", "DURATION", TIMEOUT)
            .value_parser(duration)
            .help("How long to wait until it is applied, such as 2m"),
        json(),
    ])
}

fn optional_name() -> Arg {
    Arg::new("name").value_name("NAME").help("Only those of this projection")
}

fn event(text: &str) -> Result<Uuid, &'static str> {
    Uuid::parse_str(text).map_err(|_| "it must be the id of an event, such as 67e55044-10b1-426f-9247-bb680e5fe0c8")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StreamId;
    use crate::operator::Rebuild;

    fn read(arguments: &[&str]) -> Result<Asked, String> {
        let program = Subcommand::new("worker").subcommands(subcommands());
        let matches = program
            .try_get_matches_from(["worker"].iter().chain(arguments))
            .map_err(|error| error.render().to_string())?;
        let (name, own) = matches.subcommand().unwrap();
        Ok(asked(name, own).unwrap())
    }

    fn given(command: Command) -> Asked {
        Asked::Command { command, by: None, timeout: Some(Duration::from_secs(30)), json: false }
    }

    #[test]
    fn each_command_is_read_with_what_belongs_to_it() {
        let id = Uuid::from_u128(7).to_string();
        let noon = RewindTo::time("2026-01-31T12:00:00Z").unwrap();
        let odd = StreamId::new("shop", "Order", "a/b/");
        for (arguments, asked) in [
            (&["projections"][..], Asked::Projections { rate: true, json: false }),
            (&["projections", "--no-rate", "--json"], Asked::Projections { rate: false, json: true }),
            (&["history"], Asked::History { projection: None, last: 50, json: false }),
            (&["history", "p", "--last=3"], Asked::History { projection: Some("p".into()), last: 3, json: false }),
            (&["parked", "--json"], Asked::Parked { projection: None, json: true }),
            (&["pause", "p", "--reason=full"], given(Command::pause("p").reason("full"))),
            (&["resume", "p"], given(Command::resume("p"))),
            (&["resume", "p", "--reason=-"], given(Command::resume("p").reason("-"))),
            (
                &["rewind", "p", "--to-beginning", "--reason=r"],
                given(Command::rewind("p", RewindTo::Beginning).reason("r")),
            ),
            (
                &["rewind", "p", "--to-position=7", "--reason=r"],
                given(Command::rewind("p", RewindTo::Position(7)).reason("r")),
            ),
            (
                &["rewind", "p", "--to-position=7", "--repeat-effects", "--reason=r"],
                given(Command::rewind("p", RewindTo::Position(7)).repeat_effects().reason("r")),
            ),
            (
                &["rewind", "p", "--to-time", "2026-01-31T12:00:00Z", "--reason=r"],
                given(Command::rewind("p", noon).reason("r")),
            ),
            (&["remove", "p"], given(Command::remove("p"))),
            (&["replay", "p", "--all"], given(Command::replay("p", Replay::All))),
            (&["replay", "p", "--aggregate=shop/Order/a/b/"], given(Command::replay("p", Replay::Aggregate(odd)))),
            (&["replay", "p", "--error-like=%no%"], given(Command::replay("p", Replay::ErrorLike("%no%".into())))),
            (
                &["discard", "p", "--event", &id, "--reason=r"],
                given(Command::discard("p", Uuid::from_u128(7)).reason("r")),
            ),
            (&["rebuild", "p", "--reason=r"], given(Command::rebuild("p", Rebuild::default()).reason("r"))),
            (
                &["rebuild", "p", "--reason=r", "--rate=20000", "--keep-old"],
                given(Command::rebuild("p", Rebuild::default().rate(20_000).keep_old()).reason("r")),
            ),
            (
                &["rebuild", "p", "--reason=r", "--rate", "unlimited", "--copy"],
                given(Command::rebuild("p", Rebuild::default().unlimited().copy()).reason("r")),
            ),
            (&["rebuild", "p", "--cancel", "--reason=r"], given(Command::cancel_rebuild("p").reason("r"))),
            (&["rebuild", "p", "--revert"], given(Command::revert_rebuild("p"))),
            (&["rebuild", "p", "--drop-old"], given(Command::drop_old("p"))),
            (
                &["rebuild", "p", "--aggregate=shop/Order/7"],
                given(Command::rebuild_aggregate("p", StreamId::new("shop", "Order", "7"))),
            ),
            (&["rebuild", "p", "--status"], Asked::Rebuild { projection: "p".into(), json: false }),
            (
                &["resume", "p", "--no-wait", "--by=kim", "--json"],
                Asked::Command { command: Command::resume("p"), by: Some("kim".into()), timeout: None, json: true },
            ),
            (
                &["resume", "p", "--timeout=2m"],
                Asked::Command {
                    command: Command::resume("p"),
                    by: None,
                    timeout: Some(Duration::from_secs(120)),
                    json: false,
                },
            ),
        ] {
            assert_eq!(read(arguments), Ok(asked), "{arguments:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        for (arguments, part) in [
            (&["pause"][..], "NAME"),
            (&["pause", "p"], "--reason"),
            (&["rewind", "p", "--reason=r"], "--to-beginning"),
            (&["rewind", "p", "--to-beginning", "--to-position=7", "--reason=r"], "cannot be used with"),
            (&["rewind", "p", "--to-position=-1", "--reason=r"], "-1"),
            (&["rewind", "p", "--to-time=2026-01-31", "--reason=r"], "offset from UTC"),
            (&["replay", "p"], "--aggregate"),
            (&["replay", "p", "--aggregate=shop/Order"], "shop/Order/order-7"),
            (&["replay", "p", "--aggregate=shop//7"], "shop/Order/order-7"),
            (&["discard", "p", "--reason=r"], "--event"),
            (&["discard", "p", "--event=7", "--reason=r"], "the id of an event"),
            (&["resume", "p", "--timeout=5"], "10s"),
            (&["history", "--last=0"], "0"),
            (&["rebuild", "p"], "--reason"),
            (&["rebuild", "p", "--cancel"], "--reason"),
            (&["rebuild", "p", "--reason=r", "--rate=0"], "unlimited"),
            (&["rebuild", "p", "--reason=r", "--rate=fast"], "--rate"),
            (&["rebuild", "p", "--reason=r", "--rate=3000000000"], "such as 20000"),
            (&["rebuild", "p", "--reason=r", "--keep-old", "--copy"], "--copy"),
            (&["rebuild", "p", "--cancel", "--reason=r", "--rate=7"], "--rate"),
            (&["rebuild", "p", "--cancel", "--reason=r", "--keep-old"], "--keep-old"),
            (&["rebuild", "p", "--cancel", "--reason=r", "--copy"], "--copy"),
            (&["rebuild", "p", "--cancel", "--revert", "--reason=r"], "--revert"),
            (&["rebuild", "p", "--status", "--cancel", "--reason=r"], "--status"),
            (&["rebuild", "p", "--status", "--reason=r"], "--reason"),
            (&["rebuild", "p", "--status", "--no-wait"], "--no-wait"),
            (&["rebuild", "p", "--status", "--timeout=2m"], "--timeout"),
            (&["rebuild", "p", "--drop-old", "--keep-old"], "--keep-old"),
            (&["rebuild", "p", "--aggregate=shop/Order"], "shop/Order/order-7"),
            (&["rebuild", "p", "--aggregate=a/b/c", "--rate=7"], "--rate"),
        ] {
            let said = read(arguments).unwrap_err();
            assert!(said.contains(part), "{arguments:?}: {said}");
        }
    }
}
