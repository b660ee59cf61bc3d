//! What is read of a rebuild.

use serde::Deserialize;

/// What one statement reads of a rebuild.
#[expect(clippy::struct_excessive_bools, reason = "they are columns of the statement")]
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Reading {
    /// The number of the command that has begun it.
    pub(crate) command_id: i64,
    pub(crate) state: String,
    /// The version and the build of the code that may handle its events.
    pub(crate) version: i32,
    pub(crate) build_id: Option<String>,
    /// How many events per second it may handle; `None` is without a limit.
    pub(crate) rate_limit: Option<i32>,
    pub(crate) keep_old: bool,
    pub(crate) copy: bool,
    /// The size of the live tables when it began.
    pub(crate) bytes: i64,
    /// How long ago it began, by the server's clock.
    pub(crate) age_seconds: f64,
    /// The position at which it began.
    pub(crate) from: i64,
    /// The newest visible position.
    pub(crate) newest: i64,
    /// How many keys each of its checkpoints has, and its position.
    pub(crate) parts: Vec<(i64, i64)>,
    /// How many events it has handled.
    pub(crate) events: i64,
    /// How many running workers may handle its events.
    pub(crate) workers: i64,
    pub(crate) parked: i64,
    /// Whether it has parked what the live projection has handled.
    pub(crate) is_parked_only: bool,
    /// What was found wrong with its checkpoints.
    pub(crate) fault: Option<String>,
    pub(crate) is_paused: bool,
    pub(crate) is_live_paused: bool,
    /// Whether a command clears the live read model.
    pub(crate) is_live_rewinding: bool,
    pub(crate) is_halted: bool,
    /// The last error of a checkpoint that does not proceed, and its event.
    pub(crate) error: Option<String>,
    pub(crate) failing_event: Option<String>,
    /// Why the switch was put off.
    pub(crate) blocked: Option<String>,
}

impl Reading {
    /// The position of its keys on average. It does not change when the checkpoints are cut for
    /// other workers.
    pub(super) fn mean_position(&self) -> f64 {
        let keys: i64 = self.parts.iter().map(|(keys, _)| keys).sum();
        let weighted = self.parts.iter().map(|(keys, position)| float(*keys) * float(*position)).sum::<f64>();
        if keys == 0 { float(self.from) } else { weighted / float(keys) }
    }

    pub(super) fn lowest_position(&self) -> Option<i64> {
        self.parts.iter().map(|(_, position)| *position).min()
    }
}

#[expect(clippy::cast_precision_loss, reason = "a position is shown as a part of another one")]
pub(super) fn float(number: i64) -> f64 {
    number as f64
}
