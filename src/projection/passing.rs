//! A failure that passes by itself.

use std::fmt;

use crate::error::BoxError;

/// A failure that passes by itself, for example because a service that the handler needs is not
/// available. A handler returns it, or an error that has it as a
/// [source](std::error::Error::source). The event is retried without limit, after the delays of
/// [`Retry`](crate::Retry), and no attempt is counted.
///
/// ```
/// use pupsourcing_orchestrator::{BoxError, Event, Passing, Projection, Tx};
///
/// struct Mails;
///
/// impl Projection for Mails {
///     fn name(&self) -> &str {
///         "mails"
///     }
///
///     fn handle(&self, _: &mut Tx<'_>, event: &Event) -> Result<(), BoxError> {
///         // This failure counts as an attempt: no retry turns the payload into an address.
///         let address = std::str::from_utf8(event.payload())?;
///         send(address).map_err(Passing::new)?;
///         Ok(())
///     }
/// }
///
/// fn send(address: &str) -> std::io::Result<()> {
///     // ...
/// #   Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Passing(BoxError);

impl Passing {
    /// Marks a failure as one that passes by itself.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Passing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Passing {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}
