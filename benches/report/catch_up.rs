//! Measures a catch-up with a handler that does nothing: the cost of reading, in time and in
//! processor time.

use std::cell::RefCell;

use crate::contenders::{BareCopy, Run, bare_select};
use crate::lab::{BATCH, Filling, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::proc::{cpu, cpu_of_tree};
use crate::support::samples::{Samples, in_turn};
use crate::support::table::Table;
use crate::support::units::Unit::{EventsPerSecond, Seconds};

pub(crate) fn measure(lab: &mut Lab) {
    let filling = Filling::of(lab.events);
    lab.filled(filling);
    let copy = BareCopy::of(filling);
    let costs: [Costs; 4] = Default::default();
    let [single, batches, copied, selected] = in_turn(
        lab.rounds_times(2),
        lab,
        [
            &|lab| costs[0].of(lab, |lab| Run::new(filling, Handler::NoOp).worker(lab)),
            &|lab| costs[1].of(lab, |lab| Run::new(filling, Handler::NoOpBatches).worker(lab)),
            &|lab| costs[2].of(lab, |lab| copy.run(lab)),
            &|lab| costs[3].of(lab, |lab| bare_select(lab, filling, filling.events, BATCH, |_, _| {})),
        ],
    );
    for (name, measured) in [("`handle`", &single), ("`handle_batch`", &batches)] {
        let line = Line::new(format!("catch-up, no-op {name}"), EventsPerSecond, measured);
        lab.report.line(&line.clone().beside("bare copy", &copied).target(Target::RatioAtLeast(0.8)));
        lab.report.line(&line.beside("bare select", &selected));
    }
    let line = Line::new(format!("bare select of {BATCH} at a time"), EventsPerSecond, &selected);
    lab.report.line(&line.beside("bare copy", &copied));

    let mut table = Table::new(&["processor time per event", "client", "server"]);
    let names = ["catch-up, no-op `handle`", "catch-up, no-op `handle_batch`", "bare copy", "bare select"];
    for (name, costs) in names.into_iter().zip(costs) {
        let per_event = |samples: RefCell<Samples>| Seconds.show(samples.into_inner().median() / filling.events as f64);
        table.row([name.to_owned(), per_event(costs.client), per_event(costs.server)]);
    }
    lab.report.table("What catching up costs (medians; a worker's with its start and its end)", &table);
}

/// Processor seconds of the client and the server.
#[derive(Default)]
struct Costs {
    client: RefCell<Samples>,
    server: RefCell<Samples>,
}

impl Costs {
    fn of(&self, lab: &mut Lab, pass: impl FnOnce(&mut Lab) -> f64) -> f64 {
        let (client, server) = (std::process::id(), lab.server.pid());
        let before = (cpu(client), cpu_of_tree(server));
        let rate = pass(lab);
        self.client.borrow_mut().push(cpu(client) - before.0);
        self.server.borrow_mut().push(cpu_of_tree(server) - before.1);
        rate
    }
}
