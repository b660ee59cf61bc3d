//! SQL with placeholders: `{checkpoints}` stands for the qualified, quoted name of that table.
//!
//! A placeholder is one word in braces. All other braces are the statement's own, as in `'{}'` or
//! `'{1,2}'`; an array of one word has to be written as `ARRAY['word']`.

use std::fmt::Display;

use super::key;
use super::names::{Names, Own};
use crate::plan::KEY_SPACE;

impl Names {
    /// Fills in the names of tables, and the other placeholders of [`value`](Self::value).
    pub(crate) fn sql(&self, text: &str) -> String {
        self.sql_with(text, &[])
    }

    /// Also fills in the values that are given by name, such as a fragment of SQL or an interval.
    pub(crate) fn sql_with(&self, text: &str, values: &[(&str, &dyn Display)]) -> String {
        for (name, _) in values {
            debug_assert!(self.value(name).is_none(), "{{{name}}} has a value already");
            debug_assert!(text.contains(&format!("{{{name}}}")), "there is no {{{name}}} in: {text}");
        }
        let value = |name: &str| match values.iter().find(|(given, _)| *given == name) {
            Some((_, value)) => Some(value.to_string()),
            None => self.value(name),
        };
        let mut filled = String::with_capacity(2 * text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let name = word(after);
            let value = name.and_then(value);
            // An unknown placeholder is left to the server, which refuses it: no token of SQL
            // begins with a brace.
            debug_assert!(name.is_none() || value.is_some(), "unknown placeholder {name:?} in: {text}");
            rest = if let Some((name, value)) = name.zip(value) {
                filled.push_str(&value);
                &after[name.len() + 1..]
            } else {
                filled.push('{');
                after
            };
        }
        filled + rest
    }

    /// The value of a placeholder that every statement may use.
    fn value(&self, name: &str) -> Option<String> {
        Some(match name {
            "events" => self.events().to_string(),
            "aggregate_heads" => self.aggregate_heads().to_string(),
            "append" => self.append().to_string(),
            "command" => self.command().to_string(),
            // Without quotes, because the text contains them.
            "schema" => self.schema_name().to_owned(),
            "events_schema" => self.events_schema_name().to_owned(),
            "workers_by_replica_set" | "checkpoints_by_owner" | "commands_pending" => self.index(name),
            "all_keys" => key::all_keys(),
            "event_key" => key::event_key(),
            "hash_probe" => key::hash_probe(),
            "key_space" => KEY_SPACE.to_string(),
            _ => self.own(Own::ALL.into_iter().find(|own| own.suffix() == name)?).to_string(),
        })
    }
}

/// The word before the next closing brace, if there is only a word before it.
pub(super) fn word(after: &str) -> Option<&str> {
    let (word, _) = after.split_once('}')?;
    let is_word = word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_word.then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled() {
        let names = Names::default().schema("Mine").events_schema("theirs");
        for (text, filled) in [
            ("SELECT 1", "SELECT 1"),
            ("SELECT FROM {events}", r#"SELECT FROM "theirs"."events""#),
            ("{workers}{workers}", r#""Mine"."orchestrator_workers""Mine"."orchestrator_workers""#),
            ("\"{schema}\" '{events_schema}'", "\"Mine\" 'theirs'"),
            ("{key_space}, {all_keys}", "65536, '{[0,65536)}'::pg_catalog.int4multirange"),
        ] {
            assert_eq!(names.sql(text), filled);
        }
        for own in Own::ALL {
            assert_eq!(names.sql(&format!("{{{}}}", own.suffix())), names.own(own).to_string());
        }
    }

    #[test]
    fn braces_of_the_statement_are_left() {
        for text in ["'{}'", "'{1,2}'", "'{[0,65536)}'", r#"'{"a": {"b": 1}}'"#, "'{a,b}'", "'{ a }'", "{", "}", "'{{'"]
        {
            assert_eq!(Names::default().sql(text), text);
        }
    }

    #[test]
    fn values_are_given_by_name_and_not_filled_themselves() {
        let values: [(&str, &dyn Display); 2] = [("limit", &20), ("fence", &"'{events}'")];
        assert_eq!(
            Names::default().sql_with("{fence} LIMIT {limit}; {fence}", &values),
            "'{events}' LIMIT 20; '{events}'"
        );
    }

    /// Without debug assertions, the server refuses a placeholder that was not filled in.
    #[test]
    #[cfg(debug_assertions)]
    fn placeholders_and_values_must_match() {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        type Values<'a> = &'a [(&'a str, &'a dyn Display)];
        let cases: [(&str, Values<'_>); 5] = [
            ("SELECT FROM {evnts}", &[]),
            ("SELECT '{Events}'", &[]),
            ("SELECT FROM {events2}", &[]),
            ("{", &[("unused", &1)]),
            ("{events}", &[("events", &1)]),
        ];
        for (text, values) in cases {
            let filled = catch_unwind(AssertUnwindSafe(|| Names::default().sql_with(text, values)));
            assert!(filled.is_err(), "{text} became {filled:?}");
        }
    }
}
