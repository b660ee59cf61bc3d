//! Numbers in words. Pure.

/// Formats a number of things, such as "2 workers".
pub(crate) fn counted(number: i64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}

/// Formats a number with a comma after each three digits.
pub(crate) fn grouped(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut shown = if number < 0 { "-".to_owned() } else { String::new() };
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// Formats a number of bytes with the unit that fits.
#[expect(clippy::cast_precision_loss, reason = "it is shown with one digit after the point")]
pub(crate) fn size(bytes: i64) -> String {
    let mut shown = bytes.max(0) as f64;
    let mut units = ["kB", "MB", "GB", "TB"].into_iter();
    let mut unit = "bytes";
    while shown >= 1_000.0 {
        let Some(larger) = units.next() else { break };
        (shown, unit) = (shown / 1_000.0, larger);
    }
    if unit == "bytes" { format!("{shown:.0} {unit}") } else { format!("{shown:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        for (number, shown) in
            [(0, "0"), (999, "999"), (1_000, "1,000"), (-81_234, "-81,234"), (i64::MAX, "9,223,372,036,854,775,807")]
        {
            assert_eq!(grouped(number), shown);
        }
    }

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (bytes, shown) in [
            (-1, "0 bytes"),
            (999, "999 bytes"),
            (8_192, "8.2 kB"),
            (1_250_000_000, "1.2 GB"),
            (i64::MAX, "9223372.0 TB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
    }
}
