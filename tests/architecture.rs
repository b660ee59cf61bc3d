//! Checks the floors of the library (ARCHITECTURE.md): the code that decides does not know the code
//! that acts.
//!
//! The test reads the paths in src/ that begin with `crate::`, `super::` or `self::`, or with the
//! name of a child module, both in `use` lines and in the rest of the code. Each path is an arrow
//! from its own file to the file that it leads to. The test ignores comments, the tests within the
//! sources, and the `mod` and `pub use` lines of the crate root.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Every module at the top of the crate, with its floor. An arrow may lead to a lower floor, or to
/// another module on the same floor as long as there is no cycle.
const FLOORS: [(u32, &[&str]); 7] = [
    (7, &["cli", "guide", "testing"]),
    (6, &["orchestrator"]),
    (5, &["coordinator"]),
    (4, &["errands", "leave", "runner"]),
    (
        3,
        &[
            "catch_up",
            "config",
            "event_store",
            "feed",
            "fold",
            "http",
            "listener",
            "measure",
            "operator",
            "probe",
            "projection",
            "tx",
            "watch",
        ],
    ),
    (2, &["context", "database", "goal", "overview", "reconnect", "scope", "status", "store", "threads"]),
    (
        1,
        &[
            "backoff",
            "blocking",
            "error",
            "event",
            "health",
            "idle",
            "metrics",
            "moment",
            "plan",
            "rebuilding",
            "shortage",
            "trust",
        ],
    ),
];

const STATEMENTS: &str = "prepared statements are made in store/, each with a method of its own";

/// Words that a module and its children must not contain: the module ("" for all of them), the
/// words, and the reason.
const WORDS: [(&str, &[&str], &str); 8] = [
    (
        "plan",
        &["postgres", "crossbeam_channel", "parking_lot", "log", "Instant", "SystemTime", "thread", "io", "net", "fs"],
        "plan/ decides from what it is given: no database, channel, log, clock or thread",
    ),
    ("coordinator", &["Statement"], STATEMENTS),
    ("feed", &["Statement"], STATEMENTS),
    ("runner", &["Statement"], STATEMENTS),
    ("", &["async", "await", "block_on", "Runtime"], "the library is blocking: no async function, no executor"),
    ("", &["unsafe"], "the library has no unsafe code of its own"),
    ("", &["sleep"], "every wait also hears the shutdown"),
    ("", &["print!", "println!", "eprint!", "eprintln!", "dbg!"], "the library writes nothing to stdout or stderr"),
];

#[test]
fn every_module_has_a_floor() {
    let sources = sources();
    let found: BTreeSet<&str> = sources.iter().map(Source::top).filter(|top| !top.is_empty()).collect();
    let listed: BTreeSet<&str> = FLOORS.iter().flat_map(|(_, modules)| *modules).copied().collect();
    assert_eq!(found, listed, "the modules in src/lib.rs (left) and those of the table of floors (right)");
}

#[test]
fn no_arrow_leads_to_a_higher_floor() {
    let sources = sources();
    let up: Vec<String> = arrows(&sources)
        .iter()
        .filter(|arrow| floor(arrow.from.top()) < floor(arrow.to.top()))
        .map(|arrow| format!("{arrow} runs up from floor {} to {}", floor(arrow.from.top()), floor(arrow.to.top())))
        .collect();
    assert!(up.is_empty(), "a module must not use a module on a higher floor:\n{}", up.join("\n"));
}

#[test]
fn arrows_between_modules_form_no_cycle() {
    let sources = sources();
    no_circle(&arrows(&sources), |source| source.top().to_owned());
}

/// This includes a module and its children: code that both need has a file of its own.
#[test]
fn arrows_between_files_form_no_cycle() {
    let sources = sources();
    no_circle(&arrows(&sources), |source| source.path.clone());
}

#[test]
fn forbidden_words() {
    let sources = sources();
    let mut found = String::new();
    for (module, words, why) in WORDS {
        for source in sources.iter().filter(|source| module.is_empty() || source.top() == module) {
            for (number, line) in &source.lines {
                for word in words.iter().filter(|word| has_word(line, word)) {
                    writeln!(found, "src/{}:{number}: `{word}`: {why}", source.path).unwrap();
                }
            }
        }
    }
    assert!(found.is_empty(), "\n{found}");
}

