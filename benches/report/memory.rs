//! Measures the memory of a worker process with two projections during a catch-up: with events of
//! 200 bytes, and with events so large that a batch has as many bytes as `batch_bytes` allows.
//!
//! To detect a leak, the maximum of the last fifth of the time is compared with the maximum of the
//! second fifth. Single values cannot be compared: the number of batches that the worker has read
//! ahead changes all the time, and with large events each batch is visible.

use std::time::Duration;

use crate::crew::Crew;
use crate::gate::Gate;
use crate::lab::{Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::sampler::Sampler;
use crate::support::arguments::number;
use crate::support::plot::{Curve, Frame};
use crate::support::proc::{peak_resident, resident};
use crate::support::samples::Samples;
use crate::support::units::Unit::Bytes;
use crate::worker::Order;

const PROJECTIONS: usize = 2;

/// 64 MiB and the default of `batch_bytes` for each runner.
const BOUND: f64 = ((64 + 8 * PROJECTIONS) << 20) as f64;

const LOOK: Duration = Duration::from_millis(10);

pub(crate) fn measure(lab: &mut Lab) {
    let events = number("BENCH_MEMORY_EVENTS").map_or(lab.real_or_quick(2_000_000, 5_000), |events| events as i64);
    let heavy = 32 << 10;
    let curves: Vec<Curve> = [
        (format!("{events} events of 200 bytes"), Filling::of(events)),
        (format!("{} events of 32 KiB", events / 200), Filling { payload: heavy, ..Filling::of(events / 200) }),
    ]
    .into_iter()
    .map(|(name, filling)| {
        let (seen, peak) = watch(lab, filling);
        let fifth = |nth: usize| -> Samples {
            let length = seen.len() / 5;
            seen.iter().skip(nth * length).take(length.max(1)).copied().collect()
        };
        let line = Line::new(format!("memory at the most, {name}"), Bytes, &[peak].into_iter().collect());
        lab.report.line(&line.target(Target::AtMost(BOUND)));
        let [early, late]: [Samples; 2] = [1, 4].map(|nth| [fifth(nth).percentile(100)].into_iter().collect());
        let line = Line::new(format!("memory at the most in the last fifth, {name}"), Bytes, &late);
        lab.report.line(&line.beside("second fifth", &early).target(Target::RatioAtMost(1.05)));
        let points = seen
            .iter()
            .zip(1..)
            .map(|(bytes, look)| (f64::from(look) * LOOK.as_secs_f64(), bytes / f64::from(1 << 20)));
        Curve { name, points: points.collect() }
    })
    .collect();
    let frame = Frame {
        title: "Memory of a worker with two projections",
        x: "seconds",
        y: "MiB",
        log_x: false,
        log_y: false,
        dots: false,
    };
    lab.report.plot(frame, &curves);
}

/// Returns the memory while the events were handled, and the most that the process ever had.
fn watch(lab: &mut Lab, filling: Filling) -> (Vec<f64>, f64) {
    let url = lab.filled(filling);
    let order =
        Order { projections: PROJECTIONS, ..Order::from_beginning(&url, lab.name(), Handler::NoOpBatches, filling) };
    let gate = Gate::shut(&url);
    let crew = Crew::start(&order, 1);
    let pid = crew.pids()[0];
    gate.open();
    let sampler = Sampler::start(LOOK, move || resident(pid));
    crew.await_reached();
    let seen = sampler.stop();
    // The kernel keeps both values only approximately, each in a different way.
    let peak = seen.iter().copied().fold(peak_resident(pid), f64::max);
    crew.leave();
    (seen, peak)
}
