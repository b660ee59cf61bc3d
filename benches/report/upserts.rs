//! Measures a catch-up with a handler that sends one upsert for each event, compared with a client
//! that sends only the same upserts: it reads no events and moves no checkpoint. The client commits
//! as often as the library, because a row that one transaction has updated several times takes
//! longer to find.

use std::time::{Duration, Instant};

use crate::contenders::{Run, empty_counts};
use crate::lab::{BATCH, Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::{COUNT, Handler};
use crate::support::samples::in_turn;
use crate::support::server::connect;
use crate::support::units::Unit::EventsPerSecond;

/// The time of handling after which the library commits, if the batch has not ended before.
const LONG_ENOUGH: Duration = Duration::from_millis(250);

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let last = lab.real_or_quick(20_000, 500).min(lab.events);
    let [worker, bare] = in_turn(
        lab.rounds_times(3),
        lab,
        [&|lab| Run { last, ..Run::new(filling, Handler::Count) }.worker(lab), &|lab| bare_upserts(lab, filling, last)],
    );
    let line = Line::new("catch-up, `handle`, one upsert per event", EventsPerSecond, &worker);
    let line = line.beside("the same statement in transactions of the same size", &bare);
    lab.report.line(&line.target(Target::RatioAtLeast(0.95)));
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
    for ids in ids.chunks(BATCH as usize) {
        let mut left = ids.iter();
        while left.len() > 0 {
            let mut tx = client.transaction().unwrap();
            let until = Instant::now() + LONG_ENOUGH;
            while Instant::now() < until
                && let Some(id) = left.next()
            {
                tx.execute(COUNT, &[id]).unwrap();
            }
            tx.commit().unwrap();
        }
    }
    ids.len() as f64 / begun.elapsed().as_secs_f64()
}
