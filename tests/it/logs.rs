//! The log of a busy worker, and of one whose handler fails.

use std::time::Duration;

use crate::support::http::get;
use crate::support::ledger::append_plainly;
use crate::support::metrics::series::values;
use crate::support::worker_process::WorkerProcess;
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn batches_log_nothing_and_failures_log_few_single_lines() {
    const EVENTS: i64 = 300;
    let database = database();
    let mut client = database.client();
    let mut worker = WorkerProcess::start(database.url(), &[("BATCH_SIZE", "1")]);
    worker.await_processing(1);
    let address = worker.metrics_address();
    append_plainly(&mut client, EVENTS, 10);
    let counted = |counter: &str| {
        let (_, metrics) = get(&address, "/metrics");
        let labels = [("projection", "event_type_counts"), ("replica_set", "main-projections")];
        values(&metrics, counter, &labels).first().copied().unwrap_or(0)
    };
    eventually("all is processed", SOON, || (counted("events_processed_total") == EVENTS).then_some(()));
    let lines = worker.log().to_vec();
    assert!(lines.len() < 15, "{} lines for {EVENTS} batches:\n{}", lines.len(), lines.join("\n"));

    client
        .batch_execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE E'no\\n[and no\\n'; END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON event_type_counts FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
        .unwrap();
    append_plainly(&mut client, 1, 1);
    eventually("it has failed several times", SOON, || (counted("projection_errors_total") >= 4).then_some(()));
    client.batch_execute("DROP TRIGGER refuse ON event_type_counts").unwrap();
    let (_, succeeded) = worker.await_line(&["handler succeeded again: replica_set=main-projections worker="]);
    let attempts: u32 = succeeded.split_once(" attempts=").unwrap().1.parse().unwrap();
    assert!(attempts >= 5, "{succeeded}");
    let log = worker.log();
    assert_eq!(log.iter().filter(|line| line.contains("handler failed")).count(), 1, "{}", log.join("\n"));
    assert!(log.iter().all(|line| line.starts_with("[2")), "a line is one line:\n{}", log.join("\n"));
}
