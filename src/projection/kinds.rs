//! A projection of any kind, as the library knows it.

use super::declared::{declare, forward};
use super::guarded::guarded;
use super::reaction::{Call, Reaction};
use super::refused::Refused;
use super::traits::{BatchProjection, Projection};
use crate::config::Options;
use crate::error::BoxError;
use crate::event::{Event, StreamId};
use crate::scope::{Scope, StartAt};
use crate::store::folds::FoldTable;
use crate::tx::Tx;

/// A projection of any kind.
pub(crate) trait Handler: Send + Sync {
    declare!(named);
    declare!(starting at the beginning);
    declare!(built);
    declare!(owner);

    /// How it handles events.
    fn work(&self) -> Work<'_>;

    /// The table that the library creates and writes, if it is a fold.
    fn fold_table(&self) -> Option<&FoldTable> {
        None
    }
}

/// How a projection handles events.
#[derive(Clone, Copy)]
pub(crate) enum Work<'a> {
    /// It writes in the transaction that moves the checkpoint.
    Writes(&'a dyn Writes),
    /// It has effects outside of the database, and is given no transaction.
    Reacts(&'a dyn Reacts),
}

pub(crate) trait Writes: Send + Sync {
    /// As [`BatchProjection::handle_batch`].
    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, Failed>;
}

pub(crate) trait Reacts: Send + Sync {
    /// As [`Reaction::react`].
    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError>;
}

/// The error of a handler.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: BoxError,
    /// How many of the events that it was given come before the one that it failed at. `None` if
    /// that is not known, because it was given several and handled them together.
    pub(crate) at: Option<usize>,
}

/// A projection that handles events one by one.
pub(crate) struct Each<P>(pub(crate) P);

impl<P: Projection> std::ops::Deref for Each<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.0
    }
}

impl<P: Projection> Handler for Each<P> {
    forward!(named);
    forward!(built);
    forward!(owner);

    fn work(&self) -> Work<'_> {
        Work::Writes(self)
    }
}

impl<P: Projection> Writes for Each<P> {
    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, Failed> {
        let Some(event) = events.first() else { return Ok(0) };
        guarded(|| self.0.handle(tx, event)).map(|()| 1).map_err(|error| Failed { error, at: Some(0) })
    }
}

/// A projection that handles many events at once.
pub(crate) struct Batches<P>(pub(crate) P);

impl<P: BatchProjection> std::ops::Deref for Batches<P> {
    type Target = P;

    fn deref(&self) -> &P {
        &self.0
    }
}

impl<P: BatchProjection> Handler for Batches<P> {
    forward!(named);
    forward!(built);
    forward!(owner);

    fn work(&self) -> Work<'_> {
        Work::Writes(self)
    }
}

impl<P: BatchProjection> Writes for Batches<P> {
    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, Failed> {
        self.0.handle_batch(tx, events).map_err(|error| Failed { error, at: None })
    }
}

/// Why what concerns read models is refused for a reaction.
pub(crate) const NO_READ_MODEL: &str = "it is a reaction, which has no read model";

/// A reaction. It has no read model, so what concerns read models is refused.
pub(crate) struct Effects<R>(pub(crate) R);

impl<R: Reaction> std::ops::Deref for Effects<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0
    }
}

impl<R: Reaction> Handler for Effects<R> {
    forward!(named);

    /// There is nothing to clear. Whether its effects may be repeated is decided before.
    fn reset(&self, _: &mut Tx<'_>, _: i64) -> Result<(), BoxError> {
        Ok(())
    }

    fn forget(&self, _: &mut Tx<'_>, _: &StreamId) -> Result<(), BoxError> {
        Err(Box::new(Refused::new(NO_READ_MODEL)))
    }

    fn work(&self) -> Work<'_> {
        Work::Reacts(self)
    }
}

impl<R: Reaction> Reacts for Effects<R> {
    fn react(&self, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.0.react(call, events)
    }
}
