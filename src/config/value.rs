//! The kinds of values that options have. Reads each from text, and checks it against its bounds.
//! Pure.

use std::fmt::Debug;
use std::time::Duration;

use crate::error::Error;

pub(crate) type DurationOrOff = Option<Duration>;
pub(crate) type DurationRange = (Duration, Duration);
pub(crate) type Count = usize;
pub(crate) type Attempts = u32;
pub(crate) type Switch = bool;
/// `None` means as many connections as are needed.
pub(crate) type Connections = Option<u32>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) usize);

/// A description of the text that a value is read from.
pub(crate) type Form = &'static str;

pub(crate) trait Value: Sized {
    /// The type in which a default is declared.
    type Given;
    /// The type that is compared with the bounds.
    type Bound: PartialOrd + Debug + Copy;

    const FORM: Form;

    fn given(given: Self::Given) -> Self;

    fn parse(text: &str) -> Option<Self>;

    /// The values that must be within the bounds, each with a name if the option has more than one.
    fn bounded(&self) -> Vec<(&'static str, Self::Bound)>;
}

/// The lower and the upper bound, with their texts.
pub(crate) struct Bounds<B> {
    pub(crate) least: (B, &'static str),
    pub(crate) most: Option<(B, &'static str)>,
}

impl<B: PartialOrd + Debug + Copy> Bounds<B> {
    pub(crate) fn check(&self, name: &str, value: &impl Value<Bound = B>) -> Result<(), Error> {
        let (least, least_text) = self.least;
        for (part, value) in value.bounded() {
            let problem = match self.most {
                None if value < least => format!("it must be at least {least_text}"),
                Some((_, most)) if value < least => {
                    format!("it must be at least {least_text} ({least_text} to {most})")
                }
                Some((most, text)) if value > most => format!("it must be at most {text} ({least_text} to {text})"),
                _ => continue,
            };
            return Err(Error::config(format!("{name}{part}"), format!("{value:?}"), problem));
        }
        Ok(())
    }
}

impl Value for Duration {
    type Given = Duration;
    type Bound = Duration;

    const FORM: Form = "a duration such as 500ms, 10s or 2m";

    fn given(duration: Duration) -> Self {
        duration
    }

    fn parse(text: &str) -> Option<Self> {
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

    fn bounded(&self) -> Vec<(&'static str, Duration)> {
        vec![("", *self)]
    }
}

impl Value for DurationOrOff {
    type Given = Duration;
    type Bound = Duration;

    const FORM: Form = "a duration such as 500ms, 10s or 2m, or off";

    fn given(duration: Duration) -> Self {
        Some(duration)
    }

    fn parse(text: &str) -> Option<Self> {
        if text == "off" { Some(None) } else { Duration::parse(text).map(Some) }
    }

    fn bounded(&self) -> Vec<(&'static str, Duration)> {
        self.iter().map(|duration| ("", *duration)).collect()
    }
}

impl Value for DurationRange {
    type Given = Self;
    type Bound = Duration;

    const FORM: Form = "two durations such as 5ms..250ms";

    fn given(range: Self) -> Self {
        range
    }

    fn parse(text: &str) -> Option<Self> {
        let (shortest, longest) = text.split_once("..")?;
        Duration::parse(shortest.trim()).zip(Duration::parse(longest.trim()))
    }

    fn bounded(&self) -> Vec<(&'static str, Duration)> {
        vec![(" minimum", self.0), (" maximum", self.1)]
    }
}

impl Value for Bytes {
    type Given = usize;
    type Bound = usize;

    const FORM: Form = "a number of bytes such as 8388608, 64KiB or 8MiB";

    fn given(bytes: usize) -> Self {
        Self(bytes)
    }

    fn parse(text: &str) -> Option<Self> {
        let (number, unit) = split(text);
        let factor = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<usize>().ok()?.checked_mul(factor).map(Self)
    }

    fn bounded(&self) -> Vec<(&'static str, usize)> {
        vec![("", self.0)]
    }
}

impl Value for Switch {
    type Given = bool;
    type Bound = bool;

    const FORM: Form = "on or off";

    fn given(is_on: bool) -> Self {
        is_on
    }

    fn parse(text: &str) -> Option<Self> {
        match text {
            "on" => Some(true),
            "off" => Some(false),
            _ => None,
        }
    }

    fn bounded(&self) -> Vec<(&'static str, bool)> {
        Vec::new()
    }
}

const NUMBER: Form = "a whole number such as 1000";

macro_rules! number {
    ($Number:ty) => {
        impl Value for $Number {
            type Given = Self;
            type Bound = Self;

            const FORM: Form = NUMBER;

            fn given(number: Self) -> Self {
                number
            }

            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }

            fn bounded(&self) -> Vec<(&'static str, Self)> {
                vec![("", *self)]
            }
        }
    };
}

number!(Count);
number!(Attempts);

impl Value for Connections {
    type Given = Self;
    type Bound = u32;

    const FORM: Form = NUMBER;

    fn given(number: Self) -> Self {
        number
    }

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Some)
    }

    fn bounded(&self) -> Vec<(&'static str, u32)> {
        self.iter().map(|number| ("", *number)).collect()
    }
}

/// Splits a text into a number and its unit.
fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()))
}
