//! Measures the time from an append to the moment when its caller knows that the read model has it:
//! the caller appends one event, sends a hint and calls `EventStore::wait_for`. It is measured by
//! the caller, from the return of the append, which is after the commit.
//!
//! Beside it is the time from the commit of the same appends to that of their read-model rows, as
//! the server recorded them. See `latency`.

use std::time::{Duration, Instant};

use pupsourcing_orchestrator::{EventStore, ExpectedVersion, NewEvent, StreamId};

use crate::crew::Crew;
use crate::lab::{BEFORE, Lab};
use crate::latency::{WARM_UP, arrivals};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::pause;
use crate::support::samples::Samples;
use crate::support::server::connect;
use crate::support::units::Unit::Seconds;
use crate::worker::Order;

const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn measure(lab: &mut Lab) {
    for (name, every, appends) in
        [("20 appends/s", Duration::from_millis(50), 600), ("one append in 2 s", Duration::from_secs(2), 60)]
    {
        let appends = lab.real_or_quick(appends, 10);
        let every = lab.real_or_quick(every, every.min(Duration::from_millis(50)));
        let (waited, arrived) = append_and_wait(lab, every, appends);
        let line = Line::new(format!("append to the return of wait_for, {name}, hints"), Seconds, &waited);
        let line = line.percentiles(&[99, 100]).beside("to the read model", &arrived);
        lab.report.line(&line.target(Target::AtMost(0.005)));
    }
}

/// Returns how long the waits took, and how long the events took to the read model.
fn append_and_wait(lab: &mut Lab, every: Duration, appends: i64) -> (Samples, Samples) {
    let (database, url) = lab.database_filled_with(BEFORE);
    let order = Order::from_head(&url, lab.name(), Handler::Arrive, BEFORE);
    let crew = Crew::start(&order, 1);
    // The bench calls the first projection of a worker this.
    let projection = format!("{}-0", order.replica_set);
    let (mut client, store) = (connect(&url), EventStore::default());
    let mut waited = Samples::default();
    for number in 0..WARM_UP + appends {
        pause(every.mul_f64(0.5 + fastrand::f64()));
        let stream = StreamId::new("shop", "Order", format!("order-{}", fastrand::u16(..1_000)));
        let event = NewEvent::new("OrderPlaced", [b'x'; 200]);
        let appended = store.append(&mut client, &stream, ExpectedVersion::Any, &[event]).unwrap();
        let committed = Instant::now();
        store.hint(&mut client);
        store.wait_for(&mut client, &[projection.as_str()], &appended, PATIENCE).unwrap();
        if number >= WARM_UP {
            waited.push(committed.elapsed().as_secs_f64());
        }
    }
    let arrived = arrivals(&mut client, WARM_UP);
    crew.leave();
    drop(client);
    lab.server.drop_database(&database);
    (waited, arrived)
}
