//! Replica sets, generations and workers: the statements that change them, mainly to apply what
//! `plan` decides.
//!
//! *Invariant:* every action of `plan` is applied in a transaction that holds the replica set's row
//! lock, on a view loaded under that lock. So workers take turns, and two can never create the same
//! generation.

use std::collections::BTreeMap;

use postgres::types::Type;
use postgres::{Client, Transaction};
use uuid::Uuid;

use super::commands::{self, Target};
use super::locks::{self, IS_ADVISORY, IS_OF_WORKER};
use super::names::Names;
use super::outcome::Outcome;
use super::registration::{Known, Registration};
use super::session::Session;
use super::{checkpoints, deal, rebuilds};
use crate::backoff::Mentions;
use crate::error::{Error, field};
use crate::plan::{Action, Cause, Deal, Death, Deployed, Deployment, WorkerId};

/// How many superseded generations are kept, and for how long stopped workers are kept, for
/// operators who investigate what happened.
const KEPT_GENERATIONS: i64 = 200;
const KEPT_STOPPED: &str = "1 hour";

/// Whether this user may end the session of the role `r`, in SQL. `me` is the current role.
const MAY_END: &str = "(me.rolsuper OR NOT r.rolsuper
     AND (pg_has_role(r.oid, 'USAGE') OR pg_has_role('pg_signal_backend', 'USAGE')))";

/// Begins a transaction that holds the replica set's lock. The worker that holds the lock may
/// change the state that all workers of the replica set share.
pub(crate) fn lock<'c>(
    session: &'c mut Session,
    names: &Names,
    replica_set: &str,
) -> Result<Transaction<'c>, postgres::Error> {
    let mut tx = begin(session)?;
    hold(&mut tx, names, replica_set, "")?;
    Ok(tx)
}

/// Begins the same transaction, unless another session holds the lock.
pub(crate) fn try_lock<'c>(
    session: &'c mut Session,
    names: &Names,
    replica_set: &str,
) -> Result<Option<Transaction<'c>>, postgres::Error> {
    let mut tx = begin(session)?;
    let is_held = hold(&mut tx, names, replica_set, "SKIP LOCKED")?;
    Ok(is_held.then_some(tx))
}

fn begin(session: &mut Session) -> Result<Transaction<'_>, postgres::Error> {
    let mut tx = session.transaction()?;
    // The planner overestimates the cost of cutting the checkpoints: compiling the statement takes
    // longer than executing it.
    tx.batch_execute("SET LOCAL jit = off")?;
    Ok(tx)
}

/// Tries to lock the replica set's row. Returns false if another session holds the lock and `skip`
/// says not to wait for it, or if the replica set is unknown.
fn hold(tx: &mut Transaction<'_>, names: &Names, replica_set: &str, skip: &str) -> Result<bool, postgres::Error> {
    let sql = names.sql_with("SELECT FROM {replica_sets} WHERE name = $1 FOR UPDATE {skip}", &[("skip", &skip)]);
    Ok(!tx.query_typed(&sql, &[(&replica_set, Type::TEXT)])?.is_empty())
}

