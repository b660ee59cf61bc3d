//! A real Prometheus, if it is installed.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::unbounded;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;
use super::http::get_in_one_piece;
use super::process::{Process, Stream};

const PATIENCE: Duration = Duration::from_secs(60);

/// One second has as many scrapes as half a minute of an operator's Prometheus.
const CONFIG: &str = "
global: {scrape_interval: 500ms, scrape_timeout: 500ms, evaluation_interval: 500ms}
rule_files: [rules.yml]
scrape_configs:
  - job_name: workers
    file_sd_configs: [{files: [targets.json], refresh_interval: 1s}]
";

/// A running Prometheus with data of its own.
pub(crate) struct Prometheus {
    _process: Process,
    folder: TempDir,
    address: String,
    since: f64,
}

impl Prometheus {
    /// Starts it with these rules, and with no targets to scrape.
    #[track_caller]
    pub(crate) fn start(program: &Path, rules: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let within = |name: &str| folder.path().join(name);
        fs::write(within("prometheus.yml"), CONFIG).unwrap();
        fs::write(within("rules.yml"), rules).unwrap();
        fs::write(within("targets.json"), "[]").unwrap();
        let mut command = Command::new(program);
        command
            .arg(format!("--config.file={}", within("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", within("data").display()))
            .arg("--web.listen-address=127.0.0.1:0")
            .stdout(Stdio::null());
        let (sender, lines) = unbounded();
        let process = Process::start(command, Stream::Stderr, sender).unwrap();
        let mut log = Vec::new();
        let address = loop {
            let Ok(line) = lines.recv_timeout(PATIENCE) else { panic!("Prometheus does not listen: {log:#?}") };
            let listens = line.text.split_once("address=").filter(|(said, _)| said.contains("\"Listening on\""));
            if let Some((_, address)) = listens {
                break address.trim().to_owned();
            }
            log.push(line.text);
        };
        let this = Self { _process: process, folder, address, since: now() };
        eventually("Prometheus is ready", PATIENCE, || {
            (get_in_one_piece(&this.address, "/-/ready").0 == 200).then_some(())
        });
        this
    }

    /// Scrapes these targets from now on.
    pub(crate) fn scrape(&self, targets: &[&str]) {
        let new = self.folder.path().join("targets.new");
        fs::write(&new, json!([{ "targets": targets }]).to_string()).unwrap();
        fs::rename(new, self.folder.path().join("targets.json")).unwrap();
    }

    /// The series that an expression has now.
    #[track_caller]
    pub(crate) fn now(&self, expression: &str) -> Vec<Value> {
        result(&self.ask(&format!("query?query={}", encoded(expression))))
    }

    /// The series that an expression has had since the start, second by second.
    #[track_caller]
    pub(crate) fn so_far(&self, expression: &str) -> Vec<Value> {
        let query = encoded(expression);
        result(&self.ask(&format!("query_range?query={query}&start={}&end={}&step=1", self.since, now())))
    }

    /// Waits until an expression has a series.
    #[track_caller]
    pub(crate) fn await_series(&self, expression: &str) {
        eventually(expression, PATIENCE, || (!self.now(expression).is_empty()).then_some(()));
    }

    /// The rules as Prometheus has read them, after it has evaluated each.
    #[track_caller]
    pub(crate) fn rules(&self) -> Vec<Value> {
        eventually("every rule is evaluated", PATIENCE, || {
            let groups = self.ask("rules")["groups"].take();
            let rules: Vec<Value> =
                groups.as_array()?.iter().flat_map(|group| group["rules"].as_array().unwrap()).cloned().collect();
            rules.iter().all(|rule| rule["health"] != "unknown").then_some(rules)
        })
    }

    /// The data of an answer, which must not be an error.
    #[track_caller]
    fn ask(&self, path: &str) -> Value {
        let (status, body) = get_in_one_piece(&self.address, &format!("/api/v1/{path}"));
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str::<Value>(&body).unwrap()["data"].take()
    }
}

fn result(data: &Value) -> Vec<Value> {
    data["result"].as_array().unwrap().clone()
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        _ = write!(encoded, "%{byte:02X}");
        encoded
    })
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
