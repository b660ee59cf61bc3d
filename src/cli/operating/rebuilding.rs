//! A rebuild in words: its progress, its status and what it needs. Pure.

use super::super::shell::word;
use super::super::table::time;
use crate::error::one_line;
use crate::operator::words::{grouped, size};
use crate::operator::{OldRecord, ProjectionRecord, Rebuild, RebuildRecord};

/// How many characters the bar has.
const BAR: usize = 20;

/// The progress in one line.
pub(super) fn progress(projection: &str, record: &RebuildRecord) -> String {
    format!("{}: {}", one_line(projection), figures(record))
}

/// The progress in one line with a bar, for a terminal. It should not be longer than the terminal
/// is wide.
pub(super) fn bar(record: &RebuildRecord) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part of a small number"
    )]
    let full = (record.progress.clamp(0.0, 1.0) * BAR as f64) as usize;
    format!("[{}{}] {}", "#".repeat(full), "-".repeat(BAR.saturating_sub(full)), figures(record))
}

fn figures(record: &RebuildRecord) -> String {
    let RebuildRecord { progress, events, events_per_second, seconds_to_go, .. } = record;
    let to_go = match seconds_to_go {
        Some(seconds) if *seconds > 0.0 => format!(", {} to go", time(*seconds)),
        Some(_) => String::new(),
        None => ", time to go unknown".to_owned(),
    };
    format!("{:.1} %, {} events, {events_per_second:.0}/s{to_go}", progress * 100.0, grouped(*events))
}

/// What a rebuild needs that has begun: disk space and, if the content of the tables is replaced,
/// a lock for at most so many seconds.
pub(super) fn needs(rebuild: Rebuild, bytes: i64, lock_seconds: Option<f64>) -> String {
    let shown = size(bytes);
    let space = if rebuild.keeps_old() {
        format!("it needs about {shown} more disk space until the former tables are dropped")
    } else if rebuild.copies() {
        format!("it needs about {shown} more disk space until the switch, and then up to as much for replaced rows")
    } else {
        format!("it needs about {shown} more disk space until the switch")
    };
    match lock_seconds {
        Some(seconds) => format!("{space}; then writers of its tables wait for at most about {}", time(seconds)),
        None => space,
    }
}

/// What is said if a person stops watching a rebuild.
pub(super) fn goes_on(program: &str, projection: &str, command: i64) -> String {
    let name = word(projection);
    format!(
        "the rebuild of {} goes on, as command {command}\n  look with: {program} rebuild {name} --status\n  cancel it with: \
         {program} rebuild {name} --cancel --reason …",
        one_line(projection)
    )
}

/// The status of a rebuild. `waiting` is the number of a command to rebuild that has not begun.
pub(super) fn status(program: &str, projection: &ProjectionRecord, waiting: Option<i64>) -> String {
    let name = one_line(&projection.name);
    let begun = match (&projection.rebuild, waiting) {
        (Some(record), _) => in_progress(program, &projection.name, record),
        (None, Some(command)) => {
            format!("the rebuild of {name} has not begun yet: command {command} waits, or creates the copies")
        }
        (None, None) => format!("{name} is not being rebuilt"),
    };
    let old = projection.old.as_ref().map(|old| kept(program, &projection.name, old));
    [begun].into_iter().chain(old).collect::<Vec<_>>().join("\n")
}

fn in_progress(program: &str, projection: &str, record: &RebuildRecord) -> String {
    let RebuildRecord { command_id, version, age_seconds, positions_left, .. } = record;
    let state = match record.state.as_str() {
        "loading" => match record.rate_limit {
            Some(rate) => format!("loading, at most {} events per second", grouped(rate.into())),
            None => "loading, without a limit".to_owned(),
        },
        "catching_up" => "catching up with the live projection".to_owned(),
        "following" => "level with the live projection, which goes no further until the switch".to_owned(),
        other => one_line(other),
    };
    let build = record.build_id.as_deref().map_or_else(String::new, |build| format!(", build {}", one_line(build)));
    let workers =
        if record.workers == 1 { "1 worker has".to_owned() } else { format!("{} workers have", record.workers) };
    let mut lines = vec![
        format!(
            "{} is being rebuilt: command {command_id}, begun {} ago, version {version}{build}: {workers} its code",
            one_line(projection),
            time(*age_seconds)
        ),
        format!("  {state}"),
        format!("  {}, {} positions to go", bar(record), grouped(*positions_left)),
    ];
    lines.extend(record.blocked.iter().map(|why| format!("  blocked: {}", one_line(why))));
    if record.blocked.is_empty() {
        lines.extend(record.error.as_deref().map(|error| format!("  is being retried: {}", one_line(error))));
    }
    if record.parked > 0 {
        let parked = word(&format!("{projection}@rebuild"));
        lines.push(format!("  {} parked aggregates, look with: {program} parked {parked}", grouped(record.parked)));
    }
    lines.push(format!("  cancel it with: {program} rebuild {} --cancel --reason …", word(projection)));
    lines.join("\n")
}

