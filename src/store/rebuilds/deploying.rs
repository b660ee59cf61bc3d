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
/// model, where they are due. Returns what the worker does about each projection of another
/// version. The caller holds the replica set's lock, so of several workers one asks.
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use uuid::Uuid;

    use super::*;
    use crate::plan::WorkerId;
    use crate::scope::{Scope, StartAt};
    use crate::store::session::Sessions;
    use crate::store::testing;

    fn worker(version: i32, build: Option<&str>) -> Registration {
        let known = Known {
            name: "p".into(),
            start_at: StartAt::Beginning,
            scope: Scope::all(),
            version,
            lanes: 1,
            tables: vec![],
            fold: None,
        };
        Registration {
            worker: WorkerId(Uuid::from_u128(7)),
            replica_set: "set".into(),
            host: "h".into(),
            pid: 1,
            projections: vec![known],
            build: build.map(str::to_owned),
            sessions: Sessions::Shared,
            stale_worker_timeout: Duration::from_secs(30),
        }
    }

    /// What a worker of version 2 and build `b` finds after these commands, which are numbered from
    /// 1 on.
    fn found(commands: &[&str]) -> (Option<Unfinished>, Option<i64>) {
        let mut client = testing::connect_with_projection();
        for values in commands {
            let sql = format!(
                "INSERT INTO orchestrator_commands (projection, command, arguments, result, outcome, applied_at, requested_at)
                 SELECT 'p', command, arguments::jsonb, result::jsonb, outcome, CASE WHEN outcome IS NOT NULL THEN now() END,
                        now() + coalesce(later, '1 s')::interval FROM (VALUES ({values})) AS given (command, arguments, result, outcome, later)"
            );
            client.execute(&sql, &[]).unwrap();
        }
        let names = Names::default();
        assert_eq!(deployed(&mut client, &names, &worker(1, Some("b"))).unwrap(), [], "it has the live version");
        let [found] = deployed(&mut client, &names, &worker(2, Some("b"))).unwrap().try_into().unwrap();
        assert_eq!((found.projection.as_str(), found.version, found.live), ("p", 2, 1));
        (found.rebuild, found.ended)
    }

    #[test]
    fn a_rebuild_counts_that_has_begun_for_version_and_build() {
        let of_2 = r#"'rebuild', '{"version": 2, "build": "b"}'"#;
        let ended = |outcome: &str| format!("{of_2}, NULL, '{outcome}', NULL");
        assert_eq!(found(&[]), (None, None));
        assert_eq!(found(&[&ended("failed")]), (None, Some(1)));
        assert_eq!(found(&[&ended("failed"), &ended("done"), &ended("refused")]), (None, Some(2)), "the last one");
        assert_eq!(found(&[&ended("refused")]), (None, None), "nothing was begun");
        let by_operator = r#"'rebuild', '{"version": 2}', '{"build": "b"}', 'failed', NULL"#;
        assert_eq!(found(&[by_operator]), (None, Some(1)));
        for other in [
            r#"'rebuild', '{"version": 3, "build": "b"}', NULL, 'failed', NULL"#,
            r#"'rebuild', '{"version": 2, "build": "c"}', NULL, 'failed', NULL"#,
            r#"'rebuild', '{"version": 2}', '{"build": null}', 'failed', NULL"#,
            r#"'rebuild', '{}', '{"build": "b"}', 'failed', NULL"#,
        ] {
            assert_eq!(found(&[other]), (None, None), "{other}");
        }
        let before = format!("{of_2}, NULL, 'failed', '-1 h'");
        assert_eq!(found(&[&before]), (None, None), "the projection was removed since");
        let cancelled = |version| format!(r#"'cancel', '{{"version": {version}}}', '{{"rebuild": 1}}', 'done', NULL"#);
        assert_eq!(found(&[&ended("failed"), &cancelled(3)]), (None, None), "it may be rolled back");
        assert_eq!(found(&[&ended("failed"), &cancelled(2)]), (None, Some(1)), "another build took its place");
        let by_a_person = r#"'cancel', '{}', '{"rebuild": 1}', 'done', NULL"#;
        assert_eq!(found(&[&ended("failed"), by_a_person]), (None, Some(1)));
    }

    #[test]
    fn the_unfinished_rebuild_of_the_highest_version_is_found() {
        let unfinished = |id, version, build: Option<&str>| Unfinished { id, version, build: build.map(str::to_owned) };
        let live = r#"'rebuild', '{}', '{"build": null}', NULL, NULL"#;
        let of_3 = r#"'rebuild', '{"version": 3}', '{"build": "c"}', NULL, NULL"#;
        let of_2 = r#"'rebuild', '{"version": 2, "build": "b"}', NULL, NULL, NULL"#;
        assert_eq!(found(&[live]).0, Some(unfinished(1, 1, None)));
        assert_eq!(found(&[live, of_2]).0, Some(unfinished(2, 2, Some("b"))));
        assert_eq!(found(&[of_3, of_2]).0, Some(unfinished(1, 3, Some("c"))));
    }
}
