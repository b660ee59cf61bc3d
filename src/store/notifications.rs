//! The channels on which workers are notified that something has changed. A notification is a hint:
//! no worker relies on it.

use postgres::types::Type;
use postgres::{Client, GenericClient};

use super::names::Names;

/// The channel for changes of membership and generations. Its payload names the replica set.
pub(crate) const COORDINATION_CHANNEL: &str = "pupsourcing_coordination";

/// The channel for hints that events were appended. Its payload names the events table.
pub(crate) const EVENTS_CHANNEL: &str = "pupsourcing_events";

/// Notifies the workers of a replica set that something has changed. Within a transaction, the
/// server sends it at the commit.
pub(crate) fn notify_coordination(
    client: &mut impl GenericClient,
    names: &Names,
    replica_set: &str,
) -> Result<(), postgres::Error> {
    notify(client, COORDINATION_CHANNEL, &coordination_payload(names, replica_set))
}

/// Notifies the workers that events were appended. The client may be an application's.
pub(crate) fn notify_events(client: &mut impl GenericClient, names: &Names) -> Result<(), postgres::Error> {
    notify(client, EVENTS_CHANNEL, &events_payload(names))
}

fn notify(client: &mut impl GenericClient, channel: &str, payload: &str) -> Result<(), postgres::Error> {
    client.query_typed("SELECT pg_catalog.pg_notify($1, $2)", &[(&channel, Type::TEXT), (&payload, Type::TEXT)])?;
    Ok(())
}

/// The payload that names a replica set. It contains the schema, because different schemas in one
/// database may have replica sets with the same name.
pub(crate) fn coordination_payload(names: &Names, replica_set: &str) -> String {
    format!("{} {replica_set}", names.workers())
}

/// The payload that names the events table.
pub(crate) fn events_payload(names: &Names) -> String {
    names.events().to_string()
}

/// Subscribes the connection to both channels.
pub(crate) fn listen(client: &mut Client) -> Result<(), postgres::Error> {
    client.batch_execute(&format!("LISTEN {COORDINATION_CHANNEL}; LISTEN {EVENTS_CHANNEL}"))
}
