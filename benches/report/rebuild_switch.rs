//! Measures the switch at the end of a rebuild: how long the projection pauses, and how long a
//! reader waits.
//!
//! One caller appends an event, sends a hint and waits until the live read model has the event
//! (`EventStore::wait_for`), again and again. The longest of these waits around the switch is the
//! pause as an application sees it. It includes the time in which the live projection waits for the
//! rebuild. A reader selects the rows of one event by the primary key, again and again. Both are
//! compared with the longest in as long a time before the rebuild.
//!
//! The read model has a hundred rows for each event. The rebuild has an unlimited rate.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use pupsourcing_orchestrator::operator::Rebuild;
use pupsourcing_orchestrator::{EventStore, ExpectedVersion, NewEvent, StreamId};

use crate::lab::{Filling, Lab, builder};
use crate::line::{Line, Target};
use crate::projections::{Handler, Measured, ROWS_PER_EVENT};
use crate::rebuild_run::{await_done, await_position, begin, leave};
use crate::sampler::Sampler;
use crate::support::arguments::number;
use crate::support::pause;
use crate::support::samples::Samples;
use crate::support::server::connect;
use crate::support::units::Unit::Seconds;

/// How long before and after the switch counts as around it.
const AROUND: Duration = Duration::from_secs(2);
/// How often the caller and the reader begin at most.
const EVERY: Duration = Duration::from_millis(2);
const PATIENCE: Duration = Duration::from_secs(30);

/// When something began, and how long it took.
type Timed = (Instant, Duration);

pub(crate) fn measure(lab: &mut Lab) {
    SWITCHES.install();
    let rows = number("BENCH_SWITCH_ROWS").map_or(100_000, |rows| rows as i64);
    let filling = Filling::of((rows / ROWS_PER_EVENT).max(1));
    let (database, url) = lab.database_filled_with(filling);
    let name = lab.name();
    let projection = Measured::new(&*name, 0, Handler::Fill).owning_tables();
    let handle = builder(&url, &name).batch_projection(projection).build().unwrap().start().unwrap();
    let mut client = connect(&url);
    await_position(&mut client, &name, filling.head());
    let caller = call(&url, &name);
    let reader = read(&url, filling.head());
    let around = lab.real_or_quick(AROUND, Duration::from_millis(500));
    let mut spans = Vec::new();
    for _ in 0..lab.rounds {
        let quiet = Instant::now();
        pause(2 * around);
        let before = Instant::now();
        let rebuild = begin(&mut client, &name, Rebuild::default().unlimited());
        await_done(&mut client, rebuild);
        let switched = Instant::now();
        pause(around);
        let from = switched.checked_sub(around).unwrap_or(before);
        spans.push([(quiet, before), (from, switched + around)]);
    }
    let (calls, reads) = (caller.stop(), reader.stop());
    leave(handle);
    drop(client);
    lab.server.drop_database(&database);

    let size = if rows >= 1_000_000 { format!("{} million", rows / 1_000_000) } else { rows.to_string() };
    for (what, timed, bound) in [
        ("longest append to the return of wait_for", &calls, 0.250),
        ("longest read by the primary key", &reads, 0.100),
    ] {
        let longest = |which: usize| spans.iter().map(|span| longest_in(timed, span[which])).collect::<Samples>();
        let line = Line::new(format!("switch, {size} rows: {what}"), Seconds, &longest(1));
        lab.report.line(&line.beside("before the rebuild", &longest(0)).target(Target::AllAtMost(bound)));
    }
    let logged = SWITCHES.taken();
    assert_eq!(logged.values().len(), spans.len(), "every switch is logged");
    let line = Line::new(format!("switch, {size} rows: `pause` in the log"), Seconds, &logged);
    lab.report.line(&line.target(Target::AllAtMost(0.250)));
}

/// The seconds of the longest that ran in a span of time.
fn longest_in(timed: &[Timed], (from, to): (Instant, Instant)) -> f64 {
    let within = timed.iter().filter(|(begun, took)| *begun < to && *begun + *took > from);
    within.map(|(_, took)| took.as_secs_f64()).fold(0.0, f64::max)
}

/// Appends an event and waits until the read model has it, again and again.
fn call(url: &str, projection: &str) -> Sampler<Timed> {
    let (mut client, store, projection) = (connect(url), EventStore::default(), projection.to_owned());
    Sampler::start(EVERY, move || {
        let stream = StreamId::new("shop", "Order", format!("order-{}", fastrand::u16(..1_000)));
        let event = NewEvent::new("OrderPlaced", [b'x'; 200]);
        let appended = store.append(&mut client, &stream, ExpectedVersion::Any, &[event]).unwrap();
        let committed = Instant::now();
        store.hint(&mut client);
        store.wait_for(&mut client, &[projection.as_str()], &appended, PATIENCE).unwrap();
        (committed, committed.elapsed())
    })
}

/// Reads the rows of one of the first events, again and again.
fn read(url: &str, events: i64) -> Sampler<Timed> {
    let mut client = connect(url);
    let rows = client.prepare("SELECT count(note) FROM filled WHERE global_position = $1").unwrap();
    Sampler::start(EVERY, move || {
        let begun = Instant::now();
        let found: i64 = client.query_one(&rows, &[&fastrand::i64(1..=events)]).unwrap().get(0);
        assert_eq!(found, ROWS_PER_EVENT, "a reader sees every row");
        (begun, begun.elapsed())
    })
}

/// Takes the pauses from the log lines of the workers in this process.
struct Switches(Mutex<Vec<f64>>);

static SWITCHES: Switches = Switches(Mutex::new(Vec::new()));

impl Switches {
    fn install(&'static self) {
        log::set_logger(self).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    }

    /// The pauses, in seconds. They are not needed any more.
    fn taken(&self) -> Samples {
        log::set_max_level(log::LevelFilter::Off);
        self.0.lock().unwrap().drain(..).collect()
    }
}

impl log::Log for Switches {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = record.args().to_string();
        if line.starts_with("read model switched: ") {
            let pause = line.split_once(" pause=").and_then(|(_, rest)| seconds(rest.split(' ').next()?));
            self.0.lock().unwrap().push(pause.unwrap_or_else(|| panic!("no pause in: {line}")));
        } else if record.level() <= log::Level::Warn {
            println!("  {line}");
        }
    }

    fn flush(&self) {}
}

/// Parses a duration as Rust shows it.
fn seconds(shown: &str) -> Option<f64> {
    let units = [("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let (number, factor) = units.iter().find_map(|(unit, factor)| Some((shown.strip_suffix(unit)?, factor)))?;
    Some(number.parse::<f64>().ok()? * factor)
}
