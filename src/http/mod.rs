//! The metrics server: `/metrics`, `/livez`, `/readyz`, `/status` and the status page.
//!
//! It answers from memory, equally fast while PostgreSQL is down: no request queries the database,
//! except for the commands of operators, which have to be turned on.
//!
//! *Invariants:* no client can block another client or the shutdown. Whatever clients send, the
//! server uses at most [`MOST_CONNECTIONS`] threads, and for each client at most [`LONGEST_HEAD`]
//! bytes of input and one response of output. An operator's command may also have
//! [`LONGEST_BODY`] bytes, and a thread of its own, of which there are at most [`MOST_COMMANDS`].
//!
//! [`LONGEST_BODY`]: body::LONGEST_BODY
//! [`LONGEST_HEAD`]: request::LONGEST_HEAD
//! [`MOST_COMMANDS`]: operating::MOST_COMMANDS
//!
//! The thread `pup-http` accepts connections. A short-lived thread `pup-http-N` answers each
//! connection: one request and one response, in HTTP/1.0, which scrapers and probes understand and
//! which keeps no connection alive. When all seats are taken, the server closes a connection to
//! make room for the newest: a connection of the peer that has the most, preferably one that has
//! sent no request. So neither idle or slow clients nor a client that opens connections without end
//! can delay a scrape. Shutdown closes every socket, so each thread that reads or writes ends at
//! once.
//!
//! It uses the requests and responses of `tiny_http`, but not its `Server`. That server has a
//! thread for each idle connection, no timeout, and no limit for a request line. It stops
//! permanently when the process has no file descriptors left, and it aborts the process if a
//! request announces a body larger than memory.

mod asked;
mod body;
mod clients;
mod connections;
mod exchange;
mod host;
mod operating;
mod page;
mod reply;
mod request;
mod site;
mod timed;
mod token;

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use parking_lot::RwLock;
use socket2::SockRef;

use self::connections::{Acceptor, BACKLOG, Connections, MOST_CONNECTIONS};
use self::host::HostNames;
use self::operating::Operating;
use self::site::Site;
use self::token::Token;
use crate::error::{Error, field, redacted};
use crate::metrics::Metrics;
use crate::plan::WorkerId;
use crate::probe::HealthProbe;
use crate::threads::{Never, Stop, safely};

/// How long the server waits for its threads to end, once their sockets are closed.
const JOIN_TIME: Duration = Duration::from_millis(100);

/// Serves the metrics and the health of the orchestrators in this process over HTTP.
///
/// | path | answer |
/// |---|---|
/// | `/metrics` | everything in the registry, in Prometheus's text format 0.0.4 |
/// | `/livez` | 503 and the reason if a restart would help a watched worker, else 200 |
/// | `/readyz` | 200 while every watched worker can process events, else 503 and the reason |
/// | `/status` | what the watched workers know, as JSON |
/// | `/` | the same as a web page that updates itself |
/// | `/projections/NAME/pause` and others | gives a command, by POST; only if [turned on](MetricsServerBuilder::operator) |
///
/// [The probes](#the-probes), [`/status`](#status) and [the commands](#commands) are described below. If no worker is watched,
/// `/livez` is 200 and `/readyz` is 503. If the metrics are disabled, `/metrics` is 404.
///
/// Except for commands, no answer queries the database, so all of them are immediate even while the
/// database is down. GET and HEAD are served; a query string is ignored. The connection is closed
/// after each answer.
///
/// # Who may see the status
///
/// There is no password: any client that reaches the port can read everything that is served. A
/// command needs a token. Only
/// what a browser lets other sites read is restricted. `/status` and `/` are served only under
/// `localhost`, an IP address, the host name given to [`bind`](MetricsServerBuilder::bind) and the
/// names given to [`allow_hosts`](MetricsServerBuilder::allow_hosts); a request whose `Host` header
/// has another name is refused with 421. Otherwise a page of a foreign site, opened in a browser
/// that reaches this port, could read the status under a name of its own (DNS rebinding). Probes
/// and `/metrics` are served under every name, because the kubelet, load balancers and Prometheus
/// use names that the server cannot know.
///
/// Dropping the server shuts it down.
///
/// ```no_run
/// # use pupsourcing_orchestrator::{Metrics, MetricsServer, Orchestrator};
/// # fn serve(
/// #     orchestrator: &Orchestrator,
/// #     metrics: Metrics,
/// # ) -> Result<(), Box<dyn std::error::Error>> {
/// let server = MetricsServer::builder(metrics)
///     .allow_hosts(["ops.example"])
///     .watch(orchestrator.health())
///     .bind("0.0.0.0:9090")?;
/// # Ok(())
/// # }
/// ```
///
#[doc = include_str!("probes.md")]
#[doc = include_str!("status.md")]
#[doc = include_str!("commands.md")]
#[must_use = "dropping the server shuts it down"]
pub struct MetricsServer {
    address: SocketAddr,
    site: Arc<Site>,
    connections: Arc<Connections>,
    stop: Stop,
    acceptor: Option<JoinHandle<()>>,
    /// Disconnected when the acceptor and every connection's thread have ended.
    ended: Receiver<Never>,
}

