//! The channels on which workers are notified that something has changed. A notification is a hint:
//! no worker relies on it.

use postgres::types::Type;
use postgres::{Client, GenericClient};

use super::names::Names;
use super::session::Session;
use crate::backoff::Mentions;
use crate::error::{describe, field};

/// The channel for changes of membership and generations. Its payload names the replica set.
pub(crate) const COORDINATION_CHANNEL: &str = "pupsourcing_coordination";

/// The channel for hints that events were appended. Its payload names the events table.
pub(crate) const EVENTS_CHANNEL: &str = "pupsourcing_events";

/// Notifies the workers of a replica set that something has changed. The caller has committed the
/// change: if another role has filled the queue of notifications, this must not undo the change. A
/// failure is only logged, if a log line is due, because the workers poll as well.
pub(crate) fn notify_coordination(session: &mut Session, names: &Names, replica_set: &str, failures: &mut Mentions) {
    let payload = coordination_payload(names, replica_set);
    let notified = session.run(|client| notify(client, COORDINATION_CHANNEL, &payload));
    if let Err(error) = notified
        && failures.is_due()
    {
        let error = describe(&error);
        log::warn!(
            "workers are not notified of a change: replica_set={replica_set} error={error}",
            replica_set = field(&replica_set),
            error = field(&error)
        );
    }
}

/// Notifies the workers of a replica set that a command was recorded. The client is an operator's.
pub(crate) fn notify_workers(
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn example_sends_the_hint_that_workers_listen_for() {
        let example = include_str!("../../examples/async_append.rs");
        let hint = format!("SELECT pg_notify('{EVENTS_CHANNEL}', '{}')", events_payload(&Names::default()));
        assert!(example.contains(&hint), "{hint}");
    }
}
