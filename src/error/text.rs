//! Errors and values as texts: for the log, for `/status`, and for people.

use std::sync::Arc;

use super::server::is_of_pooler;

/// The most characters of the server's DETAIL, which may quote whole rows.
pub(super) const LONGEST_DETAIL: usize = 300;
/// The most characters of an error in a line of the log or in `/status`.
pub(super) const LONGEST_TEXT: usize = 2000;

/// Formats a database error for a log: the server's message with its code, or the client's message
/// with its cause. The detail comes last, so that [`without_rows`] can cut it off.
pub(crate) fn describe(error: &postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        let mut text = format!("{} ({})", db.message(), db.code().code());
        if is_of_pooler(error) {
            text.push_str("; hint: most likely a pooler in transaction mode does not support prepared statements");
        }
        if let Some(hint) = db.hint() {
            text = format!("{text}; hint: {hint}");
        }
        if let Some(detail) = db.detail() {
            text = format!("{text}; detail: {}", one_line(&shortened(detail, LONGEST_DETAIL)));
        }
        return text;
    }
    with_causes(error)
}

/// Returns an error's text as every client of the status page may see it: without what the server
/// says about the rows concerned.
///
/// Handlers may wrap errors in any way, so only the text can be examined. It is cut where a detail
/// or a context begins: as [`describe`] writes it, as the client's `Display` writes it, and as the
/// client's `Debug` writes it, which an `unwrap` uses. The server's message stays, although it may
/// quote a single value.
pub(crate) fn without_rows(text: &str) -> String {
    const BEGIN: [&str; 5] = ["; detail: ", "DETAIL:", "CONTEXT:", ", detail: Some(", ", where_: Some("];
    match BEGIN.iter().filter_map(|begin| text.find(begin)).min() {
        Some(end) => format!("{} (the log has the detail)", shortened(text[..end].trim_end(), LONGEST_TEXT)),
        None => shortened(text, LONGEST_TEXT),
    }
}

fn shortened(text: &str, characters: usize) -> String {
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}

/// Formats any error for a log: what it is and why. A database error has the server's own message.
pub(crate) fn describe_any(error: &(dyn std::error::Error + 'static)) -> String {
    error.downcast_ref::<postgres::Error>().map_or_else(|| with_causes(error), describe)
}

fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let of_client = error.downcast_ref::<postgres::Error>();
        let words = of_client.map_or_else(|| error.to_string(), describe);
        // Many errors of applications already contain the text of their cause.
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        // The description of a client's error already contains its causes.
        cause = if of_client.is_some() { None } else { error.source() };
    }
    text
}

/// A value that the log and the status show: text, or an error with its causes, which its own text
/// does not repeat.
pub(crate) trait Shown {
    fn shown(&self) -> String;
}

impl<T: Shown + ?Sized> Shown for &T {
    fn shown(&self) -> String {
        (**self).shown()
    }
}

macro_rules! shown {
    ($by:path: $($Type:ty),+) => {
        $(impl Shown for $Type {
            fn shown(&self) -> String {
                $by(self)
            }
        })+
    };
}

shown!(ToString::to_string: str, String, Arc<str>, usize, i32, i64, u64);
shown!(describe_any: postgres::Error, prometheus::Error, std::io::Error);

/// Formats a value as one line of bounded length for the log, whatever a handler's error or panic
/// contains.
pub(crate) fn one_line(value: &(impl Shown + ?Sized)) -> String {
    shortened(&value.shown(), LONGEST_TEXT).replace(char::is_control, " ")
}

/// Formats a value for a line of the log, after `key=`: in quotes if the line could not be parsed
/// without them.
pub(crate) fn field(value: &(impl Shown + ?Sized)) -> String {
    let text = one_line(value);
    let is_plain = |c: char| !c.is_whitespace() && !['=', '"', '\\'].contains(&c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("{text:?}") }
}

/// The payload of a caught panic as text.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned())
}
