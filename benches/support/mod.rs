//! Code that the benches share.
#![allow(dead_code, reason = "several programs compile these files, and few of them call every function")]

pub(crate) mod arguments;
pub(crate) mod plot;
pub(crate) mod proc;
pub(crate) mod samples;
pub(crate) mod server;
pub(crate) mod table;
pub(crate) mod units;
pub(crate) mod worker_process;

/// Waits for this time.
pub(crate) fn pause(time: std::time::Duration) {
    _ = crossbeam_channel::after(time).recv();
}

#[path = "../../examples/support/app.rs"]
pub(crate) mod app;
#[path = "../../examples/support/insert.rs"]
pub(crate) mod insert;
#[path = "../../examples/support/series.rs"]
pub(crate) mod series;
