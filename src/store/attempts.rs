//! What an owner reports beside its checkpoints: the attempt that it is about to make, and the
//! state of its work. Nothing here moves a position, but the [fence](super::fence) applies, so a
//! worker can report only in its own rows.

use postgres::GenericClient;
use postgres::types::{ToSql, Type};

use super::fence::{Attempt, Checkpoint, FENCE, Owner};
use super::names::Names;

/// The state of an owner's work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The next event will be retried.
    Retrying,
    /// The attempts at the next event are used up.
    Halted,
}

/// The report of a failure.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Report<'a> {
    pub(crate) state: State,
    pub(crate) error: &'a str,
    /// How many attempts have failed. They have ended by themselves, so the recorded attempt is
    /// cleared. `None` keeps it.
    pub(crate) attempts: Option<u32>,
}

/// Records the attempt that is about to be made, in a transaction of its own. `suspicion` says why
/// earlier ones failed. Returns false if the row is no longer this worker's.
pub(crate) fn record(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
    attempt: Attempt,
    suspicion: Option<&str>,
) -> Result<bool, postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {checkpoints} SET attempts = $5, attempt_position = $6, attempt_event_id = $7,
                attempted_at = pg_catalog.clock_timestamp(), error = coalesce($8, error),
                state = CASE WHEN $8 IS NULL OR state OPERATOR(pg_catalog.=) 'halted' THEN state ELSE 'retrying' END
         WHERE {fence}",
        &[("fence", &FENCE)],
    );
    let values: [(&(dyn ToSql + Sync), Type); 4] = [
        (&whole(attempt.number), Type::INT4),
        (&attempt.event.position, Type::INT8),
        (&attempt.event.id, Type::UUID),
        (&suspicion, Type::TEXT),
    ];
    fenced(client, &sql, row, owner, &values)
}

/// Reports a failure. Returns false if the row is no longer this worker's.
pub(crate) fn report(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
    report: Report<'_>,
) -> Result<bool, postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {checkpoints} SET state = $5, error = $6, attempts = coalesce($7, attempts),
                attempt_position = CASE WHEN $7 IS NULL THEN attempt_position END,
                attempt_event_id = CASE WHEN $7 IS NULL THEN attempt_event_id END,
                attempted_at = pg_catalog.clock_timestamp()
         WHERE {fence}",
        &[("fence", &FENCE)],
    );
    let state = match report.state {
        State::Retrying => "retrying",
        State::Halted => "halted",
    };
    let attempts = report.attempts.map(whole);
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&state, Type::TEXT), (&report.error, Type::TEXT), (&attempts, Type::INT4)];
    fenced(client, &sql, row, owner, &values)
}

/// Takes back a recorded attempt that has ended by itself. `left` is the number of attempts that
/// did not; if it is 0, no attempt stays recorded. Returns false if the row is no longer this
/// worker's.
pub(crate) fn take_back(
    client: &mut impl GenericClient,
    names: &Names,
    row: &Checkpoint,
    owner: Owner,
    left: u32,
) -> Result<bool, postgres::Error> {
    let sql = names.sql_with(
        "UPDATE {checkpoints} SET attempts = $5,
                attempt_position = CASE WHEN $5 OPERATOR(pg_catalog.>) 0 THEN attempt_position END,
                attempt_event_id = CASE WHEN $5 OPERATOR(pg_catalog.>) 0 THEN attempt_event_id END
         WHERE {fence}",
        &[("fence", &FENCE)],
    );
    fenced(client, &sql, row, owner, &[(&whole(left), Type::INT4)])
}

/// Executes a statement on one row, with the values of the fence followed by these. Returns whether
/// the row is still this worker's.
fn fenced(
    client: &mut impl GenericClient,
    sql: &str,
    row: &Checkpoint,
    owner: Owner,
    values: &[(&(dyn ToSql + Sync), Type)],
) -> Result<bool, postgres::Error> {
    let fence: [(&(dyn ToSql + Sync), Type); 4] = [
        (&row.token, Type::INT8),
        (&row.position, Type::INT8),
        (&owner.generation, Type::INT8),
        (&owner.worker.0, Type::UUID),
    ];
    let all: Vec<_> = fence.into_iter().chain(values.iter().cloned()).collect();
    Ok(client.execute_typed(sql, &all)? == 1)
}

