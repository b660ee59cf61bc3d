//! Measures the time from the commit of an append to the commit of its read-model row, on a worker
//! that rebuilds another projection at the default rate, compared with the same worker without a
//! rebuild. See `latency`.
//!
//! One worker in this process has both projections. A hundred events a second are appended, with
//! hints. The time is divided into equal parts, in turn with and without a rebuild. Each value is a
//! percentile of one part. Each rebuild is cancelled at the end of its part, long before it would
//! end by itself.

use std::time::{Duration, Instant};

use postgres::Client;
use pupsourcing_orchestrator::operator::Rebuild;

use crate::contenders::place;
use crate::lab::{BEFORE, Filling, Lab, builder};
use crate::latency::{WARM_UP, arrivals_between};
use crate::line::{Line, Target};
use crate::projections::{Handler, Measured};
use crate::rebuild_run::{await_position, begin, cancel, leave, newest};
use crate::support::pause;
use crate::support::samples::Samples;
use crate::support::server::connect;
use crate::support::units::Unit::{EventsPerSecond, Seconds};
use crate::writer::{Pace, Writer};

const APPENDS: Pace = Pace { every: Duration::from_millis(10), events: 1, hints: true };

/// What was measured in the parts of one kind.
#[derive(Default)]
struct Seen {
    median: Samples,
    p99: Samples,
}

pub(crate) fn measure(lab: &mut Lab) {
    for (name, handler) in [("one upsert per event", Handler::Count), ("one upsert per batch", Handler::CountBatches)] {
        let (with, without, rate) = watch(lab, handler);
        for (which, with, without, target) in [
            ("median", &with.median, &without.median, Target::None),
            ("p99", &with.p99, &without.p99, Target::RatioAtMost(2.0)),
        ] {
            let line = Line::new(format!("append to read model beside a rebuild, {name}: {which}"), Seconds, with);
            lab.report.line(&line.beside("without", without).target(target));
        }
        lab.report.line(&Line::new(format!("this rebuild, {name}"), EventsPerSecond, &rate));
    }
}

/// Returns what was seen with and without rebuilds of a projection with this handler, and how fast
/// they were.
fn watch(lab: &mut Lab, handler: Handler) -> (Seen, Seen, Samples) {
    let filling = lab.real_or_quick(Filling::of(200_000), BEFORE);
    let (database, url) = lab.database_filled_with(filling);
    let (live, rebuilt) = (lab.name(), lab.name());
    let mut client = connect(&url);
    // It has handled everything, without the time for it.
    place(&mut client, &rebuilt, filling.head());
    let handle = builder(&url, &rebuilt)
        .batch_projection(Measured::new(&*live, filling.head(), Handler::Arrive))
        .batch_projection(Measured::new(&*rebuilt, 0, handler).owning_tables())
        .build()
        .unwrap()
        .start()
        .unwrap();
    let writer = Writer::start(&url, APPENDS);
    let lasts = lab.real_or_quick(Duration::from_secs(10), Duration::from_millis(500));
    let (mut with, mut without, mut rate) = (Seen::default(), Seen::default(), Samples::default());
    await_position(&mut client, &live, filling.head() + WARM_UP);
    for round in 0..=lab.rounds {
        // The first round does not count, unless there is no other one.
        let counts = round > 0;
        let quiet = part(&mut client, &live, lasts);
        begin(&mut client, &rebuilt, Rebuild::default());
        let begun = Instant::now();
        let busy = part(&mut client, &live, lasts);
        let per_second = handled(&mut client, &rebuilt) as f64 / begun.elapsed().as_secs_f64();
        cancel(&mut client, &rebuilt);
        if counts {
            without.push(&quiet);
            with.push(&busy);
            rate.push(per_second);
        }
    }
    writer.stop();
    leave(handle);
    drop(client);
    lab.server.drop_database(&database);
    (with, without, rate)
}

impl Seen {
    fn push(&mut self, took: &Samples) {
        self.median.push(took.median());
        self.p99.push(took.percentile(99));
    }
}

/// Waits for this long. Returns how long the events that were appended meanwhile took to the read
/// model.
fn part(client: &mut Client, live: &str, lasts: Duration) -> Samples {
    let first = newest(client);
    pause(lasts);
    let last = newest(client);
    await_position(client, live, last);
    arrivals_between(client, first, last, 0)
}

/// How many events a rebuild has handled.
fn handled(client: &mut Client, projection: &str) -> i64 {
    let sql = "SELECT sum(handled)::int8 FROM orchestrator_checkpoints WHERE projection = $1 || '@rebuild'";
    client.query_one(sql, &[&projection]).unwrap().get::<_, Option<i64>>(0).expect("the rebuild goes on")
}
