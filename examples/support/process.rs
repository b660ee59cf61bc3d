//! A program of this repository in a process of its own, as seen by the process that started it.
//!
//! *Invariant:* the program never outlives the process that started it, in whatever way that
//! process ends. A shell, the guard, waits for the end of a pipe and then kills the program, even
//! if it is frozen. Ctrl-C reaches neither of the two, because both have a process group of their
//! own.
#![allow(dead_code, reason = "several programs compile this file, and few of them call every function")]

use std::io::{self, BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::Sender;
use rustix::process::{Pid, kill_process};

pub(crate) use rustix::process::Signal;

/// The stream whose lines are sent to the process that started the program. The command determines
/// the other stream.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// A line that a process has written.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) pid: u32,
    pub(crate) at: Instant,
    pub(crate) text: String,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    guard: Child,
    reader: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts the program. Each line that it writes to the stream is sent to `lines`.
    pub(crate) fn start(mut command: Command, stream: Stream, lines: Sender<Line>) -> io::Result<Self> {
        match stream {
            Stream::Stdout => command.stdout(Stdio::piped()),
            Stream::Stderr => command.stderr(Stdio::piped()),
        };
        let mut child = command.stdin(Stdio::null()).process_group(0).spawn()?;
        let guard = guard(&child).inspect_err(|_| _ = child.kill())?;
        let output: Box<dyn Read + Send> = match (child.stdout.take(), child.stderr.take()) {
            (Some(stdout), _) => Box::new(stdout),
            (None, Some(stderr)) => Box::new(stderr),
            (None, None) => Box::new(io::empty()),
        };
        let mut process = Self { child, guard, reader: None };
        let pid = process.pid();
        let reader = thread::Builder::new().name("process-lines".into()).spawn(move || {
            for text in BufReader::new(output).lines().map_while(Result::ok) {
                // The line is read even if no caller waits for it. Otherwise the program would
                // block on a full pipe.
                _ = lines.send(Line { pid, at: Instant::now(), text });
            }
        });
        process.reader = Some(reader?);
        Ok(process)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal, unless the process is known to have ended.
    pub(crate) fn signal(&mut self, signal: Signal) -> io::Result<()> {
        if self.child.try_wait()?.is_none() {
            kill_process(Pid::from_child(&self.child), signal)?;
        }
        Ok(())
    }

    /// Returns how the process has ended, if it has. By then, all its lines have been sent.
    pub(crate) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.finish_reading();
        }
        Ok(status)
    }

    /// Waits until the process ends.
    pub(crate) fn wait(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }

    fn finish_reading(&mut self) {
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The guard is killed first: after the wait for the program, another process may get its
        // id. Errors mean that the processes have already ended.
        for child in [&mut self.guard, &mut self.child] {
            _ = child.kill();
            _ = child.wait();
        }
        self.finish_reading();
    }
}

/// Starts the guard. It kills the process when its pipe is closed, which happens when this process
/// ends.
fn guard(child: &Child) -> io::Result<Child> {
    Command::new("/bin/sh")
        .args(["-c", "read -r _; kill -s KILL \"$1\"", "guard", &child.id().to_string()])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
