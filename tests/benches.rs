//! Checks how the benches read their command line. A misspelt section must be an error: otherwise a
//! bench would measure nothing and seem to succeed.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    dead_code,
    reason = "a test fails by panicking, and uses a part of the benches' code"
)]

#[path = "../examples/support/app.rs"]
mod app;
#[path = "../benches/support/arguments.rs"]
mod arguments;

use arguments::{Arguments, Ends};

const SECTIONS: [&str; 3] = ["catch_up", "append", "idle"];

fn understood(line: &str) -> Result<Arguments, Ends> {
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Arguments::new(&arguments, "report", &SECTIONS)
}

#[test]
fn sections_are_chosen_by_a_part_of_their_name() {
    for (line, wanted, quick) in [
        ("--bench", &["catch_up", "append", "idle"][..], false),
        ("", &["catch_up", "append", "idle"], true),
        ("--test --bench", &["catch_up", "append", "idle"], true),
        ("up app --bench", &["catch_up", "append"], false),
    ] {
        let arguments = understood(line).unwrap();
        let found: Vec<&str> = SECTIONS.into_iter().filter(|section| arguments.wants(section)).collect();
        assert_eq!((found.as_slice(), arguments.quick), (wanted, quick), "{line}");
    }
}

#[test]
fn each_section_shows_the_progress_of_the_bench() {
    for (line, said) in [
        ("--bench", &["catch_up (1 of 3)", "append (2 of 3)", "idle (3 of 3)"][..]),
        ("up idle --bench", &["catch_up (1 of 2)", "idle (2 of 2)"]),
    ] {
        let chosen = understood(line).unwrap().chosen(&SECTIONS);
        assert_eq!(chosen.iter().map(|(_, progress)| progress).collect::<Vec<_>>(), said, "{line}");
        assert!(chosen.iter().all(|(index, progress)| progress.starts_with(SECTIONS[*index])), "{chosen:?}");
    }
}

#[test]
fn wrong_arguments_and_help_start_no_benchmark() {
    for line in ["cathc_up --bench", "append cathc_up", "--tset", "append -x", "postgres://u:secret@h/d"] {
        let Err(Ends::Wrong(text)) = understood(line) else { panic!("{line} was accepted") };
        assert!(text.contains("catch_up append idle") && text.contains("report has no such"), "{line}: {text}");
        assert!(!text.contains("secret"), "{line}: {text}");
    }
    for line in ["--help --bench", "-h", "--help cathc_up"] {
        let Err(Ends::Help(text)) = understood(line) else { panic!("{line} begins") };
        assert!(text.contains("catch_up append idle") && text.contains("--test"), "{line}: {text}");
    }
}
