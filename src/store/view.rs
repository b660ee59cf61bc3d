//! What a coordinator reads of its replica set, and how it reports that it is ready.

use std::sync::Arc;

use postgres::{Client, GenericClient, Row};
use uuid::Uuid;

use super::locks::IS_ADVISORY;
use super::names::Names;
use super::prepared::Prepared;
use super::{inspection, micros, rebuilds};
use crate::error::Error;
use crate::plan::{
    Asked, ClusterView, Code, CommandView, DesiredState, Errand, Fault, GenerationState, GenerationView, Member,
    ProjectionView, Rows, ServerTime, Session, Standing, Step, Unclaimed, WorkerId, WorkerState, WorkerView,
};

const LOOKING: &str = "looking at the replica set";

/// The statements of a worker's coordinator, prepared on one connection.
pub(crate) struct Statements {
    view: Prepared<(String, bool)>,
    standing: Prepared<(String, Uuid)>,
    ready: Prepared<(Uuid, i64)>,
    others_pending: Prepared<(Uuid, i64)>,
    /// The server's time when they were prepared. What happened before was not observed.
    observing_since: ServerTime,
}

impl Statements {
    pub(crate) fn prepare(client: &mut Client, names: &Names) -> Result<Self, postgres::Error> {
        let now = client.query_typed_one(&format!("SELECT {}", micros("clock_timestamp()")), &[])?;
        Ok(Self {
            view: Prepared::on(client, &view_sql(names))?,
            standing: Prepared::on(client, &standing_sql(names))?,
            ready: Prepared::on(client, &ready_sql(names))?,
            others_pending: Prepared::on(client, &others_pending_sql(names))?,
            observing_since: ServerTime(now.get(0)),
        })
    }

    /// Loads the replica set in one snapshot. It reads the checkpoints of the projections only if
    /// `inspects` is set.
    pub(crate) fn view(
        &self,
        client: &mut impl GenericClient,
        replica_set: &str,
        inspects: bool,
    ) -> Result<ClusterView, Error> {
        let rows = self.view.query(client, (replica_set, inspects)).map_err(Error::database(LOOKING))?;
        // The joins are outer joins, so there is always a row.
        let first = rows.first();
        Ok(ClusterView {
            now: first.map_or(ServerTime::default(), |row| ServerTime(row.get("now"))),
            observing_since: self.observing_since,
            generation: first.map(generation_of).transpose()?.flatten(),
            workers: rows.iter().map(worker_of).filter_map(Result::transpose).collect::<Result<_, _>>()?,
            projections: first.map(projections_of).transpose()?.unwrap_or_default(),
            unclaimed: first.map(unclaimed_of).unwrap_or_default(),
            commands: first.map(commands_of).unwrap_or_default(),
        })
    }

    /// Loads only what concerns one worker. This is much cheaper, because it does not read the
    /// session locks.
    pub(crate) fn standing(
        &self,
        client: &mut impl GenericClient,
        replica_set: &str,
        worker: WorkerId,
    ) -> Result<Standing, Error> {
        let row = self.standing.query_one(client, (replica_set, worker.0)).map_err(Error::database(LOOKING))?;
        let (names, deals): (Vec<&str>, Vec<i64>) = (row.get("projections"), row.get("deals"));
        Ok(Standing {
            generation: generation_of(&row)?,
            member: member_of(&row)?,
            deals: names.into_iter().map(Arc::from).zip(deals).collect(),
            errand: errand_of(&row),
            is_command_due: row.get("is_command_due"),
        })
    }

    /// Records that the worker's runners are paused for this generation. This needs no lock of the
    /// replica set: if the generation is superseded at the same time, the worker's row no longer
    /// belongs to it and is not changed.
    pub(crate) fn mark_ready(
        &self,
        client: &mut Client,
        worker: WorkerId,
        generation: i64,
    ) -> Result<(), postgres::Error> {
        self.ready.execute(client, (worker.0, generation))?;
        Ok(())
    }

    /// Whether other workers of the generation are not ready yet.
    pub(crate) fn are_others_pending(
        &self,
        client: &mut Client,
        worker: WorkerId,
        generation: i64,
    ) -> Result<bool, postgres::Error> {
        Ok(self.others_pending.query_one(client, (worker.0, generation))?.get(0))
    }
}

