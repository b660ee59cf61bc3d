//! Reads the output of a program.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

/// Returns the standard output of a program, or `None` if it fails.
pub(super) fn output(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
