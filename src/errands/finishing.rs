//! Finishes a rebuild: lets it become level with the live projection, and switches.
//!
//! ```text
//! catch up (no rate limit) ─► vacuum ─► follow (the live one goes no further) ─► level
//!                          ─► older snapshots end ─► switch
//! ```
//!
//! If something is in the way for too long, the switch is put off, and its reason is recorded.
//! Until then, it has changed nothing that a reader sees.

use std::time::{Duration, Instant};

use postgres::Transaction;

use super::failure::{DOING, Failure};
use super::{End, Errands};
use crate::backoff::Backoff;
use crate::error::{Error, field};
use crate::plan::{Errand, WorkerId};
use crate::store::Names;
use crate::store::read_model::{self, Refusal};
use crate::store::rebuilds::snapshots::{self, Snapshot};
use crate::store::rebuilds::{self, Gap, Rebuild, Switched};
use crate::store::session::Session;

/// How long each of the waits may take: for the rebuild to catch up, for older snapshots to end,
/// for the lock.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the live projection may wait for the rebuild.
const LEVEL_PATIENCE: Duration = Duration::from_secs(5);
/// What is in the way for longer than this is shown to operators.
const SHOWN_AFTER: Duration = Duration::from_secs(1);
/// How soon to try to lock the tables again. Each attempt delays readers a little.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(3);
/// How often to look meanwhile.
const POLL: Duration = Duration::from_millis(10);
/// A rebuild that is this many positions behind passes the live projection within milliseconds.
const CLOSE: i64 = 50;
/// If it does not get so close, because many events arrive, it is close enough for this after a
/// while: the live projection waits a little longer for it.
const CLOSE_ENOUGH: i64 = 1_000;
const CLOSE_ENOUGH_AFTER: Duration = Duration::from_secs(5);
/// When to try again after the switch was put off.
const PUT_OFF: Duration = Duration::from_secs(10);

/// What a wait has led to.
enum Waited {
    Over(Gap),
    /// The time is over, for this reason.
    NotNow(String),
    /// Another worker has taken over, the rebuild was cancelled, or another errand comes first.
    Superseded,
}

/// Returns early unless the wait is over.
macro_rules! waited {
    ($self:ident, $errand:ident, $waited:expr) => {
        match $waited {
            Waited::Over(gap) => gap,
            Waited::NotNow(why) => {
                return $self.put_off($errand, &why).map_err(|error| Failure::of_library(&error));
            }
            Waited::Superseded => return Ok(End::Superseded),
        }
    };
}

impl Errands {
    pub(super) fn finish(&self, errand: &Errand) -> Result<End, Failure> {
        let names = &self.context.names;
        let mut session = self.session_of_owner().map_err(|error| Failure::of_library(&error))?;
        let found = session.run(|client| rebuilds::current(client, names, &errand.projection));
        let Some(rebuild) = found.map_err(Failure::passing)? else { return Ok(End::Superseded) };
        if !self.step(&mut session, errand, rebuilds::catch_up)? {
            return Ok(End::Superseded);
        }
        waited!(self, errand, self.wait_for(&mut session, errand, PATIENCE, is_close)?);
        // Readers are to find them in order from the first moment.
        rebuilds::vacuum(session.client(), &rebuild).map_err(Failure::changing)?;
        waited!(self, errand, self.wait_for(&mut session, errand, PATIENCE, is_close)?);
        if !self.step(&mut session, errand, rebuilds::follow)? {
            return Ok(End::Superseded);
        }
        let is_level = |gap: &Gap| !gap.is_behind && !gap.parked_only;
        let level = waited!(self, errand, self.wait_for(&mut session, errand, LEVEL_PATIENCE, |gap, _| is_level(gap))?);
        if !rebuild.copies_content {
            waited!(self, errand, self.wait_for_snapshots(&mut session, errand, level)?);
        }
        self.switch_soon(&mut session, errand, &rebuild, level.token)
    }

