//! The overview of a replica set, as text. Pure.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use uuid::Uuid;

use super::operating::remedies;
use super::table::{Cell, Table, Tone, state_tone, time};
use crate::error::one_line;
use crate::operator::{OldRecord, ProjectionRecord, RebuildRecord};

/// How many of the last commands are shown.
const MOST_COMMANDS: usize = 5;

#[derive(Debug, Deserialize)]
pub(super) struct Overview {
    newest_position: i64,
    safe_head: i64,
    generations: Vec<Generation>,
    workers: Vec<Worker>,
    projections: Vec<Projection>,
    commands: Vec<Command>,
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
    /// `None` if the projection is not one of the replica set.
    desired_state: Option<String>,
    desired_age_seconds: Option<f64>,
    desired_by: Option<String>,
    desired_reason: Option<String>,
    rewind: Option<Rewind>,
    rebuild: Option<RebuildRecord>,
    old: Option<OldRecord>,
    parked: i64,
    pending_commands: i64,
    fault: Option<String>,
    position: Option<i64>,
    lag_events: Option<i64>,
    lag_seconds: Option<f64>,
    checkpoints: Vec<Checkpoint>,
}

#[derive(Debug, Deserialize)]
struct Rewind {
    command_id: i64,
    step: String,
    requested_age_seconds: f64,
}

#[derive(Debug, Deserialize)]
struct Command {
    id: i64,
    projection: String,
    #[serde(rename = "command")]
    name: String,
    requested_by: String,
    reason: Option<String>,
    requested_age_seconds: f64,
    step: Option<String>,
    outcome: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    state: String,
    error: Option<String>,
    attempt_event_id: Option<String>,
}

impl Projection {
    /// The checkpoint that needs most attention, if one has an error.
    fn failing(&self) -> Option<&Checkpoint> {
        let failing = self.checkpoints.iter().filter(|checkpoint| checkpoint.error.is_some());
        failing.min_by_key(|checkpoint| checkpoint.state != "halted")
    }

    /// What the list of projections knows of it, as far as it matters for how to go on.
    fn record(&self, replica_set: &str, now: SystemTime) -> ProjectionRecord {
        let age = Duration::try_from_secs_f64(self.desired_age_seconds.unwrap_or(0.0).max(0.0)).unwrap_or_default();
        let failing = self.failing();
        ProjectionRecord {
            name: self.name.clone(),
            replica_set: replica_set.to_owned(),
            state: self.state.clone(),
            desired_state: self.desired_state.clone().unwrap_or_default(),
            desired_at: whole_seconds(now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH)),
            desired_by: self.desired_by.clone(),
            desired_reason: self.desired_reason.clone(),
            fault: self.fault.clone(),
            versions: Vec::new(),
            workers: 0,
            position: self.position,
            lag_events: self.lag_events,
            lag_seconds: self.lag_seconds,
            handled: 0,
            parked: self.parked,
            pending_commands: self.pending_commands,
            error: failing.and_then(|checkpoint| checkpoint.error.clone()),
            failing_event: failing.and_then(|checkpoint| Uuid::try_parse(checkpoint.attempt_event_id.as_ref()?).ok()),
            rebuild: self.rebuild.clone(),
            old: self.old.clone(),
        }
    }

    /// How to go on with it, if it does not proceed.
    fn remedies(&self, program: &str, replica_set: &str, now: SystemTime) -> Vec<String> {
        let rewinding = self.rewind.as_ref().map(|Rewind { command_id, step, requested_age_seconds }| {
            let (name, age) = (one_line(&self.name), time(*requested_age_seconds));
            format!("{name} is being rewound by command {command_id}, given {age} ago: {}", one_line(step))
        });
        rewinding.into_iter().chain(remedies(program, &self.record(replica_set, now))).collect()
    }
}

