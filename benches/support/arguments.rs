//! What the command line and the environment ask for.

use std::path::PathBuf;

use super::app::shown;

/// The arguments of a bench.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Everything once, as little as possible of it: does it work?
    pub(crate) quick: bool,
    filters: Vec<String>,
}

impl Arguments {
    pub(crate) fn new(arguments: &[String]) -> Self {
        // `cargo test --benches` says neither.
        let quick = arguments.iter().any(|a| a == "--test") || !arguments.iter().any(|a| a == "--bench");
        Self { quick, filters: arguments.iter().filter(|argument| !argument.starts_with('-')).cloned().collect() }
    }

    /// Whether something of this name is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }
}

/// A list of numbers in the environment: `1,2,4`.
pub(crate) fn numbers(variable: &str) -> Option<Vec<usize>> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    let parse = |number: &str| {
        number.trim().parse().unwrap_or_else(|_| panic!("{variable} is {}: numbers, such as 2,8", shown(&text)))
    };
    Some(text.split(',').map(parse).collect())
}

/// A number in the environment.
pub(crate) fn number(variable: &str) -> Option<usize> {
    numbers(variable).map(|numbers| numbers[0])
}

/// Where tables and plots are written: `target/report`.
pub(crate) fn report_directory() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("report");
    std::fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    directory
}