fn whole(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use postgres::Client;
    use uuid::Uuid;

    use super::*;
    use crate::plan::{Deal, DesiredState, KeySet, Share, WorkerId};
    use crate::store::fence::{EventMark, Statements, merge};
    use crate::store::{deal, testing};

    const OWNER: Owner = Owner { worker: WorkerId(Uuid::from_u128(1)), generation: 1 };
    const ID: Uuid = Uuid::from_u128(9);

    /// What is reported of each row, in the order of their keys.
    type Shown = (String, Option<String>, i32, Option<i64>, Option<Uuid>);

    fn shown(client: &mut Client) -> Vec<Shown> {
        let sql = "SELECT state, error, attempts, attempt_position, attempt_event_id
                   FROM orchestrator_checkpoints ORDER BY lower(keys)";
        let rows = client.query(sql, &[]).unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4))).collect()
    }

    /// A row for each of these keys, at position 7, owned by [`OWNER`].
    fn rows(client: &mut Client, keys: &[&str]) -> Vec<Checkpoint> {
        client
            .execute(
                "INSERT INTO orchestrator_checkpoints (projection, keys, position, generation, worker_id)
                 SELECT 'p', keys::int4multirange, 7, 1, $2 FROM unnest($1::text[]) AS keys",
                &[&keys, &OWNER.worker.0],
            )
            .unwrap();
        owned(client)
    }

    fn owned(client: &mut Client) -> Vec<Checkpoint> {
        let statements = Statements::prepare(client, &Names::default()).unwrap();
        let mut rows = statements.owned(client, "p", OWNER, 0).unwrap().rows;
        rows.sort_by_key(|row| row.keys.ranges().to_vec());
        rows
    }

    fn attempt(position: i64, number: u32) -> Attempt {
        Attempt { event: EventMark { position, id: ID }, number }
    }

    fn nothing() -> Shown {
        ("running".into(), None, 0, None, None)
    }

    #[test]
    fn an_attempt_is_recorded_and_cleared_once_it_is_passed() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        let mut row = rows(&mut client, &["{[0,65536)}"]).remove(0);
        let statements = Statements::prepare(&mut client, &names).unwrap();
        assert!(record(&mut client, &names, &row, OWNER, attempt(10, 1), None).unwrap());
        assert_eq!(shown(&mut client), [("running".into(), None, 1, Some(10), Some(ID))]);
        assert_eq!(owned(&mut client)[0].attempt, Some(attempt(10, 1)));
        assert!(record(&mut client, &names, &row, OWNER, attempt(10, 2), Some("it ended")).unwrap());
        let recorded: Shown = ("retrying".into(), Some("it ended".into()), 2, Some(10), Some(ID));
        assert_eq!(shown(&mut client)[0], recorded);
        // Events before it are handled.
        assert!(statements.note(&mut client, &row, OWNER, 9).unwrap());
        row.position = 9;
        assert_eq!(shown(&mut client), [recorded]);
        assert!(statements.note(&mut client, &row, OWNER, 10).unwrap());
        assert_eq!(shown(&mut client), [nothing()]);
    }

    #[test]
    fn a_report_clears_the_recorded_attempt_or_keeps_it() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        let row = rows(&mut client, &["{[0,65536)}"]).remove(0);
        record(&mut client, &names, &row, OWNER, attempt(10, 4), None).unwrap();
        let halted = Report { state: State::Halted, error: "too often", attempts: None };
        assert!(report(&mut client, &names, &row, OWNER, halted).unwrap());
        assert_eq!(shown(&mut client), [("halted".into(), Some("too often".into()), 4, Some(10), Some(ID))]);
        assert!(record(&mut client, &names, &row, OWNER, attempt(10, 5), Some("why")).unwrap());
        assert_eq!(shown(&mut client), [("halted".into(), Some("why".into()), 5, Some(10), Some(ID))], "stays halted");
        let retrying = Report { state: State::Retrying, error: "no", attempts: Some(2) };
        assert!(report(&mut client, &names, &row, OWNER, retrying).unwrap());
        assert_eq!(shown(&mut client), [("retrying".into(), Some("no".into()), 2, None, None)]);
    }

    #[test]
    fn a_worker_that_lost_the_row_reports_nothing() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        let row = rows(&mut client, &["{[0,65536)}"]).remove(0);
        let other = Owner { generation: 2, ..OWNER };
        let halted = Report { state: State::Halted, error: "too often", attempts: None };
        for (row, owner) in [
            (row.clone(), other),
            (row.clone(), Owner { worker: WorkerId(ID), ..OWNER }),
            (Checkpoint { token: row.token + 1, ..row.clone() }, OWNER),
            (Checkpoint { position: 8, ..row.clone() }, OWNER),
        ] {
            assert!(!record(&mut client, &names, &row, owner, attempt(10, 1), None).unwrap());
            assert!(!report(&mut client, &names, &row, owner, halted).unwrap());
        }
        assert_eq!(shown(&mut client), [nothing()]);
    }

    #[test]
    fn deal_copies_reports_to_all_pieces_and_merge_keeps_the_worst() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        let pair = rows(&mut client, &["{[0,100)}", "{[100,65536)}"]);
        record(&mut client, &names, &pair[1], OWNER, attempt(10, 3), Some("why")).unwrap();
        let carried: Shown = ("retrying".into(), Some("why".into()), 3, Some(10), Some(ID));
        // The cut is in the middle of the second row, so the first share has a part of both rows.
        let shares = [(0, 200), (200, 65_536)].iter().enumerate().map(|(lane, part)| Share {
            worker: OWNER.worker,
            lane,
            keys: KeySet::from_ranges([*part]),
        });
        let dealt = Deal { projection: "p".into(), desired: DesiredState::Running, shares: shares.collect() };
        let mut tx = client.transaction().unwrap();
        deal::apply(&mut tx, &names, "set", 1, &[dealt]).unwrap();
        tx.commit().unwrap();
        assert_eq!(shown(&mut client), [carried.clone(), carried.clone()]);

        client.batch_execute("DELETE FROM orchestrator_checkpoints").unwrap();
        for worse in [0, 1] {
            let pair = rows(&mut client, &["{[0,100)}", "{[100,65536)}"]);
            record(&mut client, &names, &pair[1 - worse], OWNER, attempt(12, 1), None).unwrap();
            record(&mut client, &names, &pair[worse], OWNER, attempt(10, 3), Some("why")).unwrap();
            assert!(merge(&mut client, &names, &pair[0], &pair[1], OWNER).unwrap());
            assert_eq!(shown(&mut client)[0], carried);
            client.batch_execute("DELETE FROM orchestrator_checkpoints").unwrap();
        }
    }
}
