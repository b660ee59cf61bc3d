//! The settings of one projection.

use std::time::Duration;

use super::on_failure::OnFailure;
use super::retry::Retry;
use super::{Config, MAX_IN_FLIGHT};
use crate::error::Error;
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
    batch_size: Option<usize>,
    batch_time: Option<Duration>,
    lanes: Option<usize>,
    rate: Option<u32>,
    in_flight: Option<usize>,
    retry: Option<Retry>,
    on_failure: Option<OnFailure>,
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

impl Settings {
    /// The options of a projection, completed from those of the worker. Refuses what is out of
    /// bounds.
    pub(crate) fn new(options: &Options, config: &Config, projection: &str, reacts: bool) -> Result<Self, Error> {
        let named = |field: &str| format!("{field} of projection {projection:?}");
        let own = Config {
            batch_size: options.batch_size.unwrap_or(config.batch_size),
            batch_time: options.batch_time.unwrap_or(config.batch_time),
            lanes: options.lanes.unwrap_or(config.lanes),
            on_failure: options.on_failure.unwrap_or(config.on_failure),
            retry: options.retry.clone().unwrap_or_else(|| config.retry.clone()),
            ..config.clone()
        };
        own.validate_options().map_err(|error| match error {
            Error::InvalidConfig { field, value, problem } => Error::config(named(&field), value, problem),
            error => error,
        })?;
        if options.rate == Some(0) {
            let problem = "it must be at least 1; to stop a projection, pause it";
            return Err(Error::config(named("rate"), "0", problem));
        }
        let in_flight = options.in_flight.unwrap_or(1);
        if !(1..=MAX_IN_FLIGHT).contains(&in_flight) {
            let problem = format!("it must be between 1 and {MAX_IN_FLIGHT}");
            return Err(Error::config(named("in_flight"), in_flight.to_string(), problem));
        }
        if options.in_flight.is_some() && !reacts {
            let problem = "only a reaction can have it: lanes let other projections handle several events at once";
            return Err(Error::config(named("in_flight"), in_flight.to_string(), problem));
        }
        Ok(Self {
            bounds: own.bounds(),
            batch_time: own.batch_time,
            lanes: own.lanes,
            rate: options.rate,
            in_flight,
            retry: own.retry,
            on_failure: own.on_failure,
        })
    }
}
