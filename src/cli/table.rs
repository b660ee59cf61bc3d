//! Renders tables as text. Pure.

/// How a cell is shown on a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tone {
    #[default]
    Plain,
    Heading,
    Good,
    Warning,
    Bad,
}

impl Tone {
    fn code(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Heading => Some("1"),
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
        }
    }

    /// Returns the text in this tone, if there are colours.
    pub(super) fn paint(self, text: &str, has_colours: bool) -> String {
        match self.code() {
            Some(code) if has_colours => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.to_owned(),
        }
    }
}

/// The tone of a projection's state.
pub(super) fn state_tone(state: &str) -> Tone {
    match state {
        "running" => Tone::Good,
        "halted" | "broken" => Tone::Bad,
        _ => Tone::Warning,
    }
}

#[derive(Debug, Clone)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn new(text: impl Into<String>, tone: Tone) -> Self {
        // A line break in the text would break the table.
        Self { text: text.into().replace(char::is_control, " "), tone }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Tone::Plain)
    }
}

/// Rows with the same columns. Columns of numbers are aligned to the right.
#[derive(Debug)]
pub(super) struct Table<const N: usize> {
    heads: Option<[&'static str; N]>,
    /// Which columns are numbers.
    numbers: [bool; N],
    rows: Vec<[Cell; N]>,
}

impl<const N: usize> Table<N> {
    /// Creates a table with heads. The head of a column of numbers begins with `#`.
    pub(super) fn with_heads(heads: [&'static str; N]) -> Self {
        let numbers = heads.map(|head| head.starts_with('#'));
        Self { heads: Some(heads.map(|head| head.trim_start_matches('#'))), numbers, rows: Vec::new() }
    }

    /// Creates a table without heads.
    pub(super) fn plain() -> Self {
        Self { heads: None, numbers: [false; N], rows: Vec::new() }
    }

    pub(super) fn push(&mut self, row: [Cell; N]) {
        self.rows.push(row);
    }

    /// Returns the lines, without a line break after the last.
    pub(super) fn render(&self, has_colours: bool) -> String {
        let heads = self.heads.map(|heads| heads.map(|head| Cell::new(head, Tone::Heading)));
        let rows: Vec<&[Cell; N]> = heads.iter().chain(&self.rows).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].text.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..N).map(width).collect();
        let lines = rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).zip(&self.numbers).map(|((cell, width), is_number)| {
                let fill = " ".repeat(width - cell.text.chars().count());
                let shown = cell.tone.paint(&cell.text, has_colours);
                if *is_number { format!("{fill}{shown}") } else { format!("{shown}{fill}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Formats a number of seconds with the unit that fits.
pub(super) fn time(seconds: f64) -> String {
    match seconds {
        ..10.0 => format!("{:.1} s", seconds.max(0.0)),
        ..120.0 => format!("{seconds:.0} s"),
        ..7_200.0 => format!("{:.0} min", seconds / 60.0),
        ..172_800.0 => format!("{:.0} h", seconds / 3_600.0),
        _ => format!("{:.0} d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colours() {
        let mut table = Table::with_heads(["NAME", "#EVENTS", "STATE"]);
        table.push(["größe".into(), "7".into(), Cell::new("halted\nhere", Tone::Bad)]);
        table.push(["b".into(), "1234567".into(), "".into()]);
        let plain = "NAME    EVENTS  STATE\ngröße        7  halted here\nb      1234567";
        assert_eq!(table.render(false), plain);
        let coloured = table.render(true);
        assert!(
            coloured.contains("\x1b[31mhalted here\x1b[0m") && coloured.contains("\x1b[1mNAME\x1b[0m "),
            "{coloured}"
        );
        let mut without: String = coloured;
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[31m"] {
            without = without.replace(code, "");
        }
        assert_eq!(without, plain);
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        for (seconds, shown) in [
            (-1.0, "0.0 s"),
            (0.25, "0.2 s"),
            (9.94, "9.9 s"),
            (59.6, "60 s"),
            (150.0, "2 min"),
            (7_200.0, "2 h"),
            (200_000.0, "2 d"),
        ] {
            assert_eq!(time(seconds), shown, "{seconds}");
        }
    }
}
