//! Checks that the list of log lines in the guide agrees with the code.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The levels an operator sees by default.
const DOCUMENTED: [&str; 3] = ["error", "warn", "info"];

/// Fields whose values are numbers, ids or durations, which never need quotes.
const PLAIN: [&str; 37] = [
    "rate",
    "version",
    "live",
    "retry_in",
    "tables",
    "bytes",
    "command",
    "event",
    "id",
    "outcome",
    "position",
    "worker",
    "waited",
    "generation",
    "attempt",
    "attempts",
    "partition",
    "partitions",
    "of",
    "pause",
    "head",
    "last",
    "newest",
    "for",
    "pid",
    "transaction_age",
    "address",
    "after",
    "at_most",
    "to",
    "thread_id",
    "positions",
    "events",
    "lane",
    "position",
    "lag",
    "pool_size",
];

/// Level, text and the names of the fields.
type Line = (String, String, Vec<String>);

#[test]
fn the_guide_lists_every_line_above_debug() {
    let mut code = BTreeSet::new();
    collect(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut code);
    let guide: BTreeSet<Line> = include_str!("../src/guide/logs.md").lines().filter_map(documented).collect();
    assert!(code.len() > 20, "{code:?}");
    let (only_in_code, only_in_readme) = (code.difference(&guide), guide.difference(&code));
    assert_eq!(
        (only_in_code.collect::<Vec<_>>(), only_in_readme.collect::<Vec<_>>()),
        (Vec::new(), Vec::new()),
        "lines that only the code has (left), and lines that only the guide has (right)"
    );
}

/// A row such as ``| `warn` | `worker evicted: replica_set worker reason` | … |``.
fn documented(row: &str) -> Option<Line> {
    let (level, rest) = row.strip_prefix("| `")?.split_once("` | `")?;
    let (text, fields) = rest.split_once('`')?.0.split_once(": ")?;
    let is_level = DOCUMENTED.contains(&level);
    is_level.then(|| (level.to_owned(), text.to_owned(), fields.split(' ').map(ToOwned::to_owned).collect()))
}

fn collect(folder: &Path, lines: &mut BTreeSet<Line>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, lines);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            // A name that begins with a capital letter is a type.
            let calls = source.split("log::").skip(1).filter(|call| !call.starts_with(char::is_uppercase));
            lines.extend(calls.filter_map(|call| written(call, &path)));
        }
    }
}

/// The line that a call of a log macro writes, if its level is above debug.
fn written(call: &str, path: &Path) -> Option<Line> {
    let (level, arguments) = call.split_once("!(").unwrap();
    if ["debug", "trace"].contains(&level) {
        return None;
    }
    assert!(DOCUMENTED.contains(&level), "{}: log::{level}", path.display());
    let format = arguments.trim_start().strip_prefix('"').unwrap().split_once('"').unwrap().0;
    // A string literal may continue in the next line.
    let format: String = format.split("\\\n").map(str::trim_start).collect();
    let (text, fields) = format.split_once(": ").unwrap_or_else(|| panic!("{}: no fields: {format}", path.display()));
    let names = fields.split(' ').map(|field| match field.split_once('=') {
        Some((name, _)) => name.to_owned(),
        None => panic!("{}: {field} is not key=value: {format}", path.display()),
    });
    let names: Vec<String> = names.collect();
    let quoted = within(arguments).matches("field(").count();
    let needed = names.iter().filter(|name| !PLAIN.contains(&name.as_str())).count();
    let is_migrated = text == "migrated";
    assert_eq!(quoted, needed - usize::from(is_migrated), "{}: texts go through field(): {format}", path.display());
    Some((level.to_owned(), text.to_owned(), names))
}

/// The text before the parenthesis that ends the call.
fn within(arguments: &str) -> &str {
    let mut depth = 1;
    let end = arguments.find(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth == 0
    });
    &arguments[..end.unwrap_or(arguments.len())]
}
