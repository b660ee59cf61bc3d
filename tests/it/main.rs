//! The library on a real PostgreSQL, which the tests start by themselves.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking, its helpers too"
)]

mod bad_input;
mod bad_schema;
mod event_store;
mod failures;
mod feed;
mod joins_and_leaves;
mod private_postgres;
mod safe_head;
mod storm;
mod support;
mod tls;
mod worker_example;
