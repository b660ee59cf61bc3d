//! A worker process, from outside.

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::support::worker_process::WorkerProcess;

/// A worker processes, and says so.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) pid: u32,
    pub(crate) at: Instant,
    pub(crate) generation: i64,
    pub(crate) partitions: usize,
    /// For how long it has been paused in all its life.
    pub(crate) paused: Duration,
}

/// A worker process that reports.
pub(crate) struct Worker(WorkerProcess);

impl Worker {
    pub(crate) fn start(url: &str, reporter: Sender<Report>) -> Self {
        Self(WorkerProcess::start(&[url], move |pid, at, line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let [generation, partitions, paused] = fields[..] else { panic!("a worker said {line:?}") };
            _ = reporter.send(Report {
                pid,
                at,
                generation: generation.parse().unwrap(),
                partitions: partitions.parse().unwrap(),
                paused: Duration::from_secs_f64(paused.parse().unwrap()),
            });
        }))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    pub(crate) fn order_to_leave(&mut self) {
        self.0.order_to_leave();
    }

    pub(crate) fn leave(self) {
        self.0.leave();
    }

    pub(crate) fn kill(mut self) {
        self.0.kill();
    }

    /// Stops the process. Frozen, it would not hear that this one has ended; so somebody else does, and kills it.
    pub(crate) fn freeze(self) -> Frozen {
        let guard = Command::new("sh")
            .args(["-c", "kill -s STOP \"$1\"; read -r _; kill -s KILL \"$1\"", "guard", &self.pid().to_string()])
            .process_group(0)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Frozen { guard, worker: self }
    }
}

pub(crate) struct Frozen {
    guard: Child,
    worker: Worker,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // First of all: once the worker has been waited for, its process id may be another's.
        drop(self.guard.stdin.take());
        _ = self.guard.wait();
        self.worker.0.kill();
    }
}
