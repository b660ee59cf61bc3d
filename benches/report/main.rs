//! What the library does in a given time, beside what PostgreSQL and a bare client do in the same run.
//!
//! ```text
//! cargo bench --bench report                       all of it, in about half an hour; with the largest numbers below, in 40 minutes
//! cargo bench --bench report -- --test             everything once, with few events: does it work?
//! cargo bench --bench report -- catch_up append    only the sections with one of these in their name
//! BENCH_EVENTS=200000 cargo bench …                other numbers of events (1000000),
//! BENCH_MEMORY_EVENTS=10000000                     also in `memory` (2000000)
//! BENCH_HOLES_EVENTS=10000000                      and `holes` (as BENCH_EVENTS),
//! BENCH_ROUNDS=9                                   of rounds (5, in some sections a multiple of it)
//! BENCH_WORKERS=1,2,4                              and of workers in `scaling` (1,2,4,8,16,32)
//! ```
//!
//! Each section is a file of this directory, and says there what it measures and how. What is compared is measured in turn, A B A B …,
//! after one round that does not count. `ratio` is the median of the ratios of neighbours, and in parentheses the ratio of the medians;
//! the target is held against the first. After a figure stand the lowest and the highest of its `n` values, or what else is named there.
//!
//! The server is private, and as PostgreSQL's defaults have it but for what the table's header names; a section begins with a database
//! of its own, or shares one that is only read. The table and plots are written to `target/report`.
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
mod gate;
mod holes;
mod idle;
mod lab;
mod lanes;
mod latency;
mod line;
mod live_tail;
mod memory;
mod projections;
mod report;
mod sampler;
mod scaling;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod upserts;
mod worker;
mod workers;
mod writer;

use std::process::ExitCode;

use lab::Lab;
use support::arguments::Arguments;
use support::worker_process::as_worker;

/// What measures, and its name.
type Section = (&'static str, fn(&mut Lab));

const SECTIONS: [Section; 14] = [
    ("catch_up", catch_up::measure),
    ("batch_size", batch_size::measure),
    ("upserts", upserts::measure),
    ("batches", batches::measure),
    ("lanes", lanes::measure),
    ("workers", workers::measure),
    ("holes", holes::measure),
    ("memory", memory::measure),
    ("live_tail", live_tail::measure),
    ("latency", latency::measure),
    ("start", start::measure),
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
