//! A bench's own program started once more, as a worker. It leaves when it is told to, and ends at once with the process that started it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::{Receiver, bounded};

const AS_WORKER: &str = "--as-worker";

/// What a worker is started with, in the process that is one.
pub(crate) fn as_worker(arguments: &[String]) -> Option<&[String]> {
    let (first, rest) = arguments.split_first()?;
    (first == AS_WORKER).then_some(rest)
}

/// In the worker: becomes ready when it is to leave.
pub(crate) fn orders() -> Receiver<()> {
    let (sender, leave) = bounded(1);
    let orders = thread::Builder::new().name("orders".into()).spawn(move || match std::io::stdin().lines().next() {
        Some(Ok(_)) => _ = sender.send(()),
        _ => std::process::exit(1),
    });
    orders.unwrap();
    leave
}

/// A worker process, seen from outside. Dropping it kills it; so does the end of this process.
#[derive(Debug)]
pub(crate) struct WorkerProcess {
    process: Child,
    orders: Option<ChildStdin>,
    reader: Option<JoinHandle<()>>,
}

impl WorkerProcess {
    /// Starts one. `hear` is told every line it prints, with its process id and the moment.
    pub(crate) fn start(arguments: &[&str], mut hear: impl FnMut(u32, Instant, &str) + Send + 'static) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .arg(AS_WORKER)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C is for the one who started it.
            .process_group(0)
            .spawn()
            .unwrap();
        let (pid, orders) = (process.id(), process.stdin.take());
        let output = BufReader::new(process.stdout.take().unwrap());
        let reader = thread::Builder::new().name("reader".into()).spawn(move || {
            output.lines().map_while(Result::ok).for_each(|line| hear(pid, Instant::now(), &line));
        });
        Self { process, orders, reader: Some(reader.unwrap()) }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn order_to_leave(&mut self) {
        if let Some(mut orders) = self.orders.take() {
            orders.write_all(b"leave\n").unwrap();
        }
    }

    pub(crate) fn leave(mut self) {
        self.order_to_leave();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "a worker that was to leave ended with {status}");
    }

    pub(crate) fn kill(&mut self) {
        // An error says that it has ended already.
        _ = self.process.kill();
    }
}

impl Drop for WorkerProcess {
    fn drop(&mut self) {
        self.kill();
        _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }
}
