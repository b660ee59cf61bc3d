//! Checks at any moment whether the workers have committed the right results.

use std::collections::BTreeMap;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use postgres::{Client, GenericClient, IsolationLevel, NoTls};
use uuid::Uuid;

use crate::folds::{DELETES, SHARED_KEYS};
use crate::support::parking::accounts;

/// The events that the projection `$1` has handled, according to its checkpoints and to what is
/// parked and discarded. The window covers all events that are not discarded, so `before` is the
/// version of the previous event of the aggregate that was handled.
pub(crate) const DUE: &str = "
    WITH due AS (
        SELECT e.* FROM (
            SELECT bounded_context, aggregate_type, aggregate_id, aggregate_version, event_type, global_position,
                   (hashtextextended(aggregate_id, 0) & 65535)::int AS key,
                   lag(aggregate_version, 1, 0::bigint) OVER (
                       PARTITION BY bounded_context, aggregate_type, aggregate_id ORDER BY global_position) AS before
            FROM events WHERE NOT EXISTS (SELECT FROM orchestrator_discarded d
                                          WHERE d.projection = $1 AND d.event_id = events.event_id)) e
        JOIN orchestrator_checkpoints c ON c.projection = $1 AND c.keys @> e.key AND e.global_position <= c.position
        WHERE NOT EXISTS (SELECT FROM orchestrator_parked p
                          WHERE p.projection = $1 AND e.global_position >= p.position
                          AND (p.bounded_context, p.aggregate_type, p.aggregate_id) = (e.bounded_context, e.aggregate_type, e.aggregate_id))
    )";

const ACTIVITY: &str = "
    SELECT format('%s/%s/%s key %s: is (events, last version, out of order) %s, should be %s',
                  bounded_context, aggregate_type, aggregate_id, hashtextextended(aggregate_id, 0) & 65535,
                  (a.events, a.last_version, a.out_of_order)::text, (e.events, e.last_version, e.out_of_order)::text)
    FROM (SELECT bounded_context, aggregate_type, aggregate_id, count(*) AS events,
                 (array_agg(aggregate_version ORDER BY global_position DESC))[1] AS last_version,
                 count(*) FILTER (WHERE aggregate_version <> before + 1) AS out_of_order
          FROM due GROUP BY 1, 2, 3) e
    FULL JOIN aggregate_activity a USING (bounded_context, aggregate_type, aggregate_id)
    WHERE (a.events, a.last_version, a.out_of_order) IS DISTINCT FROM (e.events, e.last_version, e.out_of_order) LIMIT 20";

const COUNTS: &str = "
    SELECT format('%s: is %s, should be %s', event_type, c.events, e.events)
    FROM (SELECT event_type, count(*) AS events FROM due GROUP BY 1) e
    FULL JOIN event_type_counts c USING (event_type) WHERE c.events IS DISTINCT FROM e.events LIMIT 20";

/// An event that closes an aggregate deletes its state, so only later events are in it.
const AGGREGATE_SUMS: &str = "
    SELECT format('%s: is (version, position, state) %s, should be %s', key, (a.version, a.position, a.state)::text,
                  (e.version, e.position, e.state)::text)
    FROM (SELECT aggregate_id AS key, count(*) AS version, max(global_position) AS position, jsonb_build_object(
                     'events', count(*), 'positions', sum(global_position),
                     'last_version', (array_agg(aggregate_version ORDER BY global_position DESC))[1]) AS state
          FROM (SELECT *, max(global_position) FILTER (WHERE event_type = '{deletes}') OVER (PARTITION BY aggregate_id) AS closed
                FROM due) e
          WHERE global_position > coalesce(closed, 0) GROUP BY 1) e
    FULL JOIN aggregate_sums a USING (key)
    WHERE (a.version, a.position, a.state) IS DISTINCT FROM (e.version, e.position, e.state) LIMIT 20";

