//! Decides whether metadata has certain strings. It works on JSON text, with the same outcome as
//! the server has on `jsonb`.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Whether the JSON text is an object with all of these strings under their keys.
///
/// Only the wanted values are parsed: `jsonb` allows numbers and nesting depths that no parser of
/// Rust values accepts, and these must not decide whether an event is handled.
pub(super) fn has(text: Option<&str>, wanted: &[(String, String)]) -> bool {
    if wanted.is_empty() {
        return true;
    }
    let Some(text) = text else { return false };
    let found = serde_json::Deserializer::from_str(text).deserialize_any(Wanted(wanted));
    found.is_ok_and(|found| found == wanted.len())
}

/// Counts how many of these pairs an object has.
struct Wanted<'w>(&'w [(String, String)]);

impl<'de> Visitor<'de> for Wanted<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<usize, A::Error> {
        let mut found = 0;
        while let Some(key) = object.next_key::<Cow<'de, str>>()? {
            if self.0.iter().any(|(wanted, _)| *wanted == key) {
                let value: &RawValue = object.next_value()?;
                let value: Option<Cow<'_, str>> = serde_json::from_str(value.get()).ok();
                found +=
                    self.0.iter().filter(|(k, v)| *k == key && value.as_ref().is_some_and(|value| value == v)).count();
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_wanted_decides_nothing() {
        let wanted = [("tenant".to_owned(), "a".to_owned())];
        let deep = format!("{}{}", "[".repeat(1_000), "]".repeat(1_000));
        for (text, is_there) in [
            (r#"{"tenant": "a"}"#.to_owned(), true),
            (r#"{"n": 1e400, "tenant": "a", "m": -123456789012345678901234567890.5}"#.to_owned(), true),
            (format!(r#"{{"x": {deep}, "tenant": "a", "y": {{"tenant": "b"}}}}"#), true),
            (r#"{"\u0074enant": "\u0061"}"#.to_owned(), true),
            (r#"{"tenant": "b", "n": 1e400}"#.to_owned(), false),
            (r#"{"tenant": ["a"]}"#.to_owned(), false),
            (r#"{"x": {"tenant": "a"}}"#.to_owned(), false),
            (r#"["tenant", "a"]"#.to_owned(), false),
            (r#""tenant""#.to_owned(), false),
            ("1e400".to_owned(), false),
            ("null".to_owned(), false),
        ] {
            assert_eq!(has(Some(&text), &wanted), is_there, "{}", text.chars().take(100).collect::<String>());
        }
        assert!(!has(None, &wanted) && has(None, &[]));
    }
}
