//! Measures a rebuild at an unlimited rate, compared with a catch-up of the same handler with the
//! same events: what the copies, the search path and the guard cost.
//!
//! The time of the rebuild counts from the moment at which it has begun, so it includes the
//! distribution of its keys and the first read. That of the catch-up does not, see `contenders`.

use crate::contenders::Run;
use crate::lab::{BATCH, Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::rebuild_run::Rebuilt;
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let quarter = lab.real_or_quick(lab.events / 4, lab.events);
    for (name, handler, last) in [
        ("no-op `handle_batch`", Handler::NoOpBatches, lab.events),
        ("`handle_batch`, one upsert per batch", Handler::CountBatches, quarter),
    ] {
        let url = lab.filled(filling);
        let head = filling.head();
        let contender = Rebuilt { handler, start_at: head - last, head, batch_size: BATCH as usize };
        let [rebuild, catch_up] = in_turn(
            lab.rounds_times(2),
            lab,
            [&|_| contender.run(&url), &|lab| Run { last, ..Run::new(filling, handler) }.worker(lab)],
        );
        let line = Line::new(format!("rebuild at an unlimited rate, {name}"), EventsPerSecond, &rebuild);
        lab.report.line(&line.beside("catch-up", &catch_up).target(Target::RatioAtLeast(0.8)));
    }
}
