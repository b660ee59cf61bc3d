//! The command that a request asks for. Pure.

use serde_json::{Map, Value};
use uuid::Uuid;

use crate::event::StreamId;
use crate::operator::{Command, Rebuild, Replay, RewindTo};

const FOLDER: &str = "/projections/";

/// The commands that are taken. `remove` and `drop_old` are not among them, because they cannot be
/// undone.
const COMMANDS: [&str; 8] = ["pause", "resume", "rewind", "replay", "discard", "rebuild", "cancel", "revert"];

/// Whether a path is that of a command, even if there is no such command.
pub(super) fn is_command(path: &str) -> bool {
    path.starts_with(FOLDER)
}

/// The projection and the command that a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) projection: String,
    pub(super) command: &'static str,
}

/// A command, as it was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) command: Command,
    /// Tells replica sets apart that have a projection of the same name.
    pub(super) replica_set: Option<String>,
}

/// Reads a path such as `/projections/orders%2F2026/pause`.
pub(super) fn target(path: &str) -> Result<Target, String> {
    let parts = path.strip_prefix(FOLDER).and_then(|rest| rest.split_once('/'));
    let (name, command) = parts.ok_or("the path must be /projections/NAME/COMMAND")?;
    let command = COMMANDS.into_iter().find(|known| *known == command);
    let command = command.ok_or_else(|| format!("there is no such command; there are {}", COMMANDS.join(", ")))?;
    let projection = decoded(name).filter(|name| !name.is_empty());
    let projection =
        projection.ok_or("the name of the projection must be UTF-8, with % and two digits for other bytes")?;
    Ok(Target { projection, command })
}

/// Decodes `%2F`; `None` if that is malformed, or if the result is no text.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
}

