//! Rebuilds the rows of one aggregate: calls the projection's `forget`, and lets its handler handle
//! the events of the aggregate again, in the same transaction.
//!
//! Meanwhile, other aggregates are handled as usual, and the later events of this one wait: see
//! [`forgetting`]. The transaction also records that the command is done. So both are committed or
//! none, and if another worker has taken over, none.

use std::time::Instant;

use serde_json::json;
use uuid::Uuid;

use super::failure::{DOING, Failure};
use super::{Code, End, Errands};
use crate::error::{BoxError, Error, field};
use crate::event::{Event, StreamId};
use crate::plan::Errand;
use crate::projection::{self, Failed, Handler, NO_READ_MODEL, Refused, Work as Handling, Writes};
use crate::scope::StartAt;
use crate::store::forgetting::{Begun, Work};
use crate::store::outcome::Outcome;
use crate::store::parked::Waiting;
use crate::store::rebuilds::STARTS_AT_END;
use crate::store::session::Session;
use crate::store::{execution, fence, forgetting, parked};
use crate::threads::caught;
use crate::tx::{About, KeptStatements, Memory, Tx};

/// The code that runs in the transaction, for messages.
const CODE: &str = "forget() or the handler";

/// The most events that are in memory at once, and the most of their bytes unless one event has
/// more.
const PORTION: usize = 500;
const PORTION_BYTES: usize = 4 << 20;

impl Errands {
    pub(super) fn rebuild_aggregate(&self, errand: &Errand) -> Result<End, Failure> {
        let Code { handler, known } = self.code_of(errand)?;
        let Handling::Writes(writer) = handler.work() else {
            return self.refuse(errand, NO_READ_MODEL.to_owned());
        };
        let start = match known.start_at {
            StartAt::Beginning => 0,
            StartAt::Position(position) => position,
            StartAt::End => return self.refuse(errand, STARTS_AT_END.to_owned()),
        };
        // The events are read on a connection of its own, because the other one has the settings of
        // the application.
        let mut reader = self.context.open().map_err(|error| Failure::of_library(&error))?;
        let mut tx = reader.transaction().map_err(Failure::passing)?;
        let (names, worker) = (&self.context.names, self.context.worker());
        let is_held = forgetting::lock_projection(&mut tx, names, &errand.projection).map_err(Failure::passing)?
            && execution::hold(&mut tx, names, errand, worker).map_err(Failure::passing)?;
        if !is_held {
            return Ok(End::Superseded);
        }
        let work = match forgetting::begin(&mut tx, names, errand, known, start).map_err(Failure::passing)? {
            Begun::Ready(work) => work,
            Begun::Refused(why) => {
                drop(tx);
                return self.refuse(errand, why);
            }
        };
        tx.commit().map_err(Failure::changing)?;
        self.notify(&mut reader);
        let mut session = self.session().map_err(|error| Failure::of_library(&error))?;
        let outcome = match self.forget_and_handle(&mut session, &mut reader, errand, (&**handler, writer), &work) {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return Ok(End::Superseded),
            Err(Stop::Refused(why)) => return self.refuse(errand, why),
            Err(Stop::Failed(failure)) => return Err(failure),
            Err(Stop::Code(error)) => return Err(Failure::of_code(&*error, session.is_closed())),
        };
        log::info!(
            "aggregate rebuilt: replica_set={} worker={worker} projection={} aggregate={} events={}",
            field(&self.context.replica_set()),
            field(&errand.projection),
            field(&work.stream.to_string()),
            work.events.len()
        );
        self.notify(&mut reader);
        Ok(End::Concluded(outcome))
    }

