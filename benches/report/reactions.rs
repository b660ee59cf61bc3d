//! Measures a reaction that takes 2 ms for each event, as if it waited for a receiver: with one
//! event in flight, and with several. A reaction that does nothing shows what the library itself
//! takes, for a whole batch in one call, and for one event in each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};
use pupsourcing_orchestrator::{BoxError, Call, Event, Options, Reaction, StartAt};

use crate::lab::{Filling, Lab, builder};
use crate::line::{Line, Target};
use crate::support::pause;
use crate::support::samples::in_turn;
use crate::support::units::Unit::EventsPerSecond;

const EACH: Duration = Duration::from_millis(2);

/// How long a run may take.
const LONGEST: Duration = Duration::from_secs(120);

/// A reaction that handles the last events of a database.
struct Waits {
    name: String,
    start_at: i64,
    options: Options,
    /// How long each event takes.
    takes: Duration,
    /// The most events that one call handles.
    most: usize,
    left: AtomicUsize,
    /// Hears of the first call and of the last one.
    moments: Sender<Instant>,
    total: usize,
}

impl Reaction for Waits {
    fn name(&self) -> &str {
        &self.name
    }

    fn start_at(&self) -> StartAt {
        StartAt::Position(self.start_at)
    }

    fn options(&self) -> Options {
        self.options.clone()
    }

    fn react(&self, _: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let begun = Instant::now();
        let count = events.len().min(self.most);
        if !self.takes.is_zero() {
            (0..count).for_each(|_| pause(self.takes));
        }
        let before = self.left.fetch_sub(count, Ordering::Relaxed);
        if before == self.total {
            self.moments.send(begun)?;
        }
        if before == count {
            self.moments.send(Instant::now())?;
        }
        Ok(count)
    }
}

/// Returns the events per second of a reaction to the last events.
fn run(lab: &mut Lab, last: usize, (takes, most): (Duration, usize), in_flight: usize) -> f64 {
    let filling = Filling::of(lab.real_or_quick(100_000, 5_000));
    let (name, url) = (lab.name(), lab.filled(filling));
    let (moments, heard) = bounded(2);
    let reaction = Arc::new(Waits {
        name: name.clone(),
        start_at: filling.head() - last as i64,
        options: Options::default().in_flight(in_flight),
        takes,
        most,
        left: AtomicUsize::new(last),
        moments,
        total: last,
    });
    let orchestrator = builder(&url, &name).reaction(reaction).build().unwrap();
    orchestrator.migrate().unwrap();
    let handle = orchestrator.start().unwrap();
    let moment = || heard.recv_timeout(LONGEST).unwrap();
    let took = (moment(), moment());
    handle.shutdown(Duration::from_secs(10)).unwrap();
    last as f64 / took.1.duration_since(took.0).as_secs_f64()
}

pub(crate) fn measure(lab: &mut Lab) {
    let few = lab.real_or_quick(2_000, 100);
    let many = lab.real_or_quick(100_000, 5_000);
    let rounds = lab.rounds;
    let slow = (EACH, usize::MAX);
    let [one, eight, many_in_flight] = in_turn(
        rounds,
        lab,
        [&|lab: &mut Lab| run(lab, few, slow, 1), &|lab: &mut Lab| run(lab, few, slow, 8), &|lab: &mut Lab| {
            run(lab, few, slow, 32)
        }],
    );
    let line = |what: &str, measured| Line::new(format!("reaction, {what}"), EventsPerSecond, measured);
    let against = |line: Line| line.beside("1 in flight", &one);
    lab.report.line(&against(line("2 ms per event, 8 in flight", &eight)).target(Target::RatioAtLeast(4.0)));
    lab.report.line(&against(line("2 ms per event, 32 in flight", &many_in_flight)).target(Target::RatioAtLeast(8.0)));
    let [batches, singles] = in_turn(
        rounds,
        lab,
        [&|lab: &mut Lab| run(lab, many, (Duration::ZERO, usize::MAX), 1), &|lab: &mut Lab| {
            run(lab, few, (Duration::ZERO, 1), 1)
        }],
    );
    lab.report.line(&line("without effect, 2,000 events per call", &batches));
    lab.report.line(&line("without effect, one event per call", &singles));
}
