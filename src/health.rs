//! Decides whether a worker is ready. Pure.
//!
//! A ready worker can process events, or only waits for its generation to become active. A worker
//! that is not ready has one reason, which `/readyz` and the log show.

use std::fmt;
use std::time::Duration;

use crate::plan::WorkerState;

/// The facts that decide readiness, as of one moment. Durations are ages.
#[derive(Debug, Clone)]
pub(crate) struct Vitals<'a> {
    pub(crate) is_asked_to_stop: bool,
    pub(crate) state: WorkerState,
    /// The time since the last answered heartbeat was sent; `None` before the worker has
    /// registered.
    pub(crate) heartbeat: Option<Duration>,
    /// The error, if coordination has failed since then.
    pub(crate) coordination_error: Option<&'a str>,
    /// The time since the worker last coordinated successfully, or registered.
    pub(crate) coordinated: Option<Duration>,
    /// The time since the tailer's last completed look began; before the first, since the
    /// registration.
    pub(crate) look: Option<Duration>,
    /// The error, if the tailer has failed to look since then.
    pub(crate) look_error: Option<&'a str>,
    /// For how long a thread has had no connection, and why.
    pub(crate) shortage: Option<(Duration, String)>,
    /// The projections that are halted on this worker.
    pub(crate) halted: Vec<&'a str>,
}

/// The limits within which a worker is ready.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    heartbeat: Duration,
    coordination: Duration,
    look: Duration,
    ready_while_halted: bool,
}

/// Why a worker is not ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotReady {
    /// It is asked to stop, or has stopped.
    Stopping,
    NotRegistered,
    NoHeartbeat {
        silent: Duration,
        error: Option<String>,
    },
    CannotCoordinate {
        idle: Duration,
        error: Option<String>,
    },
    Evicted,
    LacksConnections {
        lacking: Duration,
        error: String,
    },
    CannotRead {
        blind: Duration,
        error: Option<String>,
    },
    Halted {
        projections: String,
    },
}

impl Limits {
    /// `longest_poll` is how long the tailer may wait between two looks.
    pub(crate) fn new(
        stale_worker_timeout: Duration,
        heartbeat_interval: Duration,
        longest_poll: Duration,
        ready_while_halted: bool,
    ) -> Self {
        // The worker becomes unready before its peers consider it dead.
        let heartbeat = stale_worker_timeout / 2;
        Self {
            heartbeat,
            // The coordinator works at least once in each heartbeat interval. If the server dies
            // between a heartbeat and the work that follows it, the heartbeat is the more recent of
            // the two. Without this time, the worker would say that only coordination fails.
            coordination: heartbeat.saturating_add(heartbeat_interval),
            look: heartbeat.saturating_add(longest_poll),
            ready_while_halted,
        }
    }

    /// Whether a heartbeat of this age shows that the database can be reached.
    pub(crate) fn is_recent(&self, heartbeat: Option<Duration>) -> bool {
        heartbeat.is_some_and(|age| age <= self.heartbeat)
    }

    /// Returns why the worker is not ready. If there are several reasons, it is the one that
    /// explains the others.
    pub(crate) fn judge(&self, vitals: &Vitals<'_>) -> Result<(), NotReady> {
        let owned = |error: Option<&str>| error.map(str::to_owned);
        if vitals.is_asked_to_stop || vitals.state == WorkerState::Stopping {
            return Err(NotReady::Stopping);
        }
        let Some(silent) = vitals.heartbeat else { return Err(NotReady::NotRegistered) };
        if silent > self.heartbeat {
            return Err(NotReady::NoHeartbeat { silent, error: owned(vitals.coordination_error) });
        }
        if let Some(idle) = vitals.coordinated.filter(|age| *age > self.coordination) {
            return Err(NotReady::CannotCoordinate { idle, error: owned(vitals.coordination_error) });
        }
        // A worker that is not a member may have given its partition back for this reason.
        let is_member = vitals.state != WorkerState::Stopped;
        if let Some((lacking, error)) = vitals.shortage.clone().filter(|(time, _)| *time > self.heartbeat || !is_member)
        {
            return Err(NotReady::LacksConnections { lacking, error });
        }
        if !is_member {
            return Err(NotReady::Evicted);
        }
        if let Some(blind) = vitals.look.filter(|age| *age > self.look) {
            return Err(NotReady::CannotRead { blind, error: owned(vitals.look_error) });
        }
        if !vitals.halted.is_empty() && !self.ready_while_halted {
            return Err(NotReady::Halted { projections: vitals.halted.join(", ") });
        }
        Ok(())
    }
}

