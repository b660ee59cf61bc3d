//! The arguments of `rebuild`: it begins a rebuild, or does something with one.

use clap::{Arg, ArgGroup, ArgMatches, Command as Subcommand};

use super::super::flags::{aggregate, needed, switch};
use crate::event::StreamId;
use crate::operator::{Command, Rebuild};

/// The flags in place of which a rebuild is begun.
const INSTEAD: [&str; 5] = ["cancel", "status", "revert", "drop-old", "aggregate"];

/// How many events per second are handled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rate {
    AtMost(u32),
    Unlimited,
}

/// Adds the arguments of `rebuild` to those that every command for a projection has.
pub(super) fn subcommand(command: Subcommand) -> Subcommand {
    let instead = |arg: Arg| arg.conflicts_with("instead");
    command
        .about("Build a read model anew while readers use the live one, then switch; shows the progress until then")
        .mut_arg("reason", |reason| reason.required_unless_present_any(["status", "revert", "drop-old", "aggregate"]))
        .args([
            instead(needed("rate", "EVENTS_PER_SECOND"))
                .value_parser(rate)
                .help("Handle at most so many events per second, or `unlimited` [default: 5000]"),
            instead(switch("keep-old", "Keep the former tables, so that --revert brings them back")),
            instead(switch(
                "copy",
                "Replace the content of the tables instead of the tables: for tables on which views or foreign keys depend",
            ))
            .conflicts_with("keep-old"),
            switch("cancel", "End the rebuild without a switch; the live read model stays"),
            switch("status", "Show how far the rebuild is, what blocks it, and which former tables are kept")
                .conflicts_with_all(["reason", "by", "no-wait", "timeout"]),
            switch("revert", "Bring the former tables back that --keep-old has kept"),
            switch("drop-old", "Drop the former tables that --keep-old has kept"),
            needed("aggregate", "CONTEXT/TYPE/ID")
                .value_parser(aggregate)
                .help("Rebuild the rows of this aggregate only, in place"),
        ])
        .group(ArgGroup::new("instead").args(INSTEAD))
}

/// Returns the command that is asked for; `None` if it is the status.
pub(super) fn asked(projection: String, own: &ArgMatches) -> Option<Command> {
    if own.get_flag("status") {
        return None;
    }
    if own.get_flag("cancel") {
        return Some(Command::cancel_rebuild(projection));
    }
    if own.get_flag("revert") {
        return Some(Command::revert_rebuild(projection));
    }
    if own.get_flag("drop-old") {
        return Some(Command::drop_old(projection));
    }
    if let Some(aggregate) = own.get_one::<StreamId>("aggregate") {
        return Some(Command::rebuild_aggregate(projection, aggregate.clone()));
    }
    let mut rebuild = match own.get_one::<Rate>("rate") {
        Some(Rate::AtMost(rate)) => Rebuild::default().rate(*rate),
        Some(Rate::Unlimited) => Rebuild::default().unlimited(),
        None => Rebuild::default(),
    };
    if own.get_flag("keep-old") {
        rebuild = rebuild.keep_old();
    }
    if own.get_flag("copy") {
        rebuild = rebuild.copy();
    }
    Some(Command::rebuild(projection, rebuild))
}

fn rate(text: &str) -> Result<Rate, &'static str> {
    if text == "unlimited" {
        return Ok(Rate::Unlimited);
    }
    let rate = text.parse().ok().filter(|rate| (1..=i32::MAX.unsigned_abs()).contains(rate));
    rate.map(Rate::AtMost).ok_or("it must be `unlimited`, or a number of events per second, such as 20000")
}
