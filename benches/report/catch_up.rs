//! Catching up with a handler that does nothing: what reading costs.

use crate::contenders::{BareCopy, Run, bare_select};
use crate::lab::{BATCH, Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let copy = BareCopy::of(filling);
    let [single, batches, copy, select] = in_turn(
        lab.rounds,
        lab,
        [
            &|lab| Run::new(filling, Handler::NoOp).worker(lab),
            &|lab| Run::new(filling, Handler::NoOpBatches).worker(lab),
            &|lab| copy.run(lab),
            &|lab| bare_select(lab, filling, filling.events, BATCH, |_, _| {}),
        ],
    );
    for (name, measured) in [("`handle`", &single), ("`handle_batch`", &batches)] {
        let line = Line::new(format!("catch-up, no-op {name}"), EventsPerSecond, measured);
        lab.report.line(&line.clone().beside("bare copy", &copy).target(Target::RatioAtLeast(0.8)));
        lab.report.line(&line.beside("bare select", &select));
    }
    lab.report.line(&Line::new("bare select of 1,000 at a time", EventsPerSecond, &select).beside("bare copy", &copy));
}
