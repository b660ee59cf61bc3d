//! A projection of any kind, as the runner knows it.

use super::declared::{declaration, forwarded};
use super::resetting::{NoForget, NoReset};
use super::traits::{BatchProjection, Projection};
use crate::config::{OnFailure, Retry};
use crate::error::BoxError;
use crate::event::{Event, StreamId};
use crate::scope::{Scope, StartAt};
use crate::tx::Tx;

/// A projection of any kind.
pub(crate) trait Handler: Send + Sync {
    declaration!();

    /// Whether it may handle several events at once. If not, a failure is one of the first event.
    fn takes_many(&self) -> bool;

    /// As [`BatchProjection::handle_batch`].
    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError>;
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
    forwarded!();

    fn takes_many(&self) -> bool {
        false
    }

    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        match events.first() {
            Some(event) => self.0.handle(tx, event).map(|()| 1),
            None => Ok(0),
        }
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
    forwarded!();

    fn takes_many(&self) -> bool {
        true
    }

    fn handle(&self, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
        self.0.handle_batch(tx, events)
    }
}