fn whole_seconds(moment: SystemTime) -> SystemTime {
    let since = moment.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

impl Overview {
    pub(super) fn render(&self, program: &str, replica_set: &str, has_colours: bool) -> String {
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
        let mut parts = vec![self.projections(has_colours)];
        let now = SystemTime::now();
        let all = self.projections.iter().flat_map(|projection| projection.remedies(program, replica_set, now));
        parts.push(all.collect::<Vec<_>>().join("\n"));
        parts.push(self.workers(has_colours));
        parts.push(self.commands(has_colours));
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            shown = format!("{shown}\n\n{part}");
        }
        shown
    }

    fn projections(&self, has_colours: bool) -> String {
        let heads = ["PROJECTION", "STATE", "#POSITION", "#BEHIND", "#BY", "#PARTS", "#PARKED", "ERROR"];
        let mut table = Table::with_heads(heads);
        for projection in &self.projections {
            let Projection { name, state, fault, position, lag_events, lag_seconds, checkpoints, parked, .. } =
                projection;
            let error = fault.as_ref().or_else(|| projection.failing()?.error.as_ref());
            let number = |value: &Option<i64>| value.map_or_else(String::new, |value| value.to_string());
            table.push([
                name.as_str().into(),
                Cell::new(state, state_tone(state)),
                number(position).into(),
                number(lag_events).into(),
                lag_seconds.map_or_else(String::new, time).into(),
                checkpoints.len().to_string().into(),
                parked.to_string().into(),
                error.map_or("", String::as_str).into(),
            ]);
        }
        table.render(has_colours)
    }

    /// The last commands; empty if there are none.
    fn commands(&self, has_colours: bool) -> String {
        if self.commands.is_empty() {
            return String::new();
        }
        let mut table =
            Table::with_heads(["#ID", "COMMAND", "PROJECTION", "BY", "#GIVEN", "OUTCOME", "REASON", "ERROR"]);
        for one in self.commands.iter().take(MOST_COMMANDS) {
            let outcome = one.outcome.as_deref().or(one.step.as_deref()).unwrap_or("pending");
            let tone = match outcome {
                "done" => Tone::Good,
                "failed" => Tone::Bad,
                _ => Tone::Warning,
            };
            table.push([
                one.id.to_string().into(),
                one.name.as_str().into(),
                one.projection.as_str().into(),
                one.requested_by.as_str().into(),
                time(one.requested_age_seconds).into(),
                Cell::new(outcome, tone),
                one.reason.as_deref().unwrap_or_default().into(),
                one.error.as_deref().unwrap_or_default().into(),
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
                {"name": "orders", "state": "running", "desired_state": "running", "parked": 0, "pending_commands": 0,
                 "rewind": {"command_id": 4, "step": "executing", "requested_age_seconds": 3.0},
                 "position": 1_000, "lag_events": 0, "lag_seconds": 0.0,
                 "checkpoints": [{"state": "running"}, {"state": "running"}]},
                {"name": "revenue", "state": "halted", "desired_state": "running", "parked": 2, "pending_commands": 0,
                 "position": 7, "lag_events": 993, "lag_seconds": 3_000.0,
                 "checkpoints": [{"state": "retrying", "error": "late"}, {"state": "halted", "error": "no such\ncustomer"}]},
                {"name": "torn", "state": "broken", "parked": 0, "pending_commands": 0, "fault": "torn", "checkpoints": []},
            ],
            "commands": [
                {"id": 4, "projection": "orders", "command": "rewind", "requested_by": "kim", "reason": "bad\x1b[31m totals",
                 "requested_age_seconds": 3.0, "step": "executing"},
                {"id": 3, "projection": "orders", "command": "resume", "requested_by": "kim", "requested_age_seconds": 60.0,
                 "outcome": "refused", "error": "it is not paused"},
            ],
        });
        let overview: Overview = serde_json::from_value(overview).unwrap();
        let shown = "\
replica set main
generation  3, active, 2 partitions, joined 12 s ago
events      newest position 1000, safe head 990

PROJECTION  STATE    POSITION  BEHIND      BY  PARTS  PARKED  ERROR
orders      running      1000       0   0.0 s      2       0
revenue     halted          7     993  50 min      2       2  no such customer
torn        broken                                 0       0  torn

orders is being rewound by command 4, given 3.0 s ago: executing
revenue is halted: no such customer
  correct the cause, then it goes on by itself
  never to handle the event: shop discard revenue --event ID --reason …
revenue has 2 parked aggregates
  look with: shop parked revenue
  after the cause is corrected: shop replay revenue --all
torn is broken: torn

WORKER    STATE          PARTITION  HEARTBEAT  STARTED  HOST   PID  VERSION
aaaaaaaa  running                0      1.2 s    100 s  pod-1    1  0.1.0
ffffffff  stopped: left                  30 s      2 h  pod-2   77  0.1.0

ID  COMMAND  PROJECTION  BY   GIVEN  OUTCOME    REASON           ERROR
 4  rewind   orders      kim  3.0 s  executing  bad [31m totals
 3  resume   orders      kim   60 s  refused                     it is not paused";
        assert_eq!(overview.render("shop", "main", false), shown);
        assert!(overview.render("shop", "main", true).contains("\x1b[31mhalted\x1b[0m"));
    }
}
