//! Checkpoints: how far each projection has processed the events of each set of keys, and which
//! worker owns that set.
//!
//! *Invariant.* The key sets of a projection's checkpoints are disjoint and cover the key space
//! (I5): the first row is created with all keys ([`claim`]), and after that rows are only cut
//! ([`deal`](super::deal)) and merged ([`merge`](super::fence::merge)). Only
//! [`fence`](super::fence) moves positions. Every change of a row's owner gives the row a new
//! token.

use std::collections::BTreeMap;

use postgres::types::{ToSql, Type};
use postgres::{Client, Row, Transaction};

use super::names::Names;
use super::registration::{Known, Registration};
use super::{continuity, deal};
use crate::error::{Error, field};
use crate::plan::{KeySet, WorkerId};
use crate::scope::StartAt;

/// Claims the worker's projections for its replica set, and creates the checkpoint of each new one.
/// Takes over projections of a replica set that has no living worker. Refuses checkpoints above the
/// last existing position. Returns whether the live read model of one of them has another version
/// than the worker's code.
pub(crate) fn claim(tx: &mut Transaction<'_>, names: &Names, worker: &Registration) -> Result<bool, Error> {
    let doing = "claiming the projections";
    let owners = owners_of(tx, names, &Known::names(&worker.projections), worker).map_err(Error::database(doing))?;
    for known @ Known { name, start_at, .. } in &worker.projections {
        match owners.get(name) {
            None => begin_with(tx, names, known, *start_at).map_err(Error::database(doing))?,
            Some(Owner { replica_set, .. }) if *replica_set == worker.replica_set => {}
            Some(Owner { replica_set, lives: true, .. }) => {
                return Err(Error::ProjectionClaimed {
                    projection: name.clone(),
                    owner: replica_set.clone(),
                    claimant: worker.replica_set.clone(),
                });
            }
            Some(Owner { replica_set, lives: false, .. }) => {
                log::info!(
                    "projection taken over: projection={name} from={owner} by={}",
                    field(&worker.replica_set),
                    name = field(&name),
                    owner = field(&replica_set)
                );
                take_over(tx, names, name, &worker.replica_set).map_err(Error::database(doing))?;
            }
        }
    }
    declare_scopes(tx, names, &worker.projections, worker.build.as_deref()).map_err(Error::database(doing))?;
    continuity::verify(tx, names, &worker.projections)?;
    let is_other = |known: &Known| owners.get(&known.name).is_some_and(|owner| owner.version != known.version);
    Ok(worker.projections.iter().any(is_other))
}

/// Claims again a projection whose rows were deleted, and creates its checkpoint, as when the
/// worker registered. Does nothing if it is claimed, or if this worker does not know it.
pub(crate) fn begin_again(
    tx: &mut Transaction<'_>,
    names: &Names,
    worker: &Registration,
    projection: &str,
) -> Result<(), postgres::Error> {
    let known = worker.projections.iter().find(|known| known.name == projection);
    let Some(known @ Known { start_at, .. }) = known else { return Ok(()) };
    let is_new = owners_of(tx, names, &[&known.name], worker)?.is_empty();
    if is_new {
        begin_with(tx, names, known, *start_at)?;
        declare_scopes(tx, names, std::slice::from_ref(known), worker.build.as_deref())?;
    }
    Ok(())
}

/// To whom a projection belongs.
struct Owner {
    replica_set: String,
    /// Whether a living worker of the replica set knows the projection.
    lives: bool,
    /// The version of the live read model.
    version: i32,
}

