//! `check`: finds out whether a worker could run here.

use std::process::ExitCode;

use super::failure::Failure;
use super::output;
use super::table::{Cell, Table, Tone};
use crate::error::BoxError;
use crate::orchestrator::Orchestrator;
use crate::store::checkup::{Finding, Level};

pub(super) fn check(orchestrator: &Orchestrator, json: bool) -> Result<ExitCode, Failure> {
    let findings = orchestrator.check();
    let text = if json {
        serde_json::to_string(&findings).map_err(BoxError::from)?
    } else {
        render(&findings, output::has_colours())
    };
    output::write(&text);
    let has_error = findings.iter().any(|finding| finding.level == Level::Error);
    Ok(if has_error { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn render(findings: &[Finding], has_colours: bool) -> String {
    let mut table = Table::plain();
    for Finding { level, subject, detail } in findings {
        let level = match level {
            Level::Ok => Cell::new("ok", Tone::Good),
            Level::Warning => Cell::new("warning", Tone::Warning),
            Level::Error => Cell::new("error", Tone::Bad),
        };
        table.push([level, (*subject).into(), detail.as_str().into()]);
    }
    table.render(has_colours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line() {
        let finding = |level, subject, detail: &str| Finding { level, subject, detail: detail.to_owned() };
        let findings = [
            finding(Level::Ok, "server", "PostgreSQL 17.2"),
            finding(Level::Warning, "search path", "writable"),
            finding(Level::Error, "primary", "in recovery"),
        ];
        let shown =
            "ok       server       PostgreSQL 17.2\nwarning  search path  writable\nerror    primary      in recovery";
        assert_eq!(render(&findings, false), shown);
    }
}
