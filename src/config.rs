//! Options, their defaults and their validation.

use std::time::Duration;

use crate::error::Error;
use crate::plan::Policy;
use crate::store::Names;
use crate::store::events::Bounds;

/// Names are stored, sent as notification payloads and used as metric labels.
const MAX_NAME_BYTES: usize = 255;
/// Each is a thread and two connections for every projection.
const MAX_LANES: usize = 64;

/// How a failing projection is tried again.
///
/// Deadlocks, serialisation failures and lost connections do not count: they are always tried again, at once.
///
/// ```
/// use std::time::Duration;
/// use pupsourcing_orchestrator::Retry;
///
/// let retry = Retry::default().attempts(3).first_delay(Duration::from_millis(50)).longest_delay(Duration::from_secs(5));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    pub(crate) attempts: u32,
    pub(crate) first_delay: Duration,
    pub(crate) longest_delay: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 8, first_delay: Duration::from_millis(100), longest_delay: Duration::from_secs(30) }
    }
}

impl Retry {
    /// How many times the same batch is tried before the projection halts. Defaults to 8.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts;
        self
    }

    /// The delay after the first failure; it doubles with each further one. Defaults to 100 ms.
    pub fn first_delay(mut self, delay: Duration) -> Self {
        self.first_delay = delay;
        self
    }

    /// The longest delay. Defaults to 30 s.
    pub fn longest_delay(mut self, delay: Duration) -> Self {
        self.longest_delay = delay;
        self
    }
}

/// What the builder collects.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) replica_set: String,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) stale_worker_timeout: Duration,
    pub(crate) session_loss_grace: Option<Duration>,
    pub(crate) coordination_timeout: Duration,
    pub(crate) poll_interval: Duration,
    pub(crate) registration_wait: Duration,
    pub(crate) database_wait: Duration,
    pub(crate) event_poll: (Duration, Duration),
    pub(crate) batch_size: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) max_event_bytes: usize,
    pub(crate) lanes: usize,
    pub(crate) pool_size: Option<u32>,
    pub(crate) retry: Retry,
    pub(crate) names: Names,
}