/// The former tables that are kept.
pub(super) fn kept(program: &str, projection: &str, old: &OldRecord) -> String {
    let OldRecord { schema, tables, bytes, version, age_seconds, .. } = old;
    let name = word(projection);
    format!(
        "the former tables of {} are kept in schema {}, {}: {}, version {version}, replaced {} ago\n  bring them back with: \
         {program} rebuild {name} --revert\n  drop them with: {program} rebuild {name} --drop-old",
        one_line(projection),
        one_line(schema),
        size(*bytes),
        one_line(&tables.join(", ")),
        time(*age_seconds)
    )
}

/// The sentences about a rebuild and former tables, among those about a projection.
pub(super) fn remedies(program: &str, projection: &ProjectionRecord) -> Vec<String> {
    let name = &projection.name;
    let rebuild = projection.rebuild.as_ref().map(|record| {
        let mut lines = vec![format!("{} is being rebuilt: {}", one_line(name), figures(record))];
        lines.extend(record.blocked.iter().map(|why| format!("  blocked: {}", one_line(why))));
        lines.push(format!("  look with: {program} rebuild {} --status", word(name)));
        lines.join("\n")
    });
    rebuild.into_iter().chain(projection.old.as_ref().map(|old| kept(program, name, old))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rebuilding::{Reading, Readings, testing::half_way};
    use crate::store::operations::testing::running;

    fn record(reading: &Reading) -> RebuildRecord {
        Readings::default().record(reading)
    }

    #[test]
    fn the_bar_fits_on_a_terminal() {
        assert_eq!(bar(&record(&half_way())), "[##########----------] 50.0 %, 400 events, 4/s, 100 s to go");
        let done = record(&Reading { parts: vec![(65_536, 1_000)], ..half_way() });
        assert_eq!(bar(&done), "[####################] 100.0 %, 400 events, 4/s");
        let begun = record(&Reading { parts: vec![(65_536, 0)], events: 0, ..half_way() });
        assert_eq!(bar(&begun), "[--------------------] 0.0 %, 0 events, 0/s, time to go unknown");
        let parts = vec![(65_536, 50_000_000_000)];
        let most = Reading { events: 12_345_678_901, newest: 99_999_999_999, age_seconds: 1e6, parts, ..half_way() };
        assert!(bar(&record(&most)).len() < 80, "{}", bar(&record(&most)));
    }

    #[test]
    fn the_status_says_what_blocks_the_switch_and_what_to_type() {
        let reading = Reading { is_halted: true, error: Some("no such\ncustomer".into()), parked: 2, ..half_way() };
        let projection = ProjectionRecord { rebuild: Some(record(&reading)), ..running("my orders") };
        let shown = "\
my orders is being rebuilt: command 7, begun 100 s ago, version 2: 2 workers have its code
  loading, at most 5,000 events per second
  [##########----------] 50.0 %, 400 events, 4/s, time to go unknown, 500 positions to go
  blocked: its handler has halted: no such customer
  2 parked aggregates, look with: shop parked 'my orders@rebuild'
  cancel it with: shop rebuild 'my orders' --cancel --reason …";
        assert_eq!(status("shop", &projection, None), shown);
        for (waiting, said) in [(None, "orders is not being rebuilt"), (Some(7), "command 7 waits")] {
            assert!(status("shop", &running("orders"), waiting).contains(said));
        }
    }

    #[test]
    fn what_is_needed_is_said_at_the_beginning() {
        let usual = Rebuild::default();
        for (rebuild, lock_seconds, said) in [
            (usual, None, "it needs about 3.0 MB more disk space until the switch"),
            (usual.keep_old(), None, "it needs about 3.0 MB more disk space until the former tables are dropped"),
            (usual.copy(), Some(2.0), "replaced rows; then writers of its tables wait for at most about 2.0 s"),
        ] {
            let needs = needs(rebuild, 3_000_000, lock_seconds);
            assert!(needs.contains(said), "{needs}");
        }
    }
}
