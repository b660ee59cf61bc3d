//! How far projections are with what a caller waits for.

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row};
use uuid::Uuid;

use super::names::Names;
use super::scopes;
use crate::event::StreamId;

/// How long a worker counts as living after it has stopped, or without a heartbeat if its session
/// is gone. A deployment that replaces all workers at once takes a few seconds.
const GRACE: &str = "10 seconds";
/// How long a worker counts as living without a heartbeat if it has no session of its own.
const SILENCE: &str = "1 minute";

/// How many questions one statement answers. For more of them, the server would compile the
/// statement, which takes longer than to execute it.
const MOST: usize = 1_000;

/// What is asked of one projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) projection: String,
    pub(crate) target: Target,
}

/// What a caller waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// These events, by position and id, for the keys of their aggregates.
    Events(Vec<(i64, Uuid)>),
    /// Everything up to this position, for every key.
    #[cfg_attr(not(feature = "cli"), allow(dead_code, reason = "only the command `wait` asks for it"))]
    Position(i64),
}

/// How far a projection is with its target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Every event of the target is processed, or is outside the scope.
    Done,
    /// It may get there. Without a target, the events are not visible.
    Behind {
        position: Option<i64>,
        target: Option<i64>,
    },
    /// No worker has ever registered it.
    Unknown,
    Parked {
        aggregate: StreamId,
        error: String,
    },
    /// It is withdrawn from all workers.
    Broken {
        fault: String,
    },
    Paused {
        by: Option<String>,
        reason: Option<String>,
    },
    NoWorker,
    Halted {
        error: String,
    },
}

/// The answers to all questions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Identifies the database, on the server that has answered. It is empty if nothing was asked.
    pub(crate) place: String,
    /// One for each question, in their order.
    pub(crate) standings: Vec<Standing>,
}

/// Asks the server. One statement answers up to a thousand questions.
pub(crate) fn ask(
    client: &mut impl GenericClient,
    names: &Names,
    questions: &[&Question],
) -> Result<Answers, postgres::Error> {
    let mut answers = Answers { place: String::new(), standings: Vec::with_capacity(questions.len()) };
    for questions in questions.chunks(MOST) {
        ask_at_once(client, names, questions, &mut answers)?;
    }
    Ok(answers)
}

fn ask_at_once(
    client: &mut impl GenericClient,
    names: &Names,
    questions: &[&Question],
    answers: &mut Answers,
) -> Result<(), postgres::Error> {
    let asked = Asked::of(questions);
    // Without events there is nothing to wait for.
    let mut standings = vec![Standing::Done; questions.len()];
    if !asked.numbers.is_empty() {
        for row in &client.query_typed(&sql(names), &asked.parameters())? {
            answers.place = row.try_get(12)?;
            let number = usize::try_from(row.try_get::<_, i32>(0)?).unwrap_or(usize::MAX);
            let of_aggregate = read(row)?;
            if let Some(standing) = standings.get_mut(number)
                && severity(&of_aggregate) > severity(standing)
            {
                *standing = of_aggregate;
            }
        }
    }
    answers.standings.append(&mut standings);
    Ok(())
}

fn sql(names: &Names) -> String {
    names.sql_with(
        include_str!("sql/waiting.sql"),
        &[
            ("grace", &GRACE),
            ("silence", &SILENCE),
            ("in_scope", &scopes::contains_sql("p", "e")),
            ("place", &place_sql(names)),
        ],
    )
}

/// The questions as the statement takes them.
#[derive(Debug, Default)]
struct Asked<'q> {
    numbers: Vec<i32>,
    projections: Vec<&'q str>,
    positions: Vec<i64>,
    ids: Vec<Option<Uuid>>,
}