impl MetricsServer {
    /// Returns a builder of a server. Nothing is served before [`MetricsServerBuilder::bind`].
    pub fn builder(metrics: Metrics) -> MetricsServerBuilder {
        let (status_hosts, watched) = (HostNames::default(), RwLock::default());
        let site = Site { metrics, has_status: true, status_hosts, watched, operating: None };
        MetricsServerBuilder { site, token: None }
    }

    /// The bound address, with the actual port if port 0 was requested.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets `/livez`, `/readyz` and `/status` answer for an orchestrator, in addition to those
    /// already watched.
    pub fn watch(&self, probe: HealthProbe) {
        self.site.watch(probe);
    }

    /// Stops answering for this worker. Call it when the worker was shut down and the process
    /// continues.
    pub fn unwatch(&self, worker: WorkerId) {
        self.site.watched.write().remove(&worker);
    }

    /// Stops at once: the port is free again, and clients in the middle of a request or an answer
    /// are disconnected.
    pub fn shutdown(self) {
        drop(self);
    }
}

/// Configures a [`MetricsServer`].
#[derive(Debug)]
#[must_use = "nothing is served before bind()"]
pub struct MetricsServerBuilder {
    site: Site,
    /// The operator's token, or why it is refused.
    token: Option<Result<Token, Error>>,
}

impl MetricsServerBuilder {
    /// Sets whether `/status` and the page at `/` are served. They show hosts, projections and
    /// errors to every client that reaches the port. If they are not served, nothing is ever loaded
    /// for them. Defaults to true.
    pub fn status_page(mut self, served: bool) -> Self {
        self.site.has_status = served;
        self
    }

    /// Serves `/status` and the page at `/` also under these host names, such as the name of an
    /// ingress: see [`MetricsServer`](MetricsServer#who-may-see-the-status). A port is ignored.
    /// Defaults to none.
    pub fn allow_hosts(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        for name in names {
            self.site.status_hosts.add(name.as_ref());
        }
        self
    }

    /// Takes [commands](MetricsServer#commands) from operators who have this token, and shows
    /// buttons for them on the page. The token must have at least 16 printable ASCII characters;
    /// take a random one, such as the output of `openssl rand -hex 32`. It is neither logged nor
    /// shown. Defaults to none: then no command is taken.
    ///
    /// The port has no TLS. So put it behind a proxy that has, or reach it by
    /// `kubectl port-forward`: everyone who sees a request has the token.
    pub fn operator(mut self, token: impl AsRef<str>) -> Self {
        self.token = Some(Token::new(token.as_ref()));
        self
    }

    /// Lets `/livez`, `/readyz` and `/status` answer for an orchestrator, in addition to those
    /// already watched. See also [`MetricsServer::watch`].
    pub fn watch(self, probe: HealthProbe) -> Self {
        self.site.watch(probe);
        self
    }

    /// Binds `address`, such as `0.0.0.0:9090`, and begins to serve. Port 0 takes any free port:
    /// see [`MetricsServer::address`].
    ///
    /// # Errors
    ///
    /// [`Error::Http`] if the address is malformed, in use or not an address of this host;
    /// [`Error::InvalidConfig`] if the operator's token is too short, for example.
    pub fn bind(mut self, address: &str) -> Result<MetricsServer, Error> {
        self.site.operating = self.token.transpose()?.map(Operating::new);
        let refused = |source| Error::Http { address: redacted(address), source };
        let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
            ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::PermissionDenied => refused(error.into()),
            _ => refused(format!("{error} (expected a host or IP address and a port, such as 0.0.0.0:9090)").into()),
        })?;
        if let Err(error) = SockRef::from(&listener).listen(BACKLOG) {
            safely(|| log::debug!("metrics server keeps the system's backlog: error={error}", error = field(&error)));
        }
        let bound = listener.local_addr().map_err(|error| refused(error.into()))?;
        self.site.status_hosts.add(address);
        let site = Arc::new(self.site);
        let connections = Arc::new(Connections::default());
        let stop = Stop::new();
        let (alive, ended) = bounded(0);
        let acceptor = Acceptor {
            listener,
            site: site.clone(),
            connections: connections.clone(),
            seats: bounded(MOST_CONNECTIONS),
            stop: stop.clone(),
            alive,
        };
        let acceptor = std::thread::Builder::new()
            .name("pup-http".to_owned())
            .spawn(move || acceptor.run())
            .map_err(|source| Error::Spawn { thread: "pup-http".to_owned(), source })?;
        safely(|| log::info!("metrics server listens: address={bound}"));
        Ok(MetricsServer { address: bound, site, connections, stop, acceptor: Some(acceptor), ended })
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stop.raise();
        // Only a connection ends the acceptor's wait. If none can be opened, the wait ends with the
        // next client's connection.
        if let Err(error) = TcpStream::connect_timeout(&reachable(self.address), JOIN_TIME) {
            safely(|| log::debug!("metrics server cannot wake its acceptor: error={error}", error = field(&error)));
        }
        self.connections.close_all();
        match self.ended.recv_timeout(JOIN_TIME) {
            Err(RecvTimeoutError::Disconnected) => {
                // The panic hook has already printed the panic.
                _ = self.acceptor.take().map(JoinHandle::join);
            }
            Err(RecvTimeoutError::Timeout) => {
                safely(|| log::warn!("metrics server has not ended: after={JOIN_TIME:?}"));
            }
            Ok(never) => match never {},
        }
    }
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Returns an address with which this host reaches the bound address.
fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}

#[cfg(test)]
mod tests;
