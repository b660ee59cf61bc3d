//! Worker processes of one replica set, seen from outside.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};

use crate::support::worker_process::WorkerProcess;
use crate::worker::{HOLDS, Order, REACHED};

/// How long they may take to do what is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct Crew {
    workers: Vec<WorkerProcess>,
    said: Receiver<(u32, Instant, String)>,
}

impl Crew {
    /// Starts so many, and returns when they hold all partitions together.
    pub(crate) fn start(order: &Order, count: usize) -> Self {
        let arguments = order.arguments();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (say, said) = unbounded();
        let start = |_| {
            let say = say.clone();
            WorkerProcess::start(&arguments, move |pid, at, line| _ = say.send((pid, at, line.to_owned())))
        };
        let crew = Self { workers: (0..count).map(start).collect(), said };
        let mut held: BTreeMap<u32, usize> = BTreeMap::new();
        while held.len() < count || held.values().any(|&partitions| partitions != count) {
            let (pid, _, line) = crew.hear();
            if let Some(partitions) = line.strip_prefix(HOLDS) {
                held.insert(pid, partitions.trim().parse().unwrap());
            }
        }
        crew
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.workers.iter().map(WorkerProcess::pid).collect()
    }

    /// Waits until all have reached the position they were to. Returns when the last one did and how many events they handled.
    pub(crate) fn await_reached(&self) -> (Instant, u64) {
        let mut last = None;
        let mut events = 0;
        let mut missing = self.workers.len();
        while missing > 0 {
            let (_, at, line) = self.hear();
            if let Some(count) = line.strip_prefix(REACHED) {
                last = Some(at);
                events += count.trim().parse::<u64>().unwrap();
                missing -= 1;
            }
        }
        (last.expect("there is a worker"), events)
    }

    pub(crate) fn leave(mut self) {
        self.workers.iter_mut().for_each(WorkerProcess::order_to_leave);
        self.workers.into_iter().for_each(WorkerProcess::leave);
    }

    fn hear(&self) -> (u32, Instant, String) {
        self.said.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("the workers said nothing for {PATIENCE:?}"))
    }
}