impl<'q> Asked<'q> {
    fn of(questions: &[&'q Question]) -> Self {
        let mut asked = Self::default();
        for (number, question) in (0..).zip(questions) {
            let mut add = |position, id| {
                asked.numbers.push(number);
                asked.projections.push(&question.projection);
                asked.positions.push(position);
                asked.ids.push(id);
            };
            match &question.target {
                Target::Position(position) => add(*position, None),
                Target::Events(events) => events.iter().for_each(|(position, id)| add(*position, Some(*id))),
            }
        }
        asked
    }

    fn parameters(&self) -> [(&(dyn ToSql + Sync), Type); 4] {
        [
            (&self.numbers, Type::INT4_ARRAY),
            (&self.projections, Type::TEXT_ARRAY),
            (&self.positions, Type::INT8_ARRAY),
            (&self.ids, Type::UUID_ARRAY),
        ]
    }
}

/// Finds the position of the newest visible event; 0 if there is none.
#[cfg(feature = "cli")]
pub(crate) fn newest(client: &mut impl GenericClient, names: &Names) -> Result<i64, postgres::Error> {
    let sql = names.sql("SELECT coalesce(pg_catalog.max(global_position), 0) FROM {events}");
    client.query_typed_one(&sql, &[])?.try_get(0)
}

/// Identifies the database and the server, in SQL. A standby is another server: it may be behind.
/// If policies hide events from this user, no other connection can answer for this one.
fn place_sql(names: &Names) -> String {
    names.sql(
        "pg_catalog.concat_ws(' ', pg_catalog.current_database(), extract(epoch FROM pg_catalog.pg_postmaster_start_time()),
                              CASE WHEN pg_catalog.row_security_active('{events}'::pg_catalog.regclass)
                                   THEN pg_catalog.pg_backend_pid() END)",
    )
}

fn read(row: &Row) -> Result<Standing, postgres::Error> {
    let text = |index: usize| row.try_get::<_, Option<String>>(index).map(Option::unwrap_or_default);
    let (target, position) = (row.try_get(2)?, row.try_get(3)?);
    Ok(match row.try_get(1)? {
        "done" => Standing::Done,
        "unknown" => Standing::Unknown,
        "parked" => Standing::Parked { aggregate: StreamId::new(text(8)?, text(9)?, text(10)?), error: text(11)? },
        "broken" => Standing::Broken { fault: text(4)? },
        "paused" => Standing::Paused { by: row.try_get(5)?, reason: row.try_get(6)? },
        "no worker" => Standing::NoWorker,
        "halted" => Standing::Halted { error: text(7)? },
        "invisible" => Standing::Behind { position: None, target: None },
        _ => Standing::Behind { position, target },
    })
}