/// Returns to whom each projection belongs. New projections are not returned: they now belong to
/// this worker's replica set. Locks the rows of all of them in an order that all workers share, so
/// that two replica sets that claim the same names cannot deadlock.
fn owners_of(
    tx: &mut Transaction<'_>,
    names: &Names,
    projections: &[&str],
    worker: &Registration,
) -> Result<BTreeMap<String, Owner>, postgres::Error> {
    let insert = names.sql(
        "INSERT INTO {projections} (name, replica_set) SELECT name, $2 FROM unnest($1) AS wanted (name)
         ORDER BY name COLLATE \"C\" ON CONFLICT DO NOTHING RETURNING name",
    );
    let lock = names.sql_with(
        "SELECT name, replica_set, {lives}, version FROM {projections} p WHERE name = ANY ($1)
         ORDER BY name COLLATE \"C\" FOR UPDATE",
        &[("lives", &lives_sql(names))],
    );
    let stale_after = worker.stale_worker_timeout.as_secs_f64();
    let (mut owners, mut wanted) = (BTreeMap::new(), projections.to_vec());
    // This repeats only if another session deletes rows in between.
    while !wanted.is_empty() {
        let values: [(&(dyn ToSql + Sync), Type); 2] = [(&wanted, Type::TEXT_ARRAY), (&worker.replica_set, Type::TEXT)];
        let new: Vec<String> = tx.query_typed(&insert, &values)?.iter().map(|row| row.get(0)).collect();
        wanted.retain(|name| !new.iter().any(|new| new == name));
        let rows = tx.query_typed(&lock, &[(&wanted, Type::TEXT_ARRAY), (&stale_after, Type::FLOAT8)])?;
        let owner = |row: &Row| Owner { replica_set: row.get(1), lives: row.get(2), version: row.get(3) };
        owners.extend(rows.iter().map(|row| (row.get(0), owner(row))));
        wanted.retain(|name| !owners.contains_key(*name));
    }
    Ok(owners)
}

/// Whether a living worker of the replica set to which projection `p` belongs knows it, in SQL.
/// `$2` is the time in seconds after which a silent worker is dead.
fn lives_sql(names: &Names) -> String {
    names.sql(
        "EXISTS (SELECT FROM {workers} w WHERE w.replica_set = p.replica_set AND w.state <> 'stopped' AND p.name = ANY (w.projections)
                 AND w.last_heartbeat > clock_timestamp() - $2 * interval '1 second')",
    )
}