/// The last version is that of the event which some worker applied last.
const SHARED_SUMS: &str = "
    SELECT format('%s: is (version, position, state) %s, should be %s', key,
                  (a.version, a.position, a.state - 'last_version')::text, (e.version, e.position, e.state)::text)
    FROM (SELECT 'k' || global_position % {keys} AS key, count(*) AS version, max(global_position) AS position,
                 jsonb_build_object('events', count(*), 'positions', sum(global_position)) AS state
          FROM due GROUP BY 1) e
    FULL JOIN shared_sums a USING (key)
    WHERE (a.version, a.position, a.state - 'last_version') IS DISTINCT FROM (e.version, e.position, e.state) LIMIT 20";

const COVER: &str = "
    SELECT format('%s has the keys %s, %s in all', p.name, range_agg(piece), sum(upper(piece) - lower(piece)))
    FROM orchestrator_projections p LEFT JOIN orchestrator_checkpoints c ON c.projection = p.name
    LEFT JOIN unnest(c.keys) AS piece ON true GROUP BY p.name
    HAVING range_agg(piece) IS DISTINCT FROM '{[0,65536)}' OR sum(upper(piece) - lower(piece)) <> 65536";

/// Finds events of an aggregate that are not in the order of their positions. This would be a
/// defect of the writers or of the event store.
const DISORDER: &str = "
    SELECT format('%s/%s version %s at position %s', aggregate_type, aggregate_id, aggregate_version, global_position)
    FROM (SELECT *, row_number() OVER (PARTITION BY bounded_context, aggregate_type, aggregate_id ORDER BY global_position) AS n
          FROM events) e WHERE aggregate_version <> n LIMIT 20";

const CHECKPOINTS: &str = "
    SELECT format('%s %s position %s generation %s worker %s', projection, keys, position, generation, worker_id)
    FROM orchestrator_checkpoints ORDER BY projection, keys";

/// Taken before the snapshot: a table that is rewritten after the snapshot would seem empty, and a
/// switch would put copies in the place of tables that the snapshot's checkpoints are about.
const LOCKS: &str =
    "LOCK TABLE events, orchestrator_checkpoints, aggregate_activity, event_type_counts, aggregate_sums, shared_sums
     IN ACCESS SHARE MODE";

/// How far each paused projection has come: its positions, weighted by the number of keys, which no
/// cut and no merge changes. With the last command that has changed it.
const PAUSED: &str = "
    SELECT p.name, k.id, sum(c.position * (SELECT sum(upper(piece) - lower(piece)) FROM unnest(c.keys) AS piece))::text
    FROM orchestrator_projections p JOIN orchestrator_checkpoints c ON c.projection = p.name
    JOIN (SELECT projection, max(id) AS id FROM orchestrator_commands WHERE outcome = 'done' GROUP BY 1) k ON k.projection = p.name
    WHERE p.desired_state = 'paused' AND p.kind = 'live' AND NOT EXISTS (
        SELECT FROM orchestrator_commands WHERE projection = p.name AND step = 'executed' AND applied_at IS NULL)
    GROUP BY 1, 2";

/// Checks the results in one snapshot after the other.
#[derive(Default)]
pub(crate) struct Oracle {
    /// Where each projection was when it was first seen paused after a command.
    paused: BTreeMap<(String, i64), String>,
}

impl Oracle {
    /// What is wrong, in one snapshot. Empty if everything is right.
    pub(crate) fn look(&mut self, client: &mut Client) -> Result<Vec<String>, postgres::Error> {
        let (mut wrong, paused) = look(client)?;
        for (which, at) in paused {
            let first = self.paused.entry(which.clone()).or_insert_with(|| at.clone());
            if *first != at {
                wrong.push(format!("{which:?} was paused at {first}, and is now at {at}"));
            }
        }
        Ok(wrong)
    }

    /// How many pauses it has seen.
    pub(crate) fn pauses(&self) -> usize {
        self.paused.len()
    }
}

/// What is paused where.
type Paused = Vec<((String, i64), String)>;

