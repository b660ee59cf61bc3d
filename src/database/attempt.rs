//! An attempt to connect: what it includes, and how long it may take.

use std::time::Duration;

use postgres::tls::{MakeTlsConnect, TlsConnect};
use postgres::{Client, Config, Socket};

/// Returns the limit for a whole attempt: one `connect_timeout` for each host, and one more for the
/// handshakes and the first statement together.
pub(super) fn limit(config: &Config) -> Option<Duration> {
    let hosts = u32::try_from(config.get_hosts().len().max(1)).unwrap_or(u32::MAX);
    config.get_connect_timeout().map(|timeout| timeout.saturating_mul(hosts.saturating_add(1)))
}

/// Connects, and waits for the answer to an empty statement. A pooler accepts a client before it
/// has a session for it, and lets the first statement wait until it has one. Because this wait is
/// part of the attempt, it is bounded.
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
