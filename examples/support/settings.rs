//! Settings from the environment: each error names the variable, its value and what would be accepted.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A setting that is missing or cannot be understood.
#[derive(Debug)]
pub(crate) struct Wrong(pub(crate) String);

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Wrong {}

fn get(name: &str) -> Result<Option<String>, Wrong> {
    match std::env::var(name) {
        Ok(value) if value.trim().is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(std::env::VarError::NotPresent) => Ok(None),
        Err(std::env::VarError::NotUnicode(_)) => Err(Wrong(format!("{name} is not valid UTF-8"))),
    }
}

pub(crate) fn required(name: &str, meaning: &str) -> Result<String, Wrong> {
    get(name)?.ok_or_else(|| Wrong(format!("{name} is not set: {meaning}")))
}

pub(crate) fn or(name: &str, default: &str) -> Result<String, Wrong> {
    Ok(get(name)?.unwrap_or_else(|| default.to_owned()))
}

pub(crate) fn number<N: FromStr>(name: &str) -> Result<Option<N>, Wrong> {
    let parse = |text: String| match text.trim().parse() {
        Ok(number) => Ok(number),
        Err(_) => Err(Wrong(format!("{name} is {text:?}: a whole number is needed"))),
    };
    get(name)?.map(parse).transpose()
}

/// A size: a whole number of bytes, or with a unit: `64KiB`, `8MiB`, `1GiB`.
pub(crate) fn bytes(name: &str) -> Result<Option<usize>, Wrong> {
    let parse = |text: String| {
        let wrong =
            || Wrong(format!("{name} is {text:?}: a number of bytes is needed, such as 8388608, 64KiB or 8MiB"));
        let (number, unit) = split(text.trim());
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.parse::<usize>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(wrong)
    };
    get(name)?.map(parse).transpose()
}

/// A duration such as `500ms`, `10s` or `2m`; `off` gives an inner `None`.
#[expect(clippy::option_option, reason = "not given and given as off are different things")]
pub(crate) fn duration(name: &str) -> Result<Option<Option<Duration>>, Wrong> {
    let parse = |text: String| match text.trim() {
        "off" => Ok(None),
        given => parse_duration(given).map(Some).ok_or_else(|| wrong_duration(name, &text)),
    };
    get(name)?.map(parse).transpose()
}

/// Two durations such as `5ms..250ms`.
pub(crate) fn duration_range(name: &str) -> Result<Option<(Duration, Duration)>, Wrong> {
    let parse = |text: String| {
        let ends =
            text.split_once("..").and_then(|(low, high)| parse_duration(low.trim()).zip(parse_duration(high.trim())));
        ends.ok_or_else(|| Wrong(format!("{name} is {text:?}: two durations are needed, such as 5ms..250ms")))
    };
    get(name)?.map(parse).transpose()
}

fn wrong_duration(name: &str, text: &str) -> Wrong {
    Wrong(format!("{name} is {text:?}: a duration is needed, such as 500ms, 10s or 2m"))
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

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()))
}
