//! Formats figures with readable units.

use std::time::Duration;

/// The unit of a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    Seconds,
    EventsPerSecond,
    PerSecond,
    Bytes,
    Percent,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        format!("{}{}", self.number(value), self.name())
    }

    /// Returns the value without its unit, for several values that share one unit.
    pub(crate) fn number(self, value: f64) -> String {
        match self {
            Self::Seconds => seconds(value),
            Self::EventsPerSecond => thousands(value),
            Self::Bytes => format!("{:.1}", value / f64::from(1 << 20)),
            Self::PerSecond | Self::Percent => format!("{value:.2}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            // It depends on the value.
            Self::Seconds => "",
            Self::EventsPerSecond => " events/s",
            Self::Bytes => " MiB",
            Self::PerSecond => " /s",
            Self::Percent => " %",
        }
    }
}

/// `853 k`, `1.02 M`.
fn thousands(value: f64) -> String {
    match value {
        1e6.. => format!("{:.2} M", value / 1e6),
        1e5.. => format!("{:.0} k", value / 1e3),
        1e3.. => format!("{:.1} k", value / 1e3),
        _ => format!("{value:.0}"),
    }
}

fn seconds(value: f64) -> String {
    match value {
        1.0.. => format!("{value:.2} s"),
        1e-3.. => format!("{:.1} ms", value * 1e3),
        _ => format!("{:.2} µs", value * 1e6),
    }
}

pub(crate) fn duration(value: Duration) -> String {
    seconds(value.as_secs_f64())
}
