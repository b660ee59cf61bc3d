//! The worker processes of one replica set, as seen by the bench.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use crate::support::worker_process::{Line, Process, await_left, order_to_leave, start_worker};
use crate::worker::{HOLDS, Order, REACHED};

/// How long the bench waits for the workers.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Crew {
    workers: Vec<Process>,
    said: Receiver<Line>,
}

impl Crew {
    /// Starts this many workers, and returns when together they hold all partitions.
    pub(crate) fn start(order: &Order, count: usize) -> Self {
        let arguments = order.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (say, said) = unbounded();
        let crew = Self { workers: (0..count).map(|_| start_worker(&arguments, &say)).collect(), said };
        let mut held: BTreeMap<u32, usize> = BTreeMap::new();
        while held.len() < count || held.values().any(|&partitions| partitions != count) {
            let line = crew.hear();
            if let Some(partitions) = line.text.strip_prefix(HOLDS) {
                held.insert(line.pid, partitions.trim().parse().unwrap());
            }
        }
        crew
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(Process::pid).collect()
    }

    /// Waits until all workers have reached their last position. Returns when the last one did, and
    /// how many events they handled.
    pub(crate) fn await_reached(&self) -> (Instant, u64) {
        let mut last = None;
        let mut events = 0;
        let mut missing = self.workers.len();
        while missing > 0 {
            let line = self.hear();
            if let Some(count) = line.text.strip_prefix(REACHED) {
                last = Some(line.at);
                events += count.trim().parse::<u64>().unwrap();
                missing -= 1;
            }
        }
        (last.expect("there is a worker"), events)
    }

    pub(crate) fn leave(mut self) {
        self.workers.iter_mut().for_each(order_to_leave);
        self.workers.into_iter().for_each(await_left);
    }

    fn hear(&self) -> Line {
        self.said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the workers said nothing for {PATIENCE:?}"))
    }
}
