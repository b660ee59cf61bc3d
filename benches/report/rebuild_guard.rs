//! Measures what the guard of a rebuild costs per commit: the statement that looks, before each
//! commit, at what the transaction has locked. The database has 3,000 other tables, and a hundred
//! other sessions, each of which has locked thirty of them.
//!
//! - *The statement* is how long the server planned and executed it, as counted by
//!   `pg_stat_statements` during rebuilds. If the server lacks that extension, it is left out.
//! - *A commit* is the time per event of a rebuild with batches of one event, compared with a
//!   catch-up. So it includes the guard, the search path and the round trips.

use postgres::Client;

use crate::contenders::Run;
use crate::lab::{BEFORE, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::rebuild_run::Rebuilt;
use crate::support::samples::{Samples, in_turn};
use crate::support::server::connect;
use crate::support::units::Unit::Seconds;

const TABLES: i32 = 3_000;
const SESSIONS: i32 = 100;

/// Matches the guard's statement, in `pg_stat_statements`.
const GUARD: &str = "string_agg\\(lock\\.mode";

pub(crate) fn measure(lab: &mut Lab) {
    let (database, url) = lab.database_filled_with(BEFORE);
    let crowd = crowd(&url, lab.real_or_quick(TABLES, 30), lab.real_or_quick(SESSIONS, 10));
    lab.server.count_planning(&database);
    let last = lab.real_or_quick(2_000, 200);
    let handler = Handler::CountBatches;
    let head = BEFORE.head();
    let contender = Rebuilt { handler, start_at: head - last, head, batch_size: 1 };
    let run = Run { last, batch_size: 1, ..Run::new(BEFORE, handler) };
    let mut statements = lab.server.count_statements(&database);
    let [rebuild, catch_up] = in_turn(
        lab.rounds_times(2),
        lab,
        [&|_| contender.run(&url), &|lab| {
            let name = lab.name();
            run.worker_in(&url, name)
        }],
    );
    if let Some(statements) = &mut statements {
        let guard = statements.matching(GUARD);
        assert!(guard.calls >= last as f64, "the guard's statement is found: {guard:?}");
        let mean: Samples = [guard.seconds / guard.calls].into_iter().collect();
        let line = Line::new("guard of a rebuild, 3,000 other tables, 100 sessions: the statement", Seconds, &mean);
        lab.report.line(&line.target(Target::AtMost(0.001)));
    }
    let per_commit = |rates: &Samples| rates.map(|rate| 1.0 / rate);
    let line = Line::new("the same: a commit of one event", Seconds, &per_commit(&rebuild));
    lab.report.line(&line.beside("catch-up", &per_commit(&catch_up)));
    drop(crowd);
    lab.server.drop_database(&database);
}

/// Creates tables, and sessions that each lock a part of them.
fn crowd(url: &str, tables: i32, sessions: i32) -> Vec<Client> {
    let create =
        "SELECT format('CREATE TABLE other_%s (id bigint PRIMARY KEY, note text)', i) FROM generate_series(1, $1) AS i";
    let mut client = connect(url);
    for row in client.query(create, &[&tables]).unwrap() {
        client.batch_execute(row.get(0)).unwrap();
    }
    let share = tables / sessions;
    (0..sessions)
        .map(|session| {
            let mut client = connect(url);
            let mine: Vec<String> = (1..=share).map(|i| format!("other_{}", session * share + i)).collect();
            client.batch_execute(&format!("BEGIN; LOCK TABLE {} IN ACCESS SHARE MODE", mine.join(", "))).unwrap();
            client
        })
        .collect()
}
