//! How to go on with a projection that does not proceed: sentences with the commands to type. Pure.

use super::super::shell::word;
use super::rebuilding;
use crate::error::one_line;
use crate::moment::rfc3339;
use crate::operator::ProjectionRecord;

/// The sentences about a projection. `program` is how the operator calls this program.
pub(crate) fn remedies(program: &str, projection: &ProjectionRecord) -> Vec<String> {
    let ProjectionRecord { name, state, parked, pending_commands, .. } = projection;
    let command = |command: &str, rest: &str| format!("{program} {command} {}{rest}", word(name));
    let shown = one_line(name);
    let mut said = Vec::new();
    let at = projection.failing_event.map_or_else(String::new, |event| format!(" at event {event}"));
    let error = projection.error.as_deref().map_or_else(|| "no error is recorded".to_owned(), one_line);
    match state.as_str() {
        "halted" => {
            // Without a recorded event, the error names its id.
            let event = projection.failing_event.map_or_else(|| "ID".to_owned(), |event| event.to_string());
            said.push(format!(
                "{shown} is halted{at}: {error}\n  correct the cause, then it goes on by itself\n  never to handle the event: {}",
                command("discard", &format!(" --event {event} --reason …"))
            ));
        }
        "retrying" => said.push(format!("{shown} is being retried{at}: {error}")),
        "broken" => {
            let fault = projection.fault.as_deref().map_or_else(|| "no fault is recorded".to_owned(), one_line);
            said.push(format!("{shown} is broken: {fault}"));
        }
        "stopped" => said.push(format!("no worker of its replica set runs, so nothing processes {shown}: start one")),
        "orphaned" => {
            said.push(format!(
                "no running worker knows {shown}: deploy one that does, or forget it with: {}",
                command("remove", "")
            ));
        }
        _ => {}
    }
    if projection.desired_state == "paused" {
        let by = projection.desired_by.as_deref().map_or_else(String::new, |by| format!(" by {}", one_line(by)));
        let why = projection.desired_reason.as_deref().map_or_else(String::new, |why| format!(": {}", one_line(why)));
        said.push(format!(
            "{shown} is paused since {}{by}{why}\n  continue it with: {}",
            rfc3339(projection.desired_at),
            command("resume", "")
        ));
    }
    if *parked > 0 {
        let plural = if *parked == 1 { "" } else { "s" };
        said.push(format!(
            "{shown} has {parked} parked aggregate{plural}\n  look with: {}\n  after the cause is corrected: {}",
            command("parked", ""),
            command("replay", " --all")
        ));
    }
    said.extend(rebuilding::remedies(program, projection));
    if *pending_commands > 0 {
        let verb = if *pending_commands == 1 { "command waits" } else { "commands wait" };
        said.push(format!("{pending_commands} {verb} for {shown}: {}", command("history", "")));
    }
    said
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use uuid::Uuid;

    use super::*;
    use crate::rebuilding::{OldRecord, Readings, testing};
    use crate::store::operations::testing::running;

    #[test]
    fn each_state_says_how_to_go_on() {
        let orders = || running("orders");
        assert_eq!(remedies("worker", &orders()), Vec::<String>::new());
        let paused = ProjectionRecord {
            state: "paused".into(),
            desired_state: "paused".into(),
            desired_at: SystemTime::UNIX_EPOCH,
            desired_by: Some("kim".into()),
            desired_reason: Some("disk\x1b full".into()),
            pending_commands: 2,
            ..orders()
        };
        let halted = ProjectionRecord {
            state: "halted".into(),
            error: Some("no such\ncustomer".into()),
            failing_event: Some(Uuid::nil()),
            parked: 1,
            ..orders()
        };
        let old = OldRecord {
            command_id: 3,
            schema: "kept_7".into(),
            tables: vec!["public.orders".into()],
            bytes: 3_000_000,
            version: 1,
            age_seconds: 7_300.0,
        };
        for (record, said) in [
            (
                paused,
                "orders is paused since 1970-01-01T00:00:00Z by kim: disk  full\n  continue it with: worker resume orders\n\
                 2 commands wait for orders: worker history orders",
            ),
            (
                halted,
                "orders is halted at event 00000000-0000-0000-0000-000000000000: no such customer\n  correct the cause, then it \
                 goes on by itself\n  never to handle the event: worker discard orders --event 00000000-0000-0000-0000-000000000000 \
                 --reason …\n\
                 orders has 1 parked aggregate\n  look with: worker parked orders\n  after the cause is corrected: worker replay \
                 orders --all",
            ),
            (
                ProjectionRecord { state: "orphaned".into(), ..running("it's old") },
                "no running worker knows it's old: deploy one that does, or forget it with: worker remove 'it'\\''s old'",
            ),
            (
                ProjectionRecord { state: "broken".into(), fault: Some("torn".into()), ..orders() },
                "orders is broken: torn",
            ),
            (
                ProjectionRecord { state: "stopped".into(), ..orders() },
                "no worker of its replica set runs, so nothing processes orders: start one",
            ),
            (
                ProjectionRecord {
                    rebuild: Some(Readings::default().record(&testing::half_way())),
                    old: Some(old),
                    ..orders()
                },
                "orders is being rebuilt: 50.0 %, 400 events, 4/s, 100 s to go\n  look with: worker rebuild orders --status\n\
                 the former tables of orders are kept in schema kept_7, 3.0 MB: public.orders, version 1, replaced 2 h ago\n  bring \
                 them back with: worker rebuild orders --revert\n  drop them with: worker rebuild orders --drop-old",
            ),
            (
                ProjectionRecord { state: "retrying".into(), ..orders() },
                "orders is being retried: no error is recorded",
            ),
        ] {
            assert_eq!(remedies("worker", &record).join("\n"), said);
        }
    }
}