/// The newest generation, the workers, and the projections as arrays. Only the first row has the
/// arrays.
fn view_sql(names: &Names) -> String {
    names.sql_with(
        "WITH held AS MATERIALIZED (
             SELECT l.classid, l.pid FROM pg_locks l WHERE {is_advisory}
         ), worker AS (
             SELECT *, row_number() OVER () AS number_in_view FROM {workers} WHERE replica_set = $1 AND state <> 'stopped'
         )
         SELECT {now} AS now, g.number, g.state AS generation_state, g.total_partitions, {created} AS created_at,
                w.id, w.state, w.generation, w.partition_key, {lost} AS session_lost_at, w.lanes,
                w.projections AS known, w.versions, w.build_id,
                CASE WHEN w.session_class IS NOT NULL THEN (w.session_class::oid, w.session_pid) IN (SELECT * FROM held) END AS held,
                {started} AS started_at,
                {heartbeat} AS last_heartbeat, p.names, p.required_versions, p.required_builds, p.desired, p.dealt, p.deals, p.faults, p.found, u.unclaimed, u.owners,
                k.command_ids, k.commanded, k.commands, k.steps, k.executors, k.attempts, k.wanted_versions, k.wanted_builds, k.are_due, p.clearing
         FROM (SELECT) AS always
         LEFT JOIN (SELECT * FROM {generations} WHERE replica_set = $1 ORDER BY number DESC LIMIT 1) g ON true
         LEFT JOIN worker w ON true
         LEFT JOIN (SELECT array_agg(name ORDER BY name) AS names, array_agg(version ORDER BY name) AS required_versions,
                           array_agg(build_id ORDER BY name) AS required_builds, array_agg(desired_state ORDER BY name) AS desired,
                           array_agg(dealt_state ORDER BY name) AS dealt, array_agg(deal ORDER BY name) AS deals,
                           array_agg(fault ORDER BY name) AS faults,
                           array_agg(EXISTS (SELECT FROM {commands} k WHERE k.projection = p.name AND k.applied_at IS NULL
                                             AND k.command = 'rewind' AND k.step IS NOT NULL) ORDER BY name) AS clearing,
                           array_agg(CASE WHEN $2 THEN {found} END ORDER BY name) AS found
                    FROM {projections} p WHERE replica_set = $1) p ON coalesce(w.number_in_view, 1) = 1
         LEFT JOIN (SELECT array_agg(known.name ORDER BY known.name) AS unclaimed,
                           array_agg(p.replica_set ORDER BY known.name) AS owners
                    FROM (SELECT DISTINCT unnest(projections) AS name FROM worker) known LEFT JOIN {projections} p USING (name)
                    WHERE p.replica_set IS DISTINCT FROM $1) u ON coalesce(w.number_in_view, 1) = 1
         LEFT JOIN (SELECT array_agg(k.id ORDER BY k.id) AS command_ids, array_agg(k.projection ORDER BY k.id) AS commanded,
                           array_agg(k.command ORDER BY k.id) AS commands, array_agg(k.step ORDER BY k.id) AS steps,
                           array_agg(k.executor ORDER BY k.id) AS executors, array_agg(k.attempt ORDER BY k.id) AS attempts,
                           array_agg(CASE WHEN k.command = 'rebuild' THEN (k.arguments ->> 'version')::int4 END ORDER BY k.id)
                               AS wanted_versions,
                           array_agg(CASE WHEN k.command = 'rebuild' THEN k.arguments ->> 'build' END ORDER BY k.id)
                               AS wanted_builds,
                           array_agg(k.step = 'loading' AND {is_due} ORDER BY k.id) AS are_due
                    FROM ({first_commands}) k) k ON coalesce(w.number_in_view, 1) = 1
         ORDER BY w.number_in_view",
        &[
            ("is_advisory", &IS_ADVISORY),
            ("found", &inspection::found_sql(names)),
            ("first_commands", &first_commands_sql(names)),
            ("is_due", &rebuilds::is_due_sql(names)),
            ("now", &micros("clock_timestamp()")),
            ("created", &micros("g.created_at")),
            ("lost", &micros("w.session_lost_at")),
            ("started", &micros("w.started_at")),
            ("heartbeat", &micros("w.last_heartbeat")),
        ],
    )
}

