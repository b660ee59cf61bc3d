//! Measures the speed of the library, compared with PostgreSQL and a bare client in the same run.
//!
//! ```text
//! cargo bench --bench report                       all sections, in about half an hour; with the
//!                                                  largest numbers below, in 40 minutes
//! cargo bench --bench report -- --test             everything once, with few events: a quick check
//! cargo bench --bench report -- catch_up append    only sections with one of these in their name
//! BENCH_EVENTS=200000 cargo bench …                another number of events (1000000)
//! BENCH_MEMORY_EVENTS=10000000                     the same for `memory` (2000000)
//! BENCH_HOLES_EVENTS=10000000                      the same for `holes` (as BENCH_EVENTS)
//! BENCH_SWITCH_ROWS=10000000                       another number of rows in `rebuild_switch`
//!                                                  (100000)
//! BENCH_ROUNDS=9                                   another number of rounds (5; in some sections a
//!                                                  multiple of it)
//! BENCH_WORKERS=1,2,4                              other numbers of workers in `scaling`
//!                                                  (1,2,4,8,16,32)
//! ```
//!
//! Each section is a file of this directory, whose documentation says what it measures and how.
//! Compared values are measured in turn, A B A B …, after one round that does not count. `ratio` is
//! the median of the ratios of neighbours, with the ratio of the medians in parentheses; the target
//! applies to the first. Each figure is followed by the lowest and the highest of its `n` values,
//! or by the percentiles that are named there.
//!
//! The server is private, and has PostgreSQL's default settings except those that the table's
//! header names. A section has a database of its own, or shares one that is only read. The table
//! and plots are written to `target/report`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark fails by panicking, and its figures need no more than 50 bits"
)]

mod append;
mod batch_size;
mod batches;
mod catch_up;
mod contenders;
mod crew;
mod delay;
mod folds;
mod gate;
mod holes;
mod idle;
mod lab;
mod lanes;
mod latency;
mod line;
mod live_tail;
mod memory;
mod parked;
mod projections;
mod reactions;
mod rebuild;
mod rebuild_guard;
mod rebuild_latency;
mod rebuild_run;
mod rebuild_switch;
mod report;
mod sampler;
mod scaling;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod upserts;
mod waiting;
mod worker;
mod workers;
mod writer;

use std::process::ExitCode;

use lab::Lab;
use support::arguments::Arguments;
use support::worker_process::as_worker;

/// The name of a section, and the function that measures it.
type Section = (&'static str, fn(&mut Lab));

const SECTIONS: [Section; 22] = [
    ("catch_up", catch_up::measure),
    ("batch_size", batch_size::measure),
    ("upserts", upserts::measure),
    ("batches", batches::measure),
    ("folds", folds::measure),
    ("reactions", reactions::measure),
    ("parked", parked::measure),
    ("lanes", lanes::measure),
    ("workers", workers::measure),
    ("holes", holes::measure),
    ("memory", memory::measure),
    ("live_tail", live_tail::measure),
    ("latency", latency::measure),
    ("waiting", waiting::measure),
    ("start", start::measure),
    ("rebuild", rebuild::measure),
    ("rebuild_latency", rebuild_latency::measure),
    ("rebuild_switch", rebuild_switch::measure),
    ("rebuild_guard", rebuild_guard::measure),
    ("append", append::measure),
    ("idle", idle::measure),
    ("scaling", scaling::measure),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(order) = as_worker(&arguments) {
        worker::work(order);
        return ExitCode::SUCCESS;
    }
    match Arguments::new(&arguments, "report", &SECTIONS.map(|(name, _)| name)) {
        Ok(arguments) => run(arguments),
        Err(ends) => return ends.say(),
    }
    ExitCode::SUCCESS
}

fn run(arguments: Arguments) {
    let chosen = arguments.chosen(&SECTIONS.map(|(name, _)| name));
    let mut lab = Lab::new(arguments);
    for (index, progress) in chosen {
        let (name, measure) = SECTIONS[index];
        lab.report.begin(name, &progress);
        measure(&mut lab);
    }
    lab.report.finish();
}
