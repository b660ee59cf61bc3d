//! Measures several worker processes of one replica set that catch up together: how fast they are,
//! how much of the server's time they use, and whether they wait for one another's locks.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::contenders::empty_counts;
use crate::crew::Crew;
use crate::gate::Gate;
use crate::lab::{Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::sampler::Sampler;
use crate::support::proc::cpu_of_tree;
use crate::support::samples::Samples;
use crate::support::server::connect;
use crate::support::table::Table;
use crate::support::units::Unit::{EventsPerSecond, Percent, Seconds};
use crate::worker::Order;

const SIZES: [usize; 3] = [1, 2, 4];

/// How often the bench checks which sessions wait for a lock.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Found {
    rate: Samples,
    /// Seconds of the server's processor time per event.
    cost: Samples,
    /// The percentage of checks that found a session waiting for a lock on a table of the library.
    waits: Samples,
    /// Every observed wait for a lock, including those of the handlers.
    waited_for: BTreeMap<String, usize>,
}

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    let mut waited_for = Table::new(&["workers", "handler", "waiting for, in", "times seen"]);
    for (name, handler) in
        [("no-op `handle_batch`", Handler::NoOpBatches), ("one upsert per batch", Handler::CountBatches)]
    {
        let mut found = SIZES.map(|_| Found::default());
        for _ in 0..lab.rounds.div_ceil(2) {
            for (size, found) in SIZES.into_iter().zip(&mut found) {
                catch_up(lab, filling, handler, size, found);
            }
        }
        for (size, found) in SIZES.iter().zip(&found) {
            for (what, count) in &found.waited_for {
                waited_for.row([size.to_string(), name.to_owned(), format!("`{what}`"), count.to_string()]);
            }
        }
        let [one, more @ ..] = &found;
        for (size, found) in SIZES.iter().zip(&found) {
            let waits =
                Line::new(format!("workers: {size}, {name}: looks that found lock waits"), Percent, &found.waits);
            lab.report.line(&waits.target(Target::AtMost(0.0)));
        }
        for (size, found) in SIZES[1..].iter().zip(more) {
            let what = format!("catch-up, workers: {size}, {name}");
            lab.report.line(&Line::new(what.clone(), EventsPerSecond, &found.rate).beside("1 worker", &one.rate));
            let cost = Line::new(format!("{what}: server's processor time per event"), Seconds, &found.cost);
            lab.report.line(&cost.beside("1 worker", &one.cost));
        }
    }
    lab.report.table("Every wait for a lock that was seen, on the read model's own table too", &waited_for);
}

fn catch_up(lab: &mut Lab, filling: Filling, handler: Handler, size: usize, found: &mut Found) {
    let url = lab.filled(filling);
    empty_counts(&url);
    let order = Order::from_beginning(&url, lab.name(), handler, filling);
    let gate = Gate::shut(&url);
    let crew = Crew::start(&order, size);
    let mut client = connect(&url);
    // The pattern matches the names of tables as the library writes them.
    let waiting = client
        .prepare(
            r#"SELECT query ~ '"public"\."(orchestrator_|events|aggregate_heads)',
                      wait_event || ': ' || left(regexp_replace(query, '\s+', ' ', 'g'), 80)
               FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"#,
        )
        .unwrap();
    let server = lab.server.pid();
    let before = cpu_of_tree(server);
    let begun = gate.open();
    let sampler = Sampler::start(LOOK, move || -> Vec<(bool, String)> {
        client.query(&waiting, &[]).unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    });
    let (last, events) = crew.await_reached();
    let cost = cpu_of_tree(server) - before;
    let looks = sampler.stop();
    assert_eq!(events as i64, filling.events, "every event is handled, once");
    crew.leave();
    found.rate.push(filling.events as f64 / (last - begun).as_secs_f64());
    found.cost.push(cost / filling.events as f64);
    let with_waits = looks.iter().filter(|look| look.iter().any(|(is_ours, _)| *is_ours)).count();
    found.waits.push(100.0 * with_waits as f64 / looks.len().max(1) as f64);
    for (_, what) in looks.into_iter().flatten() {
        *found.waited_for.entry(what).or_default() += 1;
    }
}
