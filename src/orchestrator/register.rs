//! Registers a worker: the last step of a start that can fail.

use std::time::Instant;

use crate::context::Context;
use crate::error::Error;
use crate::store::preflight::{self, Warning};
use crate::store::session::Session;
use crate::store::{Registration, coordination};

/// A worker that has been registered.
pub(super) struct Registered {
    /// The session that holds the "alive" lock.
    pub(super) session: Session,
    /// When the registration began.
    pub(super) begun: Instant,
    /// What an operator should know of the schema.
    pub(super) warnings: Vec<Warning>,
}

/// Verifies that the worker can work there, and registers it, unless it has been asked to stop.
pub(super) fn register(context: &Context, registration: &Registration) -> Result<Option<Registered>, Error> {
    let begun = Instant::now();
    // Read before the library sets its own path: handlers will have this one.
    let mut client = context.database.client()?;
    preflight::server(&mut client)?;
    let path = preflight::path(&mut client)?;
    let session = Session::of(client, registration.sessions)?;
    let mut session = session.hold_alive()?;
    let warnings = preflight::schema(&mut session, &context.names, &path)?;
    if context.stop.is_raised() {
        return Ok(None);
    }
    coordination::register(&mut session, &context.names, registration)?;
    Ok(Some(Registered { session, begun, warnings }))
}
