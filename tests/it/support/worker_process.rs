//! Workers in processes of their own, for tests of what can happen to a process. They are examples
//! of the crate.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use super::eventually;
use super::http::get;
use super::process::{Line, Process, Stream};

pub(crate) use super::process::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

/// How many lines of a worker's log are shown when a test fails.
const SHOWN: usize = 50;

/// A running worker, and its log.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    process: Process,
    lines: Receiver<Line>,
    /// The lines taken so far, to be shown when an expected line did not come.
    taken: Vec<String>,
}

impl WorkerProcess {
    /// Starts the example `worker` with options such as `("STALE_WORKER_TIMEOUT", "10s")`.
    pub(crate) fn start(url: &str, options: &[(&str, &str)]) -> Self {
        Self::start_program("worker", url, options)
    }

    /// Starts an example that is a worker.
    pub(crate) fn start_program(name: &str, url: &str, options: &[(&str, &str)]) -> Self {
        Self::start_as(command(name), url, options)
    }

    /// Starts the example `worker` in a process that may have this many open files.
    pub(crate) fn start_with_files(most: u64, url: &str, options: &[(&str, &str)]) -> Self {
        let mut shell = command_of("/bin/sh");
        shell.args(["-c", "ulimit -S -n \"$1\" && exec \"$0\""]).arg(example("worker")).arg(most.to_string());
        Self::start_as(shell, url, options)
    }

    fn start_as(mut command: Command, url: &str, options: &[(&str, &str)]) -> Self {
        command
            .env("DATABASE_URL", url)
            .env("RUST_LOG", "info")
            .env("ORCHESTRATOR_REGISTRATION_WAIT", "50ms")
            .envs(options.iter().map(|(option, value)| (format!("ORCHESTRATOR_{option}"), value)));
        Self::run(command)
    }

    /// Starts the example `worker` with these arguments and variables, and no others but a free
    /// port for its metrics.
    pub(crate) fn start_with(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command("worker");
        command.args(arguments).envs(variables.iter().copied());
        Self::run(command)
    }

    /// Starts the same program, but reads its standard output instead of its log.
    pub(crate) fn start_shown(arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = command("worker");
        command.args(arguments).envs(variables.iter().copied());
        Self::run_on(Stream::Stdout, command)
    }

    /// Starts an ignored test of this program in a process of its own, with these variables.
    pub(crate) fn start_test(name: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = command_of(std::env::current_exe().unwrap());
        command
            .args(["--exact", name, "--ignored", "--nocapture"])
            .env("RUST_LOG", "info")
            .envs(variables.iter().copied());
        Self::run(command)
    }

    /// Starts a worker of the example `quickstart`. Its standard output, which is the address of
    /// its metrics, is read in place of the log.
    pub(crate) fn start_for_quickstart(url: &str) -> Self {
        let mut command = command("quickstart");
        command.args(["worker", url]);
        Self::run_on(Stream::Stdout, command)
    }

    /// Starts any program that is a worker, and reads its log.
    pub(crate) fn start_command(command: Command) -> Self {
        Self::run(command)
    }

    fn run(command: Command) -> Self {
        Self::run_on(Stream::Stderr, command)
    }

    fn run_on(stream: Stream, command: Command) -> Self {
        let (sender, lines) = unbounded();
        let program = command.get_program().to_owned();
        let process = Process::start(command, stream, sender);
        let process = process.unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
        Self { process, lines, taken: Vec::new() }
    }

