//! How the library calls a handler.

use super::kinds::Handler;
use crate::error::BoxError;
use crate::event::Event;
use crate::threads::caught;
use crate::tx::Tx;

/// Lets a handler handle events from the front of these, and returns how many. A panic is an error
/// of the handler, and so is a number that cannot be right.
pub(crate) fn call(handler: &dyn Handler, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, BoxError> {
    let outcome = caught(|| handler.handle(tx, events))
        .unwrap_or_else(|message| Err(format!("the handler panicked: {message}").into()));
    outcome.and_then(|count| match count {
        1.. if count <= events.len() => Ok(count),
        _ => Err(format!("handle_batch() says it handled {count} of {} events", events.len()).into()),
    })
}
