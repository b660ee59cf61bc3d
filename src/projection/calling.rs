//! How the library calls code of the application that handles events.

use super::guarded::{guarded, panicked};
use super::kinds::{Failed, Reacts, Writes};
use super::reaction::Call;
use crate::error::BoxError;
use crate::event::Event;
use crate::threads::caught;
use crate::tx::Tx;

/// Lets a handler handle events from the front of these, and returns how many. A panic is an error
/// of the handler, and so is a number that cannot be right.
pub(crate) fn handle(handler: &dyn Writes, tx: &mut Tx<'_>, events: &[Event]) -> Result<usize, Failed> {
    let count = caught(|| handler.handle(tx, events))
        .unwrap_or_else(|message| Err(Failed { error: panicked(&message), at: None }))?;
    checked(count, events).map_err(|error| Failed { error, at: None })
}

/// Lets a reaction react to events from the front of these, and returns to how many.
pub(crate) fn react(reaction: &dyn Reacts, call: &Call<'_>, events: &[Event]) -> Result<usize, BoxError> {
    checked(guarded(|| reaction.react(call, events))?, events)
}

fn checked(count: usize, events: &[Event]) -> Result<usize, BoxError> {
    match count {
        1.. if count <= events.len() => Ok(count),
        _ => Err(format!("the handler says that it has handled {count} of {} events", events.len()).into()),
    }
}
