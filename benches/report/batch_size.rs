//! Measures a catch-up in batches of several sizes.

use crate::contenders::{BareCopy, Run, bare_select};
use crate::lab::{Filling, Lab};
use crate::line::Line;
use crate::projections::Handler;
use crate::support::plot::{Curve, Frame};
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let copy = BareCopy::of(filling);
    let mut curves =
        ["worker", "bare select", "bare copy"].map(|name| Curve { name: name.to_owned(), points: Vec::new() });
    for size in lab.real_or_quick(vec![100, 300, 1_000, 3_000, 10_000], vec![100, 1_000]) {
        let samples = in_turn(
            lab.rounds.div_ceil(2),
            lab,
            [
                &|lab| Run { batch_size: size, ..Run::new(filling, Handler::NoOp) }.worker(lab),
                &|lab| bare_select(lab, filling, filling.events, size, |_, _| {}),
                &|lab| copy.run(lab),
            ],
        );
        for (curve, samples) in curves.iter_mut().zip(&samples) {
            curve.points.push((size as f64, samples.median()));
        }
        let [worker, select, _] = samples;
        let line = Line::new(format!("catch-up, no-op `handle`, batches of {size}"), EventsPerSecond, &worker);
        lab.report.line(&line.beside("bare select", &select));
    }
    let frame = Frame {
        title: "Catch-up with a no-op handler against the size of batches (medians)",
        x: "events in a batch",
        y: "events/s",
        log_x: true,
        log_y: false,
        dots: true,
    };
    lab.report.plot(frame, &curves);
}