/// Ensures that the tests above do not pass only because no arrow was found.
#[test]
fn arrows_are_found() {
    let sources = sources();
    let seen: BTreeSet<(&str, &str)> =
        arrows(&sources).iter().map(|arrow| (arrow.from.path.as_str(), arrow.to.path.as_str())).collect();
    for arrow in [
        ("orchestrator/start.rs", "coordinator/mod.rs"),
        ("orchestrator/start.rs", "feed/tailer.rs"),
        ("runner/work.rs", "runner/batch.rs"),
        ("runner/batch.rs", "runner/failure.rs"),
        ("store/coordination.rs", "plan/mod.rs"),
        ("store/mod.rs", "store/names.rs"),
    ] {
        assert!(seen.contains(&arrow), "{} uses {}", arrow.0, arrow.1);
    }
}

#[test]
fn paths_are_read_from_code() {
    let source = Source::new(
        "a/b.rs",
        "//! use crate::no;\nuse crate::{c::{self, D}, e as f};\nuse super::g::{\n    H,\n};\nfn i() { crate::j::k(\"x://y\", super::l) } // crate::no\n\
         #[cfg(test)]\nmod tests {\n    use crate::no;\n}\nuse self::m;\n",
    );
    let paths: Vec<String> = source.paths().into_iter().map(|(line, path)| format!("{line} {path}")).collect();
    assert_eq!(
        paths,
        ["2 crate::c", "2 crate::c::D", "2 crate::e", "3 super::g::H", "6 crate::j::k", "6 super::l", "11 self::m"]
    );
}

/// A file below src/, without the code that is compiled for tests only.
struct Source {
    /// The path below src/, such as `store/names.rs`.
    path: String,
    /// The path of the module, such as `["store", "names"]`; empty for the crate root.
    module: Vec<String>,
    /// Line numbers and code, without comments.
    lines: Vec<(usize, String)>,
}

/// One file uses another.
struct Arrow<'a> {
    from: &'a Source,
    line: usize,
    path: String,
    to: &'a Source,
}

impl std::fmt::Display for Arrow<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "src/{}:{}: `{}` (src/{} → src/{})",
            self.from.path, self.line, self.path, self.from.path, self.to.path
        )
    }
}

impl Source {
    fn new(path: &str, text: &str) -> Self {
        let module = path.trim_end_matches(".rs").split('/').filter(|name| !["mod", "lib"].contains(name));
        Self { path: path.to_owned(), module: module.map(str::to_owned).collect(), lines: code(text) }
    }

    /// The module at the top of the crate that the file belongs to; empty for the crate root.
    fn top(&self) -> &str {
        self.module.first().map_or("", String::as_str)
    }

    /// The paths that may lead to other files, and their lines.
    fn paths(&self) -> Vec<(usize, String)> {
        let mut paths = Vec::new();
        let mut lines = self.lines.iter();
        while let Some((number, line)) = lines.next() {
            let statement = line.trim_start();
            let statement = statement
                .strip_prefix("pub")
                .map_or(statement, |rest| rest.trim_start_matches(|c| c != ' ').trim_start());
            if let Some(first) = statement.strip_prefix("use ") {
                let mut tree = first.to_owned();
                while !tree.contains(';') {
                    tree.push_str(&lines.next().expect("a use ends with ;").1);
                }
                paths.extend(expand(tree.trim_end_matches(';')).into_iter().map(|path| (*number, path)));
            } else if !statement.starts_with("mod ") {
                paths.extend(words(line).filter(|word| word.contains("::")).map(|word| (*number, word.to_owned())));
            }
        }
        paths
    }
}

/// The lines of code, without comments and tests.
fn code(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    // The indentation of an item that is compiled for tests only.
    let mut skipping = None;
    for (number, line) in (1..).zip(text.lines()) {
        let indentation = line.len() - line.trim_start().len();
        if line.trim() == "#[cfg(test)]" {
            skipping = Some(indentation);
        } else if skipping == Some(indentation) {
            if !line.trim().starts_with("#[") && line.ends_with(['}', ';']) {
                skipping = None;
            }
        } else if skipping.is_none() {
            // The slashes of `postgres://` do not begin a comment.
            let end = line.match_indices("//").map(|(at, _)| at).find(|at| *at == 0 || line[..*at].ends_with(' '));
            lines.push((number, line[..end.unwrap_or(line.len())].to_owned()));
        }
    }
    lines
}

/// The paths of `a::{b, c::{self, d as e}}`.
fn expand(tree: &str) -> Vec<String> {
    let tree = tree.trim();
    let Some((prefix, inner)) = tree.split_once('{') else {
        return vec![tree.split(" as ").next().unwrap_or(tree).to_owned()];
    };
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let mut depth = 0;
    let branches = inner.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    branches
        .filter(|branch| !branch.trim().is_empty())
        .flat_map(expand)
        .map(|path| format!("{}{path}", prefix.trim()).trim_end_matches("::self").to_owned())
        .collect()
}

