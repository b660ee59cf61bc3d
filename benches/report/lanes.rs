//! Measures a catch-up in several lanes, with a handler that waits for the database, and with one
//! that waits for another service.

use crate::contenders::Run;
use crate::lab::{Filling, Lab};
use crate::line::Line;
use crate::projections::Handler;
use crate::support::plot::{Curve, Frame};
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let mut curves = Vec::new();
    for (name, handler, last) in [
        ("one upsert per event", Handler::Count, lab.real_or_quick(20_000, 500)),
        ("1 ms of waiting per event", Handler::Wait, lab.real_or_quick(4_000, 200)),
    ] {
        let run = Run { last: last.min(lab.events), ..Run::new(filling, handler) };
        let [one, two, four] = in_turn(
            lab.rounds,
            lab,
            [&|lab| run.worker(lab), &|lab| Run { lanes: 2, ..run }.worker(lab), &|lab| {
                Run { lanes: 4, ..run }.worker(lab)
            }],
        );
        for (lanes, samples) in [(2, &two), (4, &four)] {
            let line = Line::new(format!("catch-up, {name}, {lanes} lanes"), EventsPerSecond, samples);
            lab.report.line(&line.beside("1 lane", &one));
        }
        let points = [(1.0, &one), (2.0, &two), (4.0, &four)].map(|(lanes, samples)| (lanes, samples.median()));
        curves.push(Curve { name: name.to_owned(), points: points.to_vec() });
    }
    let frame = Frame {
        title: "Catch-up of one worker against its lanes (medians)",
        x: "lanes",
        y: "events/s",
        log_x: false,
        log_y: false,
        dots: true,
    };
    lab.report.plot(frame, &curves);
}