/// Whether projection `p` is live, or a rebuild in which worker `w` takes part, in SQL.
const IS_OWN: &str = "(p.kind = 'live' OR p.kind = 'rebuild' AND (p.build_id IS NULL OR p.build_id = w.build_id)
    AND p.version = coalesce(w.versions[array_position(w.projections, p.base)],
                             CASE WHEN p.base = ANY (w.projections) THEN 1 END))";

/// The pending commands of a replica set: of each projection the first one, and a rebuild in the
/// background.
fn first_commands_sql(names: &Names) -> String {
    names.sql(
        "SELECT DISTINCT ON (k.projection, k.step IS NOT NULL AND k.step IN ('loading', 'finishing')) k.* FROM {commands} k
         JOIN {projections} p ON p.name = k.projection AND p.replica_set = $1
         WHERE k.applied_at IS NULL ORDER BY k.projection, k.step IS NOT NULL AND k.step IN ('loading', 'finishing'), k.id",
    )
}

fn standing_sql(names: &Names) -> String {
    names.sql_with(
        "SELECT g.number, g.state AS generation_state, g.total_partitions, {created} AS created_at, w.id, w.state, w.generation,
                w.partition_key, ARRAY(SELECT name FROM {projections} p WHERE replica_set = $1 AND {is_own} ORDER BY name) AS projections,
                ARRAY(SELECT deal FROM {projections} p WHERE replica_set = $1 AND {is_own} ORDER BY name) AS deals,
                k.id AS command_id, k.attempt, k.projection AS executed, k.command, k.step,
                EXISTS (SELECT FROM ({first_commands}) k WHERE k.step IS NULL OR k.step = 'executed') AS is_command_due
         FROM (SELECT) AS always
         LEFT JOIN (SELECT * FROM {generations} WHERE replica_set = $1 ORDER BY number DESC LIMIT 1) g ON true
         LEFT JOIN {workers} w ON w.id = $2 AND w.state <> 'stopped'
         LEFT JOIN (SELECT k.* FROM {commands} k JOIN {projections} p ON p.name = k.projection AND p.replica_set = $1
                    WHERE k.applied_at IS NULL AND k.step IN ('executing', 'finishing') AND k.executor = $2
                    ORDER BY k.step = 'finishing', k.id LIMIT 1) k ON true",
        &[
            ("created", &micros("g.created_at")),
            ("first_commands", &first_commands_sql(names)),
            ("is_own", &IS_OWN),
        ],
    )
}

fn ready_sql(names: &Names) -> String {
    names.sql(
        "UPDATE {workers} SET state = 'ready', last_heartbeat = clock_timestamp()
         WHERE id = $1 AND generation = $2 AND state = 'pending'",
    )
}

fn others_pending_sql(names: &Names) -> String {
    names.sql(
        "SELECT EXISTS (SELECT FROM {workers} WHERE generation = $2 AND state = 'pending'
                        AND replica_set = (SELECT replica_set FROM {workers} WHERE id = $1))",
    )
}

fn generation_of(row: &Row) -> Result<Option<GenerationView>, Error> {
    let Some(number) = row.get::<_, Option<i64>>("number") else { return Ok(None) };
    let state: &str = row.get("generation_state");
    let state = GenerationState::parse(state).ok_or_else(|| unknown(&format!("generation {number}"), state))?;
    let total: i32 = row.get("total_partitions");
    Ok(Some(GenerationView {
        number,
        state,
        total_partitions: usize::try_from(total).unwrap_or(0),
        created_at: ServerTime(row.get("created_at")),
    }))
}

fn member_of(row: &Row) -> Result<Option<Member>, Error> {
    let Some(id) = row.get::<_, Option<Uuid>>("id") else { return Ok(None) };
    let state: &str = row.get("state");
    Ok(Some(Member {
        state: WorkerState::parse(state).ok_or_else(|| unknown(&format!("worker {id}"), state))?,
        generation: row.get("generation"),
        partition: usize::try_from(row.get::<_, i32>("partition_key")).ok(),
    }))
}

