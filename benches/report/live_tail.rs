//! Measures one worker process at the live tail of 5,000 events a second, appended twenty at a time
//! and without hints, with 1, 5 and 20 projections that do nothing.
//!
//! *Reading* is how long the server executed the statements that determine the safe head and read
//! events, as counted by `pg_stat_statements`. If the server lacks that extension, it is the
//! processor time of all backends of the worker, which includes the commits.

use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::lab::{BEFORE, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::pause;
use crate::support::proc::{cpu, cpu_of_tree};
use crate::support::samples::Samples;
use crate::support::table::Table;
use crate::support::units::Unit::{self, Percent, Seconds};
use crate::worker::Order;
use crate::writer::{Pace, Writer};

const SIZES: [usize; 3] = [1, 5, 20];

/// Matches, in `pg_stat_statements`, the statements that determine the safe head and read events.
pub(crate) const READS: &str = r#"FROM "public"\."events" WHERE global_position|SELECT DISTINCT l\.virtualtransaction"#;

/// What was measured per second, for one number of projections.
#[derive(Default)]
struct Seen {
    reading: Samples,
    read_statements: Samples,
    read_rows: Samples,
    statements: Samples,
    appended: Samples,
    server: Samples,
    worker: Samples,
}

pub(crate) fn measure(lab: &mut Lab) {
    let mut seen = SIZES.map(|_| Seen::default());
    for _ in 0..lab.rounds.min(3) {
        for (projections, seen) in SIZES.into_iter().zip(&mut seen) {
            follow(lab, projections, seen);
        }
    }
    let [one, ..] = &seen;
    for (projections, seen) in SIZES.into_iter().zip(&seen).skip(1) {
        let name = format!("live tail, {projections} projections: reading per second");
        let line = Line::new(name, Seconds, &seen.reading).beside("1 projection", &one.reading);
        lab.report.line(&if projections == 20 { line.target(Target::RatioAtMost(1.5)) } else { line });
    }
    let mut table = Table::new(&[
        "projections",
        "events/s appended",
        "reading, per s",
        "statements that read, per s",
        "rows read, per s",
        "all statements, per s",
        "server, of one processor",
        "worker process",
    ]);
    for (projections, seen) in SIZES.into_iter().zip(&seen) {
        let whole = |samples: &Samples| format!("{:.0}", samples.median());
        table.row([
            projections.to_string(),
            whole(&seen.appended),
            Unit::Seconds.show(seen.reading.median()),
            whole(&seen.read_statements),
            whole(&seen.read_rows),
            whole(&seen.statements),
            Percent.show(seen.server.median()),
            Percent.show(seen.worker.median()),
        ]);
    }
    lab.report.table("At the live tail (medians; the server's share is with the appends)", &table);
}

fn follow(lab: &mut Lab, projections: usize, seen: &mut Seen) {
    let (database, url) = lab.database_filled_with(BEFORE);
    let order = Order { projections, ..Order::from_head(&url, lab.name(), Handler::NoOpBatches, BEFORE) };
    let crew = Crew::start(&order, 1);
    let worker = crew.pids()[0];
    let writer = Writer::start(&url, Pace { every: Duration::from_millis(4), events: 20, hints: false });
    // Waits until everything is prepared and running.
    pause(Duration::from_secs(1));
    let server = lab.server.pid();
    let mut observer = lab.server.connect("postgres");
    let newest = |client: &mut postgres::Client| -> i64 {
        client.query_one("SELECT coalesce(max(global_position), 0) FROM events", &[]).unwrap().get(0)
    };
    let mut events = crate::support::server::connect(&url);
    let first = newest(&mut events);
    let backends_before = backends(&mut observer, &database);
    let mut statements = lab.server.count_statements(&database);
    let (begun, server_before, worker_before) = (Instant::now(), cpu_of_tree(server), cpu(worker));
    pause(lab.real_or_quick(Duration::from_secs(8), Duration::from_secs(1)));
    let seconds = begun.elapsed().as_secs_f64();
    seen.server.push(100.0 * (cpu_of_tree(server) - server_before) / seconds);
    seen.worker.push(100.0 * (cpu(worker) - worker_before) / seconds);
    if let Some(statements) = &mut statements {
        let (reads, all) = (statements.matching(READS).per(seconds), statements.all().per(seconds));
        seen.reading.push(reads.seconds);
        seen.read_statements.push(reads.calls);
        seen.read_rows.push(reads.rows);
        seen.statements.push(all.calls);
    } else {
        seen.reading.push((backends(&mut observer, &database) - backends_before) / seconds);
    }
    seen.appended.push((newest(&mut events) - first) as f64 / seconds);
    writer.stop();
    crew.leave();
    drop(events);
    lab.server.drop_database(&database);
}

/// Returns the processor seconds of a worker's backends.
fn backends(client: &mut postgres::Client, database: &str) -> f64 {
    let sql = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'pupsourcing%'";
    client.query(sql, &[&database]).unwrap().iter().map(|row| cpu(row.get::<_, i32>(0) as u32)).sum()
}
