//! Records for tests of how they are shown.

use std::time::SystemTime;

use serde_json::json;
use uuid::Uuid;

use super::records::{CommandRecord, ParkedRecord, ProjectionRecord};
use crate::event::StreamId;

/// A projection that is running.
pub(crate) fn running(name: &str) -> ProjectionRecord {
    ProjectionRecord {
        name: name.to_owned(),
        replica_set: "set".to_owned(),
        state: "running".to_owned(),
        desired_state: "running".to_owned(),
        desired_at: SystemTime::UNIX_EPOCH,
        desired_by: None,
        desired_reason: None,
        fault: None,
        versions: Vec::new(),
        workers: 1,
        position: Some(1_000),
        lag_events: Some(0),
        lag_seconds: Some(0.0),
        handled: 1_000,
        parked: 0,
        pending_commands: 0,
        error: None,
        failing_event: None,
        rebuild: None,
        old: None,
    }
}

/// A command for the projection `orders` that is not applied yet.
pub(crate) fn recorded(id: i64, command: &str) -> CommandRecord {
    CommandRecord {
        id,
        projection: "orders".to_owned(),
        command: command.to_owned(),
        arguments: json!({}),
        requested_by: "kim".to_owned(),
        requested_as: "shop_op".to_owned(),
        reason: Some("full".to_owned()),
        requested_at: SystemTime::UNIX_EPOCH,
        step: None,
        applied_at: None,
        outcome: None,
        result: None,
        error: None,
    }
}

/// A parked aggregate.
pub(crate) fn parked(projection: &str) -> ParkedRecord {
    ParkedRecord {
        projection: projection.to_owned(),
        aggregate: StreamId::new("shop", "Order", "order-7"),
        position: 8,
        event_id: Uuid::nil(),
        event_type: "OrderPlaced".to_owned(),
        attempts: 8,
        error: "it is bad".to_owned(),
        errors: json!([]),
        parked_at: SystemTime::UNIX_EPOCH,
        replay_requested_at: None,
    }
}
