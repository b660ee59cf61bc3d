//! Projections of which a worker's code has another version than the live read model: what is known
//! of them, and how a worker that registers asks for a rebuild.

use postgres::types::{ToSql, Type};
use postgres::{GenericClient, Row, Transaction};
use serde_json::json;

use crate::plan::{Deployed, Deployment, Unfinished};
use crate::store::names::Names;
use crate::store::{Known, Registration};

/// Returns the worker's projections of which the live read model has another version. It reads the
/// commands only if there are any.
pub(crate) fn deployed(
    client: &mut impl GenericClient,
    names: &Names,
    worker: &Registration,
) -> Result<Vec<Deployed>, postgres::Error> {
    // What was asked for before the projection was removed concerns another read model.
    let sql = names.sql(
        "SELECT p.name, known.version, p.version, rebuild.id, rebuild.version, rebuild.build, ended.id
         FROM unnest($1, $2) AS known (name, version)
         JOIN {projections} p ON p.name = known.name AND p.version <> known.version
         LEFT JOIN LATERAL (
             SELECT k.id, coalesce((k.arguments ->> 'version')::int4, p.version) AS version,
                    coalesce(k.result ->> 'build', k.arguments ->> 'build') AS build
             FROM {commands} k WHERE k.projection = p.name AND k.command = 'rebuild' AND k.applied_at IS NULL
             ORDER BY 2 DESC, k.id DESC LIMIT 1) AS rebuild ON true
         LEFT JOIN LATERAL (
             SELECT k.id FROM {commands} k
             WHERE k.projection = p.name AND k.command = 'rebuild' AND k.outcome IN ('done', 'failed') AND k.requested_at >= p.registered_at
             AND (k.arguments ->> 'version')::int4 = known.version
             AND coalesce(k.result ->> 'build', k.arguments ->> 'build') IS NOT DISTINCT FROM $3
             AND NOT EXISTS (SELECT FROM {commands} c WHERE c.projection = p.name AND c.command = 'cancel'
                             AND c.result -> 'rebuild' = to_jsonb(k.id) AND (c.arguments ->> 'version')::int4 > known.version)
             ORDER BY k.id DESC LIMIT 1) AS ended ON true
         ORDER BY p.name",
    );
    let versions: Vec<i32> = worker.projections.iter().map(|known| known.version).collect();
    let values: [(&(dyn ToSql + Sync), Type); 3] = [
        (&Known::names(&worker.projections), Type::TEXT_ARRAY),
        (&versions, Type::INT4_ARRAY),
        (&worker.build, Type::TEXT),
    ];
    Ok(client.query_typed(&sql, &values)?.iter().map(deployed_of).collect())
}

fn deployed_of(row: &Row) -> Deployed {
    let unfinished = |id| Unfinished { id, version: row.get(4), build: row.get(5) };
    Deployed {
        projection: row.get(0),
        version: row.get(1),
        live: row.get(2),
        rebuild: row.get::<_, Option<i64>>(3).map(unfinished),
        ended: row.get(6),
    }
}

/// Asks for the rebuilds of the worker's projections that have a higher version than the live read
/// model, where they are due. Returns what the worker does about each projection of another version.
/// The caller holds the replica set's lock, so of several workers one asks.
pub(crate) fn deploy(
    tx: &mut Transaction<'_>,
    names: &Names,
    worker: &Registration,
) -> Result<Vec<(Deployed, Deployment)>, postgres::Error> {
    let found = deployed(tx, names, worker)?.into_iter();
    let decided: Vec<_> = found.map(|found| (found.decide(worker.build.as_deref()), found)).collect();
    for (deployment, found) in &decided {
        if let Deployment::Rebuild { replaces } = deployment {
            ask(tx, names, worker, found, *replaces)?;
        }
    }
    Ok(decided.into_iter().map(|(deployment, found)| (found, deployment)).collect())
}

fn ask(
    tx: &mut Transaction<'_>,
    names: &Names,
    worker: &Registration,
    found: &Deployed,
    replaces: bool,
) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "INSERT INTO {commands} (projection, command, arguments, requested_by, reason) VALUES ($1, $2, $3, $4, $5)",
    );
    let version = found.version;
    let mut of_version = json!({ "version": version });
    let mut why = format!("version {version} was deployed");
    // The commands of a projection are applied in their order.
    let cancel = replaces.then(|| ("cancel", of_version.clone()));
    if let Some(build) = &worker.build {
        of_version["build"] = json!(build);
        why = format!("build {build:?} of {why}");
    }
    let by = format!("worker {}", worker.worker);
    for (command, arguments) in cancel.into_iter().chain([("rebuild", of_version)]) {
        let values: [(&(dyn ToSql + Sync), Type); 5] = [
            (&found.projection, Type::TEXT),
            (&command, Type::TEXT),
            (&arguments, Type::JSONB),
            (&by, Type::TEXT),
            (&why, Type::TEXT),
        ];
        tx.execute_typed(&sql, &values)?;
    }
    Ok(())
}