fn worker_of(row: &Row) -> Result<Option<WorkerView>, Error> {
    let Some(Member { state, generation, partition }) = member_of(row)? else { return Ok(None) };
    let lost_at: Option<i64> = row.get("session_lost_at");
    let held: Option<bool> = row.get("held");
    let session = match (held, lost_at) {
        (None, _) => Session::Unused,
        (Some(true), None) => Session::Held,
        (Some(true), Some(_)) => Session::Regained,
        (Some(false), None) => Session::Missing,
        (Some(false), Some(at)) => Session::LostSince(ServerTime(at)),
    };
    Ok(Some(WorkerView {
        id: WorkerId(row.get("id")),
        state,
        generation,
        partition,
        session,
        registered_at: ServerTime(row.get("started_at")),
        last_heartbeat: ServerTime(row.get("last_heartbeat")),
        projections: code_of(row),
        build: row.get::<_, Option<&str>>("build_id").map(Arc::from),
    }))
}

/// The projections whose code a worker has. A version that is not stated is the first one.
fn code_of(row: &Row) -> Arc<[Code]> {
    let (names, versions, lanes): (Vec<&str>, Vec<i32>, Vec<i32>) =
        (row.get("known"), row.get("versions"), row.get("lanes"));
    let stated = |numbers: Vec<i32>| numbers.into_iter().chain(std::iter::repeat(1));
    let code = |((name, version), lanes): ((&str, i32), i32)| Code {
        name: name.into(),
        version,
        lanes: usize::try_from(lanes).unwrap_or(1),
    };
    names.into_iter().zip(stated(versions)).zip(stated(lanes)).map(code).collect()
}

fn projections_of(row: &Row) -> Result<Vec<ProjectionView>, Error> {
    // Without projections there are no arrays.
    let Some(names) = row.get::<_, Option<Vec<&str>>>("names") else { return Ok(Vec::new()) };
    let (desired, dealt): (Vec<&str>, Vec<&str>) = (row.get("desired"), row.get("dealt"));
    let numbers: Vec<i64> = row.get("deals");
    let (faults, found): (Vec<Option<&str>>, Vec<Option<&str>>) = (row.get("faults"), row.get("found"));
    let clearing: Vec<bool> = row.get("clearing");
    let (versions, builds): (Vec<i32>, Vec<Option<&str>>) = (row.get("required_versions"), row.get("required_builds"));
    let parse = |name: &str, state: &str| {
        DesiredState::parse(state).ok_or_else(|| unknown(&format!("projection {name:?}"), state))
    };
    let rows = names.into_iter().zip(desired.into_iter().zip(dealt)).zip(numbers.into_iter().zip(clearing));
    rows.zip(faults.into_iter().zip(found))
        .zip(versions.into_iter().zip(builds))
        .map(|((((name, (desired, dealt)), (deal, is_clearing)), (fault, found)), (version, build))| {
            let (desired, dealt) = (parse(name, desired)?, parse(name, dealt)?);
            let rows = match found {
                None => Rows::NotInspected,
                Some("as dealt") => Rows::AsDealt,
                Some("whole") => Rows::Whole,
                Some(found) => Rows::Unusable(Fault::parse(found).unwrap_or(Fault::Torn)),
            };
            // A fault that this version does not know still keeps the projection withdrawn.
            let withdrawn = fault.map(|fault| Fault::parse(fault).unwrap_or(Fault::Torn));
            let (name, build) = (name.into(), build.map(Arc::from));
            Ok(ProjectionView { name, version, build, desired, is_clearing, dealt, deal, rows, withdrawn })
        })
        .collect()
}

fn unclaimed_of(row: &Row) -> Vec<Unclaimed> {
    let Some(names) = row.get::<_, Option<Vec<&str>>>("unclaimed") else { return Vec::new() };
    let owners: Vec<Option<&str>> = row.get("owners");
    let of = |(name, owner): (&str, Option<&str>)| Unclaimed { name: name.into(), owner: owner.map(Arc::from) };
    names.into_iter().zip(owners).map(of).collect()
}

