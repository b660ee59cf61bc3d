//! Catching up with a handler that sends one upsert for each event, beside a client that sends the same and nothing else: it reads no
//! events and moves no checkpoint.

use std::time::Instant;

use crate::contenders::{Run, empty_counts};
use crate::lab::{Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::{COUNT, Handler};
use crate::support::samples::in_turn;
use crate::support::server::connect;
use crate::support::units::Unit::EventsPerSecond;

/// What the library handles of such events in the 250 ms after which it commits.
const PER_TRANSACTION: usize = 1_000;

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let last = lab.real_or_quick(20_000, 500).min(lab.events);
    let [worker, bare] = in_turn(
        lab.rounds_times(3),
        lab,
        [&|lab| Run { last, ..Run::new(filling, Handler::Count) }.worker(lab), &|lab| bare_upserts(lab, filling, last)],
    );
    let line = Line::new("catch-up, `handle`, one upsert per event", EventsPerSecond, &worker);
    lab.report.line(
        &line
            .beside(format!("the same statement, {PER_TRANSACTION} per transaction"), &bare)
            .target(Target::RatioAtLeast(0.95)),
    );
}

fn bare_upserts(lab: &mut Lab, filling: Filling, last: i64) -> f64 {
    let url = lab.filled(filling);
    empty_counts(&url);
    let mut client = connect(&url);
    let rows = client
        .query(
            "SELECT aggregate_id FROM events WHERE global_position > $1 ORDER BY global_position",
            &[&(filling.head() - last)],
        )
        .unwrap();
    let ids: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let begun = Instant::now();
    for ids in ids.chunks(PER_TRANSACTION) {
        let mut tx = client.transaction().unwrap();
        for id in ids {
            tx.execute(COUNT, &[id]).unwrap();
        }
        tx.commit().unwrap();
    }
    ids.len() as f64 / begun.elapsed().as_secs_f64()
}
