//! Lists of projections, commands and parked aggregates, as tables or as JSON.

use std::time::{Duration, Instant};

use crossbeam_channel::never;
use postgres::Client;
use serde::Serialize;
use serde_json::{Value, json};

use super::super::failure::Failure;
use super::super::output;
use super::super::shell::{program, word};
use super::super::table::{Cell, Table, Tone, state_tone, time};
use super::rebuilding;
use super::remedy::remedies;
use crate::error::{BoxError, one_line};
use crate::moment::rfc3339;
use crate::operator::{CommandRecord, Operator, ParkedRecord, ProjectionRecord};

/// For how long the events per second are measured.
const MEASURED_FOR: Duration = Duration::from_secs(1);

/// Among how many of the last commands a rebuild that has not begun is searched.
const LATEST: u32 = 20;

/// The most characters of an error in the table of projections.
const LONGEST_BRIEF: usize = 60;

/// A projection, with what two looks at it tell.
#[derive(Debug, Serialize)]
struct Seen {
    #[serde(flatten)]
    record: ProjectionRecord,
    /// `None` if it was not measured, or the count has begun again meanwhile.
    events_per_second: Option<f64>,
}

pub(super) fn projections(operator: &Operator, client: &mut Client, rate: bool, json: bool) -> Result<(), Failure> {
    let mut seen: Vec<Seen> = Vec::new();
    let first = operator.projections(client)?;
    if rate {
        let begun = Instant::now();
        _ = never::<()>().recv_timeout(MEASURED_FOR);
        for record in operator.projections(client)? {
            let before = first.iter().find(|before| before.name == record.name);
            let handled = before.map(|before| record.handled - before.handled).filter(|handled| *handled >= 0);
            let per_second = handled.map(|handled| per_second(handled, begun.elapsed()));
            seen.push(Seen { record, events_per_second: per_second });
        }
    } else {
        seen.extend(first.into_iter().map(|record| Seen { record, events_per_second: None }));
    }
    show(&seen, json, |has_colours| projections_shown(&program(), &seen, has_colours))
}

pub(super) fn history(
    operator: &Operator,
    client: &mut Client,
    projection: Option<&str>,
    last: u32,
    json: bool,
) -> Result<(), Failure> {
    let commands = operator.history(client, projection, last)?;
    show(&commands, json, |has_colours| history_shown(&commands, has_colours))
}

pub(super) fn parked(
    operator: &Operator,
    client: &mut Client,
    projection: Option<&str>,
    json: bool,
) -> Result<(), Failure> {
    let parked = operator.parked(client, projection)?;
    show(&parked, json, |has_colours| parked_shown(&program(), &parked, has_colours))
}

pub(super) fn rebuild(operator: &Operator, client: &mut Client, projection: &str, json: bool) -> Result<(), Failure> {
    let record = operator.projection(client, projection)?;
    let waiting = match record.rebuild {
        Some(_) => None,
        None => operator.history(client, Some(projection), LATEST)?.into_iter().find(is_waiting_rebuild),
    };
    let waiting = waiting.map(|command| command.id);
    let shown =
        json!({ "projection": record.name, "rebuild": record.rebuild, "old": record.old, "waiting_command": waiting });
    show(&shown, json, |_| rebuilding::status(&program(), &record, waiting))
}

fn is_waiting_rebuild(command: &CommandRecord) -> bool {
    command.command == "rebuild" && command.outcome.is_none()
}

fn show(records: &impl Serialize, json: bool, table: impl FnOnce(bool) -> String) -> Result<(), Failure> {
    let text =
        if json { serde_json::to_string(records).map_err(BoxError::from)? } else { table(output::has_colours()) };
    output::write(&text);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "it is shown with one digit after the point")]
fn per_second(events: i64, elapsed: Duration) -> f64 {
    let rate = events as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    (rate * 10.0).round() / 10.0
}

