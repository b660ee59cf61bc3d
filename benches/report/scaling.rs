//! Measures how the cost of a replica set grows with its workers, each a process with two
//! projections. It counts the connections and the statements of an idle replica set. Then, while
//! five hundred events a second are appended, ten at a time and without hints, it measures all
//! statements, how long the server executes those that read, and how many index entries it walks.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::crew::Crew;
use crate::lab::{BEFORE, Lab};
use crate::live_tail::READS;
use crate::projections::Handler;
use crate::support::arguments::numbers;
use crate::support::pause;
use crate::support::plot::{Curve, Frame};
use crate::support::proc::{cpu, cpu_of_tree};
use crate::support::server::{Count, connect};
use crate::support::table::Table;
use crate::support::units::Unit::Seconds;
use crate::worker::Order;
use crate::writer::{Pace, Writer};

const PROJECTIONS: usize = 2;

pub(crate) fn measure(lab: &mut Lab) {
    let sizes = numbers("BENCH_WORKERS").unwrap_or_else(|| lab.real_or_quick(vec![1, 2, 4, 8, 16, 32], vec![1, 2]));
    let mut table = Table::new(&[
        "workers",
        "connections",
        "at most",
        "idle: statements/s",
        "per worker",
        "idle: server, of one processor",
        "idle: workers, of one processor",
        "appending: server, of one processor",
        "reading, per s",
        "statements that read, per s",
        "all statements, per s",
        "index entries walked per event",
    ]);
    let mut idle = Curve { name: "statements/s, idle".to_owned(), points: Vec::new() };
    let mut connections = Curve { name: "connections".to_owned(), points: Vec::new() };
    for workers in sizes {
        let seen = watch(lab, workers);
        let count = workers as f64;
        idle.points.push((count, seen.statements));
        connections.points.push((count, seen.connections as f64));
        table.row([
            workers.to_string(),
            seen.connections.to_string(),
            (workers * (3 + 2 * PROJECTIONS)).to_string(),
            format!("{:.1}", seen.statements),
            format!("{:.2}", seen.statements / count),
            format!("{:.1} %", seen.idle_server),
            format!("{:.1} %", seen.idle_workers),
            format!("{:.1} %", seen.appending_server),
            Seconds.show(seen.reading.seconds),
            format!("{:.0}", seen.reading.calls),
            format!("{:.0}", seen.appending),
            format!("{:.1}", seen.walked),
        ]);
    }
    lab.report.table(&format!("Replica sets of several sizes, {PROJECTIONS} projections"), &table);
    let frame = Frame {
        title: "Cost of a replica set with two projections",
        x: "workers",
        y: "",
        log_x: false,
        log_y: false,
        dots: true,
    };
    lab.report.plot(frame, &[idle, connections]);
}

struct Seen {
    connections: i64,
    /// Per second.
    statements: f64,
    /// In percent of one processor.
    idle_server: f64,
    idle_workers: f64,
    appending_server: f64,
    /// Per second, while events are appended.
    reading: Count,
    appending: f64,
    /// Per event.
    walked: f64,
}

fn watch(lab: &mut Lab, workers: usize) -> Seen {
    let (database, url) = lab.database_filled_with(BEFORE);
    let order = Order { projections: PROJECTIONS, ..Order::from_head(&url, lab.name(), Handler::NoOpBatches, BEFORE) };
    let crew = Crew::start(&order, workers);
    let server = lab.server.pid();
    let mut client = connect(&url);
    let lasts = lab.real_or_quick(Duration::from_secs(5), Duration::from_secs(1));

    let mut statements = lab.server.count_statements(&database);
    let (begun, before, walked_before) = (Instant::now(), cpu_of_tree(server), walked(&mut client));
    let writer = Writer::start(&url, Pace { every: Duration::from_millis(20), events: 10, hints: false });
    pause(lasts);
    let appended = writer.stop();
    let seconds = begun.elapsed().as_secs_f64();
    let appending_server = 100.0 * (cpu_of_tree(server) - before) / seconds;
    let counted = statements.as_mut().map(|statements| (statements.matching(READS), statements.all()));
    let (reading, appending) =
        counted.map_or((Count::UNKNOWN, f64::NAN), |(reading, all)| (reading.per(seconds), all.calls / seconds));
    let connections = client
        .query_one(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'pupsourcing%'",
            &[],
        )
        .unwrap()
        .get(0);
    // The backends report their counts with a delay of a second, and the readers return their
    // connections after five.
    pause(lab.real_or_quick(Duration::from_secs(8), Duration::from_secs(2)));
    let walked = (walked(&mut client) - walked_before) / appended as f64;
    drop(client);

    let processes = |crew: &Crew| crew.pids().into_iter().map(cpu).sum::<f64>();
    let mut statements = lab.server.count_statements(&database);
    let (begun, before, processes_before) = (Instant::now(), cpu_of_tree(server), processes(&crew));
    pause(2 * lasts);
    let seconds = begun.elapsed().as_secs_f64();
    let seen = Seen {
        connections,
        statements: statements.as_mut().map_or(f64::NAN, |statements| statements.all().calls / seconds),
        idle_server: 100.0 * (cpu_of_tree(server) - before) / seconds,
        idle_workers: 100.0 * (processes(&crew) - processes_before) / seconds,
        appending_server,
        reading,
        appending,
        walked,
    };
    crew.leave();
    lab.server.drop_database(&database);
    seen
}

/// Returns how many entries of the indexes of events were walked, plus the rows that were read
/// without an index.
fn walked(client: &mut Client) -> f64 {
    let sql = "SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'events')::float8
                    + (SELECT sum(seq_tup_read) FROM pg_stat_user_tables WHERE relname = 'events')::float8";
    client.query_one(sql, &[]).unwrap().get(0)
}