/// Registers the worker as pending, claims its projections for the replica set, and creates the
/// checkpoints of new ones. Asks for the rebuilds of those that have a higher version. From now on,
/// the lock of this session means that the worker is alive. An evicted worker comes back by
/// registering again under the same id.
pub(crate) fn register(session: &mut Session, names: &Names, worker: &Registration) -> Result<(), Error> {
    let doing = "registering the worker";
    let mut tx = lock(session, names, &worker.replica_set).map_err(Error::database(doing))?;
    tx.execute_typed(
        &names.sql("INSERT INTO {replica_sets} (name) VALUES ($1) ON CONFLICT DO NOTHING"),
        &[(&worker.replica_set, Type::TEXT)],
    )
    // The first worker of a replica set found no row to lock; another worker may have created it
    // since.
    .and_then(|_| hold(&mut tx, names, &worker.replica_set, ""))
    .map_err(Error::database(doing))?;
    let has_other_version = checkpoints::claim(&mut tx, names, worker)?;
    let projections = Known::names(&worker.projections);
    let versions: Vec<i32> = worker.projections.iter().map(|known| known.version).collect();
    let lanes: Vec<i32> =
        worker.projections.iter().map(|known| i32::try_from(known.lanes).unwrap_or(i32::MAX)).collect();
    let session_class = worker.sessions.member().map(locks::class);
    // now() may be long ago: the network is slow, or this transaction has waited for another
    // worker's lock.
    let sql = names.sql(
        "INSERT INTO {workers} AS w (id, replica_set, state, host, pid, version, projections, lanes, session_class,
             session_pid, last_heartbeat, versions, build_id)
         VALUES ($1, $2, 'pending', $3, $4, $5, $6, $7, $8, CASE WHEN $8 IS NOT NULL THEN pg_backend_pid() END,
             clock_timestamp(), $9, $10)
         ON CONFLICT (id) DO UPDATE SET state = 'pending', generation = 0, partition_key = -1, session_lost_at = NULL,
             session_class = excluded.session_class, session_pid = excluded.session_pid, started_at = now(),
             last_heartbeat = excluded.last_heartbeat, stopped_at = NULL, stop_reason = NULL",
    );
    tx.execute_typed(
        &sql,
        &[
            (&worker.worker.0, Type::UUID),
            (&worker.replica_set, Type::TEXT),
            (&worker.host, Type::TEXT),
            (&worker.pid, Type::INT4),
            (&env!("CARGO_PKG_VERSION"), Type::TEXT),
            (&projections, Type::TEXT_ARRAY),
            (&lanes, Type::INT4_ARRAY),
            (&session_class, Type::INT4),
            (&versions, Type::INT4_ARRAY),
            (&worker.build, Type::TEXT),
        ],
    )
    .map_err(Error::database(doing))?;
    let deployed = if has_other_version {
        rebuilds::deploy(&mut tx, names, worker).map_err(Error::database(doing))?
    } else {
        Vec::new()
    };
    tx.commit().map_err(Error::database(doing))?;
    for (found, deployment) in &deployed {
        log_deployment(worker, found, *deployment);
    }
    Ok(())
}

fn log_deployment(worker: &Registration, found: &Deployed, deployment: Deployment) {
    let Registration { worker, replica_set, .. } = worker;
    let Deployed { projection, version, live, .. } = found;
    match deployment {
        Deployment::Rebuild { .. } => log::info!(
            "rebuild asked for: replica_set={replica_set} worker={worker} projection={projection} version={version} live={live}",
            replica_set = field(replica_set),
            projection = field(projection)
        ),
        Deployment::Waits(id) => log::warn!(
            "another rebuild is not finished: replica_set={replica_set} worker={worker} projection={projection} version={version} id={id}",
            replica_set = field(replica_set),
            projection = field(projection)
        ),
        Deployment::NotAgain(id) => log::warn!(
            "rebuild is not asked for again: replica_set={replica_set} worker={worker} projection={projection} version={version} id={id}",
            replica_set = field(replica_set),
            projection = field(projection)
        ),
        // The coordinator reports these.
        Deployment::Older | Deployment::TakesPart => {}
    }
}

/// Makes this session the one whose lock means that the worker is alive. The former session has
/// broken, but the server may not have detected that yet, so it is ended.
pub(crate) fn take_over_session(client: &mut Client, names: &Names, worker: WorkerId) -> Result<(), postgres::Error> {
    let sql = names.sql_with(
        "WITH former AS MATERIALIZED (
             SELECT * FROM {workers} WHERE id = $1 AND session_pid <> pg_backend_pid()
         ), taken AS (
             UPDATE {workers} w SET session_pid = pg_backend_pid() FROM former WHERE w.id = former.id
         )
         SELECT pg_terminate_backend(l.pid) FROM former w
         JOIN pg_locks l ON {is_of_worker} AND {is_advisory} AND l.pid = w.session_pid
         JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_roles r ON r.oid = a.usesysid
         JOIN pg_roles me ON me.rolname = current_user AND {may_end}",
        &[("is_of_worker", &IS_OF_WORKER), ("is_advisory", &IS_ADVISORY), ("may_end", &MAY_END)],
    );
    client.query_typed(&sql, &[(&worker.0, Type::UUID)])?;
    Ok(())
}

/// Writes the worker's heartbeat. Returns false if the worker has been evicted.
pub(crate) fn heartbeat(client: &mut Client, names: &Names, worker: WorkerId) -> Result<bool, postgres::Error> {
    let sql = names.sql("UPDATE {workers} SET last_heartbeat = clock_timestamp() WHERE id = $1 AND state <> 'stopped'");
    Ok(client.execute_typed(&sql, &[(&worker.0, Type::UUID)])? == 1)
}

