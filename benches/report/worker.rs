//! The program of a worker process.

use std::time::Duration;

use crossbeam_channel::tick;
use pupsourcing_orchestrator::{ProjectionState, ProjectionStatus};

use crate::lab::{Filling, builder};
use crate::projections::{Handler, Measured};
use crate::support::app::shutdown_signal;

/// What a worker process does. It is passed as the arguments of the process.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) url: String,
    pub(crate) replica_set: String,
    pub(crate) handler: Handler,
    pub(crate) projections: usize,
    pub(crate) start_at: i64,
    /// The worker reports when all projections have reached this position.
    pub(crate) upto: i64,
    /// A fixed interval of polling for events, if not the default.
    pub(crate) event_poll: Option<Duration>,
}

impl Order {
    /// Processes all existing events, with one projection.
    pub(crate) fn from_beginning(url: &str, replica_set: String, handler: Handler, filling: Filling) -> Self {
        Self {
            url: url.to_owned(),
            replica_set,
            handler,
            projections: 1,
            start_at: 0,
            upto: filling.head(),
            event_poll: None,
        }
    }

    /// Processes the events after the last existing one, with one projection.
    pub(crate) fn from_head(url: &str, replica_set: String, handler: Handler, filling: Filling) -> Self {
        Self { start_at: filling.head(), ..Self::from_beginning(url, replica_set, handler, filling) }
    }

    pub(crate) fn arguments(&self) -> [String; 7] {
        [
            self.url.clone(),
            self.replica_set.clone(),
            self.handler.name().to_owned(),
            self.projections.to_string(),
            self.start_at.to_string(),
            self.upto.to_string(),
            self.event_poll.map_or(0, |interval| interval.as_millis()).to_string(),
        ]
    }

    fn parse(arguments: &[String]) -> Self {
        let [url, replica_set, handler, projections, start_at, upto, event_poll] = arguments else {
            panic!("not what a worker is started with: {arguments:?}");
        };
        let event_poll = Duration::from_millis(event_poll.parse().unwrap());
        Self {
            url: url.clone(),
            replica_set: replica_set.clone(),
            handler: handler.parse().unwrap(),
            projections: projections.parse().unwrap(),
            start_at: start_at.parse().unwrap(),
            upto: upto.parse().unwrap(),
            event_poll: Some(event_poll).filter(|interval| !interval.is_zero()),
        }
    }
}

/// The worker prints this, with the number of partitions, when it holds a partition and all its
/// projections either wait at the gate or have nothing to do.
pub(crate) const HOLDS: &str = "holds";
/// The worker prints this, with the number of its events, when every projection has reached `upto`.
pub(crate) const REACHED: &str = "reached";

/// Runs a worker until it is told to leave.
pub(crate) fn work(arguments: &[String]) {
    env_logger::init();
    let leave = shutdown_signal().unwrap();
    let order = Order::parse(arguments);
    let mut builder = builder(&order.url, &order.replica_set);
    for index in 0..order.projections {
        let name = format!("{}-{index}", order.replica_set);
        builder = builder.batch_projection(Measured::new(name, order.start_at, order.handler));
    }
    if let Some(interval) = order.event_poll {
        builder = builder.event_poll(interval, interval);
    }
    let handle = builder.build().unwrap().start().unwrap();
    // The status is checked often until the worker has reached the position. After that there is
    // little to report, and frequent checks would disturb an idle worker.
    let (often, seldom) = (tick(Duration::from_millis(2)), tick(Duration::from_millis(50)));
    let mut partitions = 0;
    let mut has_reached = false;
    loop {
        let next = if has_reached { &seldom } else { &often };
        crossbeam_channel::select! {
            recv(leave) -> _ => break,
            recv(next) -> _ => {}
        }
        let status = handle.status();
        let now = status.assignment.map_or(0, |assignment| assignment.total_partitions);
        let is_ready = |projection: &ProjectionStatus| {
            projection.state == ProjectionState::Retrying || projection.position >= Some(order.upto)
        };
        if now != partitions && status.projections.values().all(is_ready) {
            partitions = now;
            println!("{HOLDS} {partitions}");
        }
        if !has_reached && status.projections.values().all(|projection| projection.position >= Some(order.upto)) {
            has_reached = true;
            println!("{REACHED} {}", status.projections.values().map(|projection| projection.events).sum::<u64>());
        }
    }
    handle.shutdown(Duration::from_secs(10)).unwrap();
}
