//! The metrics server: `/metrics`, `/livez`, `/readyz`, `/status` and the status page.
//!
//! It answers from memory: no request ever queries the database, so it answers as fast while
//! PostgreSQL is down.
//!
//! *Invariants:* no client can block another client or the shutdown, and no request, of whatever
//! form, costs more than [`MOST_CONNECTIONS`] threads, [`LONGEST_HEAD`] bytes of each client's
//! input and one response of output.
//!
//! `pup-http` accepts. Each connection is answered by a short-lived thread `pup-http-N` of its own:
//! one request and one response, in HTTP/1.0, which scrapers and probes understand and which keeps
//! no connection alive. When all seats are taken, a connection is closed for the newest: one of the
//! peer that has the most, and rather one that has sent no request. So neither idle or slow clients
//! nor one that opens connections without end can delay a scrape. Shutdown closes every socket, so
//! that a thread that reads or writes one ends at once.
//!
//! It uses the requests and responses of `tiny_http`, but not its `Server`. That has a thread for
//! each idle connection, no timeout, no bound for a request line, ends for good when the process is
//! out of file descriptors, and aborts the process over a body that is announced as larger than
//! memory.

mod clients;
mod connections;
mod exchange;
mod host;
mod page;
mod site;

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
use self::site::Site;
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
/// | `/metrics` | everything in the registry, in Prometheus's text format 0.0.4; 404 if the metrics are disabled |
/// | `/livez` | 503 and the reason if a restart of this process would help a watched worker, else 200; also 200 when none is watched; [see below](#the-probes) |
/// | `/readyz` | 200 while every watched worker can process events, else 503 and the reason; also 503 when none is watched; [see below](#the-probes) |
/// | `/status` | what the watched workers know, as JSON; [see below](#status) |
/// | `/` | the same as a page for people, live |
///
/// No answer queries the database, so all of them are immediate even while it is down. GET and HEAD
/// are served; a query string is ignored. The connection is closed after each answer.
///
/// # Who may see the status
///
/// There is no password: any client that reaches the port can read everything that is served. What a browser
/// lets other sites read is restricted. `/status` and `/` are served only under `localhost`, an IP
/// address, the host name given to [`bind`](MetricsServerBuilder::bind) and the names given to
/// [`allow_hosts`](MetricsServerBuilder::allow_hosts); a request whose `Host` header has another name is refused
/// with 421. Otherwise a page of a foreign site, opened in a browser that reaches this
/// port, could read the status under a name of its own (DNS rebinding). Probes and `/metrics` are
/// served under every name: the kubelet, load balancers and Prometheus use names that cannot be
/// known here.
///
/// Dropping the server shuts it down.
///
/// ```no_run
/// # use pupsourcing_orchestrator::{Metrics, MetricsServer, Orchestrator};
/// # fn serve(orchestrator: &Orchestrator, metrics: Metrics) -> Result<(), Box<dyn std::error::Error>> {
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
    /// Configures a server. Nothing is served before [`MetricsServerBuilder::bind`].
    pub fn builder(metrics: Metrics) -> MetricsServerBuilder {
        let site = Site { metrics, has_status: true, status_hosts: HostNames::default(), watched: RwLock::default() };
        MetricsServerBuilder { site }
    }

    /// The bound address, with the actual port if port 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets `/livez`, `/readyz` and `/status` answer for an orchestrator, in addition to those
    /// already watched.
    pub fn watch(&self, probe: HealthProbe) {
        self.site.watch(probe);
    }

    /// Stops answering for this worker: to be called when it was shut down and the process
    /// continues.
    pub fn unwatch(&self, worker: WorkerId) {
        self.site.watched.write().remove(&worker);
    }

    /// Stops at once: the port is free again, and clients in the middle of a request or an answer
    /// are cut off.
    pub fn shutdown(self) {
        drop(self);
    }
}

/// Configures a [`MetricsServer`].
#[derive(Debug)]
#[must_use = "nothing is served before bind()"]
pub struct MetricsServerBuilder {
    site: Site,
}

impl MetricsServerBuilder {
    /// Sets whether `/status` and the page at `/` are served: they name hosts, projections and
    /// errors to every client that reaches the port. If they are not served, nothing is ever loaded
    /// for them. Defaults to true.
    pub fn status_page(mut self, served: bool) -> Self {
        self.site.has_status = served;
        self
    }

    /// Serves `/status` and the page at `/` also under these host names, such as that of an ingress:
    /// see [`MetricsServer`](MetricsServer#who-may-see-the-status). A port is ignored. Defaults to
    /// none.
    pub fn allow_hosts(mut self, names: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        for name in names {
            self.site.status_hosts.add(name.as_ref());
        }
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
    /// [`Error::Http`] if the address is malformed, in use or not this host's.
    pub fn bind(mut self, address: &str) -> Result<MetricsServer, Error> {
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
        // Only a connection ends the acceptor's wait. If none can be made, it ends at the next
        // client's.
        if let Err(error) = TcpStream::connect_timeout(&reachable(self.address), JOIN_TIME) {
            safely(|| log::debug!("metrics server cannot wake its acceptor: error={error}", error = field(&error)));
        }
        self.connections.close_all();
        match self.ended.recv_timeout(JOIN_TIME) {
            Err(RecvTimeoutError::Disconnected) => {
                // The panic hook has printed the panic; a drop cannot report more.
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

/// Returns an address under which this host reaches the address that it has bound.
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
