//! The arguments of the command line and the environment.

use std::path::PathBuf;
use std::process::ExitCode;

use super::app::shown;

/// The arguments of a bench.
#[derive(Debug)]
pub(crate) struct Arguments {
    /// Whether to measure everything only once and as little as possible, to check that the bench
    /// works.
    pub(crate) quick: bool,
    filters: Vec<String>,
}

/// Why a bench does not start.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// The usage was requested.
    Help(String),
    /// An argument is wrong.
    Wrong(String),
}

impl Arguments {
    /// Parses the arguments of the bench of this name, which has these sections.
    pub(crate) fn new(arguments: &[String], bench: &str, sections: &[&str]) -> Result<Self, Ends> {
        let usage = format!(
            "usage: cargo bench --bench {bench} -- [--test] [SECTION…]\n\n\
             Measures all sections, or only those with one of these in their name:\n  {}\n\
             With --test everything once, as little as possible of it. More at the top of benches/{bench}/main.rs.",
            sections.join(" ")
        );
        let has = |option: &str| arguments.iter().any(|argument| argument == option);
        if has("--help") || has("-h") {
            return Err(Ends::Help(usage));
        }
        let (options, filters): (Vec<&String>, Vec<&String>) =
            arguments.iter().partition(|argument| argument.starts_with('-'));
        let is_known = |option: &&String| ["--test", "--bench"].contains(&option.as_str());
        let is_section = |filter: &&String| sections.iter().any(|section| section.contains(filter.as_str()));
        let wrong = options.into_iter().find(|option| !is_known(option)).map(|option| ("option", option));
        let wrong =
            wrong.or_else(|| filters.iter().find(|filter| !is_section(filter)).map(|filter| ("section", *filter)));
        if let Some((kind, argument)) = wrong {
            return Err(Ends::Wrong(format!("{bench} has no such {kind}: {}\n\n{usage}", shown(argument))));
        }
        // `cargo test --benches` passes neither.
        let quick = has("--test") || !has("--bench");
        Ok(Self { quick, filters: filters.into_iter().cloned().collect() })
    }

    /// Returns the sections to be measured, as indices. Each has the text to print when it begins:
    /// its name and the progress of the bench.
    pub(crate) fn chosen(&self, sections: &[&str]) -> Vec<(usize, String)> {
        let wanted: Vec<usize> = (0..sections.len()).filter(|index| self.wants(sections[*index])).collect();
        let of = wanted.len();
        (1..).zip(wanted).map(|(number, index)| (index, format!("{} ({number} of {of})", sections[index]))).collect()
    }

    /// Whether a section of this name is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter.as_str()))
    }
}

impl Ends {
    /// Prints the text, and returns the exit code.
    pub(crate) fn say(&self) -> ExitCode {
        match self {
            Self::Help(text) => {
                println!("{text}");
                ExitCode::SUCCESS
            }
            Self::Wrong(text) => {
                eprintln!("{text}");
                ExitCode::from(2)
            }
        }
    }
}

/// Returns a list of numbers from the environment, such as `1,2,4`.
pub(crate) fn numbers(variable: &str) -> Option<Vec<usize>> {
    let text = std::env::var(variable).ok().filter(|text| !text.is_empty())?;
    let parse = |number: &str| {
        number.trim().parse().unwrap_or_else(|_| panic!("{variable} is {}: numbers, such as 2,8", shown(&text)))
    };
    Some(text.split(',').map(parse).collect())
}

/// Returns a number from the environment.
pub(crate) fn number(variable: &str) -> Option<usize> {
    numbers(variable).map(|numbers| numbers[0])
}

/// Returns the directory for tables and plots: `target/report`.
pub(crate) fn report_directory() -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("report");
    std::fs::create_dir_all(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
    directory
}