/// Reports a safe head, for operators to see. No worker relies on it: other programs may have
/// written it.
pub(crate) fn report_safe_head(
    client: &mut Client,
    names: &Names,
    worker: WorkerId,
    head: i64,
) -> Result<(), postgres::Error> {
    let sql = names.sql("UPDATE {workers} SET safe_head = greatest(safe_head, $2) WHERE id = $1");
    client.execute_typed(&sql, &[(&worker.0, Type::UUID), (&head, Type::INT8)])?;
    Ok(())
}

/// Records that the worker was asked to leave and finishes what it has begun: it gets no partition
/// of a new generation.
pub(crate) fn mark_stopping(client: &mut Client, names: &Names, worker: WorkerId) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {workers} SET state = 'stopping', last_heartbeat = clock_timestamp() WHERE id = $1 AND state <> 'stopped'",
    );
    client.execute_typed(&sql, &[(&worker.0, Type::UUID)])?;
    Ok(())
}

/// Records that the worker has left for good.
pub(crate) fn mark_left(tx: &mut Transaction<'_>, names: &Names, worker: WorkerId) -> Result<(), postgres::Error> {
    stop(tx, names, worker, "left")
}

fn stop(tx: &mut Transaction<'_>, names: &Names, worker: WorkerId, reason: &str) -> Result<(), postgres::Error> {
    let sql = names.sql(
        "UPDATE {workers} SET state = 'stopped', partition_key = -1, stopped_at = clock_timestamp(), stop_reason = $2
         WHERE id = $1 AND state <> 'stopped'",
    );
    tx.execute_typed(&sql, &[(&worker.0, Type::UUID), (&reason, Type::TEXT)])?;
    Ok(())
}

/// Applies an action of `plan` for this worker, under the replica set's lock. Returns the outcome
/// if the action was a command that has one now. If a log line is due, logs the sessions that had
/// to be ended but could not.
pub(crate) fn apply(
    tx: &mut Transaction<'_>,
    names: &Names,
    worker: &Registration,
    action: &Action,
    unended: &mut Mentions,
) -> Result<Option<Outcome>, Error> {
    let replica_set = worker.replica_set.as_str();
    let doing = "changing the generation";
    match action {
        Action::NoteSessionLost(worker) => note_session(tx, names, *worker, "clock_timestamp()"),
        Action::NoteSessionRegained(worker) => note_session(tx, names, *worker, "NULL"),
        Action::Evict(worker, death) => evict(tx, names, replica_set, *worker, *death, unended),
        Action::CreateGeneration { number, cause, members } => {
            create_generation(tx, names, replica_set, *number, *cause, members)
        }
        Action::Activate { number, deals } => {
            return activate(tx, names, replica_set, *number, deals, unended).map(|()| None);
        }
        Action::Deal { generation, deal } => {
            return deal::apply(tx, names, replica_set, *generation, std::slice::from_ref(deal)).map(|()| None);
        }
        Action::Begin(projection) => checkpoints::begin_again(tx, names, worker, projection),
        Action::Withdraw(projection, fault) => deal::withdraw(tx, names, replica_set, projection, *fault),
        Action::Command { id, projection, generation, effect, .. } => {
            // A frozen process may hold the lock of a checkpoint.
            end_sessions_of_evicted(tx, names, replica_set, unended).map_err(Error::database(doing))?;
            let target = Target { id: *id, projection, replica_set, generation: *generation };
            return commands::apply(tx, names, target, effect);
        }
    }
    .map(|()| None)
    .map_err(Error::database(doing))
}

fn note_session(tx: &mut Transaction<'_>, names: &Names, worker: WorkerId, at: &str) -> Result<(), postgres::Error> {
    let sql = names.sql_with("UPDATE {workers} SET session_lost_at = {at} WHERE id = $1", &[("at", &at)]);
    tx.execute_typed(&sql, &[(&worker.0, Type::UUID)])?;
    Ok(())
}

fn evict(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    worker: WorkerId,
    death: Death,
    unended: &mut Mentions,
) -> Result<(), postgres::Error> {
    stop(tx, names, worker, death.as_str())?;
    end_sessions_of_evicted(tx, names, replica_set, unended)
}

