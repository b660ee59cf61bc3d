//! Several worker processes of one replica set that catch up together: how fast, at how much of the server's time, and whether they wait
//! for one another's locks.

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
use crate::support::units::Unit::{EventsPerSecond, Percent, Seconds};
use crate::worker::Order;

const SIZES: [usize; 3] = [1, 2, 4];

/// How often it is looked who waits for a lock.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Default)]
struct Found {
    rate: Samples,
    /// Seconds of the server's processor time per event.
    cost: Samples,
    /// The share of looks, in percent, that found somebody waiting for a lock on a table of the library.
    waits: Samples,
}

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    for (name, handler) in
        [("no-op `handle_batch`", Handler::NoOpBatches), ("one upsert per batch", Handler::CountBatches)]
    {
        let mut found = SIZES.map(|_| Found::default());
        for _ in 0..lab.rounds.div_ceil(2) {
            for (size, found) in SIZES.into_iter().zip(&mut found) {
                catch_up(lab, filling, handler, size, found);
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
}

fn catch_up(lab: &mut Lab, filling: Filling, handler: Handler, size: usize, found: &mut Found) {
    let url = lab.filled(filling);
    empty_counts(&url);
    let order = Order::from_beginning(&url, lab.name(), handler, filling);
    let gate = Gate::shut(&url);
    let crew = Crew::start(&order, size);
    let mut client = connect(&url);
    let waiting = client
        .prepare(
            // As the library writes the names of its tables.
            r#"SELECT count(*) > 0 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()
               AND query ~ '"public"\."(orchestrator_|events|aggregate_heads)'"#,
        )
        .unwrap();
    let server = lab.server.pid();
    let before = cpu_of_tree(server);
    let begun = gate.open();
    // The gate's own lock was one.
    let sampler = Sampler::start(LOOK, move || client.query_one(&waiting, &[]).unwrap().get::<_, bool>(0));
    let (last, events) = crew.await_reached();
    let cost = cpu_of_tree(server) - before;
    let looks: Samples = sampler.stop().into_iter().map(f64::from).collect();
    assert_eq!(events as i64, filling.events, "every event is handled, once");
    crew.leave();
    found.rate.push(filling.events as f64 / (last - begun).as_secs_f64());
    found.cost.push(cost / filling.events as f64);
    found.waits.push(100.0 * looks.values().iter().sum::<f64>() / looks.values().len().max(1) as f64);
}