fn projections_shown(program: &str, seen: &[Seen], has_colours: bool) -> String {
    if seen.is_empty() {
        return "no worker of this replica set has ever registered a projection".to_owned();
    }
    let heads = ["PROJECTION", "STATE", "VERSION", "#POSITION", "#BEHIND", "#BY", "#EVENTS/S", "#PARKED", "ERROR"];
    let mut table = Table::with_heads(heads);
    for Seen { record, events_per_second } in seen {
        let number = |value: Option<i64>| value.map_or_else(String::new, |value| value.to_string());
        let versions = if record.versions.is_empty() { "n/a".to_owned() } else { record.versions.join(", ") };
        let error = record.fault.as_ref().or(record.error.as_ref());
        table.push([
            record.name.as_str().into(),
            Cell::new(&record.state, state_tone(&record.state)),
            versions.into(),
            number(record.position).into(),
            number(record.lag_events).into(),
            record.lag_seconds.map_or_else(String::new, time).into(),
            events_per_second.map_or_else(|| "n/a".to_owned(), |rate| format!("{rate:.1}")).into(),
            Cell::new(record.parked.to_string(), if record.parked > 0 { Tone::Warning } else { Tone::Plain }),
            error.map_or_else(String::new, |error| brief(error)).into(),
        ]);
    }
    let remedies = seen.iter().flat_map(|seen| remedies(program, &seen.record));
    with_sentences(&table.render(has_colours), remedies)
}

/// The begin of an error. The sentences below the table have all of it.
fn brief(error: &str) -> String {
    let line = one_line(error);
    match line.char_indices().nth(LONGEST_BRIEF) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

fn history_shown(commands: &[CommandRecord], has_colours: bool) -> String {
    if commands.is_empty() {
        return "no command was given".to_owned();
    }
    let heads = ["#ID", "REQUESTED", "PROJECTION", "COMMAND", "BY", "ROLE", "OUTCOME", "REASON", "RESULT"];
    let mut table = Table::with_heads(heads);
    for record in commands {
        let arguments = record.arguments.as_object().filter(|arguments| !arguments.is_empty());
        let arguments = arguments.map_or_else(String::new, |arguments| format!(" {}", named(arguments)));
        let (outcome, tone) = match (record.outcome.as_deref(), record.step.as_deref()) {
            (Some("done"), _) => ("done", Tone::Good),
            (Some(outcome), _) => (outcome, Tone::Bad),
            (None, Some(step)) => (step, Tone::Warning),
            (None, None) => ("pending", Tone::Warning),
        };
        let result = record.error.clone().or_else(|| record.result.as_ref()?.as_object().map(named));
        table.push([
            record.id.to_string().into(),
            rfc3339(record.requested_at).into(),
            record.projection.as_str().into(),
            one_line(&format!("{}{arguments}", record.command)).into(),
            one_line(&record.requested_by).into(),
            record.requested_as.as_str().into(),
            Cell::new(outcome, tone),
            record.reason.as_deref().map_or_else(String::new, one_line).into(),
            one_line(&result.unwrap_or_default()).into(),
        ]);
    }
    table.render(has_colours)
}

/// The members of a JSON object, as `name=value`.
fn named(members: &serde_json::Map<String, Value>) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    members.iter().map(|(name, value)| format!("{name}={}", text(value))).collect::<Vec<_>>().join(" ")
}

fn parked_shown(program: &str, parked: &[ParkedRecord], has_colours: bool) -> String {
    if parked.is_empty() {
        return "no aggregate is parked".to_owned();
    }
    let heads = ["PROJECTION", "AGGREGATE", "#POSITION", "TYPE", "EVENT", "#ATTEMPTS", "PARKED", "REPLAY", "ERROR"];
    let mut table = Table::with_heads(heads);
    for record in parked {
        table.push([
            record.projection.as_str().into(),
            one_line(&record.aggregate.to_string()).into(),
            record.position.to_string().into(),
            one_line(&record.event_type).into(),
            record.event_id.to_string().into(),
            record.attempts.to_string().into(),
            rfc3339(record.parked_at).into(),
            if record.replay_requested_at.is_some() { "requested" } else { "" }.into(),
            one_line(&record.error).into(),
        ]);
    }
    // One example says what to type for each of them.
    let example = parked.first().into_iter().map(|record| {
        let name = word(&record.projection);
        let aggregate = word(&record.aggregate.to_string());
        format!(
            "after the cause is corrected: {program} replay {name} --aggregate {aggregate}\n\
             all of a projection: {program} replay {name} --all\n\
             never to handle the event: {program} discard {name} --event {} --reason …",
            record.event_id
        )
    });
    with_sentences(&table.render(has_colours), example)
}