fn look(client: &mut Client) -> Result<(Vec<String>, Paused), postgres::Error> {
    let mut tx = client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start()?;
    tx.batch_execute(LOCKS)?;
    let mut wrong = lines(&mut tx, "checkpoints", COVER, None)?;
    let aggregate_sums = AGGREGATE_SUMS.replace("{deletes}", DELETES);
    let shared_sums = SHARED_SUMS.replace("{keys}", &SHARED_KEYS.to_string());
    for (projection, sql) in [
        ("aggregate_activity", ACTIVITY),
        ("event_type_counts", COUNTS),
        ("aggregate_sums", &aggregate_sums),
        ("shared_sums", &shared_sums),
    ] {
        wrong.extend(lines(&mut tx, projection, &format!("{DUE}{sql}"), Some(projection))?);
    }
    wrong.extend(lines(&mut tx, "events", DISORDER, None)?);
    for (projection, [handled, waiting, discarded, passed]) in accounts(&mut tx)? {
        if handled + waiting + discarded != passed {
            wrong.push(format!(
                "{projection}: {handled} handled, {waiting} waiting, {discarded} discarded of {passed} events"
            ));
        }
    }
    let paused = tx.query(PAUSED, &[])?;
    let paused = paused.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    if !wrong.is_empty() {
        wrong.extend(lines(&mut tx, "all checkpoints", CHECKPOINTS, None)?);
    }
    Ok((wrong, paused))
}

/// Which of these events are not there.
pub(crate) fn lost(client: &mut Client, acknowledged: &[Uuid]) -> Result<Vec<Uuid>, postgres::Error> {
    let mut lost = Vec::new();
    for ids in acknowledged.chunks(10_000) {
        let sql =
            "SELECT id FROM unnest($1::uuid[]) AS id WHERE NOT EXISTS (SELECT FROM events e WHERE e.event_id = id)";
        lost.extend(client.query(sql, &[&ids])?.iter().map(|row| row.get::<_, Uuid>(0)));
    }
    Ok(lost)
}

fn lines(
    client: &mut impl GenericClient,
    what: &str,
    sql: &str,
    projection: Option<&str>,
) -> Result<Vec<String>, postgres::Error> {
    let rows = match &projection {
        Some(projection) => client.query(sql, &[projection])?,
        None => client.query(sql, &[])?,
    };
    Ok(rows.iter().map(|row| format!("{what}: {}", row.get::<_, String>(0))).collect())
}

/// Looks about every second, even if the server is away at times.
pub(crate) struct Watch {
    stop: Sender<()>,
    wrong: Receiver<Vec<String>>,
    thread: JoinHandle<(u32, usize)>,
}

impl Watch {
    pub(crate) fn start(url: &str) -> Self {
        let (stop, stopped) = bounded(0);
        let (sender, wrong) = bounded(1);
        let url = url.to_owned();
        let thread = thread::Builder::new().name("oracle".into());
        let thread = thread.spawn(move || watch(&url, &stopped, &sender)).unwrap();
        Self { stop, wrong, thread }
    }

    /// Becomes ready when something is wrong.
    pub(crate) fn wrong(&self) -> &Receiver<Vec<String>> {
        &self.wrong
    }

    /// Returns how often it has looked, and how many pauses it has seen.
    pub(crate) fn finish(self) -> (u32, usize) {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}

fn watch(url: &str, stop: &Receiver<()>, found: &Sender<Vec<String>>) -> (u32, usize) {
    let mut client = None;
    let mut oracle = Oracle::default();
    let mut looks = 0;
    let mut pause = Duration::from_secs(1);
    while stop.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        client = client.filter(|client: &Client| !client.is_closed()).or_else(|| Client::connect(url, NoTls).ok());
        let Some(client) = &mut client else { continue };
        let begun = Instant::now();
        match oracle.look(client) {
            Ok(wrong) if wrong.is_empty() => looks += 1,
            Ok(wrong) => {
                _ = found.try_send(wrong);
                return (looks, oracle.pauses());
            }
            // The server is away, which is no fault of the workers. An error in the statements
            // would be one of the test.
            Err(error) => assert!(error.is_closed() || client.is_closed() || is_away(&error), "{error:?}"),
        }
        // With many events a look takes long, and the workers need the machine too.
        pause = Duration::from_secs(1).max(begun.elapsed() * 3);
    }
    (looks, oracle.pauses())
}

fn is_away(error: &postgres::Error) -> bool {
    error.code().is_none_or(|code| code.code().starts_with("57P"))
}