impl Config {
    pub(crate) fn new(replica_set: String) -> Self {
        Self {
            replica_set,
            heartbeat_interval: Duration::from_secs(5),
            stale_worker_timeout: Duration::from_secs(30),
            session_loss_grace: Some(Duration::from_secs(1)),
            coordination_timeout: Duration::from_secs(60),
            poll_interval: Duration::from_secs(1),
            registration_wait: Duration::from_secs(1),
            database_wait: Duration::from_secs(60),
            event_poll: (Duration::from_millis(5), Duration::from_millis(250)),
            batch_size: 2000,
            batch_bytes: 8 << 20,
            max_event_bytes: 64 << 20,
            lanes: 1,
            pool_size: None,
            retry: Retry::default(),
            names: Names::default(),
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

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { events: self.batch_size, bytes: self.batch_bytes, event_bytes: self.max_event_bytes }
    }

    pub(crate) fn pool_size(&self, projections: usize) -> u32 {
        self.pool_size.unwrap_or_else(|| self.needed_connections(projections))
    }

    /// Each lane of a projection has one connection to write with and one to read ahead with.
    fn needed_connections(&self, projections: usize) -> u32 {
        u32::try_from(projections * self.lanes * 2).unwrap_or(u32::MAX)
    }

    /// Refuses what is out of bounds or contradicts itself.
    pub(crate) fn validate(&self, projections: &[&str]) -> Result<(), Error> {
        name("replica_set", &self.replica_set)?;
        if projections.is_empty() {
            return Err(Error::config("projections", "[]", "at least one projection is needed"));
        }
        for (i, projection) in projections.iter().enumerate() {
            name("projection name", projection)?;
            if projections[..i].contains(projection) {
                return Err(Error::config("projection name", format!("{projection:?}"), "two projections bear it"));
            }
        }
        self.validate_durations()?;
        for (field, value) in [
            ("batch_size", self.batch_size),
            ("batch_bytes", self.batch_bytes),
            ("max_event_bytes", self.max_event_bytes),
        ] {
            if value == 0 {
                return Err(Error::config(field, "0", "it must be at least 1"));
            }
        }
        if self.batch_size > 1_000_000 {
            return Err(Error::config("batch_size", self.batch_size.to_string(), "it must be at most 1000000"));
        }
        if !(1..=MAX_LANES).contains(&self.lanes) {
            return Err(Error::config("lanes", self.lanes.to_string(), format!("it must be 1 to {MAX_LANES}")));
        }
        let needed = self.needed_connections(projections.len());
        if let Some(size) = self.pool_size.filter(|size| *size < needed) {
            return Err(Error::config(
                "pool_size",
                size.to_string(),
                format!(
                    "{} projections × {} lanes × (1 connection to write + 1 to read ahead) = {needed} connections are needed",
                    projections.len(),
                    self.lanes
                ),
            ));
        }
        if self.retry.attempts == 0 {
            return Err(Error::config("retry.attempts", "0", "a batch must be tried at least once"));
        }
        self.names.validate()
    }

    fn validate_durations(&self) -> Result<(), Error> {
        let grace = self.session_loss_grace;
        for (field, value, shortest) in [
            ("heartbeat_interval", Some(self.heartbeat_interval), 10),
            ("stale_worker_timeout", Some(self.stale_worker_timeout), 30),
            ("session_loss_grace", grace, 10),
            ("coordination_timeout", Some(self.coordination_timeout), 100),
            ("poll_interval", Some(self.poll_interval), 10),
            ("database_wait", Some(self.database_wait), 0),
            ("event_poll minimum", Some(self.event_poll.0), 1),
            ("event_poll maximum", Some(self.event_poll.1), 1),
            ("retry.first_delay", Some(self.retry.first_delay), 1),
        ] {
            let Some(value) = value else { continue };
            if value < Duration::from_millis(shortest) {
                return Err(Error::config(field, format!("{value:?}"), format!("it must be at least {shortest} ms")));
            }
            if value > Duration::from_secs(24 * 60 * 60) {
                return Err(Error::config(field, format!("{value:?}"), "it must be at most 24 h"));
            }
        }
        if self.heartbeat_interval * 3 > self.stale_worker_timeout {
            return Err(Error::config(
                "stale_worker_timeout",
                format!("{:?}", self.stale_worker_timeout),
                format!("it must be at least 3 × heartbeat_interval ({:?})", self.heartbeat_interval),
            ));
        }
        if let Some(grace) = grace.filter(|grace| *grace > self.stale_worker_timeout) {
            return Err(Error::config(
                "session_loss_grace",
                format!("{grace:?}"),
                format!("it must not exceed stale_worker_timeout ({:?})", self.stale_worker_timeout),
            ));
        }
        if self.registration_wait > self.coordination_timeout {
            return Err(Error::config(
                "registration_wait",
                format!("{:?}", self.registration_wait),
                format!("it must not exceed coordination_timeout ({:?})", self.coordination_timeout),
            ));
        }
        if self.poll_interval > self.coordination_timeout {
            return Err(Error::config(
                "poll_interval",
                format!("{:?}", self.poll_interval),
                format!("it must not exceed coordination_timeout ({:?})", self.coordination_timeout),
            ));
        }
        if self.event_poll.0 > self.event_poll.1 {
            return Err(Error::config(
                "event_poll",
                format!("{:?} to {:?}", self.event_poll.0, self.event_poll.1),
                "the minimum must not exceed the maximum",
            ));
        }
        if self.retry.first_delay > self.retry.longest_delay {
            return Err(Error::config(
                "retry.longest_delay",
                format!("{:?}", self.retry.longest_delay),
                format!("it must be at least first_delay ({:?})", self.retry.first_delay),
            ));
        }
        Ok(())
    }
}

fn name(field: &str, name: &str) -> Result<(), Error> {
    let shown: String = name.chars().take(40).collect();
    let refuse = |problem: String| Err(Error::config(field, format!("{shown:?}"), problem));
    if name.trim().is_empty() {
        return refuse("it must not be empty".into());
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
mod tests {
    use super::*;

    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let mut config = Config::new("set".into());
        change(&mut config);
        config.validate(&["p"]).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_valid() {
        Config::new("set".into()).validate(&["a", "b"]).unwrap();
        assert_eq!(Config::new("set".into()).pool_size(3), 6);
    }

    #[test]
    fn a_retry_keeps_what_is_set() {
        let (first_delay, longest_delay) = (Duration::from_secs(1), Duration::from_secs(2));
        let retry = Retry::default().attempts(3).first_delay(first_delay).longest_delay(longest_delay);
        assert_eq!(retry, Retry { attempts: 3, first_delay, longest_delay });
    }

    #[test]
    fn a_bound_itself_is_allowed() {
        let (millis, day) = (Duration::from_millis, Duration::from_secs(24 * 60 * 60));
        let least = Config {
            heartbeat_interval: millis(10),
            stale_worker_timeout: millis(30),
            session_loss_grace: Some(millis(10)),
            coordination_timeout: millis(100),
            poll_interval: millis(10),
            registration_wait: Duration::ZERO,
            event_poll: (millis(1), millis(1)),
            batch_size: 1,
            batch_bytes: 1,
            max_event_bytes: 1,
            pool_size: Some(2),
            retry: Retry::default().attempts(1).first_delay(millis(1)).longest_delay(millis(1)),
            ..Config::new("s".into())
        };
        least.validate(&["p"]).unwrap();
        let most = Config {
            heartbeat_interval: day / 3,
            stale_worker_timeout: day,
            session_loss_grace: Some(day),
            coordination_timeout: day,
            poll_interval: day,
            registration_wait: day,
            event_poll: (day, day),
            batch_size: 1_000_000,
            ..Config::new("s".repeat(255))
        };
        most.validate(&["p"]).unwrap();
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value_and_bound() {
        let seconds = Duration::from_secs;
        for (message, parts) in [
            (refused(|c| c.replica_set = " ".into()), ["replica_set", "empty"]),
            (refused(|c| c.replica_set = "é".repeat(128)), ["replica_set", "256 bytes, 255 are allowed"]),
            (refused(|c| c.replica_set = "a\nb".into()), ["replica_set", "control characters"]),
            (
                refused(|c| c.stale_worker_timeout = seconds(14)),
                ["stale_worker_timeout is 14s", "3 × heartbeat_interval (5s)"],
            ),
            (refused(|c| c.heartbeat_interval = Duration::ZERO), ["heartbeat_interval is 0ns", "at least 10 ms"]),
            (
                refused(|c| c.session_loss_grace = Some(seconds(31))),
                ["session_loss_grace is 31s", "stale_worker_timeout (30s)"],
            ),
            (
                refused(|c| c.registration_wait = seconds(61)),
                ["registration_wait is 61s", "coordination_timeout (60s)"],
            ),
            (refused(|c| c.poll_interval = seconds(61)), ["poll_interval is 61s", "coordination_timeout (60s)"]),
            (
                refused(|c| c.event_poll = (seconds(1), Duration::from_millis(5))),
                ["event_poll is 1s to 5ms", "minimum"],
            ),
            (refused(|c| c.coordination_timeout = seconds(24 * 60 * 60 + 1)), ["coordination_timeout", "at most 24 h"]),
            (refused(|c| c.batch_size = 0), ["batch_size is 0", "at least 1"]),
            (refused(|c| c.batch_size = 1_000_001), ["batch_size is 1000001", "at most 1000000"]),
            (refused(|c| c.batch_bytes = 0), ["batch_bytes is 0", "at least 1"]),
            (refused(|c| c.max_event_bytes = 0), ["max_event_bytes is 0", "at least 1"]),
            (
                refused(|c| c.pool_size = Some(1)),
                ["pool_size is 1", "1 projections × 1 lanes × (1 connection to write + 1 to read ahead) = 2"],
            ),
            (refused(|c| c.lanes = 0), ["lanes is 0", "1 to 64"]),
            (refused(|c| c.lanes = 65), ["lanes is 65", "1 to 64"]),
            (refused(|c| c.retry.attempts = 0), ["retry.attempts is 0", "at least once"]),
            (
                refused(|c| c.retry.longest_delay = Duration::from_millis(1)),
                ["retry.longest_delay is 1ms", "first_delay (100ms)"],
            ),
            (refused(|c| c.names = Names::default().schema("a;b")), ["schema is \"a;b\"", "';' is not allowed"]),
        ] {
            for part in parts {
                assert!(message.contains(part), "{message:?} should contain {part:?}");
            }
        }
    }

    #[test]
    fn projections_are_there_named_and_distinct() {
        let config = Config::new("set".into());
        for (projections, part) in
            [(&[][..], "at least one"), (&["a", ""], "empty"), (&["a", "b", "a"], "two projections bear it")]
        {
            let message = config.validate(projections).unwrap_err().to_string();
            assert!(message.contains(part), "{message:?} should contain {part:?}");
        }
    }
}
