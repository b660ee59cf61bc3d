//! What a coordinator sees of its replica set, and its answer.

use postgres::types::Type;
use postgres::{Client, GenericClient, Row, Statement};
use uuid::Uuid;

use super::locks::{IS_ADVISORY, LOCK_KEY};
use super::micros;
use super::names::Names;
use crate::plan::{
    ClusterView, GenerationState, GenerationView, Member, ServerTime, Session, Standing, WorkerId, WorkerState,
    WorkerView,
};

/// What every change of the replica set takes of every worker, on the connection it was prepared on.
pub(crate) struct Statements {
    view: Statement,
    standing: Statement,
    ready: Statement,
    others_pending: Statement,
    /// The server's time when it was prepared: what happened before was not watched.
    observing_since: ServerTime,
}

impl Statements {
    pub(crate) fn prepare(client: &mut Client, names: &Names) -> Result<Self, postgres::Error> {
        let view = client.prepare_typed(&view_sql(names), &[Type::TEXT])?;
        let standing = client.prepare_typed(&standing_sql(names), &[Type::TEXT, Type::UUID])?;
        let ready = client.prepare_typed(&ready_sql(names), &[Type::UUID, Type::INT8])?;
        let others_pending = client.prepare_typed(&others_pending_sql(names), &[Type::UUID, Type::INT8])?;
        let now = client.query_typed_one(&format!("SELECT {}", micros("clock_timestamp()")), &[])?;
        Ok(Self { view, standing, ready, others_pending, observing_since: ServerTime(now.get(0)) })
    }

    /// The replica set as one snapshot shows it.
    pub(crate) fn view(
        &self,
        client: &mut impl GenericClient,
        replica_set: &str,
    ) -> Result<ClusterView, postgres::Error> {
        let rows = client.query(&self.view, &[&replica_set])?;
        // The joins are outer ones, so there is always a row.
        let first = rows.first();
        Ok(ClusterView {
            now: first.map_or(ServerTime::default(), |row| ServerTime(row.get("now"))),
            observing_since: self.observing_since,
            generation: first.and_then(generation_of),
            workers: rows.iter().filter_map(worker_of).collect(),
        })
    }

    /// Of a view what concerns one worker: much cheaper, for the session locks are not looked at.
    pub(crate) fn standing(
        &self,
        client: &mut impl GenericClient,
        replica_set: &str,
        worker: WorkerId,
    ) -> Result<Standing, postgres::Error> {
        let row = client.query_one(&self.standing, &[&replica_set, &worker.0])?;
        Ok(Standing { generation: generation_of(&row), member: member_of(&row) })
    }

    /// Says that the worker's runners are paused for this generation. Needs no lock of the replica set: if the generation is superseded at
    /// the same time, the worker's row is not in it any more and stays as it is.
    pub(crate) fn mark_ready(
        &self,
        client: &mut Client,
        worker: WorkerId,
        generation: i64,
    ) -> Result<(), postgres::Error> {
        client.execute(&self.ready, &[&worker.0, &generation])?;
        Ok(())
    }

    /// Whether others of the generation have yet to say that they are ready.
    pub(crate) fn are_others_pending(
        &self,
        client: &mut Client,
        worker: WorkerId,
        generation: i64,
    ) -> Result<bool, postgres::Error> {
        Ok(client.query_one(&self.others_pending, &[&worker.0, &generation])?.get(0))
    }
}

fn view_sql(names: &Names) -> String {
    format!(
        "WITH held AS MATERIALIZED (
             SELECT {LOCK_KEY} AS key FROM pg_locks l WHERE {IS_ADVISORY} AND l.mode = 'ExclusiveLock')
         SELECT {now} AS now, g.number, g.state AS generation_state, g.total_partitions, {created} AS created_at,
                w.id, w.state, w.generation, w.partition_key, w.session_key, {lost} AS session_lost_at,
                w.session_key IN (SELECT key FROM held) AS held, {started} AS started_at, {heartbeat} AS last_heartbeat
         FROM (SELECT) AS always
         LEFT JOIN (SELECT * FROM {generations} WHERE replica_set = $1 ORDER BY number DESC LIMIT 1) g ON true
         LEFT JOIN {workers} w ON w.replica_set = $1 AND w.state <> 'stopped'",
        now = micros("clock_timestamp()"),
        created = micros("g.created_at"),
        lost = micros("w.session_lost_at"),
        started = micros("w.started_at"),
        heartbeat = micros("w.last_heartbeat"),
        generations = names.generations(),
        workers = names.workers(),
    )
}

fn standing_sql(names: &Names) -> String {
    format!(
        "SELECT g.number, g.state AS generation_state, g.total_partitions, {created} AS created_at, w.state, w.generation, w.partition_key
         FROM (SELECT) AS always
         LEFT JOIN (SELECT * FROM {generations} WHERE replica_set = $1 ORDER BY number DESC LIMIT 1) g ON true
         LEFT JOIN {workers} w ON w.id = $2 AND w.state <> 'stopped'",
        created = micros("g.created_at"),
        generations = names.generations(),
        workers = names.workers(),
    )
}

fn ready_sql(names: &Names) -> String {
    format!(
        "UPDATE {} SET state = 'ready', last_heartbeat = clock_timestamp()
         WHERE id = $1 AND generation = $2 AND state = 'pending'",
        names.workers()
    )
}

fn others_pending_sql(names: &Names) -> String {
    format!(
        "SELECT EXISTS (SELECT FROM {workers} WHERE generation = $2 AND state = 'pending'
                        AND replica_set = (SELECT replica_set FROM {workers} WHERE id = $1))",
        workers = names.workers()
    )
}

fn generation_of(row: &Row) -> Option<GenerationView> {
    let number: Option<i64> = row.get("number");
    let total: Option<i32> = row.get("total_partitions");
    number.map(|number| GenerationView {
        number,
        // The newest generation is never superseded: that happens when a newer one is created.
        state: match row.get("generation_state") {
            "active" => GenerationState::Active,
            _ => GenerationState::Pending,
        },
        total_partitions: total.and_then(|total| usize::try_from(total).ok()).unwrap_or(0),
        created_at: ServerTime(row.get("created_at")),
    })
}

fn member_of(row: &Row) -> Option<Member> {
    let state: Option<&str> = row.get("state");
    state.map(|state| Member {
        state: WorkerState::parse(state).unwrap_or(WorkerState::Pending),
        generation: row.get("generation"),
        partition: usize::try_from(row.get::<_, i32>("partition_key")).ok(),
    })
}

fn worker_of(row: &Row) -> Option<WorkerView> {
    let id: Option<Uuid> = row.get("id");
    let Member { state, generation, partition } = member_of(row)?;
    let lost_at: Option<i64> = row.get("session_lost_at");
    let held: Option<bool> = row.get("held");
    let session = match (held, lost_at) {
        (None, _) => Session::Unused,
        (Some(true), None) => Session::Held,
        (Some(true), Some(_)) => Session::Regained,
        (Some(false), None) => Session::Missing,
        (Some(false), Some(at)) => Session::LostSince(ServerTime(at)),
    };
    id.map(|id| WorkerView {
        id: WorkerId(id),
        state,
        generation,
        partition,
        session,
        registered_at: ServerTime(row.get("started_at")),
        last_heartbeat: ServerTime(row.get("last_heartbeat")),
    })
}
