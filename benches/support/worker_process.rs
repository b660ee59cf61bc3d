//! Starts a bench's own program a second time, as a worker.

use std::process::Command;

use crossbeam_channel::Sender;

#[path = "../../examples/support/process.rs"]
mod process;

pub(crate) use process::{Line, Process, Signal};

const AS_WORKER: &str = "--as-worker";

/// Returns the worker's arguments, if this process is a worker.
pub(crate) fn as_worker(arguments: &[String]) -> Option<&[String]> {
    let (first, rest) = arguments.split_first()?;
    (first == AS_WORKER).then_some(rest)
}

/// Starts a worker process, which leaves on SIGTERM. What it prints is sent to `lines`.
pub(crate) fn start_worker(arguments: &[&str], lines: &Sender<Line>) -> Process {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg(AS_WORKER).args(arguments);
    Process::start(command, process::Stream::Stdout, lines.clone()).unwrap()
}

/// Tells a worker process to leave.
pub(crate) fn order_to_leave(worker: &mut Process) {
    worker.signal(Signal::TERM).unwrap();
}

/// Waits until a worker process that was told to leave has left.
pub(crate) fn await_left(worker: Process) {
    let status = worker.wait().unwrap();
    assert!(status.success(), "a worker that was to leave ended with {status}");
}
