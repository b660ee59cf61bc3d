//! Registers a worker: the last step of a start that can fail.

use std::time::Instant;

use super::deploying;
use super::reach::{elsewhere, settled};
use crate::backoff::Mentions;
use crate::context::Context;
use crate::database::{Database, Filling, Pool};
use crate::error::Error;
use crate::store::preflight::{self, Warning};
use crate::store::session::Session;
use crate::store::{Registration, coordination, folds, notifications, parked, sequence};
use crate::threads::Stop;

/// A worker that has been registered.
pub(super) struct Registered {
    /// The session that holds the "alive" lock.
    pub(super) session: Session,
    /// The first connections of the tailer and of the listener.
    pub(super) for_tailer: Session,
    pub(super) for_listener: Session,
    /// When the registration began.
    pub(super) begun: Instant,
    /// What an operator should know about the schema.
    pub(super) warnings: Vec<Warning>,
}

/// Verifies that the worker can use the database, and registers it unless it has been asked to
/// stop.
///
/// Asks for the replay of what is parked of the projections in `replayed`, if they belong to the
/// replica set. If the registration fails after that, other workers replay it.
///
/// It first opens all connections that the worker needs. Otherwise the worker would be given a
/// partition that it cannot process.
pub(super) fn register(
    context: &Context,
    registration: &Registration,
    (pool, owner): (&Pool, Option<&Database>),
    up_to: Option<i64>,
    replayed: &[String],
) -> Result<Option<Registered>, Error> {
    // Until the next attempt, other workers may need the connections that this worker has got.
    verify_and_register(context, registration, (pool, owner), up_to, replayed).inspect_err(|_| pool.close_idle())
}

fn verify_and_register(
    context: &Context,
    registration: &Registration,
    (pool, owner): (&Pool, Option<&Database>),
    up_to: Option<i64>,
    replayed: &[String],
) -> Result<Option<Registered>, Error> {
    let begun = Instant::now();
    let mut client = context.database.open()?;
    preflight::server(&mut client)?;
    // Opening a connection takes several round trips, so these are opened at the same time.
    let [other, for_listener] = [(); 2].map(|()| {
        let database = context.database.clone();
        elsewhere("pup-open", move || database.open())
    });
    let (mut other, for_listener) = (settled(&other?)?, settled(&for_listener?)?);
    // Nothing else may use a connection meanwhile: a pooler would give it the session that this
    // expects to get.
    preflight::pooler(&mut client, &mut other, registration.sessions)?;
    let mut filling = Filling::begin(pool);
    // Read before the library sets its own path, because handlers use this one.
    let path = preflight::path(&mut client)?;
    let folds: Vec<_> = registration.projections.iter().filter_map(|known| known.fold.clone()).collect();
    folds::verify(&mut client, &folds)?;
    let set_up =
        |client| Session::new(client, registration.sessions).map_err(Error::database("setting the session up"));
    let (mut session, for_tailer) = (set_up(client)?.with_generic_plans()?, set_up(other)?);
    let warnings = preflight::schema(&mut session, &context.names, &path, &registration.projections)?;
    let for_listener = set_up(for_listener)?;
    fill(&mut filling, pool, &context.stop)?;
    if context.stop.is_raised() {
        return Ok(None);
    }
    deploying::verify(&mut session, context, registration, pool, owner)?;
    if let Some(up_to) = up_to {
        context.goal.set(goal(&mut session, context, up_to)?);
    }
    // The runners load what is parked only after this worker has become a member. So this one and
    // the others replay at once.
    if !replayed.is_empty() {
        let projections: Vec<&str> = replayed.iter().map(String::as_str).collect();
        session
            .run(|client| parked::request_all(client, &context.names, &registration.replica_set, &projections))
            .map_err(Error::database("requesting the replay of what is parked"))?;
    }
    coordination::register(&mut session, &context.names, registration)?;
    notifications::notify_coordination(
        &mut session,
        &context.names,
        &registration.replica_set,
        &mut Mentions::default(),
    );
    Ok(Some(Registered { session, for_tailer, for_listener, begun, warnings }))
}

/// Waits until all connections of the pool are open, unless the worker is asked to stop.
fn fill(filling: &mut Filling, pool: &Pool, stop: &Stop) -> Result<(), Error> {
    while let Err(error) = filling.step(pool) {
        if stop.is_raised() {
            break;
        }
        if filling.is_stuck() {
            return Err(error);
        }
    }
    Ok(())
}

/// Returns the last position that can be reached now, at most `up_to`. No checkpoint moves beyond
/// the newest event, or beyond the last position that the sequence has assigned.
fn goal(session: &mut Session, context: &Context, up_to: i64) -> Result<i64, Error> {
    let (newest, last) = session
        .run(|client| sequence::positions(client, &context.names))
        .map_err(Error::database("reading the newest position"))?;
    let reachable = last.map_or(newest, |last| newest.min(last));
    Ok(up_to.min(reachable))
}
