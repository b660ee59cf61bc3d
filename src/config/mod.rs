//! The configuration of an orchestrator: options, their defaults and their validation.

mod declare;
mod on_failure;
mod options;
mod own;
mod retry;
mod value;

use std::time::Duration;

pub(crate) use self::declare::{Declared, setter, setters};
use self::declare::{OptionOf, bounds, declare, quantity};
pub use self::on_failure::OnFailure;
pub(crate) use self::options::with_options;
pub use self::own::Options;
pub(crate) use self::own::Settings;
pub use self::retry::Retry;
pub(crate) use self::value::Bytes;
use self::value::{Bounds, Connections, Count, DurationOrOff, DurationRange, Switch, Value};
use crate::error::{Error, has_password, redacted};
use crate::health::Limits;
use crate::plan::{Kind, Policy};
use crate::store::Names;
use crate::store::events;

/// The most bytes of a name. Names are stored, sent as notification payloads and used as metric
/// labels.
const MAX_NAME_BYTES: usize = 255;

/// The most events that a reaction may handle at the same time. Each needs a thread.
const MAX_IN_FLIGHT: usize = 256;

/// Reads a duration in the form that the options have, such as `10s`.
#[cfg(feature = "cli")]
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    Value::parse(text).ok_or_else(|| format!("not {}", Duration::FORM))
}

with_options! { declare! {
    /// The options and names that the builder collects.
    #[derive(Debug, Clone)]
    pub(crate) struct Config, named "", with { replica_set: String, retry: Retry, names: Names }
} }

impl Config {
    pub(crate) fn new(replica_set: String) -> Self {
        Self { replica_set, ..Self::default() }
    }

