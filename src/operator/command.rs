//! A command, as a value.

use std::time::SystemTime;

use serde_json::{Value, json};
use uuid::Uuid;

use super::error::OperatorError;
use super::rebuild::Rebuild;
use crate::event::StreamId;
use crate::moment::{parse_rfc3339, rfc3339};

/// A command for one projection.
///
/// ```
/// use pupsourcing_orchestrator::operator::Command;
///
/// let command = Command::pause("orders").reason("the disk is full").by("kim");
/// assert_eq!((command.name(), command.projection()), ("pause", "orders"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "an Operator executes it"]
pub struct Command {
    projection: String,
    action: Action,
    reason: Option<String>,
    by: Option<String>,
    /// Whether a rebuild is waited for until it is done, and not until it has begun.
    is_until_done: bool,
    /// Whether a reaction may be rewound.
    repeats_effects: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Action {
    Pause,
    Resume,
    Rewind(RewindTo),
    Remove,
    Replay(Replay),
    Discard(Uuid),
    Rebuild(Rebuild),
    RebuildAggregate(StreamId),
    CancelRebuild,
    RevertRebuild,
    DropOld,
}

/// Where a rewound projection begins again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RewindTo {
    /// At the first event.
    Beginning,
    /// At the first event above this global position, which must not be negative.
    Position(i64),
    /// At the first event that was appended at this time or later, by the time in the event.
    Time(SystemTime),
}

/// Which parked aggregates are replayed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Replay {
    /// All of the projection.
    All,
    /// One.
    Aggregate(StreamId),
    /// Those whose last error matches this pattern of SQL's `LIKE`, such as `%no such customer%`.
    ErrorLike(String),
}

impl RewindTo {
    /// Reads a time such as `2026-01-31T12:00:00Z` or `2026-01-31T13:00:00+01:00` (RFC 3339). The
    /// offset from UTC is required.
    ///
    /// ```
    /// use pupsourcing_orchestrator::operator::RewindTo;
    ///
    /// let noon = RewindTo::time("2026-01-31T12:00:00Z")?;
    /// assert_eq!(RewindTo::time("2026-01-31T13:00:00+01:00")?, noon);
    /// assert!(RewindTo::time("2026-01-31 12:00").is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`OperatorError::Invalid`] if the text is no such time.
    pub fn time(text: &str) -> Result<Self, OperatorError> {
        parse_rfc3339(text).map(Self::Time).ok_or_else(|| OperatorError::Invalid {
            problem: format!("{text:?} is no time with its offset from UTC, such as 2026-01-31T12:00:00Z"),
        })
    }
}

impl RewindTo {
    fn arguments(self) -> Value {
        match self {
            Self::Beginning => json!({ "to_beginning": true }),
            Self::Position(position) => json!({ "to_position": position }),
            Self::Time(time) => json!({ "to_time": rfc3339(time) }),
        }
    }
}

impl Command {
    fn new(projection: impl Into<String>, action: Action) -> Self {
        Self {
            projection: projection.into(),
            action,
            reason: None,
            by: None,
            is_until_done: false,
            repeats_effects: false,
        }
    }

    /// No event of the projection is processed any more, on no worker, until it is resumed. It
    /// lasts across restarts and deployments.
    pub fn pause(projection: impl Into<String>) -> Self {
        Self::new(projection, Action::Pause)
    }

    /// A paused projection is processed again.
    pub fn resume(projection: impl Into<String>) -> Self {
        Self::new(projection, Action::Resume)
    }

    /// The projection clears its read model with its own code, and handles the events from an
    /// earlier position on once more.
    pub fn rewind(projection: impl Into<String>, to: RewindTo) -> Self {
        Self::new(projection, Action::Rewind(to))
    }

    /// The library forgets the projection. It is refused while a living worker knows the
    /// projection. The read model stays.
    pub fn remove(projection: impl Into<String>) -> Self {
        Self::new(projection, Action::Remove)
    }

    /// Parked aggregates are handled from the event that failed on.
    pub fn replay(projection: impl Into<String>, which: Replay) -> Self {
        Self::new(projection, Action::Replay(which))
    }

    /// An event that was not handled is never handled: the one at which an aggregate is parked,
    /// whose later events are then replayed, or the one before which the projection has halted. It
    /// needs a [reason](Self::reason).
    pub fn discard(projection: impl Into<String>, event: Uuid) -> Self {
        Self::new(projection, Action::Discard(event))
    }

    /// The read model is built anew in copies of the projection's tables, while readers use the
    /// live ones. Then the copies take their place, in one transaction.
    ///
    /// That may take hours. [`Operator::execute`](super::Operator::execute) waits until the rebuild
    /// has begun, or [until it is done](Self::until_done).
    pub fn rebuild(projection: impl Into<String>, rebuild: Rebuild) -> Self {
        Self::new(projection, Action::Rebuild(rebuild))
    }

    /// The projection deletes the rows of one aggregate, and handles its events once more.
    pub fn rebuild_aggregate(projection: impl Into<String>, aggregate: StreamId) -> Self {
        Self::new(projection, Action::RebuildAggregate(aggregate))
    }

    /// A rebuild in progress ends without a switch, and its copies are dropped. The live read model
    /// stays as it is.
    pub fn cancel_rebuild(projection: impl Into<String>) -> Self {
        Self::new(projection, Action::CancelRebuild)
    }

