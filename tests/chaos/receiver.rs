//! The receiver's side of the reaction: checks what was delivered against the events. Nothing may
//! be lost; the first deliveries of an aggregate are in order; what is repeated is the same event,
//! and is repeated for a reason.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use postgres::{Client, IsolationLevel};
use uuid::Uuid;

use crate::deliveries::{Delivery, MOST_OF_CALL, NAME};
use crate::oracle::DUE;

/// Taken before the snapshot, as those of the oracle.
const LOCKS: &str = "LOCK TABLE events, orchestrator_checkpoints IN ACCESS SHARE MODE";

/// The events that are not discarded, in order. Whether the reaction has passed them.
const EVENTS: &str = "
    SELECT e.event_id, concat(e.aggregate_type, '/', e.aggregate_id), e.global_position, due.global_position IS NOT NULL
    FROM events e LEFT JOIN due USING (global_position)
    WHERE NOT EXISTS (SELECT FROM orchestrator_discarded d WHERE d.projection = $1 AND d.event_id = e.event_id)
    ORDER BY e.global_position";

/// How many rewinds were forced, and when the last one was asked for.
const FORCED: &str = "
    SELECT count(*), coalesce((extract(epoch FROM max(requested_at)) * 1000000)::int8, 0) FROM orchestrator_commands
    WHERE projection = $1 AND command = 'rewind' AND arguments ? 'repeat_effects' AND (step = 'executed' OR outcome = 'done')";

/// The commands that a reaction has to refuse, but has not: a rewind that is not forced would
/// repeat effects, and there is no read model to rebuild.
const NOT_REFUSED: &str = "
    SELECT k::text FROM orchestrator_commands k
    WHERE projection = $1 AND (command = 'rewind' AND NOT arguments ? 'repeat_effects' OR command = 'rebuild')
    AND (step IN ('executed', 'loading', 'finishing') OR outcome = 'done')";

/// How many events, for each that may be in flight, the library handles ahead of one that is not
/// done.
const AHEAD: usize = 16;

/// How many wrong lines are shown.
const SHOWN: usize = 20;

/// An event that is not discarded.
struct Due {
    event: Uuid,
    aggregate: String,
    position: i64,
    is_passed: bool,
}

/// What was delivered, and how often more than necessary.
pub(crate) struct Receipt {
    pub(crate) deliveries: usize,
    pub(crate) repeated: usize,
    /// How many rewinds were forced.
    pub(crate) rewinds: usize,
}

pub(crate) struct Receiver {
    file: PathBuf,
}

impl Receiver {
    pub(crate) fn new(file: &Path) -> Self {
        Self { file: file.to_owned() }
    }

    /// What is wrong. `is_over` means that nothing is written or delivered any more.
    pub(crate) fn look(&self, client: &mut Client, is_over: bool) -> Result<Vec<String>, postgres::Error> {
        let mut tx =
            client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start()?;
        tx.batch_execute(LOCKS)?;
        let due = |row: &postgres::Row| Due {
            event: row.get(0),
            aggregate: row.get(1),
            position: row.get(2),
            is_passed: row.get(3),
        };
        let due: Vec<Due> = tx.query(&format!("{DUE}{EVENTS}"), &[&NAME])?.iter().map(due).collect();
        let since = tx.query_one(FORCED, &[&NAME])?.get(1);
        let not_refused = tx.query(NOT_REFUSED, &[&NAME])?;
        tx.commit()?;
        // Read after the snapshot: what the checkpoints have passed was delivered before.
        let deliveries = self.deliveries();
        let mut wrong: Vec<String> =
            not_refused.iter().map(|row| format!("not refused: {}", row.get::<_, String>(0))).collect();
        wrong.extend(lost(&due, &deliveries, since));
        wrong.extend(out_of_order(&due, deliveries.iter()));
        wrong.extend(out_of_order(&due, deliveries.iter().filter(|delivery| delivery.is_replay)));
        if is_over {
            wrong.extend(strange(client, &deliveries)?);
        }
        Ok(wrong)
    }

    /// Counts what was delivered.
    pub(crate) fn receipt(&self, client: &mut Client) -> Result<Receipt, postgres::Error> {
        let rewinds = usize::try_from(client.query_one(FORCED, &[&NAME])?.get::<_, i64>(0)).unwrap();
        let deliveries = self.deliveries();
        Ok(Receipt { deliveries: deliveries.len(), repeated: repeated(&deliveries, rewinds), rewinds })
    }

    fn deliveries(&self) -> Vec<Delivery> {
        // Before the first delivery there is no file.
        let lines = std::fs::read_to_string(&self.file).unwrap_or_default();
        lines.lines().map(|line| line.parse().unwrap()).collect()
    }
}

/// How many events a lane may have delivered without having recorded it. While a call takes long,
/// later events are handled and wait for it.
pub(crate) fn most_unrecorded(in_flight: usize) -> usize {
    if in_flight == 1 { MOST_OF_CALL } else { in_flight * AHEAD }
}

/// The events that the checkpoints have passed, but that were not delivered since the last rewind.
fn lost(due: &[Due], deliveries: &[Delivery], since: i64) -> Vec<String> {
    let delivered: HashSet<Uuid> =
        deliveries.iter().filter(|delivery| delivery.at >= since).map(|delivery| delivery.event).collect();
    let lost = due.iter().filter(|due| due.is_passed && !delivered.contains(&due.event));
    let describe = |Due { event, aggregate, position, .. }: &Due| {
        format!("passed, but not delivered: event {event} of {aggregate} at position {position}")
    };
    lost.map(describe).take(SHOWN).collect()
}

