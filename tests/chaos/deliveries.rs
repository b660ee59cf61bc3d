//! The reaction of the chaos worker: it appends a line for each event to a file that all workers
//! share. One call of the system appends a line, so the order of the lines is that in which the
//! events were delivered, and no crash leaves a part of a line.

use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use pupsourcing_orchestrator::{BoxError, Call, Event, Options, Reaction};
use uuid::Uuid;

use super::faults::Faults;

pub(crate) const NAME: &str = "deliveries";
/// The most events of one call, if there is one call at a time.
pub(crate) const MOST_OF_CALL: usize = 32;

/// One line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Delivery {
    pub(crate) event: Uuid,
    pub(crate) aggregate: String,
    pub(crate) version: i64,
    pub(crate) position: i64,
    pub(crate) pid: u32,
    /// In microseconds since 1970. The server has the same clock.
    pub(crate) at: i64,
    pub(crate) is_replay: bool,
}

impl fmt::Display for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { event, aggregate, version, position, pid, at, is_replay } = self;
        writeln!(f, "{event} {aggregate} {version} {position} {pid} {at} {is_replay}")
    }
}

impl FromStr for Delivery {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        let parts: Vec<&str> = line.split(' ').collect();
        let [event, aggregate, version, position, pid, at, is_replay] = parts[..] else {
            return Err(format!("not the line of a delivery: {line:?}").into());
        };
        Ok(Self {
            event: event.parse()?,
            aggregate: aggregate.to_owned(),
            version: version.parse()?,
            position: position.parse()?,
            pid: pid.parse()?,
            at: at.parse()?,
            is_replay: is_replay.parse()?,
        })
    }
}

pub(crate) struct Deliveries {
    pub(crate) file: PathBuf,
    pub(crate) in_flight: usize,
    pub(crate) faults: Faults,
}

impl Deliveries {
    fn deliver(&self, call: &Call<'_>, event: &Event) -> Result<(), BoxError> {
        self.faults.before(event)?;
        let delivery = Delivery {
            event: event.event_id(),
            aggregate: format!("{}/{}", event.aggregate_type(), event.aggregate_id()),
            version: event.aggregate_version(),
            position: event.global_position(),
            pid: std::process::id(),
            at: i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?,
            is_replay: call.is_replay(),
        };
        File::options().append(true).create(true).open(&self.file)?.write_all(delivery.to_string().as_bytes())?;
        self.faults.after(event);
        Ok(())
    }
}

impl Reaction for Deliveries {
    fn name(&self) -> &str {
        NAME
    }

    fn options(&self) -> Options {
        Options::default().in_flight(self.in_flight)
    }

    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        let most = fastrand::usize(1..=MOST_OF_CALL);
        for (done, event) in events.iter().take(most).enumerate() {
            // A panic at a later event would repeat the earlier ones.
            let faults = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.deliver(call, event)));
            match faults.unwrap_or_else(|_| Err("it panicked".into())) {
                Ok(()) => {}
                Err(error) if done == 0 => return Err(error),
                Err(_) => return Ok(done),
            }
        }
        Ok(events.len().min(most))
    }
}
