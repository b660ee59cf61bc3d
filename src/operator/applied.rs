//! What a command has done.

use std::fmt;

use serde_json::Value;

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
    /// command: `position`, `workers`, `from`, `seconds`, `aggregates`, `aggregate`.
    pub result: Value,
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
            _ => {
                let parts = self.result.get("aggregate").and_then(Value::as_array);
                let parts = parts.map(|parts| parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("/"));
                let aggregate = parts.map_or_else(String::new, |aggregate| format!(" of {aggregate}"));
                let position = self.at_position("at position", "position");
                write!(f, "{projection} will not handle the event{position}{aggregate}")
            }
        }
    }
}

fn counted(number: i64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// Formats a number with a comma after each three digits.
fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut shown = if number < 0 { "-".to_owned() } else { String::new() };
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, shown) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (-81_234, "-81,234"), (i64::MAX, "9,223,372,036,854,775,807")]
        {
            assert_eq!(grouped(number), shown);
        }
    }

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
        ] {
            let applied = Applied { id: 1, command, projection: "p".into(), result };
            assert_eq!(applied.to_string(), words);
        }
    }
}
