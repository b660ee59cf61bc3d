//! `status`: shows the replica set, as recorded in its tables.

use std::process::ExitCode;
use std::time::Duration;

use crossbeam_channel::{bounded, select, tick};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::failure::Failure;
use super::output;
use super::signals::shutdown_signal;
use super::table::{Cell, Table, Tone, state_tone, time};
use crate::error::{BoxError, Error};
use crate::orchestrator::Orchestrator;
use crate::store::session::Session;
use crate::store::{migrations, overview};

/// How often `--watch` shows it again.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn status(orchestrator: &Orchestrator, json: bool, watch: bool) -> Result<ExitCode, Failure> {
    let shutdown = if watch { shutdown_signal()? } else { bounded(1).1 };
    let show = |overview: &RawValue| -> Result<bool, Failure> {
        let text = if json {
            overview.get().to_owned()
        } else {
            let overview: Overview = serde_json::from_str(overview.get()).map_err(BoxError::from)?;
            overview.render(orchestrator.replica_set(), output::has_colours())
        };
        Ok(match (watch, json) {
            (true, false) if output::is_terminal() => output::write_anew(&text),
            // An empty line separates it from the next one.
            (true, false) => output::write(&format!("{text}\n")),
            _ => output::write(&text),
        })
    };
    let mut session = None;
    if !watch {
        show(&load(orchestrator, &mut session)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let again = tick(EVERY);
    loop {
        match load(orchestrator, &mut session) {
            Ok(overview) => {
                if !show(&overview)? {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            // The server may become available again.
            Err(error) if error.is_away() => {
                session = None;
                output::complain(&format!("error: {}", error.with_causes()));
            }
            Err(error) => return Err(error.into()),
        }
        select! {
            recv(shutdown) -> _ => return Ok(ExitCode::SUCCESS),
            recv(again) -> _ => {}
        }
    }
}

/// Loads the overview. Opens a connection if there is none yet.
fn load(orchestrator: &Orchestrator, session: &mut Option<Session>) -> Result<Box<RawValue>, Error> {
    let names = orchestrator.names();
    let session = if let Some(session) = session {
        session
    } else {
        let mut opened = orchestrator.session()?;
        let mut tx = opened.reading().map_err(Error::database("reading the schema's version"))?;
        migrations::required(&mut tx, names)?;
        drop(tx);
        session.insert(opened)
    };
    let mut tx = session.reading().map_err(Error::database("loading the overview"))?;
    overview::load(&mut tx, names, orchestrator.replica_set()).map_err(Error::database("loading the overview"))
}

#[derive(Debug, Deserialize)]
struct Overview {
    newest_position: i64,
    safe_head: i64,
    generations: Vec<Generation>,
    workers: Vec<Worker>,
    projections: Vec<Projection>,
}

#[derive(Debug, Deserialize)]
struct Generation {
    number: i64,
    state: String,
    total_partitions: i64,
    cause: String,
    created_age_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Worker {
    #[serde(rename = "worker_id")]
    id: String,
    host: String,
    pid: i64,
    version: String,
    state: String,
    partition: Option<i64>,
    started_age_seconds: f64,
    heartbeat_age_seconds: f64,
    stop_reason: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Projection {
    name: String,
    state: String,
    fault: Option<String>,
    position: Option<i64>,
    lag_events: Option<i64>,
    lag_seconds: Option<f64>,
    checkpoints: Vec<Checkpoint>,
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    error: Option<String>,
}

impl Overview {
    fn render(&self, replica_set: &str, has_colours: bool) -> String {
        let heading = |text: &str| Tone::Heading.paint(text, has_colours);
        let generation = self.generations.first().map_or_else(
            || "none".to_owned(),
            |last| {
                let Generation { number, state, total_partitions, cause, created_age_seconds } = last;
                let age = time(*created_age_seconds);
                let plural = if *total_partitions == 1 { "" } else { "s" };
                format!("{number}, {state}, {total_partitions} partition{plural}, {cause} {age} ago")
            },
        );
        let mut shown = format!(
            "{} {replica_set}\n{} {generation}\n{} newest position {}, safe head {}",
            heading("replica set"),
            heading("generation "),
            heading("events     "),
            self.newest_position,
            self.safe_head
        );
        if self.generations.is_empty() && self.workers.is_empty() && self.projections.is_empty() {
            return format!("{shown}\n\nno worker of this replica set has ever run here");
        }
        for table in [self.projections(has_colours), self.workers(has_colours)] {
            shown = format!("{shown}\n\n{table}");
        }
        shown
    }

    fn projections(&self, has_colours: bool) -> String {
        let mut table = Table::with_heads(["PROJECTION", "STATE", "#POSITION", "#BEHIND", "#BY", "#PARTS", "ERROR"]);
        for projection in &self.projections {
            let Projection { name, state, fault, position, lag_events, lag_seconds, checkpoints } = projection;
            let error = fault.as_ref().or_else(|| checkpoints.iter().find_map(|checkpoint| checkpoint.error.as_ref()));
            let number = |value: &Option<i64>| value.map_or_else(String::new, |value| value.to_string());
            table.push([
                name.as_str().into(),
                Cell::new(state, state_tone(state)),
                number(position).into(),
                number(lag_events).into(),
                lag_seconds.map_or_else(String::new, time).into(),
                checkpoints.len().to_string().into(),
                error.map_or("", String::as_str).into(),
            ]);
        }
        table.render(has_colours)
    }

    fn workers(&self, has_colours: bool) -> String {
        let heads = ["WORKER", "STATE", "#PARTITION", "#HEARTBEAT", "#STARTED", "HOST", "#PID", "VERSION"];
        let mut table = Table::with_heads(heads);
        for worker in &self.workers {
            let tone = match worker.state.as_str() {
                "running" => Tone::Good,
                "stopped" => Tone::Plain,
                _ => Tone::Warning,
            };
            let state = worker
                .stop_reason
                .as_ref()
                .map_or_else(|| worker.state.clone(), |reason| format!("{}: {reason}", worker.state));
            table.push([
                // The first part of a UUID is enough to identify the worker.
                worker.id.split('-').next().unwrap_or_default().into(),
                Cell::new(state, tone),
                worker.partition.map_or_else(String::new, |partition| partition.to_string()).into(),
                time(worker.heartbeat_age_seconds).into(),
                time(worker.started_age_seconds).into(),
                worker.host.as_str().into(),
                worker.pid.to_string().into(),
                worker.version.as_str().into(),
            ]);
        }
        table.render(has_colours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_overview_is_shown_as_tables() {
        let overview = serde_json::json!({
            "newest_position": 1_000, "safe_head": 990,
            "generations": [{"number": 3, "state": "active", "total_partitions": 2, "cause": "joined", "created_age_seconds": 12.3}],
            "workers": [
                {"worker_id": "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee", "host": "pod-1", "pid": 1, "version": "0.1.0", "state": "running",
                 "partition": 0, "started_age_seconds": 100.0, "heartbeat_age_seconds": 1.25, "stop_reason": null},
                {"worker_id": "ffffffff-bbbb-4ccc-8ddd-eeeeeeeeeeee", "host": "pod-2", "pid": 77, "version": "0.1.0", "state": "stopped",
                 "partition": null, "started_age_seconds": 7200.0, "heartbeat_age_seconds": 30.0, "stop_reason": "left"},
            ],
            "projections": [
                {"name": "orders", "state": "running", "fault": null, "position": 1_000, "lag_events": 0, "lag_seconds": 0.0,
                 "checkpoints": [{"error": null}, {"error": null}]},
                {"name": "revenue", "state": "halted", "fault": null, "position": 7, "lag_events": 993, "lag_seconds": 3_000.0,
                 "checkpoints": [{"error": null}, {"error": "no such\ncustomer"}]},
                {"name": "torn", "state": "broken", "fault": "torn", "position": null, "lag_events": null, "lag_seconds": null,
                 "checkpoints": []},
            ],
        });
        let overview: Overview = serde_json::from_value(overview).unwrap();
        let shown = "\
replica set main
generation  3, active, 2 partitions, joined 12 s ago
events      newest position 1000, safe head 990

PROJECTION  STATE    POSITION  BEHIND      BY  PARTS  ERROR
orders      running      1000       0   0.0 s      2
revenue     halted          7     993  50 min      2  no such customer
torn        broken                                 0  torn

WORKER    STATE          PARTITION  HEARTBEAT  STARTED  HOST   PID  VERSION
aaaaaaaa  running                0      1.2 s    100 s  pod-1    1  0.1.0
ffffffff  stopped: left                  30 s      2 h  pod-2   77  0.1.0";
        assert_eq!(overview.render("main", false), shown);
        assert!(overview.render("main", true).contains("\x1b[31mhalted\x1b[0m"));
    }
}
