//! A failure that passes by itself.

use std::fmt;

use crate::error::BoxError;

/// A failure that passes by itself: a service that the handler needs is away. A handler returns it,
/// or an error whose [source](std::error::Error::source) it is. The event is retried without limit,
/// after the delays of [`Retry`](crate::Retry), and no attempt is counted.
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
///         let address = std::str::from_utf8(event.payload())?; // counts: no attempt will make it an address
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
    /// Says that this failure passes by itself.
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
