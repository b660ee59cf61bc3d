//! Workers in processes of their own, for what can happen to a process: an example, which `cargo test` builds.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use super::eventually;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running worker. Dropping it kills it; so does the end of this process, however it ends.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    child: Child,
    /// Kills the worker when its input is closed.
    guard: Child,
    lines: Receiver<(Instant, String)>,
    /// The lines taken so far, for whoever has to find out why another one did not come.
    taken: Vec<String>,
    reader: Option<JoinHandle<()>>,
}

impl WorkerProcess {
    /// Starts the example `worker` with options such as `("STALE_WORKER_TIMEOUT", "10s")`.
    pub(crate) fn start(url: &str, options: &[(&str, &str)]) -> Self {
        Self::start_program("worker", url, options)
    }

    /// Starts an example that is a worker.
    pub(crate) fn start_program(name: &str, url: &str, options: &[(&str, &str)]) -> Self {
        let program = program(name);
        let mut command = Command::new(&program);
        command
            .env_clear()
            .env("DATABASE_URL", url)
            .env("METRICS_ADDR", "127.0.0.1:0")
            .env("RUST_LOG", "info")
            .env("ORCHESTRATOR_REGISTRATION_WAIT", "50ms")
            .envs(options.iter().map(|(option, value)| (format!("ORCHESTRATOR_{option}"), value)))
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
        let guard = guard(&child);
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = unbounded();
        let reader = thread::Builder::new()
            .name("worker-log".into())
            .spawn(move || {
                for line in stderr.lines().map_while(Result::ok) {
                    _ = sender.send((Instant::now(), line));
                }
            })
            .unwrap();
        Self { child, guard, lines, taken: Vec::new(), reader: Some(reader) }
    }

    /// The process id, as it stands in the table of workers.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Waits for the next line of the log that contains all these parts. Returns when it was written, and the line.
    #[track_caller]
    pub(crate) fn await_line(&mut self, parts: &[&str]) -> (Instant, String) {
        let deadline = Instant::now() + PATIENCE;
        while let Ok((at, line)) = self.lines.recv_deadline(deadline) {
            self.taken.push(line.clone());
            if parts.iter().all(|part| line.contains(part)) {
                return (at, line);
            }
        }
        panic!("no line with {parts:?} within {PATIENCE:?} in the worker's log:\n{}", self.taken.join("\n"));
    }

    /// Where it serves its metrics, once the log says so.
    #[track_caller]
    pub(crate) fn metrics_address(&mut self) -> String {
        eventually("the metrics server's address is logged", PATIENCE, || {
            let line = self.log().iter().find(|line| line.contains("metrics server listens"))?;
            Some(line.split_once("address=")?.1.trim().to_owned())
        })
    }

    /// Waits until the worker processes as one of `workers`. Returns when it began to.
    #[track_caller]
    pub(crate) fn await_processing(&mut self, workers: usize) -> Instant {
        self.await_line(&["processing:", &format!(" of={workers} ")]).0
    }

    /// Sends a signal by its name without `SIG`.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill -s {name}");
    }

    /// Every line of its log so far.
    pub(crate) fn log(&mut self) -> &[String] {
        self.taken.extend(self.lines.try_iter().map(|(_, line)| line));
        &self.taken
    }

    /// How the process has ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for the end of the process: its exit code, or none if a signal ended it.
    #[track_caller]
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        eventually("the worker's process ends", PATIENCE, || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        // The guard first: once the worker has been waited for, its process id may be another's.
        _ = self.guard.kill();
        _ = self.guard.wait();
        _ = self.child.kill();
        _ = self.child.wait();
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }
}

/// A process that kills the other one when this process ends, however it ends.
pub(crate) fn guard(child: &Child) -> Child {
    Command::new("sh")
        .args(["-c", "read -r _; kill -s KILL \"$1\"", "guard", &child.id().to_string()])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh can be run")
}

fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(
        program.is_file(),
        "{} is missing: `cargo test` builds it, `cargo test --test it` does not; `cargo build --examples` does",
        program.display()
    );
    program
}
