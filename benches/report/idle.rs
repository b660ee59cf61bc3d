//! Measures one worker process with nothing to do, with 1 and with 20 projections: the statements
//! that it sends to the server, and whether any of its threads is busy.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::crew::Crew;
use crate::lab::{BEFORE, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::pause;
use crate::support::proc::{cpu, cpu_of_threads};
use crate::support::samples::Samples;
use crate::support::table::Table;
use crate::support::units::Unit::{PerSecond, Percent};
use crate::worker::Order;
use crate::writer::{Pace, Writer};

const SIZES: [usize; 2] = [1, 20];

#[derive(Default)]
struct Seen {
    statements: Samples,
    process: Samples,
    busiest_thread: Samples,
    /// The most frequent texts, and how often per second each was sent.
    texts: Vec<(String, f64)>,
}

pub(crate) fn measure(lab: &mut Lab) {
    let mut seen = SIZES.map(|_| Seen::default());
    for _ in 0..lab.rounds.div_ceil(2) {
        for (projections, seen) in SIZES.into_iter().zip(&mut seen) {
            watch(lab, projections, seen);
        }
    }
    let [one, twenty] = &seen;
    for (projections, seen) in SIZES.into_iter().zip(&seen) {
        let name = |what| format!("idle worker, projections: {projections}, {what}");
        let line = |what, unit, samples| Line::new(name(what), unit, samples);
        lab.report.line(&line("statements", PerSecond, &seen.statements).target(Target::AtMost(6.0)));
        lab.report.line(&line("processor time of the process", Percent, &seen.process));
        // A thread that spins uses 100 %.
        lab.report.line(&line("of its busiest thread", Percent, &seen.busiest_thread).target(Target::AtMost(2.0)));
    }
    let line = Line::new("idle worker, projections: 20, statements", PerSecond, &twenty.statements);
    lab.report.line(&line.beside("1 projection", &one.statements).target(Target::RatioAtMost(1.05)));
    let mut table = Table::new(&["statement of an idle worker with 20 projections", "per s"]);
    for (text, calls) in &twenty.texts {
        table.row([text.clone(), format!("{calls:.2}")]);
    }
    lab.report.table("What an idle worker sends", &table);
}

fn watch(lab: &mut Lab, projections: usize, seen: &mut Seen) {
    let (database, url) = lab.database_filled_with(BEFORE);
    let order = Order { projections, ..Order::from_head(&url, lab.name(), Handler::NoOpBatches, BEFORE) };
    let crew = Crew::start(&order, 1);
    // The worker first processes some events, so that everything that it creates on demand exists.
    let writer = Writer::start(&url, Pace { every: Duration::from_millis(50), events: 10, hints: true });
    pause(Duration::from_secs(1));
    writer.stop();
    pause(lab.real_or_quick(Duration::from_secs(8), Duration::from_secs(1)));

    let pid = crew.pids()[0];
    let threads = |pid| cpu_of_threads(pid).into_iter().collect::<BTreeMap<String, f64>>();
    let mut statements = lab.server.count_statements(&database);
    let (begun, process, before) = (Instant::now(), cpu(pid), threads(pid));
    let commits_before = commits(lab, &database);
    pause(lab.real_or_quick(Duration::from_secs(20), Duration::from_secs(2)));
    let seconds = begun.elapsed().as_secs_f64();
    let counted = match &mut statements {
        Some(statements) => {
            seen.texts = statements.most_frequent(seconds);
            statements.all().calls
        }
        None => commits(lab, &database) - commits_before,
    };
    seen.statements.push(counted / seconds);
    seen.process.push(100.0 * (cpu(pid) - process) / seconds);
    let busiest =
        threads(pid).into_iter().map(|(thread, cpu)| cpu - before.get(&thread).unwrap_or(&0.0)).fold(0.0, f64::max);
    seen.busiest_thread.push(100.0 * busiest / seconds);
    crew.leave();
    lab.server.drop_database(&database);
}

/// Returns the transactions of a database. While no worker processes events, there are as many as
/// statements. The server counts them with a delay of at most a second.
fn commits(lab: &Lab, database: &str) -> f64 {
    let sql = "SELECT xact_commit::float8 FROM pg_stat_database WHERE datname = $1";
    lab.server.connect("postgres").query_one(sql, &[&database]).unwrap().get(0)
}