/// Identifiers and paths.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':')
}

/// Whether an identifier, or a macro with its `!`, is in a line.
fn has_word(line: &str, word: &str) -> bool {
    let in_identifier = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let after = &line[at + word.len()..];
        !line[..at].ends_with(in_identifier) && (word.ends_with('!') || !after.starts_with(in_identifier))
    })
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories: Vec<PathBuf> = vec![root.clone()];
    let mut sources: Vec<(String, String)> = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let below = path.strip_prefix(&root).unwrap().components();
                let below: Vec<&str> = below.map(|part| part.as_os_str().to_str().unwrap()).collect();
                sources.push((below.join("/"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    sources.sort();
    let tests: Vec<String> = sources.iter().flat_map(|(path, text)| modules_of_tests(path, text)).collect();
    let is_test = |path: &str| {
        let of = |module: &String| {
            path.strip_prefix(module.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        tests.iter().any(of)
    };
    sources.iter().filter(|(path, _)| !is_test(path)).map(|(path, text)| Source::new(path, text)).collect()
}

/// The paths, without `.rs`, of the modules that a file declares for tests only, such as
/// `#[cfg(test)] mod tests;`.
fn modules_of_tests(path: &str, text: &str) -> Vec<String> {
    let folder = match path.rsplit_once('/') {
        Some((folder, "mod.rs")) => format!("{folder}/"),
        None if path == "lib.rs" => String::new(),
        _ => format!("{}/", path.trim_end_matches(".rs")),
    };
    let lines: Vec<&str> = text.lines().collect();
    let declared = lines
        .windows(2)
        .filter(|pair| pair[0] == "#[cfg(test)]")
        .filter_map(|pair| pair[1].trim_start_matches("pub(crate) ").strip_prefix("mod ")?.strip_suffix(';'));
    declared.map(|name| format!("{folder}{name}")).collect()
}

fn arrows(sources: &[Source]) -> Vec<Arrow<'_>> {
    let modules: BTreeMap<&[String], &Source> =
        sources.iter().map(|source| (source.module.as_slice(), source)).collect();
    let mut arrows = Vec::new();
    for from in sources.iter().filter(|source| !source.module.is_empty()) {
        for (line, path) in from.paths() {
            let names = path.split("::").map(str::to_owned);
            let mut to = from.module.clone();
            for (at, name) in names.enumerate() {
                match name.as_str() {
                    "crate" if at == 0 => to.clear(),
                    "super" => drop(to.pop()),
                    "self" => {}
                    _ => to.push(name),
                }
            }
            // The last names of a path are items, not modules. A name that is found at the crate
            // root is a re-export, or belongs to another crate. A path that ends at its own module
            // does not begin with the name of a child module.
            while !to.is_empty() && !modules.contains_key(to.as_slice()) {
                to.pop();
            }
            let is_absolute = path.starts_with("crate::");
            match modules.get(to.as_slice()) {
                Some(to) if to.module == from.module => {}
                Some(to) if !to.module.is_empty() || is_absolute => arrows.push(Arrow { from, line, path, to }),
                _ => {}
            }
        }
    }
    arrows
}

fn floor(module: &str) -> u32 {
    // The crate root is above all floors.
    FLOORS.iter().find(|(_, modules)| modules.contains(&module)).map_or(8, |(floor, _)| *floor)
}

fn no_circle(arrows: &[Arrow<'_>], room: impl Fn(&Source) -> String) {
    // Remove the arrows to places from which no arrow leads on, until only cycles and the arrows
    // that lead to them are left.
    let mut left: Vec<&Arrow<'_>> = arrows.iter().filter(|arrow| room(arrow.from) != room(arrow.to)).collect();
    loop {
        let leading_on: BTreeSet<String> = left.iter().map(|arrow| room(arrow.from)).collect();
        let before = left.len();
        left.retain(|arrow| leading_on.contains(&room(arrow.to)));
        if left.len() == before {
            break;
        }
    }
    // Now every walk along the arrows comes back to a place that it has visited.
    let Some(first) = left.first() else { return };
    let mut walk = vec![*first];
    while let Some(last) = walk.last() {
        let here = room(last.to);
        if let Some(start) = walk.iter().position(|arrow| room(arrow.from) == here) {
            let circle: Vec<String> = walk[start..].iter().map(ToString::to_string).collect();
            panic!("these arrows form a cycle:\n{}", circle.join("\n"));
        }
        walk.extend(left.iter().find(|arrow| room(arrow.from) == here));
    }
}
