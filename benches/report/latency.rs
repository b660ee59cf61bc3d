//! Measures the time from the commit of an append to the commit of its read-model row. It uses the
//! commit times that the server records (`track_commit_timestamp`), so no observer takes part, and
//! only the server's clock counts.
//!
//! The target without hints is half the polling interval plus 3 ms. By default, that interval grows
//! from 5 ms to 250 ms while nothing happens; the cases that keep the default are compared with the
//! longest interval. With one append in 2 s, the interval is at its longest. The waits are then
//! distributed evenly over it, and the median of a hundred of them would be uncertain by 12 ms. So
//! in that case twenty workers poll, each at its own times.
//!
//! The pollers are worker processes. Each is a replica set by itself, with one projection that
//! inserts a row for each event. The writer appends one event at a time, at random intervals.

use std::time::{Duration, Instant};

use postgres::Client;

use crate::crew::Crew;
use crate::lab::{BEFORE, Lab};
use crate::line::{Line, Target};
use crate::projections::Handler;
use crate::support::pause;
use crate::support::plot::{Curve, Frame, outline};
use crate::support::samples::Samples;
use crate::support::server::connect;
use crate::support::units::Unit::Seconds;
use crate::worker::Order;
use crate::writer::{Pace, Writer};

/// The events at the beginning that do not count, because connections are opened for them.
pub(crate) const WARM_UP: i64 = 3;

struct Case {
    name: &'static str,
    every: Duration,
    hints: bool,
    event_poll: Option<Duration>,
    /// How many workers poll.
    workers: usize,
    target: Target,
    lasts: Duration,
}

const CASES: [Case; 5] = [
    Case {
        name: "20 appends/s, hints",
        every: Duration::from_millis(50),
        hints: true,
        event_poll: None,
        workers: 1,
        target: Target::AtMost(0.005),
        lasts: Duration::from_secs(30),
    },
    Case {
        name: "20 appends/s, no hints",
        every: Duration::from_millis(50),
        hints: false,
        event_poll: None,
        workers: 1,
        target: Target::AtMost(0.125 + 0.003),
        lasts: Duration::from_secs(30),
    },
    Case {
        name: "20 appends/s, no hints, polled every 20 ms",
        every: Duration::from_millis(50),
        hints: false,
        event_poll: Some(Duration::from_millis(20)),
        workers: 1,
        target: Target::AtMost(0.010 + 0.003),
        lasts: Duration::from_secs(30),
    },
    Case {
        name: "one append in 2 s, hints",
        every: Duration::from_secs(2),
        hints: true,
        event_poll: None,
        workers: 1,
        target: Target::AtMost(0.005),
        lasts: Duration::from_secs(200),
    },
    Case {
        name: "one append in 2 s, no hints",
        every: Duration::from_secs(2),
        hints: false,
        event_poll: None,
        workers: 20,
        target: Target::AtMost(0.125 + 0.003),
        lasts: Duration::from_secs(200),
    },
];

pub(crate) fn measure(lab: &mut Lab) {
    let mut curves = Vec::new();
    for case in CASES {
        let took = watch(lab, &case);
        let line = Line::new(format!("append to read model, {}", case.name), Seconds, &took);
        lab.report.line(&line.percentiles(&[99, 100]).target(case.target));
        // The server's times have a resolution of a microsecond.
        let milliseconds = took.map(|seconds| 1e3 * seconds.max(1e-6));
        curves.push(Curve { name: case.name.to_owned(), points: outline(milliseconds.values()) });
    }
    let frame = Frame {
        title: "From the commit of an append to that of its read-model row",
        x: "ms",
        y: "% of the appends",
        log_x: true,
        log_y: false,
        dots: false,
    };
    lab.report.plot(frame, &curves);
}

fn watch(lab: &mut Lab, case: &Case) -> Samples {
    let (database, url) = lab.database_filled_with(BEFORE);
    let workers = lab.real_or_quick(case.workers, 1);
    let crews: Vec<Crew> = (0..workers)
        .map(|_| {
            let order = Order::from_head(&url, lab.name(), Handler::Arrive, BEFORE);
            Crew::start(&Order { event_poll: case.event_poll, ..order }, 1)
        })
        .collect();
    let every = lab.real_or_quick(case.every, case.every.min(Duration::from_millis(100)));
    let lasts = lab.real_or_quick(case.lasts, Duration::from_secs(1));
    let writer = Writer::start(&url, Pace { every, events: 1, hints: case.hints });
    pause(lasts);
    let expected = (writer.stop() * workers) as i64;
    let mut client = connect(&url);
    let deadline = Instant::now() + Duration::from_secs(10);
    while client.query_one("SELECT count(*) FROM arrived", &[]).unwrap().get::<_, i64>(0) < expected {
        assert!(Instant::now() < deadline, "every event arrives with everybody");
        pause(Duration::from_millis(10));
    }
    let took = arrivals(&mut client, WARM_UP * workers as i64);
    crews.into_iter().for_each(Crew::leave);
    drop(client);
    lab.server.drop_database(&database);
    took
}

/// The seconds from the commit of each event to that of its read-model row, without the first ones.
pub(crate) fn arrivals(client: &mut Client, without: i64) -> Samples {
    arrivals_between(client, 0, i64::MAX, without)
}

/// The same for the events above a position, up to another one.
pub(crate) fn arrivals_between(client: &mut Client, above: i64, upto: i64, without: i64) -> Samples {
    let sql = "SELECT extract(epoch FROM pg_xact_commit_timestamp(a.xmin) - pg_xact_commit_timestamp(e.xmin))::float8
               FROM events e JOIN arrived a USING (global_position) WHERE global_position > $1 AND global_position <= $2
               ORDER BY global_position OFFSET $3";
    client.query(sql, &[&above, &upto, &without]).unwrap().iter().map(|row| row.get(0)).collect()
}
