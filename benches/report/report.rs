//! The results, as they are printed and stored.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use crate::line::Line;
use crate::support::arguments::report_directory;
use crate::support::plot::{self, Curve, Frame};
use crate::support::table::Table;

pub(crate) struct Report {
    header: String,
    directory: PathBuf,
    section: &'static str,
    lines: Table,
    /// The other tables, and the plots.
    rest: String,
    begun: Instant,
}

impl Report {
    pub(crate) fn new(header: String) -> Self {
        println!("{header}");
        Self {
            header,
            directory: report_directory(),
            section: "",
            lines: Table::new(&Line::HEADINGS),
            rest: String::new(),
            begun: Instant::now(),
        }
    }

    pub(crate) fn begin(&mut self, section: &'static str, progress: &str) {
        println!("{progress}, after {:.0?}", self.begun.elapsed());
        self.section = section;
    }

    pub(crate) fn line(&mut self, line: &Line) {
        let cells = line.cells();
        println!("  {}", cells.join(" | "));
        self.lines.row(cells);
    }

    pub(crate) fn table(&mut self, title: &str, table: &Table) {
        println!("{table}");
        _ = write!(self.rest, "\n{title}\n\n{table}");
    }

    /// Draws into a file with the section's name.
    pub(crate) fn plot(&mut self, frame: Frame<'_>, curves: &[Curve]) {
        let name = format!("{}.svg", self.section);
        plot::write(&self.directory.join(&name), frame, curves);
        _ = writeln!(self.rest, "\n![{}]({name})", frame.title);
    }

    /// Writes the whole report.
    pub(crate) fn finish(self) {
        let lines = if self.lines.is_empty() { String::new() } else { format!("\n{}", self.lines) };
        let text = format!("{}{lines}{}", self.header, self.rest);
        let file = self.directory.join("report.md");
        fs::write(&file, &text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        println!("\n{text}\nwritten to {} after {:.0?}", self.directory.display(), self.begun.elapsed());
    }
}