    /// Takes a step in a transaction of its own, and tells the other workers.
    fn step(
        &self,
        session: &mut Session,
        errand: &Errand,
        step: impl FnOnce(&mut Transaction<'_>, &Names, &Errand, WorkerId) -> Result<bool, postgres::Error>,
    ) -> Result<bool, Failure> {
        let mut tx = session.transaction().map_err(Failure::passing)?;
        let is_held = step(&mut tx, &self.context.names, errand, self.context.worker()).map_err(Failure::changing)?;
        tx.commit().map_err(Failure::changing)?;
        self.notify(session);
        Ok(is_held)
    }

    /// Waits until the gap between the rebuild and the live projection is as it should be.
    fn wait_for(
        &self,
        session: &mut Session,
        errand: &Errand,
        patience: Duration,
        is_enough: impl Fn(&Gap, Duration) -> bool,
    ) -> Result<Waited, Failure> {
        let (begun, names) = (Instant::now(), &self.context.names);
        loop {
            let gap =
                session.run(|client| rebuilds::gap(client, names, &errand.projection)).map_err(Failure::passing)?;
            if is_enough(&gap, begun.elapsed()) {
                return Ok(Waited::Over(gap));
            }
            if begun.elapsed() > patience {
                let behind = gap.positions;
                return Ok(Waited::NotNow(format!(
                    "the rebuild is {behind} positions behind, and does not get closer"
                )));
            }
            if let Some(ended) = self.interrupted(session, errand)? {
                return Ok(ended);
            }
        }
    }

    /// Waits until the snapshots that are held now have ended. A reader that uses one of them would
    /// see less in the copies than it has seen in the live tables.
    fn wait_for_snapshots(&self, session: &mut Session, errand: &Errand, level: Gap) -> Result<Waited, Failure> {
        let begun = Instant::now();
        let mut held = session.run(snapshots::held).map_err(Failure::passing)?;
        let mut shown = None;
        while let Some(Snapshot { pid, whose, .. }) = held.first() {
            let why = || format!("{whose} reads with an older snapshot: let it end its transaction");
            if begun.elapsed() > PATIENCE {
                return Ok(Waited::NotNow(why()));
            }
            if begun.elapsed() > SHOWN_AFTER && shown.replace(*pid) != Some(*pid) {
                self.show_blocked(session, errand, &why())?;
            }
            if let Some(ended) = self.interrupted(session, errand)? {
                return Ok(ended);
            }
            held = session.run(|client| snapshots::still_held(client, held)).map_err(Failure::passing)?;
        }
        Ok(Waited::Over(level))
    }

    /// Shows to operators what the switch waits for.
    fn show_blocked(&self, session: &mut Session, errand: &Errand, why: &str) -> Result<(), Failure> {
        let mut tx = session.transaction().map_err(Failure::passing)?;
        // If the rebuild is not this worker's any more, that is found out next.
        _ = rebuilds::record_blocked(&mut tx, &self.context.names, errand, self.context.worker(), why)
            .map_err(Failure::passing)?;
        tx.commit().map_err(Failure::passing)
    }

    /// Waits briefly. Returns whether the wait is to end, because the worker has another errand, or
    /// because the rebuild is not its any more.
    fn interrupted(&self, session: &mut Session, errand: &Errand) -> Result<Option<Waited>, Failure> {
        if self.context.stop.wait(POLL) {
            return Err(Failure::Passing("the worker is asked to stop".to_owned()));
        }
        let is_held = session
            .run(|client| rebuilds::is_executed_by(client, &self.context.names, errand, self.context.worker()))
            .map_err(Failure::passing)?;
        // The coordinator orders the switch again afterwards.
        Ok((!is_held || !self.orders.is_empty()).then_some(Waited::Superseded))
    }

    /// Tries to switch until it succeeds, or for as long as it is worth it.
    fn switch_soon(
        &self,
        session: &mut Session,
        errand: &Errand,
        rebuild: &Rebuild,
        token: i64,
    ) -> Result<End, Failure> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(FIRST_RETRY, LAST_RETRY);
        loop {
            let why = match self.switch(session, errand, rebuild, token) {
                Ok(Switched::Done(outcome)) => {
                    self.notify(session);
                    return Ok(End::Concluded(outcome));
                }
                Ok(Switched::Superseded) => return Ok(End::Superseded),
                // Both have to become level again.
                Ok(Switched::NotNow(why)) => {
                    return self.put_off(errand, &why).map_err(|error| Failure::of_library(&error));
                }
                Err(error) if rebuilds::is_lock_busy(&error) => {
                    let oids = [rebuild.live_oids(), rebuild.copy_oids()].concat();
                    let holders = session.run(|client| snapshots::lock_holders(client, &oids));
                    let holders = holders.map_err(Failure::passing)?;
                    let holder = holders.first().map_or("another transaction was in the way", String::as_str);
                    format!("the tables could not be locked in time: {holder}")
                }
                Err(error) => return Err(Failure::of_change(&error)),
            };
            if begun.elapsed() > PATIENCE {
                return self.put_off(errand, &why).map_err(|error| Failure::of_library(&error));
            }
            if begun.elapsed() > SHOWN_AFTER {
                self.show_blocked(session, errand, &why)?;
            }
            if !self.orders.is_empty() {
                return Ok(End::Superseded);
            }
            if self.context.stop.wait(backoff.next_delay()) {
                return Err(Failure::Passing("the worker is asked to stop".to_owned()));
            }
        }
    }