/// The first deliveries of an aggregate that do not follow on the event before. A discarded event
/// may be delivered at any time, or not at all.
fn out_of_order<'a>(due: &[Due], deliveries: impl Iterator<Item = &'a Delivery>) -> Vec<String> {
    let mut of_aggregates: HashMap<&str, Vec<Uuid>> = HashMap::new();
    for due in due {
        of_aggregates.entry(&due.aggregate).or_default().push(due.event);
    }
    let (mut seen, mut next): (HashSet<Uuid>, HashMap<&str, usize>) = (HashSet::new(), HashMap::new());
    let known: HashSet<Uuid> = due.iter().map(|due| due.event).collect();
    let mut wrong = Vec::new();
    for delivery in deliveries.filter(|delivery| known.contains(&delivery.event)) {
        if seen.insert(delivery.event) {
            let next = next.entry(&delivery.aggregate).or_default();
            let expected = of_aggregates.get(&*delivery.aggregate).and_then(|events| events.get(*next));
            if expected != Some(&delivery.event) {
                wrong.push(format!("delivered before an earlier event of its aggregate: {delivery:?}"));
            }
            *next += 1;
        }
    }
    wrong.truncate(SHOWN);
    wrong
}

/// The deliveries of events that are not in the table, or not as they were delivered.
fn strange(client: &mut Client, deliveries: &[Delivery]) -> Result<Vec<String>, postgres::Error> {
    let sql =
        "SELECT event_id, concat(aggregate_type, '/', aggregate_id), aggregate_version, global_position FROM events";
    let rows = client.query(sql, &[])?;
    let events: HashMap<Uuid, (String, i64, i64)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2), row.get(3)))).collect();
    let is_known = |delivery: &&Delivery| {
        events.get(&delivery.event).is_some_and(|(aggregate, version, position)| {
            (&delivery.aggregate, delivery.version, delivery.position) == (aggregate, *version, *position)
        })
    };
    let unknown = deliveries.iter().filter(|delivery| !is_known(delivery));
    Ok(unknown.map(|delivery| format!("not the event that was appended: {delivery:?}")).take(SHOWN).collect())
}

/// How many deliveries are neither the first of their event, nor the first after one of these
/// rewinds.
fn repeated(deliveries: &[Delivery], rewinds: usize) -> usize {
    let mut counts: BTreeMap<(bool, Uuid), usize> = BTreeMap::new();
    for delivery in deliveries {
        *counts.entry((delivery.is_replay, delivery.event)).or_default() += 1;
    }
    counts.iter().map(|((is_replay, _), count)| count.saturating_sub(if *is_replay { rewinds } else { 1 })).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(events: &[(u128, &str, bool)]) -> Vec<Due> {
        let one = |(position, (event, aggregate, is_passed)): (i64, &(u128, &str, bool))| Due {
            event: Uuid::from_u128(*event),
            aggregate: (*aggregate).to_owned(),
            position,
            is_passed: *is_passed,
        };
        (1..).zip(events).map(one).collect()
    }

    fn delivered(events: &[(u128, &str, bool)]) -> Vec<Delivery> {
        let one = |(at, (event, aggregate, is_replay)): (i64, &(u128, &str, bool))| Delivery {
            event: Uuid::from_u128(*event),
            aggregate: (*aggregate).to_owned(),
            version: 1,
            position: 1,
            pid: 1,
            at,
            is_replay: *is_replay,
        };
        (1..).zip(events).map(one).collect()
    }

    #[test]
    fn what_was_passed_has_to_be_delivered() {
        let due = due(&[(1, "a", true), (2, "a", true), (3, "a", false)]);
        let deliveries = delivered(&[(1, "a", false), (2, "a", false), (1, "a", true)]);
        assert!(lost(&due, &deliveries, 0).is_empty());
        assert_eq!(lost(&due, &deliveries[..1], 0).len(), 1, "event 2");
        assert_eq!(lost(&due, &deliveries, 3).len(), 1, "event 2 was not delivered again");
    }

    #[test]
    fn first_deliveries_have_to_be_in_order() {
        let due = due(&[(1, "a", true), (2, "b", true), (3, "a", true), (4, "a", true)]);
        for (order, wrong) in [
            (&[1, 2, 3, 4][..], 0),
            (&[2, 1, 3, 1, 4, 3], 0),
            (&[1, 3], 0),
            (&[1, 4], 1),
            (&[3, 1, 4], 2),
            // Event 9 is discarded.
            (&[9, 1, 3], 0),
        ] {
            let deliveries: Vec<_> =
                order.iter().map(|event| (*event, if *event == 2 { "b" } else { "a" }, false)).collect();
            assert_eq!(out_of_order(&due, delivered(&deliveries).iter()).len(), wrong, "{order:?}");
        }
    }

    #[test]
    fn each_delivery_but_the_first_is_repeated() {
        let deliveries =
            delivered(&[(1, "a", false), (1, "a", false), (2, "a", false), (1, "a", true), (1, "a", true)]);
        assert_eq!((repeated(&deliveries, 0), repeated(&deliveries, 1), repeated(&deliveries, 2)), (3, 2, 1));
    }
}
