//! The orchestrator's options, from the environment.

use std::time::Duration;

use pupsourcing_orchestrator::Builder;

use crate::app::{Wrong, setting};
use crate::settings::{bytes, duration, duration_range, number};

/// Applies the options that are set in the environment.
pub(crate) fn with_options(mut builder: Builder) -> Result<Builder, Wrong> {
    type Set = fn(Builder, Duration) -> Builder;
    let durations: [(&str, Set); 6] = [
        ("ORCHESTRATOR_HEARTBEAT_INTERVAL", Builder::heartbeat_interval),
        ("ORCHESTRATOR_STALE_WORKER_TIMEOUT", Builder::stale_worker_timeout),
        ("ORCHESTRATOR_COORDINATION_TIMEOUT", Builder::coordination_timeout),
        ("ORCHESTRATOR_POLL_INTERVAL", Builder::poll_interval),
        ("ORCHESTRATOR_REGISTRATION_WAIT", Builder::registration_wait),
        ("ORCHESTRATOR_DATABASE_WAIT", Builder::database_wait),
    ];
    for (variable, set) in durations {
        if let Some(duration) = duration(variable)? {
            builder = set(builder, duration);
        }
    }
    if setting("ORCHESTRATOR_SESSION_LOSS_GRACE")?.as_deref() == Some("off") {
        builder = builder.heartbeats_only();
    } else if let Some(grace) = duration("ORCHESTRATOR_SESSION_LOSS_GRACE")? {
        builder = builder.session_loss_grace(grace);
    }
    if let Some((quickest, slowest)) = duration_range("ORCHESTRATOR_EVENT_POLL")? {
        builder = builder.event_poll(quickest, slowest);
    }
    if let Some(events) = number("ORCHESTRATOR_BATCH_SIZE")? {
        builder = builder.batch_size(events);
    }
    if let Some(bytes) = bytes("ORCHESTRATOR_MAX_EVENT_BYTES")? {
        builder = builder.max_event_bytes(bytes);
    }
    if let Some(bytes) = bytes("ORCHESTRATOR_BATCH_BYTES")? {
        builder = builder.batch_bytes(bytes);
    }
    if let Some(lanes) = number("ORCHESTRATOR_LANES")? {
        builder = builder.lanes(lanes);
    }
    if let Some(connections) = number("ORCHESTRATOR_POOL_SIZE")? {
        builder = builder.pool_size(connections);
    }
    Ok(builder)
}
