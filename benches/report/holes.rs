//! Measures a catch-up where one in a hundred positions is missing, compared with the same number
//! of events without holes.

use crate::contenders::Run;
use crate::lab::{Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::arguments::number;
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

pub(crate) fn measure(lab: &mut Lab) {
    let dense = Filling::of(number("BENCH_HOLES_EVENTS").map_or(lab.events, |events| events as i64));
    let sparse = Filling { has_holes: true, ..dense };
    let [holes, baseline] = in_turn(
        lab.rounds,
        lab,
        [&|lab| Run::new(sparse, Handler::NoOpBatches).worker(lab), &|lab| {
            Run::new(dense, Handler::NoOpBatches).worker(lab)
        }],
    );
    let line = Line::new(format!("{} events, 1 % of the positions missing", dense.events), EventsPerSecond, &holes);
    lab.report.line(&line.beside("none missing", &baseline).target(Target::RatioAtLeast(0.95)));
}
