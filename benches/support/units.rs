//! Figures as people read them.

use std::time::Duration;

/// What a value counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    Seconds,
    EventsPerSecond,
    PerSecond,
    Bytes,
    /// Of one processor.
    Percent,
    Factor,
}

impl Unit {
    pub(crate) fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => seconds(value),
            Self::EventsPerSecond => format!("{} events/s", thousands(value)),
            Self::PerSecond => format!("{value:.2} /s"),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::Percent => format!("{value:.2} %"),
            Self::Factor => format!("{value:.2}"),
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
        _ => format!("{:.1} µs", value * 1e6),
    }
}

pub(crate) fn duration(value: Duration) -> String {
    seconds(value.as_secs_f64())
}