/// The events of a question may belong to several aggregates. Then the worst one counts.
fn severity(standing: &Standing) -> u8 {
    match standing {
        Standing::Done => 0,
        Standing::Behind { .. } => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use postgres::Client;

    use super::*;
    use crate::event::NewEvent;
    use crate::scope::Scope;
    use crate::store::event_store::{Appended, append};
    use crate::store::{key, testing};

    /// Positions 1 to 3 belong to the aggregate `a`, and 4 to `b`. The projection `p` has seen
    /// nothing, and a worker runs it.
    fn world() -> (Client, Target) {
        let mut client = testing::connect_with_projection();
        let target = appended(&mut client, "a", &["A", "B", "C"]);
        appended(&mut client, "b", &["A"]);
        client
            .batch_execute(
                "INSERT INTO orchestrator_workers (id, replica_set, state, host, pid, version, projections)
                 VALUES ('00000000-0000-4000-8000-000000000001', 'set', 'running', 'h', 1, '1', '{o,p}');
                 INSERT INTO orchestrator_checkpoints (projection, keys, position, worker_id)
                 VALUES ('p', '{[0,65536)}', 0, '00000000-0000-4000-8000-000000000001')",
            )
            .unwrap();
        (client, target)
    }

    fn appended(client: &mut Client, id: &str, types: &[&str]) -> Target {
        let events: Vec<NewEvent> = types.iter().map(|&event_type| NewEvent::new(event_type, "{}")).collect();
        let stream = StreamId::new("shop", "Order", id);
        let Appended::Stored { positions, .. } = append(client, &Names::default(), &stream, None, &events).unwrap()
        else {
            panic!("a conflict")
        };
        Target::Events(positions.into_iter().zip(events.iter().map(|event| event.event_id)).collect())
    }

    fn answer(client: &mut impl GenericClient, projection: &str, target: &Target) -> Standing {
        let question = Question { projection: projection.to_owned(), target: target.clone() };
        ask(client, &Names::default(), &[&question]).unwrap().standings.remove(0)
    }

    fn behind(position: i64, target: i64) -> Standing {
        Standing::Behind { position: Some(position), target: Some(target) }
    }

    fn parked() -> Standing {
        Standing::Parked { aggregate: StreamId::new("shop", "Order", "a"), error: "bad".into() }
    }

    fn paused() -> Standing {
        Standing::Paused { by: Some("ann".into()), reason: Some("why".into()) }
    }

    const PAUSE: &str =
        "UPDATE orchestrator_projections SET desired_state = 'paused', desired_by = 'ann', desired_reason = 'why'";
    const HALT: &str = "UPDATE orchestrator_checkpoints SET state = 'halted', error = 'bad', attempted_at = now()";
    const BREAK: &str = "UPDATE orchestrator_projections SET fault = 'torn'";
    const PASS: &str = "UPDATE orchestrator_checkpoints SET position = 3";
    const REPLAY: &str = "UPDATE orchestrator_parked SET replay_requested_at = now()";
    const CLEAR: &str =
        "INSERT INTO orchestrator_commands (projection, command, step) VALUES ('p', 'rewind', 'executing')";
    const SILENT: &str = "UPDATE orchestrator_workers SET last_heartbeat = now() - interval '11 s', session_class = 7,
                          session_pid = pg_backend_pid()";

    /// Parks an aggregate at a position.
    fn park(id: &str, position: i64) -> String {
        format!(
            "INSERT INTO orchestrator_parked (projection, bounded_context, aggregate_type, aggregate_id, key, position, event_id,
                                              event_type, attempts, error)
             VALUES ('p', 'shop', 'Order', '{id}', 0, {position}, gen_random_uuid(), 'A', 1, 'bad')"
        )
    }

    fn worker(change: &str) -> String {
        format!("UPDATE orchestrator_workers SET {change}")
    }

    #[test]
    fn one_snapshot_decides_with_the_documented_precedence() {
        let (mut client, target) = world();
        let position = Target::Position(3);
        // What happened; and what it means for the events of `a`, and for all keys.
        let both = |standing: Standing| (standing.clone(), standing);
        let cases: Vec<(Vec<String>, (Standing, Standing))> = vec![
            (vec![], both(behind(0, 3))),
            (vec![PASS.into()], both(Standing::Done)),
            (
                vec!["DELETE FROM orchestrator_checkpoints".into()],
                both(Standing::Behind { position: None, target: Some(3) }),
            ),
            (vec![park("a", 2)], both(parked())),
            (vec![PASS.into(), park("a", 2)], both(parked())),
            (vec![park("a", 3), CLEAR.into(), BREAK.into(), PAUSE.into(), HALT.into()], both(parked())),
            (vec![PASS.into(), park("a", 2), REPLAY.into()], both(behind(3, 3))),
            (vec![park("a", 2), REPLAY.into(), PAUSE.into()], both(paused())),
            (vec![PASS.into(), park("a", 4)], both(Standing::Done)),
            (
                vec![PASS.into(), park("b", 2)],
                (
                    Standing::Done,
                    Standing::Parked { aggregate: StreamId::new("shop", "Order", "b"), error: "bad".into() },
                ),
            ),
            (
                vec![PASS.into(), BREAK.into(), PAUSE.into(), HALT.into(), worker("state = 'stopped'")],
                both(Standing::Done),
            ),
            (vec![HALT.into()], both(Standing::Halted { error: "bad".into() })),
            (vec![HALT.into(), worker("started_at = now() + interval '1 s'")], both(behind(0, 3))),
            (vec![HALT.into(), PAUSE.into()], both(paused())),
            (vec![BREAK.into(), PAUSE.into()], both(Standing::Broken { fault: "torn".into() })),
            (vec![CLEAR.into(), BREAK.into(), PAUSE.into(), HALT.into()], both(behind(0, 3))),
            (
                vec![
                    CLEAR.into(),
                    PAUSE.into(),
                    "UPDATE orchestrator_commands SET applied_at = now(), outcome = 'done'".into(),
                ],
                both(paused()),
            ),
            (vec![CLEAR.into(), "DELETE FROM orchestrator_workers".into()], both(Standing::NoWorker)),
            (vec![worker("replica_set = 'other'")], both(Standing::NoWorker)),
            (vec![worker("projections = '{o}'")], both(Standing::NoWorker)),
            (vec![HALT.into(), worker("projections = '{o}'")], both(Standing::NoWorker)),
            (vec![worker("state = 'stopped', stopped_at = now() - interval '9 s'")], both(behind(0, 3))),
            (vec![worker("state = 'stopped', stopped_at = now() - interval '11 s'")], both(Standing::NoWorker)),
            (vec![worker("last_heartbeat = now() - interval '50 s'")], both(behind(0, 3))),
            (vec![worker("last_heartbeat = now() - interval '61 s'")], both(Standing::NoWorker)),
            (vec![SILENT.into()], both(Standing::NoWorker)),
            (vec![SILENT.into(), "SELECT pg_advisory_xact_lock_shared(7, 1)".into()], both(behind(0, 3))),
            (vec![SILENT.into(), "SELECT pg_advisory_xact_lock_shared(8, 1)".into()], both(Standing::NoWorker)),
        ];
        client.batch_execute("INSERT INTO orchestrator_replica_sets (name) VALUES ('other')").unwrap();
        for (happened, (of_events, of_all)) in cases {
            let mut tx = client.transaction().unwrap();
            for sql in &happened {
                tx.batch_execute(sql).unwrap();
            }
            assert_eq!(answer(&mut tx, "p", &target), of_events, "{happened:?}");
            assert_eq!(answer(&mut tx, "p", &position), of_all, "all keys: {happened:?}");
        }
        for target in [&target, &position] {
            assert_eq!(answer(&mut client, "o", target), Standing::Unknown);
        }
    }

    #[test]
    fn only_events_within_the_scope_are_awaited() {
        let (mut client, target) = world();
        for (scope, standing) in [
            (Scope::all(), behind(0, 3)),
            (Scope::all().event_types(["A", "B"]), behind(0, 2)),
            (Scope::all().event_types(["D"]), Standing::Done),
            (Scope::all().metadata("k", "v"), Standing::Done),
        ] {
            client.execute("UPDATE orchestrator_projections SET scope = $1::text::jsonb", &[&scope.to_json()]).unwrap();
            assert_eq!(answer(&mut client, "p", &target), standing, "{scope:?}");
        }
        // Without events in the scope, nothing has to be there.
        client.batch_execute("DELETE FROM orchestrator_workers; DELETE FROM orchestrator_checkpoints").unwrap();
        assert_eq!(answer(&mut client, "p", &target), Standing::Done);
    }

    #[test]
    fn only_the_checkpoint_of_the_key_counts() {
        let (mut client, target) = world();
        let key: i32 = client
            .query_one(&format!("SELECT {} FROM (VALUES ('a')) AS e (aggregate_id)", key::event_key()), &[])
            .unwrap()
            .get(0);
        let split = "DELETE FROM orchestrator_checkpoints";
        client.batch_execute(split).unwrap();
        let insert = "INSERT INTO orchestrator_checkpoints (projection, keys, position) SELECT 'p', keys, position FROM
                      (VALUES (int4multirange(int4range($1, $1 + 1)), $2::bigint),
                              ('{[0,65536)}' - int4multirange(int4range($1, $1 + 1)), $3)) AS v (keys, position)";
        for (own, others, standing) in [(0, 100, behind(0, 3)), (3, 0, Standing::Done)] {
            let mut tx = client.transaction().unwrap();
            tx.execute(insert, &[&key, &i64::from(own), &i64::from(others)]).unwrap();
            assert_eq!(answer(&mut tx, "p", &target), standing);
            let lowest = i64::from(own.min(others));
            assert_eq!(answer(&mut tx, "p", &Target::Position(3)), behind(lowest, 3), "all keys");
        }
    }

    #[test]
    fn events_are_identified_by_position_and_id() {
        let (mut client, target) = world();
        client.batch_execute("UPDATE orchestrator_checkpoints SET position = 1000").unwrap();
        assert_eq!(answer(&mut client, "p", &target), Standing::Done);
        let invisible = Standing::Behind { position: None, target: None };
        let Target::Events(mut events) = target else { panic!("it has events") };
        events.push((99, Uuid::new_v4()));
        assert_eq!(answer(&mut client, "p", &Target::Events(events.clone())), invisible, "one is missing");
        events.pop();
        events[2].1 = Uuid::new_v4();
        assert_eq!(answer(&mut client, "p", &Target::Events(events)), invisible, "another event has its position");
    }

    #[test]
    fn events_of_several_aggregates_are_all_awaited() {
        let (mut client, target) = world();
        let Target::Events(mut events) = target else { panic!("it has events") };
        let Target::Events(more) = appended(&mut client, "b", &["A"]) else { panic!("it has events") };
        client.batch_execute("UPDATE orchestrator_checkpoints SET position = 4").unwrap();
        events.extend(more);
        assert_eq!(answer(&mut client, "p", &Target::Events(events.clone())), behind(4, 5));
        events.reverse();
        assert_eq!(answer(&mut client, "p", &Target::Events(events)), behind(4, 5));
    }

    #[test]
    fn a_place_is_a_database_and_alone_under_policies() {
        let (mut client, target) = world();
        let question = Question { projection: "p".into(), target };
        let place = |client: &mut Client| ask(client, &Names::default(), &[&question]).unwrap().place;
        let database: String = client.query_one("SELECT current_database()::text", &[]).unwrap().get(0);
        let own = place(&mut client);
        assert!(own.starts_with(&database) && own == place(&mut client), "{own}");
        let (mut other, _) = world();
        assert_ne!(place(&mut other), own);
        client
            .batch_execute(&format!(
                "CREATE ROLE \"{database}\"; GRANT SELECT ON ALL TABLES IN SCHEMA public TO \"{database}\";
                 ALTER TABLE events ENABLE ROW LEVEL SECURITY; SET ROLE \"{database}\""
            ))
            .unwrap();
        assert!(place(&mut client).starts_with(&format!("{own} ")), "it includes the session");
    }

    /// Each has an event of its own, among many events and checkpoints.
    #[test]
    fn a_thousand_questions_are_one_statement_that_is_not_compiled() {
        let (mut client, _) = world();
        client
            .batch_execute(
                "INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
                 SELECT 'shop', 'Order', 'many-' || i, 1, gen_random_uuid(), 'A', '' FROM generate_series(1, 20000) AS i;
                 DELETE FROM orchestrator_checkpoints;
                 INSERT INTO orchestrator_checkpoints (projection, keys, position)
                 SELECT 'p', int4multirange(int4range(i * 1024, (i + 1) * 1024)), 0 FROM generate_series(0, 63) AS i",
            )
            .unwrap();
        let sql_of_targets = "SELECT global_position, event_id FROM events ORDER BY 1 DESC LIMIT 1001";
        let targets = client.query(sql_of_targets, &[]).unwrap();
        let targets = targets.iter().map(|row| Target::Events(vec![(row.get(0), row.get(1))]));
        let questions: Vec<Question> = targets.map(|target| Question { projection: "p".to_owned(), target }).collect();
        let questions: Vec<&Question> = questions.iter().collect();
        let asked = Asked::of(&questions[..MOST]);
        let explain = format!("EXPLAIN {}", sql(&Names::default()));
        for statistics in ["SELECT", "ANALYZE"] {
            client.batch_execute(statistics).unwrap();
            let plan: String = client.query_typed(&explain, &asked.parameters()).unwrap()[0].get(0);
            let cost: f64 = plan.split("..").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert!(cost < 100_000.0, "jit_above_cost is exceeded after {statistics}: {plan}");
        }
        let answers = ask(&mut client, &Names::default(), &questions).unwrap();
        assert_eq!(answers.standings.len(), MOST + 1);
        for (question, standing) in questions.iter().zip(&answers.standings) {
            let Target::Events(events) = &question.target else { panic!("it has events") };
            assert_eq!(*standing, behind(0, events[0].0));
        }
    }
}
