//! Measures what the guard of a rebuild costs per commit: the statement that looks, before each
//! commit, at what the transaction has locked. The database has 3,000 other tables, and a hundred
//! other sessions are in a transaction. The statement reads the locks of the whole server, so there
//! are two cases: each session has written to one table, or has locked thirty.
//!
//! - *The statement* is how long the server planned and executed it, the mean of one rebuild as
//!   counted by `pg_stat_statements`. If the server lacks that extension, it is left out.
//! - *A commit* is the time per event of a rebuild with batches of one event, compared with a
//!   catch-up. So it includes the guard, the search path and the round trips.

use std::cell::RefCell;

use postgres::Client;

use crate::contenders::Run;
use crate::lab::{BEFORE, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::rebuild_run::Rebuilt;
use crate::support::samples::{Samples, in_turn};
use crate::support::server::connect;
use crate::support::units::Unit::Seconds;

const TABLES: usize = 3_000;
const SESSIONS: usize = 100;

/// Matches the guard's statement, in `pg_stat_statements`.
const GUARD: &str = "string_agg\\(lock\\.mode";

pub(crate) fn measure(lab: &mut Lab) {
    let (database, url) = lab.database_filled_with(BEFORE);
    lab.server.count_planning(&database);
    create_tables(&url);
    for (name, locked, target) in [
        ("3,000 other tables, 100 sessions that have written to one each", 1, Target::AtMost(0.001)),
        ("3,000 other tables, 100 sessions that have locked thirty each", TABLES / SESSIONS, Target::None),
    ] {
        let crowd: Vec<Client> =
            (0..lab.real_or_quick(SESSIONS, 10)).map(|number| session(&url, number, locked)).collect();
        watch(lab, (&database, &url), name, target);
        drop(crowd);
    }
    lab.server.drop_database(&database);
}

fn watch(lab: &mut Lab, (database, url): (&str, &str), name: &str, target: Target) {
    let (handler, head) = (Handler::CountBatches, BEFORE.head());
    let last = lab.real_or_quick(2_000, 200);
    let contender = Rebuilt { handler, start_at: head - last, head, batch_size: 1 };
    let run = Run { last, batch_size: 1, ..Run::new(BEFORE, handler) };
    let statement = RefCell::new(Samples::default());
    let [rebuild, catch_up] = in_turn(
        lab.rounds_times(2),
        lab,
        [
            &|lab| {
                let statements = lab.server.count_statements(database);
                let rate = contender.run(url);
                if let Some(mut statements) = statements {
                    let guard = statements.matching(GUARD);
                    assert!(guard.calls >= last as f64, "the guard looks before each commit: {guard:?}");
                    statement.borrow_mut().push(guard.seconds / guard.calls);
                }
                rate
            },
            &|lab| {
                let name = lab.name();
                run.worker_in(url, name)
            },
        ],
    );
    let statement = statement.into_inner();
    if !statement.values().is_empty() {
        let line = Line::new(format!("guard of a rebuild, {name}: the statement"), Seconds, &statement);
        lab.report.line(&line.target(target));
    }
    let per_commit = |rates: &Samples| rates.map(|rate| 1.0 / rate);
    let line = Line::new(format!("guard of a rebuild, {name}: a commit of one event"), Seconds, &per_commit(&rebuild));
    lab.report.line(&line.beside("catch-up", &per_commit(&catch_up)));
}

fn create_tables(url: &str) {
    let sql =
        "SELECT format('CREATE TABLE other_%s (id bigint PRIMARY KEY)', i) FROM generate_series(1, $1::bigint) AS i";
    let mut client = connect(url);
    for row in client.query(sql, &[&(TABLES as i64)]).unwrap() {
        client.batch_execute(row.get(0)).unwrap();
    }
}

/// Opens a session with a transaction that has written to one table, or has locked several.
fn session(url: &str, number: usize, locked: usize) -> Client {
    let mut client = connect(url);
    let names: Vec<String> = (1..=locked).map(|i| format!("other_{}", number * locked + i)).collect();
    let sql = match &*names {
        [one] => format!("BEGIN; INSERT INTO {one} VALUES (1)"),
        several => format!("BEGIN; LOCK TABLE {} IN ACCESS SHARE MODE", several.join(", ")),
    };
    client.batch_execute(&sql).unwrap();
    client
}
