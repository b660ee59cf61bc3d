//! Measures a catch-up of a projection that has ten thousand parked aggregates, compared with one
//! that has none. None of the events belongs to a parked aggregate, and the handler does nothing,
//! so the difference is the cost of looking each event's aggregate up.

use crate::contenders::Run;
use crate::lab::{Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

const PARKED: i64 = 10_000;

pub(crate) fn measure(lab: &mut Lab) {
    let run = Run::new(Filling::of(lab.events), Handler::NoOpBatches);
    let [parked, none] =
        in_turn(lab.rounds_times(3), lab, [&|lab| Run { parked: PARKED, ..run }.worker(lab), &|lab| run.worker(lab)]);
    let line =
        Line::new("catch-up, `handle_batch` that does nothing, 10,000 aggregates parked", EventsPerSecond, &parked);
    lab.report.line(&line.beside("none parked", &none).target(Target::RatioAtLeast(0.95)));
}
