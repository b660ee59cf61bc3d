//! Settings from the environment: each error names the variable, its value and what would be accepted.
#![allow(dead_code, reason = "several programs compile this file, and not each of them reads every kind of setting")]

use crate::app::{Wrong, setting, shown};

/// A whole number.
pub(crate) fn number<N: std::str::FromStr>(name: &str) -> Result<Option<N>, Wrong> {
    parsed(name, "a whole number is needed, such as 1000", |text| text.parse().ok())
}

/// `on` or `off`.
pub(crate) fn switch(name: &str) -> Result<Option<bool>, Wrong> {
    parsed(name, "on or off is needed", |text| match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    })
}

fn parsed<T>(name: &str, needed: &str, parse: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Wrong> {
    setting(name)?
        .map(|text| parse(&text).ok_or_else(|| Wrong(format!("{name} is {}: {needed}", shown(&text)))))
        .transpose()
}