impl NotReady {
    /// The reason as the metric `not_ready` names it.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Stopping => "stopping",
            Self::NotRegistered => "not_registered",
            Self::NoHeartbeat { .. } => "no_heartbeat",
            Self::CannotCoordinate { .. } => "cannot_coordinate",
            Self::Evicted => "evicted",
            Self::LacksConnections { .. } => "lacks_connections",
            Self::CannotRead { .. } => "cannot_read",
            Self::Halted { .. } => "halted",
        }
    }

    /// Whether this occurs in every start or stop, so that it needs no attention.
    pub(crate) fn is_in_order(&self) -> bool {
        matches!(self, Self::Stopping | Self::NotRegistered)
    }
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopping => f.write_str("the worker is stopping"),
            Self::NotRegistered => f.write_str("the worker has not registered yet: it waits for the database"),
            Self::NoHeartbeat { silent, error } => {
                write!(f, "no heartbeat was answered for {}", lasting(*silent, error.as_deref()))
            }
            Self::CannotCoordinate { idle, error } => {
                write!(f, "the replica set could not be coordinated for {}", lasting(*idle, error.as_deref()))
            }
            Self::Evicted => {
                f.write_str("the other workers have evicted this one, and it has not registered again yet")
            }
            Self::LacksConnections { lacking, error } => {
                write!(f, "it could not get its connections for {}", lasting(*lacking, Some(error)))
            }
            Self::CannotRead { blind, error } => {
                write!(f, "the events could not be read for {}", lasting(*blind, error.as_deref()))
            }
            Self::Halted { projections } => write!(f, "halted on this worker: {projections}"),
        }
    }
}