    /// Returns all options, including those of [`Retry`].
    pub(crate) fn declared() -> impl Iterator<Item = &'static Declared> {
        let own = Self::OPTIONS.iter().map(|option| &option.declared);
        own.chain(Retry::OPTIONS.iter().map(|option| &option.declared))
    }

    /// Sets an option from text. Errors name the option `called`.
    pub(crate) fn set(&mut self, name: &str, called: &str, text: &str) -> Result<(), Error> {
        if let Some(option) = Self::OPTIONS.iter().find(|option| option.declared.name == name) {
            option.set(self, called, text)
        } else if let Some(option) = Retry::OPTIONS.iter().find(|option| option.declared.name == name) {
            option.set(&mut self.retry, called, text)
        } else {
            let names: Vec<&str> = Self::declared().map(|declared| declared.name).collect();
            Err(Error::config("option", format!("{name:?}"), format!("it must be one of {}", names.join(", "))))
        }
    }

    pub(crate) fn policy(&self) -> Policy {
        Policy {
            stale_worker_timeout: self.stale_worker_timeout,
            session_loss_grace: self.session_loss_grace,
            coordination_timeout: self.coordination_timeout,
            registration_wait: self.registration_wait,
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits::new(self.stale_worker_timeout, self.heartbeat_interval, self.event_poll.1, self.ready_while_halted)
    }

    pub(crate) fn bounds(&self) -> events::Bounds {
        events::Bounds { events: self.batch_size, bytes: self.batch_bytes.0, event_bytes: self.max_event_bytes.0 }
    }

    /// The size of the pool, for this many lanes of all projections together.
    pub(crate) fn pool_size(&self, lanes: usize) -> u32 {
        self.pool_size.unwrap_or_else(|| needed_connections(lanes))
    }

    /// Refuses options that are out of bounds or contradict each other.
    pub(crate) fn validate(&self, projections: &[&str]) -> Result<(), Error> {
        name("replica_set", &self.replica_set)?;
        if projections.is_empty() {
            return Err(Error::config("projections", "[]", "at least one projection is needed"));
        }
        for (i, projection) in projections.iter().enumerate() {
            name("projection name", projection)?;
            if Kind::of(projection) != Kind::Live {
                let problem = "\"@rebuild\" and \"@old\" at the end mean the checkpoints of a rebuild";
                return Err(Error::config("projection name", format!("{projection:?}"), problem));
            }
            if projections[..i].contains(projection) {
                return Err(Error::config("projection name", format!("{projection:?}"), "two projections have it"));
            }
        }
        self.validate_options()?;
        self.validate_relations()?;
        self.names.validate()
    }

    /// Refuses options that are out of bounds.
    pub(crate) fn validate_options(&self) -> Result<(), Error> {
        for option in Self::OPTIONS {
            (option.check)(self)?;
        }
        self.retry.validate()
    }

    /// The settings with which a projection runs: its own options, completed from these. Refuses
    /// what is out of bounds. Only a reaction can have events in flight.
    pub(crate) fn settings_of(&self, projection: &str, options: &Options, reacts: bool) -> Result<Settings, Error> {
        let named = |field: &str| format!("{field} of projection {projection:?}");
        let own = Config {
            batch_size: options.batch_size.unwrap_or(self.batch_size),
            batch_time: options.batch_time.unwrap_or(self.batch_time),
            lanes: options.lanes.unwrap_or(self.lanes),
            on_failure: options.on_failure.unwrap_or(self.on_failure),
            retry: options.retry.clone().unwrap_or_else(|| self.retry.clone()),
            ..self.clone()
        };
        own.validate_options().map_err(|error| match error {
            Error::InvalidConfig { field, value, problem } => Error::config(named(&field), value, problem),
            error => error,
        })?;
        if options.rate == Some(0) {
            let problem = "it must be at least 1; to stop a projection, pause it";
            return Err(Error::config(named("rate"), "0", problem));
        }
        let in_flight = options.in_flight.unwrap_or(1);
        if !(1..=MAX_IN_FLIGHT).contains(&in_flight) {
            let problem = format!("it must be between 1 and {MAX_IN_FLIGHT}");
            return Err(Error::config(named("in_flight"), in_flight.to_string(), problem));
        }
        if options.in_flight.is_some() && !reacts {
            let problem = "only a reaction can have it: lanes let other projections handle several events at once";
            return Err(Error::config(named("in_flight"), in_flight.to_string(), problem));
        }
        Ok(Settings {
            bounds: own.bounds(),
            batch_time: own.batch_time,
            lanes: own.lanes,
            rate: options.rate,
            in_flight,
            retry: own.retry,
            on_failure: own.on_failure,
        })
    }

    /// Refuses a pool that is too small for this many lanes of all projections together.
    pub(crate) fn validate_pool(&self, lanes: usize) -> Result<(), Error> {
        let needed = needed_connections(lanes);
        match self.pool_size.filter(|size| *size < needed) {
            Some(size) => {
                let problem = format!(
                    "{lanes} lanes of all projections × (1 connection to write + 1 to read ahead) = {needed} connections are needed"
                );
                Err(Error::config("pool_size", size.to_string(), problem))
            }
            None => Ok(()),
        }
    }

    /// Checks the relations between options.
    fn validate_relations(&self) -> Result<(), Error> {
        if self.heartbeat_interval * 3 > self.stale_worker_timeout {
            return Err(Error::config(
                "stale_worker_timeout",
                format!("{:?}", self.stale_worker_timeout),
                format!("it must be at least 3 × heartbeat_interval ({:?})", self.heartbeat_interval),
            ));
        }
        let grace = self.session_loss_grace.unwrap_or_default();
        for (name, value, other, most) in [
            ("session_loss_grace", grace, "stale_worker_timeout", self.stale_worker_timeout),
            ("registration_wait", self.registration_wait, "coordination_timeout", self.coordination_timeout),
            ("poll_interval", self.poll_interval, "coordination_timeout", self.coordination_timeout),
        ] {
            if value > most {
                return Err(Error::config(
                    name,
                    format!("{value:?}"),
                    format!("it must not exceed {other} ({most:?})"),
                ));
            }
        }
        if self.event_poll.0 > self.event_poll.1 {
            return Err(Error::config(
                "event_poll",
                format!("{:?} to {:?}", self.event_poll.0, self.event_poll.1),
                "the minimum must not exceed the maximum",
            ));
        }
        Ok(())
    }
}

/// How many connections so many lanes need: each has one for writing and one for reading ahead.
fn needed_connections(lanes: usize) -> u32 {
    u32::try_from(lanes * 2).unwrap_or(u32::MAX)
}

/// Returns the name of an option's environment variable.
pub(crate) fn variable(prefix: &str, option: &str) -> String {
    format!("{prefix}{}", option.to_uppercase().replace('.', "_"))
}

fn name(field: &str, name: &str) -> Result<(), Error> {
    let shown: String = redacted(name).chars().take(40).collect();
    let refuse = |problem: String| Err(Error::config(field, format!("{shown:?}"), problem));
    if name.trim().is_empty() {
        return refuse("it must not be empty".into());
    }
    if has_password(name) {
        return refuse("it contains a password, as in a database URL, and names are shown and stored".into());
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse(format!("it has {} bytes, {MAX_NAME_BYTES} are allowed", name.len()));
    }
    match name.chars().find(|c| c.is_control()) {
        Some(c) => refuse(format!("control characters such as {c:?} are not allowed")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