fn with_sentences(table: &str, sentences: impl Iterator<Item = String>) -> String {
    let sentences = sentences.collect::<Vec<_>>().join("\n");
    if sentences.is_empty() { table.to_owned() } else { format!("{table}\n\n{sentences}") }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use uuid::Uuid;

    use super::*;
    use crate::event::StreamId;
    use crate::store::operations::testing::{parked, recorded, running};

    #[test]
    fn projections_are_a_table_with_what_to_type() {
        let halted = ProjectionRecord {
            state: "halted".into(),
            position: Some(7),
            lag_events: Some(993),
            lag_seconds: Some(3_000.0),
            versions: vec!["0.1.0".into(), "0.2.0".into()],
            error: Some(format!("no such\ncustomer{}", "ß".repeat(100))),
            ..running("revenue")
        };
        let (all, most) = ("ß".repeat(100), "ß".repeat(44));
        let seen = [
            Seen { record: running("orders"), events_per_second: Some(12.34) },
            Seen { record: halted, events_per_second: None },
        ];
        let shown = format!(
            "\
PROJECTION  STATE    VERSION       POSITION  BEHIND      BY  EVENTS/S  PARKED  ERROR
orders      running  n/a               1000       0   0.0 s      12.3       0
revenue     halted   0.1.0, 0.2.0         7     993  50 min       n/a       0  no such customer{most} …

revenue is halted: no such customer{all}
  correct the cause, then it goes on by itself
  never to handle the event: shop discard revenue --event ID --reason …"
        );
        assert_eq!(projections_shown("shop", &seen, false), shown);
        let json = serde_json::to_value(&seen).unwrap();
        assert_eq!((&json[0]["name"], &json[0]["events_per_second"]), (&json!("orders"), &json!(12.34)));
        assert_eq!(json[0]["desired_at"], "1970-01-01T00:00:00Z");
        assert!(projections_shown("shop", &[], false).contains("no worker"));
    }

    #[test]
    fn the_history_says_who_did_what() {
        let done = CommandRecord {
            outcome: Some("done".into()),
            result: Some(json!({"position": 7, "workers": 2})),
            ..recorded(2, "pause")
        };
        let refused = CommandRecord {
            arguments: json!({"to_position": 7}),
            outcome: Some("refused".into()),
            error: Some("no\x1b[31mhook".into()),
            ..recorded(1, "rewind")
        };
        let clearing = CommandRecord { step: Some("executing".into()), reason: None, ..recorded(3, "rewind") };
        let shown = "\
ID  REQUESTED             PROJECTION  COMMAND               BY   ROLE     OUTCOME    REASON  RESULT
 3  1970-01-01T00:00:00Z  orders      rewind                kim  shop_op  executing
 2  1970-01-01T00:00:00Z  orders      pause                 kim  shop_op  done       full    position=7 workers=2
 1  1970-01-01T00:00:00Z  orders      rewind to_position=7  kim  shop_op  refused    full    no [31mhook
 0  1970-01-01T00:00:00Z  orders      resume                kim  shop_op  pending    full";
        assert_eq!(history_shown(&[clearing, done, refused, recorded(0, "resume")], false), shown);
        assert_eq!(history_shown(&[], false), "no command was given");
    }

    #[test]
    fn parked_aggregates_are_a_table_with_what_to_type() {
        let record = ParkedRecord {
            aggregate: StreamId::new("shop", "Order", "it's 7"),
            replay_requested_at: Some(SystemTime::UNIX_EPOCH),
            ..parked("orders")
        };
        let shown = parked_shown("shop", std::slice::from_ref(&record), false);
        let id = Uuid::nil();
        let row = format!(
            "orders      shop/Order/it's 7         8  OrderPlaced  {id}         8  1970-01-01T00:00:00Z  requested  it is bad"
        );
        assert_eq!(shown.lines().nth(1), Some(row.as_str()), "{shown}");
        assert!(shown.contains("shop replay orders --aggregate 'shop/Order/it'\\''s 7'"), "{shown}");
        assert!(shown.contains(&format!("shop discard orders --event {id} --reason …")), "{shown}");
        let json = serde_json::to_value(record).unwrap();
        assert_eq!((&json["aggregate"], &json["event_id"]), (&json!("shop/Order/it's 7"), &json!(id.to_string())));
    }
}
