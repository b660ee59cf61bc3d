//! The example `custom_metrics`: an application with an HTTP server of its own.

use std::time::Duration;

use serde_json::Value;

use crate::support::http::get;
use crate::support::ledger::append_plainly;
use crate::support::worker_process::{Signal, WorkerProcess};
use crate::support::{database, eventually};

const SOON: Duration = Duration::from_secs(20);

#[test]
fn the_applications_server_shows_metrics_health_and_status() {
    let database = database();
    let mut application = WorkerProcess::start_program("custom_metrics", database.url(), &[]);
    let (_, line) = application.await_line(&["metrics: http://"]);
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    eventually("it is ready", SOON, || (get(address, "/readyz") == (200, "ok".into())).then_some(()));
    assert_eq!(get(address, "/livez"), (200, "ok".into()));
    append_plainly(&mut database.client(), 3, 1);
    eventually("the metrics of both are served", SOON, || {
        let (code, text) = get(address, "/metrics");
        assert_eq!(code, 200, "{text}");
        (text.contains("shop_happenings_total{") && text.contains("pupsourcing_orchestrator_ready")).then_some(())
    });
    let (code, body) = get(address, "/status?now");
    let status: Value = serde_json::from_str(&body).unwrap();
    let worker = &status["workers"][0];
    assert_eq!((code, &status["version"]), (200, &Value::from(env!("CARGO_PKG_VERSION"))));
    assert_eq!((&worker["replica_set"], &worker["state"]), (&"custom-metrics".into(), &"running".into()));
    assert_eq!(worker["projections"][0]["name"], "happenings");
    eventually("the overview is loaded", SOON, || {
        let status: Value = serde_json::from_str(&get(address, "/status").1).unwrap();
        (!status["workers"][0]["overview"]["replica_set"].is_null()).then_some(())
    });
    assert_eq!(get(address, "/nowhere").0, 404);
    application.signal(Signal::TERM);
    assert!(application.await_end().success());
}