/// Ends the database sessions of evicted workers, if this user has the privilege. Otherwise a
/// frozen process keeps its row locks, and with them the checkpoints, until the server finds that
/// its transaction has been idle for too long. A worker that is not frozen detects that it was
/// evicted, and opens its connections again.
fn end_sessions_of_evicted(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    unended: &mut Mentions,
) -> Result<(), postgres::Error> {
    let sql = names.sql_with(
        "SELECT w.id, l.pid, r.rolname::text, CASE WHEN {may_end} THEN pg_terminate_backend(l.pid) END
         FROM pg_locks l JOIN {workers} w ON {is_of_worker}
         JOIN pg_stat_activity a ON a.pid = l.pid JOIN pg_roles r ON r.oid = a.usesysid
         JOIN pg_roles me ON me.rolname = current_user
         WHERE {is_advisory} AND w.replica_set = $1 AND w.state = 'stopped' AND w.stop_reason <> 'left'
         AND l.pid <> pg_backend_pid()",
        &[("is_of_worker", &IS_OF_WORKER), ("is_advisory", &IS_ADVISORY), ("may_end", &MAY_END)],
    );
    let rows = tx.query_typed(&sql, &[(&replica_set, Type::TEXT)])?;
    let kept: BTreeMap<i32, (Uuid, &str)> = rows
        .iter()
        .filter(|row| row.get::<_, Option<bool>>(3).is_none())
        .map(|row| (row.get(1), (row.get(0), row.get(2))))
        .collect();
    if !kept.is_empty() && unended.is_due() {
        for (pid, (worker, user)) in kept {
            log::warn!(
                "session of an evicted worker cannot be ended: replica_set={replica_set} worker={worker} pid={pid} user={user}",
                replica_set = field(&replica_set),
                user = field(&user)
            );
        }
    }
    Ok(())
}

fn create_generation(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    number: i64,
    cause: Cause,
    members: &[WorkerId],
) -> Result<(), postgres::Error> {
    let replica_set_param: (&(dyn postgres::types::ToSql + Sync), Type) = (&replica_set, Type::TEXT);
    tx.execute_typed(
        &names.sql(
            "UPDATE {generations} SET state = 'superseded', superseded_at = clock_timestamp()
             WHERE replica_set = $1 AND state <> 'superseded'",
        ),
        std::slice::from_ref(&replica_set_param),
    )?;
    let ids: Vec<Uuid> = members.iter().map(|member| member.0).collect();
    tx.execute_typed(
        &names.sql(
            "INSERT INTO {generations} (replica_set, number, state, total_partitions, reason, created_at)
             VALUES ($1, $2, 'pending', cardinality($3), $4, clock_timestamp())",
        ),
        &[replica_set_param.clone(), (&number, Type::INT8), (&ids, Type::UUID_ARRAY), (&cause.as_str(), Type::TEXT)],
    )?;
    tx.execute_typed(
        &names.sql(
            "UPDATE {workers} w SET generation = $1, partition_key = member.k - 1, state = 'pending'
             FROM unnest($2) WITH ORDINALITY AS member (id, k) WHERE w.id = member.id",
        ),
        &[(&number, Type::INT8), (&ids, Type::UUID_ARRAY)],
    )?;
    tx.execute_typed(
        &names.sql("DELETE FROM {generations} WHERE replica_set = $1 AND number <= $2"),
        &[replica_set_param.clone(), (&(number - KEPT_GENERATIONS), Type::INT8)],
    )?;
    tx.execute_typed(
        &names.sql_with(
            "DELETE FROM {workers} WHERE replica_set = $1 AND state = 'stopped'
             AND stopped_at < clock_timestamp() - interval '{kept}'",
            &[("kept", &KEPT_STOPPED)],
        ),
        &[replica_set_param],
    )?;
    Ok(())
}

fn activate(
    tx: &mut Transaction<'_>,
    names: &Names,
    replica_set: &str,
    number: i64,
    deals: &[Deal],
    unended: &mut Mentions,
) -> Result<(), Error> {
    let doing = "activating the generation";
    // Repeated here, because an evicted process may have resumed for a moment, begun a batch, and
    // frozen again.
    end_sessions_of_evicted(tx, names, replica_set, unended).map_err(Error::database(doing))?;
    deal::apply(tx, names, replica_set, number, deals)?;
    let params: [(&(dyn postgres::types::ToSql + Sync), Type); 2] = [(&replica_set, Type::TEXT), (&number, Type::INT8)];
    let generations = names.sql(
        "UPDATE {generations} SET state = 'active', activated_at = clock_timestamp() WHERE replica_set = $1 AND number = $2",
    );
    let workers = names
        .sql("UPDATE {workers} SET state = 'running' WHERE replica_set = $1 AND generation = $2 AND state = 'ready'");
    tx.execute_typed(&generations, &params)
        .and_then(|_| tx.execute_typed(&workers, &params))
        .map(|_| ())
        .map_err(Error::database(doing))
}