    /// The former tables that a rebuild has [kept](Rebuild::keep_old) are the live ones again, with
    /// their checkpoints. The projection then handles the newer events.
    pub fn revert_rebuild(projection: impl Into<String>) -> Self {
        Self::new(projection, Action::RevertRebuild)
    }

    /// The former tables that a rebuild has [kept](Rebuild::keep_old) are dropped.
    pub fn drop_old(projection: impl Into<String>) -> Self {
        Self::new(projection, Action::DropOld)
    }

    /// Lets [`Operator::execute`](super::Operator::execute) wait until a rebuild is done, and not
    /// only until it has begun. It changes nothing for other commands.
    pub fn until_done(mut self) -> Self {
        self.is_until_done = true;
        self
    }

    /// Lets a [reaction](crate::Reaction) be rewound: it reacts to the events again, with
    /// [`Call::is_replay`](crate::Call::is_replay). Without this, rewinding a reaction is refused. It
    /// changes nothing for other projections and commands.
    pub fn repeat_effects(mut self) -> Self {
        self.repeats_effects = true;
        self
    }

    /// Records why the command is given.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Records who gives the command. Defaults to the database user.
    pub fn by(mut self, who: impl Into<String>) -> Self {
        self.by = Some(who.into());
        self
    }

    /// The command's name: `pause`, for example.
    pub fn name(&self) -> &'static str {
        match self.action {
            Action::Pause => "pause",
            Action::Resume => "resume",
            Action::Rewind(_) => "rewind",
            Action::Remove => "remove",
            Action::Replay(_) => "replay",
            Action::Discard(_) => "discard",
            Action::Rebuild(_) => "rebuild",
            Action::RebuildAggregate(_) => "rebuild_aggregate",
            Action::CancelRebuild => "cancel",
            Action::RevertRebuild => "revert",
            Action::DropOld => "drop_old",
        }
    }

    /// The projection that it is for.
    pub fn projection(&self) -> &str {
        &self.projection
    }

    pub(super) fn given_by(&self) -> Option<&str> {
        self.by.as_deref()
    }

    pub(super) fn given_reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Whether it has begun, and is not to be waited for any longer, in this step.
    pub(super) fn is_begun(&self, step: Option<&str>) -> bool {
        let is_rebuild = matches!(self.action, Action::Rebuild(_));
        is_rebuild && !self.is_until_done && matches!(step, Some("loading" | "finishing"))
    }

    /// How it rebuilds, if it does.
    #[cfg(feature = "cli")]
    pub(crate) fn rebuilds(&self) -> Option<Rebuild> {
        match self.action {
            Action::Rebuild(rebuild) => Some(rebuild),
            _ => None,
        }
    }

    /// The arguments, as the SQL function takes them.
    pub(super) fn arguments(&self) -> Value {
        match &self.action {
            Action::Pause
            | Action::Resume
            | Action::Remove
            | Action::CancelRebuild
            | Action::RevertRebuild
            | Action::DropOld => json!({}),
            Action::Rebuild(rebuild) => rebuild.arguments(),
            Action::Rewind(to) => {
                let mut arguments = to.arguments();
                if self.repeats_effects {
                    arguments["repeat_effects"] = json!(true);
                }
                arguments
            }
            Action::Replay(Replay::All) => json!({ "all": true }),
            Action::Replay(Replay::Aggregate(aggregate)) | Action::RebuildAggregate(aggregate) => {
                let StreamId { bounded_context, aggregate_type, aggregate_id } = aggregate;
                json!({ "aggregate": [bounded_context, aggregate_type, aggregate_id] })
            }
            Action::Replay(Replay::ErrorLike(pattern)) => json!({ "error_like": pattern }),
            Action::Discard(event) => json!({ "event": event.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_those_of_the_sql_function() {
        let aggregate = || StreamId::new("shop", "Order", "a/b");
        let usual = Rebuild::default();
        for (command, arguments) in [
            (Command::pause("p"), r"{}"),
            (Command::rewind("p", RewindTo::Beginning), r#"{"to_beginning":true}"#),
            (Command::rewind("p", RewindTo::Position(7)), r#"{"to_position":7}"#),
            (
                Command::rewind("p", RewindTo::Position(7)).repeat_effects(),
                r#"{"repeat_effects":true,"to_position":7}"#,
            ),
            (Command::rewind("p", RewindTo::Time(SystemTime::UNIX_EPOCH)), r#"{"to_time":"1970-01-01T00:00:00Z"}"#),
            (Command::replay("p", Replay::All), r#"{"all":true}"#),
            (Command::replay("p", Replay::Aggregate(aggregate())), r#"{"aggregate":["shop","Order","a/b"]}"#),
            (Command::replay("p", Replay::ErrorLike("%no%".into())), r#"{"error_like":"%no%"}"#),
            (Command::rebuild("p", usual), "{}"),
            (Command::rebuild("p", usual.unlimited().copy()), r#"{"copy":true,"rate":null}"#),
            (Command::rebuild("p", usual.rate(7).keep_old()), r#"{"keep_old":true,"rate":7}"#),
            (Command::rebuild_aggregate("p", aggregate()), r#"{"aggregate":["shop","Order","a/b"]}"#),
            (Command::cancel_rebuild("p"), "{}"),
            (Command::discard("p", Uuid::nil()), r#"{"event":"00000000-0000-0000-0000-000000000000"}"#),
        ] {
            assert_eq!(command.arguments().to_string(), arguments, "{command:?}");
        }
    }
}
