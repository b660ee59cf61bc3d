//! Tests that tables in the documentation equal the declarations that define them.

use std::path::Path;
use std::{env, fs};

/// Fails unless the file contains this table; if `UPDATE_DOCS` is set, writes it there instead.
///
/// The table in the file is found by its first line. If it is in a comment, each of its lines
/// begins with `margin`.
#[track_caller]
pub(crate) fn assert_table(file: &str, margin: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(&path).unwrap();
    let wanted: Vec<String> = table.lines().map(|line| format!("{margin}{line}")).collect();
    let mut lines: Vec<&str> = text.lines().collect();
    let Some(start) = lines.iter().position(|line| *line == wanted[0]) else {
        panic!("{file} has no line {:?}", wanted[0]);
    };
    let is_row = |line: &&&str| line.starts_with(&format!("{margin}|"));
    let end = start + lines[start..].iter().take_while(is_row).count();
    if lines[start..end] == wanted {
        return;
    }
    assert!(
        env::var_os("UPDATE_DOCS").is_some(),
        "{file} should have this table (UPDATE_DOCS=1 puts it there):\n{table}"
    );
    lines.splice(start..end, wanted.iter().map(String::as_str));
    fs::write(path, lines.join("\n") + "\n").unwrap();
}
