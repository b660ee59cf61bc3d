//! What a command has done.

use std::fmt;

use serde_json::Value;

use super::words::{counted, grouped, size};

/// A command that was applied, with what it has done. Its `Display` says it in words: "orders is
/// paused at position 81,234 on 3 workers".
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Applied {
    /// The number of the command, as in the history.
    pub id: i64,
    /// The command's name.
    pub command: &'static str,
    /// The projection.
    pub projection: String,
    /// What was done, as the worker has recorded it. Which members there are depends on the
    /// command: `position`, `workers`, `from`, `seconds`, `aggregates`, `aggregate`, `tables`,
    /// `bytes`, `lock_seconds`, `handled`, `events`, `schema`, `old_schema`, `rebuild`.
    pub result: Value,
    /// Whether it has taken effect. It is false for a rebuild that has begun.
    pub is_done: bool,
}

impl Applied {
    fn number(&self, member: &str) -> Option<i64> {
        self.result.get(member)?.as_i64()
    }

    /// The position that the command was applied at, or led to.
    pub fn position(&self) -> Option<i64> {
        self.number("position")
    }

    fn at_position(&self, before: &str, member: &str) -> String {
        self.number(member).map_or_else(String::new, |position| format!(" {before} {}", grouped(position)))
    }

    fn text(&self, before: &str, member: &str) -> String {
        let text = self.result.get(member).and_then(Value::as_str);
        text.map_or_else(String::new, |text| format!("{before} {text}"))
    }

    fn list(&self, before: &str, member: &str) -> String {
        let texts = self.result.get(member).and_then(Value::as_array);
        let texts = texts.map(|texts| texts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "));
        texts.map_or_else(String::new, |texts| format!(" {before} {texts}"))
    }

    fn of_aggregate(&self) -> String {
        let parts = self.result.get("aggregate").and_then(Value::as_array);
        let parts = parts.map(|parts| parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("/"));
        parts.map_or_else(String::new, |aggregate| format!(" of {aggregate}"))
    }

    fn on_workers(&self) -> String {
        self.number("workers").map_or_else(String::new, |workers| format!(" on {}", counted(workers, "worker")))
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { projection, command, .. } = self;
        match *command {
            "pause" => {
                write!(f, "{projection} is paused{}{}", self.at_position("at position", "position"), self.on_workers())
            }
            "resume" => {
                write!(f, "{projection} is resumed{}{}", self.at_position("at position", "position"), self.on_workers())
            }
            "rewind" => {
                let to = self.at_position("to position", "position");
                let from = self.at_position("from position", "from");
                let seconds = self.result.get("seconds").and_then(Value::as_f64);
                let seconds = seconds.map_or_else(String::new, |seconds| format!(" in {seconds:.1} s"));
                write!(f, "{projection} is rewound{from}{to}{seconds}")
            }
            "remove" => write!(f, "{projection} is removed{}", self.at_position("at position", "position")),
            "replay" => {
                let which = self.number("aggregates").map_or_else(
                    || "its parked aggregates".to_owned(),
                    |aggregates| counted(aggregates, "parked aggregate"),
                );
                write!(f, "{projection} replays {which}")
            }
            "rebuild" if !self.is_done => {
                let bytes = self.number("bytes").map_or_else(String::new, |bytes| format!(" ({})", size(bytes)));
                write!(f, "{projection} is being rebuilt{}{bytes}", self.list("in copies of", "tables"))
            }
            "rebuild" => {
                let handled = self.number("handled");
                let handled =
                    handled.map_or_else(String::new, |handled| format!(": {} handled", counted(handled, "event")));
                let old = self.text("; its former tables are in schema", "old_schema");
                write!(f, "{projection} is rebuilt{}{handled}{old}", self.at_position("at position", "position"))
            }
            "rebuild_aggregate" => {
                let events = self.number("events");
                let events =
                    events.map_or_else(String::new, |events| format!(": {} handled", counted(events, "event")));
                write!(f, "{projection} has rebuilt the rows{}{events}", self.of_aggregate())
            }
            "cancel" => write!(f, "the rebuild of {projection} is cancelled"),
            "revert" => {
                let old = self.text("; those that were live are in schema", "old_schema");
                let position = self.at_position("at position", "position");
                write!(f, "{projection} has its former tables again{position}{old}")
            }
            "drop_old" => {
                write!(f, "the former tables of {projection} are dropped{}", self.text(": schema", "schema"))
            }
            _ => {
                let aggregate = self.of_aggregate();
                let position = self.at_position("at position", "position");
                write!(f, "{projection} will not handle the event{position}{aggregate}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_done_is_said_in_words() {
        for (command, result, words) in [
            ("pause", json!({"position": 81_234, "workers": 3}), "p is paused at position 81,234 on 3 workers"),
            ("pause", json!({}), "p is paused"),
            ("resume", json!({"position": 7, "workers": 1}), "p is resumed at position 7 on 1 worker"),
            (
                "rewind",
                json!({"position": 0, "from": 1_000, "seconds": 2.04}),
                "p is rewound from position 1,000 to position 0 in 2.0 s",
            ),
            ("rewind", Value::Null, "p is rewound"),
            ("remove", json!({"position": 7}), "p is removed at position 7"),
            ("replay", json!({"aggregates": 1}), "p replays 1 parked aggregate"),
            ("replay", json!({"aggregates": "all"}), "p replays its parked aggregates"),
            (
                "discard",
                json!({"position": 7, "aggregate": ["shop", "Order", "a/b"]}),
                "p will not handle the event at position 7 of shop/Order/a/b",
            ),
            ("discard", json!([]), "p will not handle the event"),
            (
                "rebuild",
                json!({"tables": ["public.p"], "bytes": 8_192, "position": 7, "handled": 1_000, "old_schema": null}),
                "p is rebuilt at position 7: 1,000 events handled",
            ),
            (
                "rebuild",
                json!({"position": 7, "old_schema": "orchestrator_old_7"}),
                "p is rebuilt at position 7; its former tables are in schema orchestrator_old_7",
            ),
            ("rebuild_aggregate", json!({"aggregate": ["a", "b", "c"]}), "p has rebuilt the rows of a/b/c"),
            ("cancel", json!({"rebuild": 7}), "the rebuild of p is cancelled"),
            (
                "revert",
                json!({"position": 7, "old_schema": "s"}),
                "p has its former tables again at position 7; those that were live are in schema s",
            ),
            ("drop_old", json!({"schema": "s"}), "the former tables of p are dropped: schema s"),
        ] {
            let applied = Applied { id: 1, command, projection: "p".into(), result, is_done: true };
            assert_eq!(applied.to_string(), words);
        }
        let result = json!({"tables": ["public.p", "public.q"], "bytes": 1_250_000});
        let begun = Applied { id: 1, command: "rebuild", projection: "p".into(), result, is_done: false };
        assert_eq!(begun.to_string(), "p is being rebuilt in copies of public.p, public.q (1.2 MB)");
    }
}
