//! The reports of the worker processes.

use std::time::{Duration, Instant};

use crate::support::worker_process::Line;

/// A worker's report that it processes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub(crate) pid: u32,
    pub(crate) at: Instant,
    pub(crate) generation: i64,
    pub(crate) partitions: usize,
    /// How long the worker has been paused in total.
    pub(crate) paused: Duration,
}

impl From<Line> for Report {
    fn from(Line { pid, at, text }: Line) -> Self {
        let fields: Vec<&str> = text.split(' ').collect();
        let [generation, partitions, paused] = fields[..] else { panic!("a worker said {text:?}") };
        Self {
            pid,
            at,
            generation: generation.parse().unwrap(),
            partitions: partitions.parse().unwrap(),
            paused: Duration::from_secs_f64(paused.parse().unwrap()),
        }
    }
}
