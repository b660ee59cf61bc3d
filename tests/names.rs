//! Checks that the names of tests, which say subject and behaviour, are short enough for a readable
//! list of results, and that comments are narrow enough to be read side by side.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use std::fs;
use std::path::{Path, PathBuf};

const LONGEST: usize = 60;
/// The most columns of a line with a comment alone.
const WIDEST: usize = 100;

#[test]
fn names_of_tests_are_short() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for file in sources(&root.join(folder)) {
            let found = tests_in(&fs::read_to_string(&file).unwrap());
            let file = file.strip_prefix(root).unwrap().display().to_string();
            names.extend(found.into_iter().map(|name| (file.clone(), name)));
        }
    }
    assert!(names.len() > 300, "only {} tests were found", names.len());
    let long: Vec<String> = names
        .iter()
        .filter(|(_, name)| name.len() > LONGEST)
        .map(|(file, name)| format!("{file}: {name} has {} characters", name.len()))
        .collect();
    assert!(long.is_empty(), "at most {LONGEST} are allowed:\n{}", long.join("\n"));
}

#[test]
fn comments_are_narrow() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wide = Vec::new();
    for file in ["src", "tests", "benches", "examples"].into_iter().flat_map(|folder| sources(&root.join(folder))) {
        let text = fs::read_to_string(&file).unwrap();
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| is_wide_comment(line)) {
            wide.push(format!("{}:{number}: {line}", file.strip_prefix(root).unwrap().display()));
        }
    }
    assert!(wide.is_empty(), "at most {WIDEST} columns are allowed:\n{}", wide.join("\n"));
}

/// A row of a table and an address cannot be wrapped.
fn is_wide_comment(line: &str) -> bool {
    let comment = line.trim_start().strip_prefix("//").map(|comment| comment.trim_start_matches(['/', '!', ' ']));
    line.chars().count() > WIDEST
        && comment.is_some_and(|comment| !comment.starts_with(['|', '[']) && !comment.contains("://"))
}

#[test]
fn attributes_and_comments_may_stand_before_a_test() {
    let text =
        "#[test]\nfn one() {}\nfn helper() {}\n    #[test]\n    #[ignore = \"slow\"]\n    // why\n    fn two() {\n";
    assert_eq!(tests_in(text), ["one", "two"]);
}

/// The functions that are marked as tests.
fn tests_in(text: &str) -> Vec<String> {
    let mut is_test = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("fn ").filter(|_| std::mem::take(&mut is_test)) {
            found.extend(name.split('(').next().map(str::to_owned));
        }
    }
    found
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}
