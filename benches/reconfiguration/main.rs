//! Measures for how long events are not processed while the workers of a replica set change, at
//! default settings. Compares this with the library's own bounds.
//!
//! ```text
//! cargo bench --bench reconfiguration                all sizes, in about eight minutes
//! cargo bench --bench reconfiguration -- --test      two workers, once each, no SIGSTOP: a quick
//!                                                    check
//! cargo bench --bench reconfiguration -- kill        only the faults with this in their name
//! BENCH_WORKERS=2,8 BENCH_ROUNDS=20 cargo bench …    other sizes (1,2,4,8,16,32) and rounds (5)
//! BENCH_SIGSTOP=2,8 cargo bench …                    other sizes at which a worker is frozen, for
//!                                                    half a minute each (2)
//! ```
//!
//! The workers are processes with two projections each, on a private PostgreSQL. Ten times a
//! second, 64 events are appended, evenly distributed, so every partition always has events to
//! process. `workers` is the number of workers before the fault. These times are measured:
//!
//! - `join`, `leave`: the pause of each worker that stays, as it reports it in
//!   `coordination_duration_seconds`. In `leave`, also the pause of the leaving worker's partition:
//!   from the order to leave until the last of the others processes again.
//! - `kill`, `sigstop`: from the signal until the last of the others processes again, which is the
//!   pause of the victim's partition. `kill, others` is the pause of the workers that stay.
//! - `restart`: from the moment the server accepts connections until a projection of a worker has
//!   handled an event that was appended after that moment. This is measured for each projection of
//!   each worker.
//!
//! `event` is the longest time from the append of any event to its handler during the fault; in
//! `restart`, it counts from the moment the server accepts connections. `gen/round` counts the
//! generations that were created: one for each change of membership is enough, and a restart needs
//! none. The last three columns divide the time, at the median of the rounds: until the first new
//! generation was created, from there until the last one was active, and from there until the last
//! worker processed.
//!
//! `target/report/pauses.svg` shows the medians of the pauses against the number of workers.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking, and its figures need no more than 50 bits"
)]

mod bench;
mod fault;
mod reports;
#[path = "../support/mod.rs"]
mod support;
mod worker;
mod writer;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use bench::Bench;
use fault::{Fault, Round, median_pause};
use support::arguments::{Arguments, number, numbers, report_directory};
use support::plot::{self, Curve, Frame};
use support::worker_process::as_worker;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some([url]) = as_worker(&arguments) {
        worker::work(url);
        return ExitCode::SUCCESS;
    }
    match Arguments::new(&arguments, "reconfiguration", &Fault::ALL.map(Fault::name)) {
        Ok(arguments) => run(&arguments),
        Err(ends) => return ends.say(),
    }
    ExitCode::SUCCESS
}

fn run(arguments: &Arguments) {
    let quick = arguments.quick;
    let faults: Vec<Fault> = Fault::ALL.into_iter().filter(|fault| arguments.wants(fault.name())).collect();
    let sizes = numbers("BENCH_WORKERS").unwrap_or_else(|| if quick { vec![2] } else { vec![1, 2, 4, 8, 16, 32] });
    let rounds = number("BENCH_ROUNDS").unwrap_or(if quick { 1 } else { 5 });
    let frozen = numbers("BENCH_SIGSTOP").unwrap_or_else(|| if quick { Vec::new() } else { vec![2] });

    let mut bench = Bench::new();
    let mut medians: BTreeMap<Fault, Vec<(f64, f64)>> = BTreeMap::new();
    let (begun, of) = (Instant::now(), sizes.len());
    for (number, workers) in (1..).zip(sizes) {
        println!("{workers} workers ({number} of {of} sizes), after {:.0?}", begun.elapsed());
        bench.resize(workers);
        bench.print_quiet();
        let mut found: BTreeMap<Fault, Vec<Round>> = BTreeMap::new();
        for round in 0..rounds {
            for fault in &faults {
                let alone = workers == 1 && fault.takes_a_worker();
                let seldom = *fault == Fault::SigStop && (round > 0 || !frozen.contains(&workers));
                if !alone && !seldom {
                    bench.resize(workers);
                    found.entry(*fault).or_default().push(bench.inflict(*fault));
                }
            }
        }
        for (fault, rounds) in found {
            fault.print(workers, &rounds);
            medians.entry(fault).or_default().push((workers as f64, 1e3 * median_pause(&rounds).as_secs_f64()));
        }
    }
    draw(medians);
}

fn draw(medians: BTreeMap<Fault, Vec<(f64, f64)>>) {
    let curves: Vec<Curve> =
        medians.into_iter().map(|(fault, points)| Curve { name: fault.name().to_owned(), points }).collect();
    let frame = Frame {
        title: "Pause against the number of workers (medians)",
        x: "workers",
        y: "ms",
        log_x: true,
        log_y: true,
        dots: true,
    };
    let file = report_directory().join("pauses.svg");
    plot::write(&file, frame, &curves);
    println!("drawn: {}", file.display());
}