    /// The process id, which is also in the table of workers.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid().try_into().unwrap()
    }

    /// Waits for the next line of the log that contains all these parts. Returns when it was
    /// written, and the line.
    #[track_caller]
    pub(crate) fn await_line(&mut self, parts: &[&str]) -> (Instant, String) {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_deadline(deadline) {
            self.taken.push(line.text.clone());
            if parts.iter().all(|part| line.text.contains(part)) {
                return (line.at, line.text);
            }
        }
        panic!("no line with {parts:?} within {PATIENCE:?} in the worker's log:\n{}", self.taken.join("\n"));
    }

    /// Waits until a line of the log, from its beginning on, contains all these parts. Returns the
    /// line.
    #[track_caller]
    pub(crate) fn await_logged(&mut self, parts: &[&str]) -> String {
        let has_parts = |line: &&String| parts.iter().all(|part| line.contains(part));
        if let Some(line) = self.log().iter().find(has_parts) {
            return line.clone();
        }
        self.await_line(parts).1
    }

    /// The address at which it serves its metrics, once the log has it.
    #[track_caller]
    pub(crate) fn metrics_address(&mut self) -> String {
        eventually("the metrics server's address is logged", PATIENCE, || {
            let line = self.log().iter().find(|line| line.contains("metrics server listens"))?;
            Some(line.split_once("address=")?.1.trim().to_owned())
        })
    }

    /// Waits until the worker says over HTTP that it is ready. Returns the address at which it
    /// serves its metrics.
    #[track_caller]
    pub(crate) fn await_ready(&mut self) -> String {
        let address = self.metrics_address();
        eventually("the worker is ready", PATIENCE, || (get(&address, "/readyz").0 == 200).then_some(()));
        address
    }

    /// Waits until the worker processes as one of `workers`. Returns the time at which it began.
    #[track_caller]
    pub(crate) fn await_processing(&mut self, workers: usize) -> Instant {
        self.await_line(&["processing:", &format!(" of={workers} ")]).0
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// Every line of its log so far.
    pub(crate) fn log(&mut self) -> &[String] {
        self.taken.extend(self.lines.try_iter().map(|line| line.text));
        &self.taken
    }

    /// How the process has ended, if it has. Its log is complete by then.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.process.ended().unwrap()
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn await_end(&mut self) -> ExitStatus {
        eventually("the worker's process ends", PATIENCE, || self.ended())
    }

    /// Waits for the end of the process: its exit code, or none if a signal ended it.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.await_end().code()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (pid, log) = (self.pid(), self.log());
            let last = &log[log.len().saturating_sub(SHOWN)..];
            println!("the log of worker process {pid} ends with:\n{}", last.join("\n"));
        }
    }
}

/// An example, with nothing in its environment but a free port for its metrics.
pub(crate) fn command(name: &str) -> Command {
    command_of(example(name))
}

fn command_of(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("METRICS_ADDR", "127.0.0.1:0").stdout(Stdio::null());
    command
}

/// The path of an example, which is built if it is missing or outdated: `cargo test NAME` builds no
/// examples.
pub(crate) fn example(name: &str) -> PathBuf {
    // Each process builds an example once, and its other tests wait for that.
    static BUILT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join("examples").join(name);
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    if !program.is_file() || built.insert(name.to_owned()) {
        build(name, profile);
    }
    assert!(program.is_file(), "{} is missing although cargo has built it", program.display());
    program
}

/// Builds an example with the profile and the target directory of this test.
fn build(name: &str, profile: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target = profile.parent().unwrap();
    let profile = match profile.file_name().unwrap().to_str().unwrap() {
        "debug" => "dev",
        other => other,
    };
    // Cargo sets variables for this test, and the build scripts of dependencies depend on them.
    // With these variables, cargo would build everything again, and once more after the test.
    let is_of_this_test = |name: &OsStr| {
        let name = name.to_string_lossy();
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"].iter().any(|prefix| name.starts_with(prefix))
    };
    let variables = std::env::vars_os().filter(|(name, _)| !is_of_this_test(name));
    let output = Command::new(cargo)
        .env_clear()
        .envs(variables)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet", "--example", name, "--profile", profile, "--target-dir"])
        .arg(target)
        .output()
        .unwrap_or_else(|e| panic!("the example {name} cannot be built, is cargo on the PATH? {e}"));
    assert!(output.status.success(), "the example {name} cannot be built: {}", String::from_utf8_lossy(&output.stderr));
}
