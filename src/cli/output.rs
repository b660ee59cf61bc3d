//! Writes the program's output. It is not a failure if the reader closes the output.

use std::io::{IsTerminal, Write, stderr, stdout};

/// Writes a line to standard output. Returns false if the reader has closed it.
pub(super) fn write(text: &str) -> bool {
    let mut out = stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).is_ok()
}

/// Replaces what the terminal shows. Returns false if the reader has closed the output.
pub(super) fn write_anew(text: &str) -> bool {
    // Moves to the upper left, and clears the rest of each line and the lines below.
    let cleared = text.replace('\n', "\x1b[K\n");
    let mut out = stdout().lock();
    write!(out, "\x1b[H{cleared}\x1b[K\n\x1b[J").and_then(|()| out.flush()).is_ok()
}

/// Writes a line to standard error.
pub(super) fn complain(text: &str) {
    _ = writeln!(stderr().lock(), "{text}");
}

/// Replaces the last line that a terminal shows of standard error.
pub(super) fn progress(line: &str) {
    _ = write!(stderr().lock(), "\r\x1b[K{line}");
}

/// Whether standard output is a terminal.
pub(super) fn is_terminal() -> bool {
    stdout().is_terminal()
}

/// Whether progress is shown, because standard error is a terminal.
pub(super) fn shows_progress() -> bool {
    stderr().is_terminal()
}

/// Whether standard output may have colours.
pub(super) fn has_colours() -> bool {
    // https://no-color.org: no colours if the variable is set and not empty.
    let is_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    is_wanted && is_terminal()
}
