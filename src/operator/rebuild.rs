//! How a read model is rebuilt, as a value.

use serde_json::{Value, json};

/// How a read model is rebuilt. By default, at a rate beside which live work goes on, and without
/// keeping the former tables.
///
/// ```
/// use pupsourcing_orchestrator::operator::{Command, Rebuild};
///
/// let rebuild = Rebuild::default().rate(20_000).keep_old();
/// let command = Command::rebuild("orders", rebuild).reason("wrong totals");
/// assert_eq!(command.name(), "rebuild");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[must_use = "a command takes it"]
pub struct Rebuild {
    rate: Rate,
    keep_old: bool,
    copy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Rate {
    /// What the library chooses.
    #[default]
    Usual,
    AtMost(u32),
    Unlimited,
}

impl Rebuild {
    /// Limits how many events per second are handled, by all workers together, which must not be
    /// 0. Defaults to 5,000.
    pub fn rate(self, events_per_second: u32) -> Self {
        Self { rate: Rate::AtMost(events_per_second), ..self }
    }

    /// Handles events as fast as possible, in place of a [rate](Self::rate). Live work becomes
    /// slower meanwhile.
    pub fn unlimited(self) -> Self {
        Self { rate: Rate::Unlimited, ..self }
    }

    /// Keeps the former tables after the switch, so that
    /// [`Command::revert_rebuild`](super::Command::revert_rebuild) can bring them back, until
    /// [`Command::drop_old`](super::Command::drop_old). Defaults to dropping them.
    pub fn keep_old(self) -> Self {
        Self { keep_old: true, ..self }
    }

    /// Replaces the content of the live tables, instead of the tables. So it does not matter what
    /// depends on them, but writers of the tables wait while the content is replaced. Defaults to
    /// replacing the tables.
    pub fn copy(self) -> Self {
        Self { copy: true, ..self }
    }

    /// The arguments, as the SQL function takes them.
    pub(super) fn arguments(self) -> Value {
        let mut arguments = serde_json::Map::new();
        match self.rate {
            Rate::Usual => {}
            Rate::AtMost(rate) => _ = arguments.insert("rate".to_owned(), json!(rate)),
            Rate::Unlimited => _ = arguments.insert("rate".to_owned(), Value::Null),
        }
        for (name, is_wanted) in [("keep_old", self.keep_old), ("copy", self.copy)] {
            if is_wanted {
                arguments.insert(name.to_owned(), json!(true));
            }
        }
        Value::Object(arguments)
    }

    /// Whether the former tables are kept.
    #[cfg(feature = "cli")]
    pub(crate) fn keeps_old(self) -> bool {
        self.keep_old
    }

    /// Whether the content of the live tables is replaced.
    #[cfg(feature = "cli")]
    pub(crate) fn copies(self) -> bool {
        self.copy
    }
}
