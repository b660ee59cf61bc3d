//! Clears the read model of a projection that is rewound: calls the projection's `reset`.
//!
//! No worker owns the projection's checkpoints meanwhile. The transaction in which `reset` has
//! worked locks the command and the checkpoints last, and moves the checkpoints: so both are
//! committed or none.

use std::time::Instant;

use super::failure::{DOING, Failure};
use super::{End, Errands};
use crate::error::{Error, field};
use crate::plan::Errand;
use crate::projection::{Handler, Refused, Work};
use crate::store::commands;
use crate::store::outcome::Outcome;
use crate::store::session::Session;
use crate::store::{fence, rewinding};
use crate::threads::caught;
use crate::tx::{About, KeptStatements, Memory, Tx};

const EFFECTS: &str = "it is a reaction, and would react to the events again: if that is intended, give the command with --repeat-effects";

/// The code that runs in the transaction, for messages.
const CODE: &str = "reset()";

impl Errands {
    pub(super) fn rewind(&self, errand: &Errand) -> Result<End, Failure> {
        let names = &self.context.names;
        let handler = &self.code_of(errand)?.handler;
        let mut session = self.session().map_err(|error| Failure::of_library(&error))?;
        let (asked, highest) = {
            let mut tx = session.transaction_without_policies().map_err(Failure::passing)?;
            let asked = rewinding::asked(&mut tx, names, errand.command).map_err(Failure::passing)?;
            let highest = rewinding::highest(&mut tx, names, &errand.projection).map_err(Failure::passing)?;
            tx.commit().map_err(Failure::passing)?;
            (asked, highest)
        };
        let Some(rewinding::Asked { position: to, repeats_effects }) = asked else { return Ok(End::Superseded) };
        let refused = if highest.is_none_or(|highest| highest <= to) {
            commands::not_above(highest, to)
        } else if matches!(handler.work(), Work::Reacts(_)) && !repeats_effects {
            Outcome::Refused(EFFECTS.to_owned())
        } else {
            match self.reset(&mut session, errand, &**handler, to) {
                Ok(end) => return Ok(end),
                Err(ResetFailure::Refused(why)) => Outcome::Refused(why),
                Err(ResetFailure::Other(failure)) => return Err(failure),
            }
        };
        self.conclude(&mut session, errand, refused).map_err(|error| Failure::of_library(&error))
    }

    /// Calls the projection's `reset`, and moves its checkpoints in the same transaction.
    fn reset(
        &self,
        session: &mut Session,
        errand: &Errand,
        handler: &dyn Handler,
        to: i64,
    ) -> Result<End, ResetFailure> {
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
        let reset =
            caught(|| handler.reset(&mut tx, to)).unwrap_or_else(|panic| Err(format!("it panicked: {panic}").into()));
        if let Err(error) = reset {
            if let Some(refused) = error.downcast_ref::<Refused>() {
                return Err(ResetFailure::Refused(refused.to_string()));
            }
            drop(tx);
            return Err(Failure::of_code(&*error, session.is_closed()).into());
        }
        let doing = || Error::database(DOING);
        let is_marked = fence::is_marked(&mut *tx, &mark);
        if !is_marked.map_err(|error| Failure::after_code(&doing()(error), CODE))? {
            return Err(Failure::Final(format!("{CODE} has ended the transaction that it was given")).into());
        }
        let worker = self.context.worker();
        let is_held =
            rewinding::rewind(&mut tx, &self.context.names, errand, worker, to, begun.elapsed().as_secs_f64())
                .map_err(|error| Failure::after_code(&error, CODE))?;
        if !is_held {
            return Ok(End::Superseded);
        }
        // A deferred constraint of the application may fail here.
        tx.commit().map_err(|error| Failure::after_code(&doing()(error), CODE))?;
        log::info!(
            "read model cleared: replica_set={} worker={worker} projection={} position={to}",
            field(&self.context.replica_set()),
            field(&errand.projection)
        );
        Ok(End::Executed)
    }
}

/// Why calling `reset` has not cleared the read model.
enum ResetFailure {
    /// The projection cannot.
    Refused(String),
    Other(Failure),
}

impl From<Failure> for ResetFailure {
    fn from(failure: Failure) -> Self {
        Self::Other(failure)
    }
}
