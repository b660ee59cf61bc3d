//! Moments as text, in the form of RFC 3339. Pure.

use std::time::{Duration, SystemTime};

use serde::Serializer;

const DAY: i64 = 24 * 60 * 60;
/// The days from the beginning of March of the year 0 to 1970.
const DAYS_TO_1970: i64 = 719_468;
/// The days of 400 years. Then the calendar repeats itself.
const DAYS_OF_ERA: i64 = 146_097;

/// Formats a moment in UTC, to the microsecond, without a fraction if that is 0.
pub(crate) fn rfc3339(moment: SystemTime) -> String {
    let micros = match moment.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_micros()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
    };
    let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let fraction = if fraction == 0 { String::new() } else { format!(".{fraction:06}") };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

/// Reads a moment such as `2026-01-31T12:00:00Z` or `2026-01-31 13:00:00.5+01:00`. The offset is
/// required: without it, the moment would depend on a time zone.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let end_of_fraction = rest.find(|c: char| c != '.' && !c.is_ascii_digit())?;
    let (fraction, offset) = rest.split_at(end_of_fraction);
    let micros = match fraction.strip_prefix('.') {
        Some(digits) if (1..=9).contains(&digits.len()) => format!("{digits:0<6}").get(..6)?.parse::<i64>().ok()?,
        None if fraction.is_empty() => 0,
        _ => return None,
    };
    let offset = match offset.strip_prefix(['+', '-']) {
        None if offset.eq_ignore_ascii_case("z") => 0,
        None => return None,
        Some(digits) => {
            let [hours, minutes] = numbers(digits, ':', [2, 2])?;
            if hours > 23 || minutes > 59 {
                return None;
            }
            let offset = hours * 3600 + minutes * 60;
            if rest[end_of_fraction..].starts_with('-') { -offset } else { offset }
        }
    };
    let days = days(year, month, day)?;
    let seconds = days * DAY + hour * 3600 + minute * 60 + second - offset;
    let micros = seconds * 1_000_000 + micros;
    let distance = Duration::from_micros(micros.unsigned_abs());
    if micros < 0 { SystemTime::UNIX_EPOCH.checked_sub(distance) } else { SystemTime::UNIX_EPOCH.checked_add(distance) }
}

/// For `#[serde(serialize_with)]`.
pub(crate) fn serialize<S: Serializer>(moment: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*moment))
}

/// For `#[serde(serialize_with)]`.
#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(crate) fn serialize_option<S: Serializer>(moment: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match moment {
        Some(moment) => serialize(moment, serializer),
        None => serializer.serialize_none(),
    }
}

/// The numbers of a text that has exactly these widths.
fn numbers<const N: usize>(text: &str, separator: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, width) in found.iter_mut().zip(widths) {
        let part = parts.next().filter(|part| part.len() == width && part.bytes().all(|b| b.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

/// The days from 1970 to a date; `None` if there is no such date. See
/// <https://howardhinnant.github.io/date_algorithms.html>.
fn days(year: i64, month: i64, day: i64) -> Option<i64> {
    if !(1..=12).contains(&month) || day < 1 {
        return None;
    }
    let (year_from_march, month_from_march) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year_from_march.div_euclid(400), year_from_march.rem_euclid(400));
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let days = era * DAYS_OF_ERA + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - DAYS_TO_1970;
    // A day that the month does not have is a date of the next month.
    (date(days) == (year, month, day)).then_some(days)
}

/// The date that is this many days after 1970 begins.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days.div_euclid(DAYS_OF_ERA), days.rem_euclid(DAYS_OF_ERA));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_are_read_and_written() {
        for (text, written) in [
            ("1970-01-01T00:00:00Z", "1970-01-01T00:00:00Z"),
            ("2026-01-31t12:00:00z", "2026-01-31T12:00:00Z"),
            ("2026-01-31 13:00:00.5+01:00", "2026-01-31T12:00:00.500000Z"),
            ("2026-01-31T13:00:00.123456789+01:00", "2026-01-31T12:00:00.123456Z"),
            ("2024-02-29T23:30:00-00:30", "2024-03-01T00:00:00Z"),
            ("2000-02-29T00:00:00Z", "2000-02-29T00:00:00Z"),
            ("1969-12-31T23:59:59.25Z", "1969-12-31T23:59:59.250000Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(parse_rfc3339(text).map(rfc3339).as_deref(), Some(written), "{text}");
        }
    }

    #[test]
    fn texts_that_are_no_moments_are_refused() {
        for text in [
            "",
            "yesterday",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "2026-01-31T12:00Z",
            "2026-02-29T12:00:00Z",
            "2026-13-01T12:00:00Z",
            "2026-00-01T12:00:00Z",
            "2026-01-00T12:00:00Z",
            "2026-01-31T24:00:00Z",
            "2026-01-31T12:60:00Z",
            "2026-01-31T12:00:61Z",
            "2026-01-31T12:00:00.Z",
            "2026-01-31T12:00:00.1.2Z",
            "2026-01-31T12:00:00+1:00",
            "2026-01-31T12:00:00+24:00",
            "2026-01-31T12:00:00 CET",
            "+026-01-31T12:00:00Z",
            "2026-01-31T12:00:00Ä",
            "2026-01-3ßT12:00:00Z",
        ] {
            assert_eq!(parse_rfc3339(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(micros in -62_135_596_800_000_000_i64..253_402_300_800_000_000) {
            let distance = Duration::from_micros(micros.unsigned_abs());
            let epoch = SystemTime::UNIX_EPOCH;
            let moment = if micros < 0 { epoch - distance } else { epoch + distance };
            prop_assert_eq!(parse_rfc3339(&rfc3339(moment)), Some(moment));
        }
    }
}
