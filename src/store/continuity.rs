//! Verifies that the events are still those that were processed. After a restore of the events
//! alone, or after a `TRUNCATE … RESTART IDENTITY`, they are not: positions are handed out again,
//! and workers would consider the events that get them as processed.
//!
//! There are two signs: a checkpoint above the last position, and another event at the position of
//! one that was handled. A worker checks for both whenever it cannot know what has happened since
//! its last check: when it registers, and with each new connection of its tailer.

use postgres::GenericClient;
use postgres::types::Type;

use super::names::Names;
use super::registration::Known;
use super::sequence;
use crate::error::Error;
use crate::scope::StartAt;

/// Refuses events that are not the ones that these projections have processed.
pub(crate) fn verify(client: &mut impl GenericClient, names: &Names, projections: &[Known]) -> Result<(), Error> {
    let doing = "comparing the checkpoints with the events";
    // Read the checkpoints before the events: a checkpoint that moves in between must not be
    // compared with events that were read before.
    let furthest = furthest(client, names, projections).map_err(Error::database(doing))?;
    if let Some((projection, position)) = furthest {
        reach(client, names, position, &format!("the checkpoint of projection {projection:?}"))?;
    }
    let sql = names.sql(
        "SELECT c.projection, c.last_event_position
         FROM {checkpoints} c JOIN {events} e ON e.global_position = c.last_event_position
         WHERE c.projection = ANY ($1) AND e.event_id <> c.last_event_id LIMIT 1",
    );
    let other = client
        .query_typed_opt(&sql, &[(&Known::names(projections), Type::TEXT_ARRAY)])
        .map_err(Error::database(doing))?;
    match other {
        Some(row) => Err(other_event(names, row.get(1), &format!("projection {:?}", row.get::<_, &str>(0)))),
        None => Ok(()),
    }
}

/// The highest checkpoint of these projections, except one that was configured to start there.
fn furthest(
    client: &mut impl GenericClient,
    names: &Names,
    projections: &[Known],
) -> Result<Option<(String, i64)>, postgres::Error> {
    let sql = names.sql(
        "SELECT projection, max(position) FROM {checkpoints} WHERE projection = ANY ($1)
         GROUP BY projection ORDER BY 2 DESC",
    );
    let rows = client.query_typed(&sql, &[(&Known::names(projections), Type::TEXT_ARRAY)])?;
    let is_start = |name: &str, position: i64| {
        projections
            .iter()
            .any(|known| known.name == name && matches!(known.start_at, StartAt::Position(start) if position <= start))
    };
    Ok(rows
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .find(|(name, position): &(String, i64)| !is_start(name, *position)))
}

/// Refuses events that do not reach a position up to which they were processed. The caller must
/// have read the position before.
pub(crate) fn reach(client: &mut impl GenericClient, names: &Names, position: i64, what: &str) -> Result<(), Error> {
    let (newest, last) = sequence::positions(client, names).map_err(Error::database("reading the last position"))?;
    let Some(last) = last.map(|last| last.max(newest)).filter(|last| *last < position) else { return Ok(()) };
    Err(not_the_same(
        names,
        &format!("{what} is at position {position}, and the last position of {} is {last}", names.events()),
        &format!(", or advance the sequence of the positions to {position}"),
    ))
}

/// The error for another event at this position than the known one.
pub(crate) fn other_event(names: &Names, position: i64, whose: &str) -> Error {
    not_the_same(
        names,
        &format!("at position {position} of {} there is another event than the one known to {whose}", names.events()),
        "",
    )
}

fn not_the_same(names: &Names, sign: &str, or: &str) -> Error {
    Error::Schema {
        problem: format!(
            "{sign}: the events of {} were removed together with their positions, or restored without the orchestrator's tables. \
             Restore both, or rebuild the projections from the events that exist{or}",
            names.events()
        ),
    }
}
