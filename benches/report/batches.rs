//! Measures a catch-up with a handler that sends one upsert for a batch, compared with a client
//! that reads the events and sends the same upsert, but moves no checkpoint.

use crate::contenders::{Run, bare_select, empty_counts};
use crate::lab::{BATCH, Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::{COUNT_BATCH, Handler};
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let last = lab.real_or_quick(lab.events / 4, lab.events);
    let [worker, bare] = in_turn(
        lab.rounds,
        lab,
        [&|lab| Run { last, ..Run::new(filling, Handler::CountBatches) }.worker(lab), &|lab| {
            empty_counts(&lab.filled(filling));
            bare_select(lab, filling, last, BATCH, |client, events| {
                let ids: Vec<&str> = events.iter().map(|event| event.aggregate_id.as_str()).collect();
                // In a transaction of its own.
                client.execute(COUNT_BATCH, &[&ids]).unwrap();
            })
        }],
    );
    let line = Line::new("catch-up, `handle_batch`, one upsert per batch", EventsPerSecond, &worker);
    lab.report.line(&line.beside("bare select and the same statement", &bare).target(Target::RatioAtLeast(0.9)));
}
