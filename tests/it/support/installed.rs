//! Programs that not every machine has.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::Mutex;

/// The first of these that is installed. If none is installed, the test leaves something out.
pub(crate) fn installed(names: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
        .find(|program| program.is_file());
    if found.is_none() {
        leave_out(&format!("{} is not installed", names[0]));
    }
    found
}

/// Reports at the end of the run that the test leaves something out on this machine. In a CI it
/// panics instead, because everything must be installed there.
#[track_caller]
pub(crate) fn leave_out(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    say_at_the_end(&format!("LEFT OUT: {test}, because {why}"));
}

/// Writes a line to the error output after this process has ended, so the line is below the results
/// of the run. The harness does not show what a passing test prints.
pub(crate) fn say_at_the_end(line: &str) {
    /// The input of a process that prints it after this process has ended.
    static NOTES: Mutex<Option<ChildStdin>> = Mutex::new(None);
    let mut notes = NOTES.lock().unwrap();
    let notes = notes.get_or_insert_with(|| {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "notes=$(cat); echo \"$notes\" >&2"]).stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap().stdin.take().unwrap()
    });
    writeln!(notes, "{line}").unwrap();
}