/// Formats a time in seconds, and the error. Without an error, the server has given no answer at
/// all.
fn lasting(time: Duration, error: Option<&str>) -> String {
    format!("{} s: {}", time.as_secs(), error.unwrap_or("the server does not answer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        heartbeat: Duration::from_secs(15),
        coordination: Duration::from_secs(20),
        look: Duration::from_secs(16),
        ready_while_halted: false,
    };

    fn sound() -> Vitals<'static> {
        Vitals {
            is_asked_to_stop: false,
            state: WorkerState::Running,
            heartbeat: Some(Duration::from_secs(5)),
            coordination_error: None,
            coordinated: Some(Duration::from_secs(1)),
            look: Some(Duration::from_secs(1)),
            look_error: None,
            shortage: None,
            halted: Vec::new(),
        }
    }

    fn reason(change: impl FnOnce(&mut Vitals<'static>)) -> Option<String> {
        let mut vitals = sound();
        change(&mut vitals);
        LIMITS.judge(&vitals).err().map(|reason| reason.to_string())
    }

    #[test]
    fn worker_is_ready_unless_there_is_a_reason() {
        let after = |seconds| Some(Duration::from_secs(seconds));
        let no_heartbeat = "no heartbeat was answered for 16 s: ";
        let blind = "the events could not be read for 17 s: ";
        let silence = "the server does not answer";
        for (found, expected) in [
            (reason(|_| ()), None),
            (reason(|v| v.state = WorkerState::Pending), None),
            (reason(|v| v.state = WorkerState::Ready), None),
            (reason(|v| v.coordination_error = Some("a moment ago")), None),
            (reason(|v| v.heartbeat = after(15)), None),
            (reason(|v| v.look = after(16)), None),
            (reason(|v| v.is_asked_to_stop = true), Some("the worker is stopping".to_owned())),
            (reason(|v| v.state = WorkerState::Stopping), Some("the worker is stopping".to_owned())),
            (
                reason(|v| v.heartbeat = None),
                Some("the worker has not registered yet: it waits for the database".into()),
            ),
            (reason(|v| v.heartbeat = after(16)), Some(format!("{no_heartbeat}{silence}"))),
            (
                reason(|v| (v.heartbeat, v.coordination_error) = (after(16), Some("no database \"shop\""))),
                Some(format!("{no_heartbeat}no database \"shop\"")),
            ),
            (
                reason(|v| v.state = WorkerState::Stopped),
                Some("the other workers have evicted this one, and it has not registered again yet".into()),
            ),
            (reason(|v| v.coordinated = after(20)), None),
            (
                reason(|v| (v.coordinated, v.coordination_error) = (after(21), Some("permission denied"))),
                Some("the replica set could not be coordinated for 21 s: permission denied".into()),
            ),
            // The server died after it had answered a heartbeat, and before the next statement.
            (reason(|v| (v.heartbeat, v.coordinated) = (after(15), after(20))), None),
            (
                reason(|v| (v.heartbeat, v.coordinated) = (after(16), after(21))),
                Some(format!("{no_heartbeat}{silence}")),
            ),
            (reason(|v| v.shortage = Some((Duration::from_secs(15), "full".into()))), None),
            (
                reason(|v| v.shortage = Some((Duration::from_secs(16), "full".into()))),
                Some("it could not get its connections for 16 s: full".into()),
            ),
            (
                reason(|v| (v.state, v.shortage) = (WorkerState::Stopped, Some((Duration::ZERO, "full".into())))),
                Some("it could not get its connections for 0 s: full".into()),
            ),
            (reason(|v| v.look = after(17)), Some(format!("{blind}{silence}"))),
            (reason(|v| (v.look, v.look_error) = (after(17), Some("locked"))), Some(format!("{blind}locked"))),
            (reason(|v| v.halted = vec!["orders", "users"]), Some("halted on this worker: orders, users".into())),
            // A frozen server explains that no event can be read.
            (reason(|v| (v.heartbeat, v.look) = (after(16), after(17))), Some(format!("{no_heartbeat}{silence}"))),
            (reason(|v| (v.is_asked_to_stop, v.heartbeat) = (true, after(16))), Some("the worker is stopping".into())),
        ] {
            assert_eq!(found, expected);
        }
        let halted = Vitals { halted: vec!["orders"], ..sound() };
        assert_eq!(Limits { ready_while_halted: true, ..LIMITS }.judge(&halted), Ok(()));
    }

    #[test]
    fn every_reason_has_a_row_with_its_words_and_its_label() {
        let error = || Some("why".to_owned());
        let second = Duration::from_secs(1);
        let reasons = [
            NotReady::Stopping,
            NotReady::NotRegistered,
            NotReady::NoHeartbeat { silent: second, error: error() },
            NotReady::CannotCoordinate { idle: second, error: error() },
            NotReady::LacksConnections { lacking: second, error: "why".into() },
            NotReady::Evicted,
            NotReady::CannotRead { blind: second, error: error() },
            NotReady::Halted { projections: "orders".into() },
        ];
        let rows = include_str!("http/probes.md").lines().filter(|line| line.starts_with("| `")).map(|line| {
            let cells: Vec<&str> = line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            (cells[1].replace(" N s", " 1 s"), cells[2].to_owned())
        });
        let rows: Vec<(String, String)> = rows.collect();
        for reason in reasons {
            let shown = reason.to_string();
            let has_row = |(words, label): &(String, String)| shown.starts_with(words) && label == reason.label();
            assert!(rows.iter().any(has_row), "{shown:?} ({}) in {rows:#?}", reason.label());
        }
    }

    #[test]
    fn limits_follow_from_the_options() {
        let limits = Limits::new(Duration::from_secs(30), Duration::from_secs(5), Duration::from_millis(250), false);
        assert_eq!(limits.heartbeat, Duration::from_secs(15));
        assert_eq!(limits.coordination, Duration::from_secs(20));
        assert_eq!(limits.look, Duration::from_millis(15_250));
        assert!(limits.is_recent(Some(limits.heartbeat)) && !limits.is_recent(Some(limits.look)));
        assert!(!limits.is_recent(None));
    }
}