/// The pending commands. A command that this version does not know is left to workers of the
/// version that does.
fn commands_of(row: &Row) -> Vec<CommandView> {
    let Some(ids) = row.get::<_, Option<Vec<i64>>>("command_ids") else { return Vec::new() };
    let (projections, names): (Vec<&str>, Vec<&str>) = (row.get("commanded"), row.get("commands"));
    let (steps, executors): (Vec<Option<&str>>, Vec<Option<Uuid>>) = (row.get("steps"), row.get("executors"));
    let attempts: Vec<i32> = row.get("attempts");
    let (versions, are_due): (Vec<Option<i32>>, Vec<Option<bool>>) = (row.get("wanted_versions"), row.get("are_due"));
    let builds: Vec<Option<&str>> = row.get("wanted_builds");
    let given = ids.into_iter().zip(projections.into_iter().zip(names));
    let stepped = steps.into_iter().zip(executors).zip(attempts.into_iter().zip(are_due));
    let all = given.zip(stepped).zip(versions.into_iter().zip(builds));
    all.filter_map(|(((id, (projection, name)), ((step, executor), (attempt, is_due))), (version, build))| {
        let step = match (step, executor) {
            (None, _) => Step::Queued,
            (Some("executing"), Some(executor)) => Step::Executing { executor: WorkerId(executor), attempt },
            (Some("executed"), _) => Step::Executed,
            (Some("loading"), _) => Step::Loading { is_due: is_due == Some(true) },
            (Some("finishing"), Some(executor)) => Step::Finishing { executor: WorkerId(executor), attempt },
            _ => return None,
        };
        let (asked, build) = (Asked::parse(name)?, build.map(Arc::from));
        Some(CommandView { id, projection: projection.into(), asked, step, version, build })
    })
    .collect()
}

fn errand_of(row: &Row) -> Option<Errand> {
    Some(Errand {
        command: row.get::<_, Option<i64>>("command_id")?,
        asked: Asked::parse(row.get("command"))?,
        is_finishing: row.get::<_, &str>("step") == "finishing",
        attempt: row.get("attempt"),
        projection: row.get::<_, &str>("executed").into(),
    })
}

/// The error for a state that another version of the library or an operator has written. To treat
/// it as a known state could let two workers process one partition.
fn unknown(whose: &str, state: &str) -> Error {
    Error::Schema {
        problem: format!(
            "{whose} has the state {state:?}, which this version of the library does not know: upgrade the program, or correct \
             that row"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[test]
    fn unknown_states_are_refused_by_name() {
        let mut client = testing::connect_with_projection();
        let names = Names::default();
        client
            .batch_execute(
                "INSERT INTO orchestrator_generations (replica_set, number, state, total_partitions, reason)
                 VALUES ('set', 1, 'active', 1, 'test');
                 INSERT INTO orchestrator_workers (id, replica_set, state, host, pid, version, projections)
                 VALUES ('00000000-0000-0000-0000-000000000007', 'set', 'running', 'h', 1, '0', '{p}');
                 ALTER TABLE orchestrator_generations DROP CONSTRAINT orchestrator_generations_state_check;
                 ALTER TABLE orchestrator_workers DROP CONSTRAINT orchestrator_workers_state_check;
                 ALTER TABLE orchestrator_projections DROP CONSTRAINT orchestrator_projections_desired_state_check,
                     DROP CONSTRAINT orchestrator_projections_dealt_state_check",
            )
            .unwrap();
        let statements = Statements::prepare(&mut client, &names).unwrap();
        let worker = WorkerId(Uuid::from_u128(7));
        assert_eq!(statements.view(&mut client, "set", true).unwrap().workers.len(), 1);
        for (table, column, whose, is_of_a_standing) in [
            ("generations", "state", "generation 1", true),
            ("workers", "state", "worker 00000000-0000-0000-0000-000000000007", true),
            ("projections", "desired_state", "projection \"p\"", false),
            ("projections", "dealt_state", "projection \"p\"", false),
        ] {
            let mut tx = client.transaction().unwrap();
            tx.batch_execute(&format!("UPDATE orchestrator_{table} SET {column} = 'dormant'")).unwrap();
            let says_so = |error: Error| error.to_string().contains(&format!("{whose} has the state \"dormant\""));
            assert!(statements.view(&mut tx, "set", true).is_err_and(says_so), "{table}.{column}");
            let standing = statements.standing(&mut tx, "set", worker);
            assert_eq!(standing.is_err_and(says_so), is_of_a_standing, "{table}.{column}");
        }
    }
}