    /// Tries once to switch.
    fn switch(&self, session: &mut Session, errand: &Errand, rebuild: &Rebuild, token: i64) -> Result<Switched, Error> {
        let (names, worker) = (&self.context.names, self.context.worker());
        let database = || Error::database(DOING);
        let old_schema = names.schema_of_old(errand.command);
        let mut tx = session.transaction().map_err(database())?;
        let kept = rebuild.keep_old.then_some(old_schema.as_str());
        rebuilds::lock_gently(&mut tx, rebuild).map_err(database())?;
        if let Some(why) = settled(read_model::verify(&mut tx, &rebuild.copies))? {
            return Ok(Switched::NotNow(why));
        }
        rebuilds::lock_copies(&mut tx, rebuild).map_err(database())?;
        let begun = Instant::now();
        if rebuild.copies_content {
            if let Some(why) = settled(read_model::replace(&mut tx, &rebuild.copies).map(drop))? {
                return Ok(Switched::NotNow(why));
            }
            read_model::remove(&mut tx, &rebuild.schema, &rebuild.copy_oids()).map_err(database())?;
        }
        if !rebuilds::hold(&mut tx, names, errand, worker).map_err(database())? {
            return Ok(Switched::Superseded);
        }
        if !rebuild.copies_content {
            rebuilds::lock_live(&mut tx, rebuild).map_err(database())?;
            if let Some(why) = settled(read_model::swap(&mut tx, &rebuild.copies, &old_schema))? {
                return Ok(Switched::NotNow(why));
            }
            if !rebuild.keep_old {
                read_model::remove(&mut tx, &old_schema, &rebuild.live_oids()).map_err(database())?;
            }
        }
        let switched = rebuilds::switch(&mut tx, names, errand, token, kept)?;
        if matches!(switched, Switched::Done(_)) {
            tx.commit().map_err(database())?;
            let pause = begun.elapsed();
            log::info!(
                "read model switched: replica_set={} worker={worker} projection={} pause={pause:?}",
                field(&self.context.replica_set()),
                field(&errand.projection)
            );
        }
        Ok(switched)
    }

    /// Lets the live projection go on without waiting for the rebuild, until the next attempt.
    pub(super) fn put_off(&self, errand: &Errand, why: &str) -> Result<End, Error> {
        let mut session = self.session_of_owner()?;
        let mut tx = session.transaction().map_err(Self::library_error)?;
        let (names, seconds) = (&self.context.names, PUT_OFF.as_secs_f64());
        let is_held = rebuilds::put_off(&mut tx, names, errand, self.context.worker(), why, seconds)
            .map_err(Self::library_error)?;
        tx.commit().map_err(Self::library_error)?;
        self.notify(&mut session);
        if !is_held {
            return Ok(End::Superseded);
        }
        log::warn!(
            "switch put off: replica_set={} worker={} projection={} retry_in={PUT_OFF:?} error={}",
            field(&self.context.replica_set()),
            self.context.worker(),
            field(&errand.projection),
            field(&why)
        );
        Ok(End::Executed)
    }
}

/// Whether the live projection can wait for the rebuild, after the rebuild has tried for so long to
/// get closer.
fn is_close(gap: &Gap, tried: Duration) -> bool {
    gap.positions <= if tried > CLOSE_ENOUGH_AFTER { CLOSE_ENOUGH } else { CLOSE }
}

/// Returns what the catalog does not allow, if it is that.
fn settled(outcome: Result<(), Refusal>) -> Result<Option<String>, Error> {
    match outcome {
        Ok(()) => Ok(None),
        Err(Refusal::Database(error)) => Err(Error::database(DOING)(error)),
        Err(refusal) => Ok(Some(refusal.to_string())),
    }
}
