//! The settings of one projection.

use std::time::Duration;

use super::on_failure::OnFailure;
use super::retry::Retry;
use crate::store::events::Bounds;

/// The settings of one projection. What is not set comes from the [builder](crate::Builder).
///
/// A projection states its own with [`options`](crate::Projection::options), and the program that
/// runs it can change them with [`Builder::projection_with`](crate::Builder::projection_with):
///
/// ```
/// # use pupsourcing_orchestrator::{BoxError, Builder, Event, Projection, Tx};
/// # struct Invoices;
/// # impl Projection for Invoices {
/// #     fn name(&self) -> &str { "invoices" }
/// #     fn handle(&self, _: &mut Tx<'_>, _: &Event) -> Result<(), BoxError> { Ok(()) }
/// # }
/// # fn add(builder: Builder) -> Builder {
/// builder.projection_with(Invoices, |options| options.lanes(4).rate(1_000))
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "the methods return the changed settings"]
pub struct Options {
    pub(super) batch_size: Option<usize>,
    pub(super) batch_time: Option<Duration>,
    pub(super) lanes: Option<usize>,
    pub(super) rate: Option<u32>,
    pub(super) in_flight: Option<usize>,
    pub(super) retry: Option<Retry>,
    pub(super) on_failure: Option<OnFailure>,
}

impl Options {
    /// The maximum number of events in one transaction, or in one call of a reaction. Defaults to
    /// [`Builder::batch_size`](crate::Builder::batch_size).
    pub fn batch_size(mut self, events: usize) -> Self {
        self.batch_size = Some(events);
        self
    }

    /// How long the handler may take in one transaction. Defaults to
    /// [`Builder::batch_time`](crate::Builder::batch_time). It does not concern reactions.
    pub fn batch_time(mut self, time: Duration) -> Self {
        self.batch_time = Some(time);
        self
    }

    /// The number of lanes into which a worker divides its part of the projection. Defaults to
    /// [`Builder::lanes`](crate::Builder::lanes).
    pub fn lanes(mut self, number: usize) -> Self {
        self.lanes = Some(number);
        self
    }

    /// The maximum number of events per second, of all workers together, at least 1. Each worker
    /// has the part of it that belongs to its keys. Defaults to no limit; a rebuild has a rate of
    /// its own.
    pub fn rate(mut self, events_per_second: u32) -> Self {
        self.rate = Some(events_per_second);
        self
    }

    /// How many events a reaction may handle at the same time, each of another aggregate, in one
    /// lane: 1 to 256. Only a [reaction](crate::Reaction) can have it. Defaults to 1.
    pub fn in_flight(mut self, events: usize) -> Self {
        self.in_flight = Some(events);
        self
    }

    /// How the projection is retried when it fails. Defaults to
    /// [`Builder::retry`](crate::Builder::retry).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// What happens when the attempts at an event are used up. Defaults to
    /// [`Builder::on_failure`](crate::Builder::on_failure).
    pub fn on_failure(mut self, policy: OnFailure) -> Self {
        self.on_failure = Some(policy);
        self
    }
}

/// The settings with which one projection runs.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) bounds: Bounds,
    pub(crate) batch_time: Duration,
    pub(crate) lanes: usize,
    pub(crate) rate: Option<u32>,
    pub(crate) in_flight: usize,
    pub(crate) retry: Retry,
    pub(crate) on_failure: OnFailure,
}