/// Reads the body of a command: the reason, who asks, and the arguments. `peer` names who asks, if
/// the body does not.
pub(super) fn command(target: Target, body: &[u8], peer: &str) -> Result<Asked, String> {
    let Target { projection, command: name } = target;
    let mut given: Map<String, Value> = if body.is_empty() {
        Map::new()
    } else {
        serde_json::from_slice(body).map_err(|error| format!("the body must be a JSON object: {error}"))?
    };
    let (reason, by) = (text(&mut given, "reason")?, text(&mut given, "by")?);
    let replica_set = text(&mut given, "replica_set")?;
    if reason.is_none() && ["pause", "rewind", "discard", "rebuild", "cancel"].contains(&name) {
        return Err(format!("{name} needs a \"reason\", for the history"));
    }
    let expected = match name {
        "rewind" => {
            r#"one of "to_beginning": true, "to_position": 7 and "to_time": "2026-01-31T12:00:00Z", which may have "repeat_effects": true"#
        }
        "replay" => r#"one of "all": true, "aggregate": ["context", "type", "id"] and "error_like": "%pattern%""#,
        "discard" => r#""event": "the id of the event""#,
        "rebuild" => r#"none or any of "rate": 5000 (or null), "keep_old": true and "copy": true"#,
        _ => "nothing else",
    };
    let repeats_effects = name == "rewind" && given.get("repeat_effects") == Some(&Value::Bool(true));
    if repeats_effects {
        given.remove("repeat_effects");
    }
    let command = with_arguments(name, &projection, &given);
    let mut command = command.ok_or_else(|| {
        format!(r#"the body of {name} must have {expected}, and may have "reason", "by" and "replica_set""#)
    })?;
    if repeats_effects {
        command = command.repeat_effects();
    }
    command = command.by(by.unwrap_or_else(|| format!("HTTP client at {peer}")));
    if let Some(reason) = reason {
        command = command.reason(reason);
    }
    Ok(Asked { command, replica_set })
}

/// Returns the command with exactly these arguments; `None` if it has others.
fn with_arguments(name: &str, projection: &str, given: &Map<String, Value>) -> Option<Command> {
    if name == "rebuild" {
        return given
            .iter()
            .try_fold(Rebuild::default(), with_argument)
            .map(|rebuild| Command::rebuild(projection, rebuild));
    }
    if given.is_empty() {
        return match name {
            "pause" => Some(Command::pause(projection)),
            "resume" => Some(Command::resume(projection)),
            "cancel" => Some(Command::cancel_rebuild(projection)),
            "revert" => Some(Command::revert_rebuild(projection)),
            _ => None,
        };
    }
    let (argument, value) = given.iter().next().filter(|_| given.len() == 1)?;
    let rewind = |to| Some(Command::rewind(projection, to));
    let replay = |what| Some(Command::replay(projection, what));
    match (name, argument.as_str()) {
        ("rewind", "to_beginning") if *value == Value::Bool(true) => rewind(RewindTo::Beginning),
        ("rewind", "to_position") => rewind(RewindTo::Position(value.as_i64()?)),
        ("rewind", "to_time") => rewind(RewindTo::time(value.as_str()?).ok()?),
        ("replay", "all") if *value == Value::Bool(true) => replay(Replay::All),
        ("replay", "aggregate") => {
            let [context, kind, id] = value.as_array()?.as_slice() else { return None };
            replay(Replay::Aggregate(StreamId::new(context.as_str()?, kind.as_str()?, id.as_str()?)))
        }
        ("replay", "error_like") => replay(Replay::ErrorLike(value.as_str()?.to_owned())),
        ("discard", "event") => Some(Command::discard(projection, Uuid::try_parse(value.as_str()?).ok()?)),
        _ => None,
    }
}

/// Adds an argument of a rebuild.
fn with_argument(rebuild: Rebuild, (argument, value): (&String, &Value)) -> Option<Rebuild> {
    match (argument.as_str(), value) {
        ("rate", Value::Null) => Some(rebuild.unlimited()),
        ("rate", rate) => rate.as_u64().and_then(|rate| u32::try_from(rate).ok()).map(|rate| rebuild.rate(rate)),
        ("keep_old", Value::Bool(true)) => Some(rebuild.keep_old()),
        ("copy", Value::Bool(true)) => Some(rebuild.copy()),
        ("keep_old" | "copy", Value::Bool(false)) => Some(rebuild),
        _ => None,
    }
}

/// Takes a text that may be missing. An empty one counts as missing.
fn text(given: &mut Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match given.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.trim().to_owned()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("\"{name}\" must be a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(command: &'static str) -> Target {
        Target { projection: "orders".to_owned(), command }
    }

    #[test]
    fn paths_name_a_projection_and_a_command() {
        for (path, projection) in [
            ("/projections/orders/pause", "orders"),
            ("/projections/a%2Fb%20%C3%A9/pause", "a/b é"),
            ("/projections/%3cb%3E/pause", "<b>"),
            ("/projections/é/pause", "é"),
        ] {
            let expected = Target { projection: projection.to_owned(), command: "pause" };
            assert_eq!(target(path), Ok(expected), "{path}");
        }
        for path in [
            "/projections/",
            "/projections/orders",
            "/projections/orders/",
            "/projections/orders/remove",
            "/projections/orders/drop_old",
            "/projections/orders/pause/",
            "/projections//pause",
            "/projections/a/b/pause",
            "/projections/%/pause",
            "/projections/%2/pause",
            "/projections/%zz/pause",
            "/projections/%+1/pause",
            "/projections/%éa/pause",
            "/projections/%ff/pause",
        ] {
            assert!(is_command(path) && target(path).is_err(), "{path}");
        }
        assert!(!is_command("/projections") && !is_command("/status"));
    }

    #[test]
    fn bodies_have_reason_author_and_arguments() {
        let id = Uuid::nil();
        for (name, body, expected) in [
            ("resume", "", Command::resume("orders")),
            ("resume", r#"{"reason": " ", "replica_set": null}"#, Command::resume("orders")),
            ("pause", r#"{"reason": " full "}"#, Command::pause("orders").reason("full")),
            (
                "rewind",
                r#"{"to_beginning": true, "reason": "r"}"#,
                Command::rewind("orders", RewindTo::Beginning).reason("r"),
            ),
            (
                "rewind",
                r#"{"to_position": 7, "reason": "r"}"#,
                Command::rewind("orders", RewindTo::Position(7)).reason("r"),
            ),
            ("replay", r#"{"all": true}"#, Command::replay("orders", Replay::All)),
            (
                "replay",
                r#"{"aggregate": ["shop", "Order", "<b>"]}"#,
                Command::replay("orders", Replay::Aggregate(StreamId::new("shop", "Order", "<b>"))),
            ),
            ("replay", r#"{"error_like": "%no%"}"#, Command::replay("orders", Replay::ErrorLike("%no%".to_owned()))),
            (
                "discard",
                r#"{"event": "00000000-0000-0000-0000-000000000000", "reason": "r"}"#,
                Command::discard("orders", id).reason("r"),
            ),
            ("rebuild", r#"{"reason": "r"}"#, Command::rebuild("orders", Rebuild::default()).reason("r")),
            (
                "rebuild",
                r#"{"reason": "r", "rate": 7, "keep_old": true, "copy": false}"#,
                Command::rebuild("orders", Rebuild::default().rate(7).keep_old()).reason("r"),
            ),
            (
                "rebuild",
                r#"{"reason": "r", "rate": null, "copy": true}"#,
                Command::rebuild("orders", Rebuild::default().unlimited().copy()).reason("r"),
            ),
            ("cancel", r#"{"reason": "r"}"#, Command::cancel_rebuild("orders").reason("r")),
            ("revert", "", Command::revert_rebuild("orders")),
        ] {
            let asked = command(orders(name), body.as_bytes(), "::1").unwrap();
            assert_eq!(asked, Asked { command: expected.by("HTTP client at ::1"), replica_set: None }, "{body}");
        }
        let named = br#"{"by": "kim", "replica_set": "main", "reason": "r"}"#;
        let asked = command(orders("pause"), named, "::1").unwrap();
        assert_eq!(asked.command, Command::pause("orders").by("kim").reason("r"));
        assert_eq!(asked.replica_set.as_deref(), Some("main"));
    }

    #[test]
    fn what_a_command_does_not_take_is_refused() {
        for (name, body, part) in [
            ("pause", "", "pause needs a \"reason\""),
            ("pause", r#"{"reason": "  "}"#, "pause needs a \"reason\""),
            ("rewind", r#"{"to_beginning": true}"#, "rewind needs a \"reason\""),
            ("discard", r#"{"event": "x"}"#, "discard needs a \"reason\""),
            ("pause", r#"{"reason": 7}"#, "\"reason\" must be a text"),
            ("pause", "[1]", "must be a JSON object"),
            ("pause", "{", "must be a JSON object"),
            ("pause", "\u{0}", "must be a JSON object"),
            ("resume", r#"{"all": true}"#, "must have nothing else"),
            ("replay", "", "must have one of \"all\""),
            ("replay", r#"{"all": false}"#, "must have one of \"all\""),
            ("replay", r#"{"aggregate": ["a", "b"]}"#, "must have one of \"all\""),
            ("replay", r#"{"aggregate": ["a", "b", 7]}"#, "must have one of \"all\""),
            ("replay", r#"{"all": true, "error_like": "%"}"#, "must have one of \"all\""),
            ("rewind", r#"{"reason": "r", "to_time": "yesterday"}"#, "must have one of \"to_beginning\""),
            ("rewind", r#"{"reason": "r", "to_position": 1e99}"#, "must have one of \"to_beginning\""),
            ("discard", r#"{"reason": "r", "event": "7"}"#, "must have \"event\""),
            ("rebuild", "", "rebuild needs a \"reason\""),
            ("rebuild", r#"{"reason": "r", "rate": -1}"#, "any of \"rate\""),
            ("rebuild", r#"{"reason": "r", "fast": true}"#, "any of \"rate\""),
            ("rebuild", r#"{"reason": "r", "copy": 1}"#, "any of \"rate\""),
            ("cancel", "", "cancel needs a \"reason\""),
            ("cancel", r#"{"reason": "r", "all": true}"#, "must have nothing else"),
        ] {
            let error = command(orders(name), body.as_bytes(), "::1").unwrap_err();
            assert!(error.contains(part), "{name} {body}: {error}");
        }
    }
}
