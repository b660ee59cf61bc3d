//! Does what the README tells a newcomer to do.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::worker_process::example;
use crate::support::{database, eventually};

const README: &str = include_str!("../../README.md");
const SOON: Duration = Duration::from_secs(20);

/// The first block in this language after the heading.
fn block(heading: &str, language: &str) -> String {
    let (_, section) = README.split_once(&format!("\n{heading}\n")).unwrap();
    let (_, rest) = section.split_once(&format!("\n```{language}\n")).unwrap();
    format!("{}\n", rest.split_once("\n```\n").unwrap().0)
}

#[test]
fn the_smallest_program_is_the_example_and_works() {
    assert_eq!(block("## The smallest program", "rust,no_run"), include_str!("../../examples/basic.rs"));
    let database = database();
    let mut program = Command::new(example("basic"))
        .env("DATABASE_URL", database.url())
        .env("METRICS_ADDR", "127.0.0.1:0")
        .stderr(Stdio::null())
        .spawn()
        .unwrap();

    let mut client = database.client();
    eventually("its tables are there", SOON, || {
        let sql =
            "SELECT to_regclass('orders_placed') IS NOT NULL AND to_regclass('orchestrator_checkpoints') IS NOT NULL
                   AND to_regproc('orchestrator_append') IS NOT NULL";
        client.query_one(sql, &[]).unwrap().get::<_, bool>(0).then_some(())
    });
    let append = block("## The smallest program", "sql");
    client.batch_execute(&append).unwrap();
    client.batch_execute(&append).unwrap();
    eventually("the order was placed twice", SOON, || {
        let row = client.query_opt("SELECT cents FROM orders_placed WHERE id = 'order-7'", &[]).unwrap()?;
        (row.get::<_, i64>(0) == 2_400).then_some(())
    });

    assert!(program.try_wait().unwrap().is_none(), "it waits for a signal");
    kill_process(Pid::from_child(&program), Signal::TERM).unwrap();
    let status = eventually("it ends", SOON, || program.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

/// `cargo test NAME` builds no examples, and neither does `cargo test --test it`.
#[test]
fn a_missing_example_is_built() {
    let path = example("custom_metrics");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(example("custom_metrics"), path);
    assert!(path.is_file());
}
