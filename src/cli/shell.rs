//! Commands to type in a shell.

use std::path::Path;

use crate::error::one_line;

/// How the operator calls this program, for the commands to type.
pub(super) fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name();
    word(&name.map_or("worker".into(), |name| name.to_string_lossy()))
}

/// A word for a shell.
pub(super) fn word(text: &str) -> String {
    let text = one_line(text);
    let is_plain = |c: char| c.is_alphanumeric() || "_-./:@".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', r"'\''")) }
}