/// Refuses projections that a living worker of another replica set knows, as [`claim`] does, but
/// changes nothing. Returns the projections that would be taken over from another replica set.
#[cfg(feature = "cli")]
pub(crate) fn verify_claims(
    tx: &mut Transaction<'_>,
    names: &Names,
    worker: &Registration,
) -> Result<Vec<String>, Error> {
    let sql = names.sql_with(
        "SELECT name, replica_set, {lives} AS lives FROM {projections} p WHERE name = ANY ($1) AND replica_set <> $3 ORDER BY lives DESC, name",
        &[("lives", &lives_sql(names))],
    );
    let (projections, stale_after) = (Known::names(&worker.projections), worker.stale_worker_timeout.as_secs_f64());
    let values: [(&(dyn ToSql + Sync), Type); 3] =
        [(&projections, Type::TEXT_ARRAY), (&stale_after, Type::FLOAT8), (&worker.replica_set, Type::TEXT)];
    let rows = tx.query_typed(&sql, &values).map_err(Error::database("reading who has the projections"))?;
    if let Some(row) = rows.iter().find(|row| row.get(2)) {
        let claimant = worker.replica_set.clone();
        return Err(Error::ProjectionClaimed { projection: row.get(0), owner: row.get(1), claimant });
    }
    continuity::verify(tx, names, &worker.projections)?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Creates the checkpoint of a new projection: its read model has the version of this worker's
/// code.
fn begin_with(tx: &mut Transaction<'_>, names: &Names, known: &Known, start: StartAt) -> Result<(), postgres::Error> {
    let sql = names.sql("UPDATE {projections} SET version = $2 WHERE name = $1");
    tx.execute_typed(&sql, &[(&known.name, Type::TEXT), (&known.version, Type::INT4)])?;
    begin(tx, names, &known.name, start)
}

fn begin(tx: &mut Transaction<'_>, names: &Names, projection: &str, start: StartAt) -> Result<(), postgres::Error> {
    let (newest, position) = match start {
        StartAt::Beginning => (false, 0),
        StartAt::Position(position) => (false, position),
        StartAt::End => (true, 0),
    };
    let sql = names.sql(
        "INSERT INTO {checkpoints} (projection, keys, position, highest, last_event_position, last_event_id)
         SELECT $1, $2, start.position, start.position, event.global_position, event.event_id
         FROM (SELECT CASE WHEN $3 THEN coalesce((SELECT max(global_position) FROM {events}), 0) ELSE $4 END AS position) AS start
         LEFT JOIN {events} event ON event.global_position = start.position",
    );
    tx.execute_typed(
        &sql,
        &[
            (&projection, Type::TEXT),
            (&KeySet::all(), Type::INT4MULTI_RANGE),
            (&newest, Type::BOOL),
            (&position, Type::INT8),
        ],
    )?;
    Ok(())
}

/// Records which events the projections want, and their rebuilds in which a worker of this build
/// takes part. If that has changed, the number of handled events begins again with the next deal.
fn declare_scopes(
    tx: &mut Transaction<'_>,
    names: &Names,
    projections: &[Known],
    build: Option<&str>,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {projections} p SET scope = known.scope::jsonb, counted_from = NULL
         FROM unnest($1, $2, $3) AS known (name, scope, version)
         WHERE p.base = known.name AND p.kind <> 'old' AND p.version = known.version AND (p.build_id IS NULL OR p.build_id = $4)
         AND p.scope <> known.scope::jsonb",
    );
    let scopes: Vec<String> = projections.iter().map(|known| known.scope.to_json()).collect();
    let versions: Vec<i32> = projections.iter().map(|known| known.version).collect();
    let of_names = Known::names(projections);
    tx.execute_typed(
        &sql,
        &[
            (&of_names, Type::TEXT_ARRAY),
            (&scopes, Type::TEXT_ARRAY),
            (&versions, Type::INT4_ARRAY),
            (&build, Type::TEXT),
        ],
    )?;
    let tables = names.sql("UPDATE {projections} SET tables = $2 WHERE name = $1 AND version = $3 AND tables <> $2");
    for Known { name, tables: own, version, .. } in projections {
        tx.execute_typed(&tables, &[(name, Type::TEXT), (own, Type::TEXT_ARRAY), (version, Type::INT4)])?;
    }
    Ok(())
}

fn take_over(tx: &mut Transaction<'_>, names: &Names, projection: &str, by: &str) -> Result<(), postgres::Error> {
    // A rebuild and a former state go with it.
    let sql = names.sql(
        "UPDATE {projections} SET replica_set = $2, deal = DEFAULT, dealt_as = NULL WHERE base = $1 RETURNING name",
    );
    for row in tx.query_typed(&sql, &[(&projection, Type::TEXT), (&by, Type::TEXT)])? {
        deal::disown(tx, names, row.get(0))?;
    }
    Ok(())
}

/// Returns all keys that a worker owns of any of these projections, in a generation.
pub(crate) fn keys_of(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
    worker: WorkerId,
    generation: i64,
) -> Result<KeySet, postgres::Error> {
    let sql = names.sql(
        "SELECT c.keys FROM {checkpoints} c JOIN {projections} p ON p.name = c.projection
         WHERE p.base = ANY ($1) AND c.generation = $2 AND c.worker_id = $3",
    );
    let projections = Known::names(projections);
    let rows = client
        .query_typed(&sql, &[(&projections, Type::TEXT_ARRAY), (&generation, Type::INT8), (&worker.0, Type::UUID)])?;
    Ok(rows.iter().fold(KeySet::default(), |all, row| all.union(&row.get(0))))
}

/// Returns the lowest checkpoint of these projections; `None` if they have no checkpoint.
pub(crate) fn lowest(
    client: &mut Client,
    names: &Names,
    projections: &[Known],
) -> Result<Option<i64>, postgres::Error> {
    let sql = names.sql("SELECT min(position) FROM {checkpoints} WHERE projection = ANY ($1)");
    Ok(client.query_typed_one(&sql, &[(&Known::names(projections), Type::TEXT_ARRAY)])?.get(0))
}
