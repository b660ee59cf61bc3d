//! What happens to an event whose attempts are used up.

use super::value::{Form, Value};

/// The text between a policy and what belongs to it.
const REPLAY_AT_START: &str = "replay-at-start";

/// What happens when the attempts at an event are used up ([`Retry`](crate::Retry)).
///
/// ```
/// use pupsourcing_orchestrator::OnFailure;
///
/// let policy = OnFailure::park(100).replay_at_start();
/// assert_eq!(policy, OnFailure::Park { at_most: 100, replay_at_start: true });
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnFailure {
    /// The projection halts at the event, on the worker that owns its key.
    #[default]
    Halt,
    /// The aggregate of the event is parked: its events are not handled from this one on, and all
    /// other aggregates are. An operator replays them.
    Park {
        /// How many aggregates of the projection may be parked at the same time, at least 1. At the
        /// next one the projection halts, because more than a few events are wrong.
        at_most: u32,
        /// Whether each worker, when it starts, replays everything that is parked. A worker that
        /// was evicted and registers again does not.
        replay_at_start: bool,
    },
}

impl OnFailure {
    /// Parks the aggregates of failing events, at most this many at the same time.
    pub fn park(at_most: u32) -> Self {
        Self::Park { at_most, replay_at_start: false }
    }

    /// Replays what is parked when a worker starts. It changes nothing if nothing is parked.
    #[must_use = "the method returns the changed policy"]
    pub fn replay_at_start(self) -> Self {
        match self {
            Self::Halt => Self::Halt,
            Self::Park { at_most, .. } => Self::Park { at_most, replay_at_start: true },
        }
    }

    /// How many aggregates may be parked; `None` if none is.
    pub(crate) fn at_most(self) -> Option<u32> {
        match self {
            Self::Halt => None,
            Self::Park { at_most, .. } => Some(at_most),
        }
    }

    pub(crate) fn replays_at_start(self) -> bool {
        matches!(self, Self::Park { replay_at_start: true, .. })
    }
}

impl Value for OnFailure {
    type Given = Option<()>;
    type Bound = u32;

    const FORM: Form = "halt, park:100 or park:100:replay-at-start";

    fn given(_: Option<()>) -> Self {
        Self::Halt
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("halt"), None, ..) => Some(Self::Halt),
            (Some("park"), Some(number), None, _) => number.parse().ok().map(Self::park),
            (Some("park"), Some(number), Some(REPLAY_AT_START), None) => {
                number.parse().ok().map(|number| Self::park(number).replay_at_start())
            }
            _ => None,
        }
    }

    fn bounded(&self) -> Vec<(&'static str, u32)> {
        self.at_most().map(|at_most| (" at_most", at_most)).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_from_text() {
        for (text, policy) in [
            ("halt", Some(OnFailure::Halt)),
            ("park:100", Some(OnFailure::park(100))),
            ("park:1:replay-at-start", Some(OnFailure::park(1).replay_at_start())),
            ("park", None),
            ("park:", None),
            ("park:-1", None),
            ("park:1:", None),
            ("park:1:replay-at-start:", None),
            ("halt:1", None),
        ] {
            assert_eq!(OnFailure::parse(text), policy, "{text}");
        }
    }
}
