//! Programs that not every machine has.

use std::io::Write as _;
use std::path::PathBuf;

/// The first of these that is installed. Whoever tests without it is told what was left out; a CI has to have it.
pub(crate) fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|program| program.is_file());
    if found.is_none() {
        let name = names[0];
        assert!(std::env::var_os("CI").is_none(), "{name} is missing");
        // Not by print, which the harness keeps to itself while a test passes.
        _ = writeln!(std::io::stderr(), "LEFT OUT: {name} is not installed");
    }
    found
}
