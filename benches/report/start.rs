//! Measures the time from the call of `start` to the call of the handler with the first event. The
//! database has the schema and some events, and the replica set is new.

use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use pupsourcing_orchestrator::{BoxError, Event, Projection, Tx};

use crate::lab::{Filling, Lab, builder};
use crate::line::{Line, Target};
use crate::support::samples::Samples;
use crate::support::units::Unit::Seconds;

pub(crate) fn measure(lab: &mut Lab) {
    let url = lab.filled(Filling::of(1_000));
    let mut took = Samples::default();
    for _ in 0..lab.real_or_quick(30, 2) {
        let name = lab.name();
        let (sender, first) = bounded(1);
        let orchestrator = builder(&url, &name).projection(Heard { name, sender }).build().unwrap();
        let begun = Instant::now();
        let handle = orchestrator.start().unwrap();
        let heard: Instant = first.recv_timeout(Duration::from_secs(30)).unwrap();
        took.push((heard - begun).as_secs_f64());
        handle.shutdown(Duration::from_secs(10)).unwrap();
    }
    let line = Line::new("`start` to first event handled", Seconds, &took);
    lab.report.line(&line.percentiles(&[99, 100]).target(Target::AtMost(0.150)));
}

/// Sends the time of its first event.
struct Heard {
    name: String,
    sender: Sender<Instant>,
}

impl Projection for Heard {
    fn name(&self) -> &str {
        &self.name
    }

    fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> {
        // The channel is full after the first event.
        _ = self.sender.try_send(Instant::now());
        Ok(())
    }
}