    /// Replaces the rows of the aggregate, and records that the command is done. Returns `None` if
    /// another worker has taken over.
    fn forget_and_handle(
        &self,
        session: &mut Session,
        reader: &mut Session,
        errand: &Errand,
        (handler, writer): (&dyn Handler, &dyn Writes),
        work: &Work,
    ) -> Result<Option<Outcome>, Stop> {
        let begun = Instant::now();
        let (mut kept, mut memory) = (KeptStatements::default(), Memory::default());
        let is_pause_requested = || self.context.stop.is_raised();
        let about = About {
            projection: &errand.projection,
            generation: 0,
            is_replay: true,
            is_pause_requested: &is_pause_requested,
        };
        let transaction = session.transaction().map_err(Failure::passing)?;
        let mut tx = Tx::new(transaction, &mut kept, &mut memory, about);
        let mark = fence::mark(&mut tx, self.context.sessions, self.idle_limit, None).map_err(Failure::passing)?;
        forget(&mut tx, handler, work)?;
        for portion in portions(&work.events) {
            let events = self.read(reader, portion)?;
            self.handle(&mut tx, writer, &events)?;
        }
        let after = |error| Failure::after_code(&Error::database(DOING)(error), CODE);
        if !fence::is_marked(&mut *tx, &mark).map_err(after)? {
            return Err(Failure::Final(format!("{CODE} has ended the transaction that it was given")).into());
        }
        if tx.was_outdated() {
            return Err(Failure::Interrupted("a kept statement is outdated".to_owned()).into());
        }
        let StreamId { bounded_context, aggregate_type, aggregate_id } = &work.stream;
        let outcome = Outcome::Done(json!({
            "aggregate": [bounded_context, aggregate_type, aggregate_id], "events": work.events.len(), "position": work.upto,
            "seconds": begun.elapsed().as_secs_f64(),
        }));
        let (names, worker) = (&self.context.names, self.context.worker());
        if !forgetting::release(&mut tx, names, &errand.projection, errand.command, true).map_err(after)? {
            // Events that were not among these may have been handled meanwhile.
            return Err(Failure::Interrupted("the row that lets later events wait was deleted".to_owned()).into());
        }
        if !execution::conclude(&mut tx, names, errand, worker, &outcome).map_err(after)? {
            return Ok(None);
        }
        // A deferred constraint of the application may fail here.
        tx.commit().map_err(after)?;
        Ok(Some(outcome))
    }

    fn read(&self, reader: &mut Session, portion: &[Waiting]) -> Result<Vec<Event>, Failure> {
        let mut tx = reader.transaction().map_err(Failure::passing)?;
        let events = parked::read(&mut tx, &self.context.names, portion).map_err(Failure::passing)?;
        tx.commit().map_err(Failure::passing)?;
        if events.len() != portion.len() {
            return Err(Failure::Interrupted("events of the aggregate were deleted while they were read".to_owned()));
        }
        Ok(events)
    }

    fn handle(&self, tx: &mut Tx<'_>, handler: &dyn Writes, events: &[Event]) -> Result<(), Stop> {
        let mut rest = events;
        while let Some(first) = rest.first() {
            if self.context.stop.is_raised() {
                return Err(Failure::Interrupted("the worker stops".to_owned()).into());
            }
            let count = projection::handle(handler, tx, rest).map_err(|Failed { error: source, .. }| {
                let (position, id) = (first.global_position(), first.event_id());
                Stop::Code(Box::new(FailedFrom { position, id, source }))
            })?;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Why the rows of the aggregate were not replaced.
enum Stop {
    /// The projection cannot.
    Refused(String),
    /// Code of the application has returned an error.
    Code(BoxError),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// The error of a handler, with the first event that it was given.
#[derive(Debug, thiserror::Error)]
#[error("from the event at global position {position} (event {id}) on")]
struct FailedFrom {
    position: i64,
    id: Uuid,
    source: BoxError,
}

/// Calls the projection's `forget`.
fn forget(tx: &mut Tx<'_>, handler: &dyn Handler, work: &Work) -> Result<(), Stop> {
    let forgotten = caught(|| handler.forget(tx, &work.stream))
        .unwrap_or_else(|panic| Err(format!("forget() panicked: {panic}").into()));
    forgotten.map_err(|error| match error.downcast_ref::<Refused>() {
        Some(refused) => Stop::Refused(refused.to_string()),
        None => Stop::Code(error),
    })
}

/// Divides events into portions that are read at once.
fn portions(events: &[Waiting]) -> Vec<&[Waiting]> {
    let mut portions = Vec::new();
    let mut rest = events;
    while !rest.is_empty() {
        let mut total = 0_usize;
        let fits = rest.iter().take(PORTION).take_while(|event| {
            total = total.saturating_add(event.weight);
            total <= PORTION_BYTES
        });
        let (portion, others) = rest.split_at(fits.count().max(1));
        portions.push(portion);
        rest = others;
    }
    portions
}
