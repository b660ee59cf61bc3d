//! Asks the workers' probes as Kubernetes does.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// How often each worker is asked.
const PERIOD: Duration = Duration::from_millis(500);
/// How long an answer may take. It comes from memory, but the machine is busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// This many failures in a row would restart a worker.
const FAILURES: u32 = 3;

/// What the probes of one worker have said.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    address: Option<String>,
    asked_at: Option<Instant>,
    failures: u32,
    is_ready: bool,
}

impl Probes {
    /// Whether its last answer was that it is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Asks, if it is time to. Returns an error if the worker would be restarted now.
    pub(crate) fn ask(&mut self, log: &[String]) -> Result<(), String> {
        if self.asked_at.is_some_and(|at| at.elapsed() < PERIOD) {
            return Ok(());
        }
        if self.address.is_none() {
            let line = log.iter().find(|line| line.contains("metrics server listens"));
            self.address = line.and_then(|line| Some(line.split_once("address=")?.1.trim().to_owned()));
        }
        // Like a startup probe, wait until the worker serves.
        let Some(address) = &self.address else { return Ok(()) };
        self.asked_at = Some(Instant::now());
        let (live, ready) = (get(address, "/livez"), get(address, "/readyz"));
        self.is_ready = ready.is_ok();
        self.failures = if live.is_ok() { 0 } else { self.failures + 1 };
        match live {
            Err(problem) if self.failures >= FAILURES => Err(problem),
            _ => Ok(()),
        }
    }

    /// Skips a frozen worker, which cannot answer.
    pub(crate) fn skip(&mut self) {
        self.failures = 0;
        self.is_ready = false;
    }
}

fn get(address: &str, path: &str) -> Result<(), String> {
    let answer = || {
        let mut stream = TcpStream::connect_timeout(&address.parse().ok()?, PATIENCE).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    };
    match answer() {
        Some(answer) if answer.split(' ').nth(1) == Some("200") => Ok(()),
        Some(answer) => Err(format!("{path}: {}", answer.lines().last().unwrap_or_default())),
        None => Err(format!("{path}: no answer")),
    }
}
