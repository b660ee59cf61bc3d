//! An attempt to connect: what belongs to it, and how long it may take.

use std::time::Duration;

use postgres::tls::{MakeTlsConnect, TlsConnect};
use postgres::{Client, Config, Socket};

/// The time for a whole attempt: each host has its `connect_timeout`, and the handshakes and the
/// first statement have the same time once more.
pub(super) fn limit(config: &Config) -> Option<Duration> {
    let hosts = u32::try_from(config.get_hosts().len().max(1)).unwrap_or(u32::MAX);
    config.get_connect_timeout().map(|timeout| timeout.saturating_mul(hosts.saturating_add(1)))
}

/// Connects, and waits for the answer to an empty statement. A pooler accepts a client before it has
/// a session for it, and lets the first statement wait until it has one. So this wait belongs to
/// the attempt to connect, which is bounded.
pub(super) fn connect<T>(config: &Config, tls: T) -> Result<Client, postgres::Error>
where
    T: MakeTlsConnect<Socket> + Send + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let mut client = config.connect(tls)?;
    client.batch_execute("")?;
    Ok(client)
}
