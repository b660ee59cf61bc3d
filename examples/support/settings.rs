//! Settings from the environment: each error names the variable, its value and what would be accepted.
#![allow(dead_code, reason = "several programs compile this file, and not each of them reads every kind of setting")]

use std::time::Duration;

use crate::app::{Wrong, setting};

/// A whole number.
pub(crate) fn number<N: std::str::FromStr>(name: &str) -> Result<Option<N>, Wrong> {
    parsed(name, "a whole number is needed, such as 1000", |text| text.parse().ok())
}

/// A size: a whole number of bytes, or with a unit: `64KiB`, `8MiB`, `1GiB`.
pub(crate) fn bytes(name: &str) -> Result<Option<usize>, Wrong> {
    parsed(name, "a number of bytes is needed, such as 8388608, 64KiB or 8MiB", |text| {
        let (number, unit) = split(text);
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(factor)
    })
}

/// `on` or `off`.
pub(crate) fn switch(name: &str) -> Result<Option<bool>, Wrong> {
    parsed(name, "on or off is needed", |text| match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    })
}

/// A duration such as `500ms`, `10s` or `2m`.
pub(crate) fn duration(name: &str) -> Result<Option<Duration>, Wrong> {
    parsed(name, "a duration is needed, such as 500ms, 10s or 2m", parse_duration)
}

/// Two durations such as `5ms..250ms`.
pub(crate) fn duration_range(name: &str) -> Result<Option<(Duration, Duration)>, Wrong> {
    parsed(name, "two durations are needed, such as 5ms..250ms", |text| {
        let (low, high) = text.split_once("..")?;
        parse_duration(low.trim()).zip(parse_duration(high.trim()))
    })
}

fn parsed<T>(name: &str, needed: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Wrong> {
    setting(name)?.map(|text| parse(&text).ok_or_else(|| Wrong(format!("{name} is {text:?}: {needed}")))).transpose()
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text);
    let seconds_per_unit = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * seconds_per_unit).ok()
}

/// A number and its unit.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()))
}
