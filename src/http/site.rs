//! The served pages: pure except for the answers of the probes.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::host::HostNames;
use super::page::PAGE;
use crate::metrics::Metrics;
use crate::plan::WorkerId;
use crate::probe::{HealthProbe, StatusReport, Unhealthy};

const ALWAYS_SERVED: &str = "\
/metrics  Prometheus's text format
/livez    503 if restarting this process would help a worker in it
/readyz   200 while every worker in this process can process events
";

const STATUS_SERVED: &str = "\
/status   what the workers know, as JSON
/         the same as a page
";

/// The served pages: pure except for the answers of the probes.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) metrics: Metrics,
    /// Whether `/status` and its page are served.
    pub(super) has_status: bool,
    /// The host names under which they are served.
    pub(super) status_hosts: HostNames,
    pub(super) watched: RwLock<BTreeMap<WorkerId, HealthProbe>>,
}

/// A response before it is formatted.
pub(super) struct Page {
    pub(super) code: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

impl Page {
    pub(super) fn text(code: u16, body: impl Into<String>) -> Self {
        let mut body = body.into();
        if !body.ends_with('\n') {
            body.push('\n');
        }
        Self { code, content_type: "text/plain; charset=utf-8", body }
    }
}

impl Site {
    pub(super) fn watch(&self, probe: HealthProbe) {
        self.watched.write().insert(probe.worker_id(), probe);
    }

    /// Returns the page of a path, for a request with these `Host` headers.
    pub(super) fn page(&self, path: &str, hosts: &[String]) -> Option<Page> {
        if ["/", "/status"].contains(&path)
            && self.has_status
            && let Some(host) = self.status_hosts.stranger(hosts)
        {
            return Some(misdirected(host));
        }
        Some(match path {
            "/" if self.has_status => {
                Page { code: 200, content_type: "text/html; charset=utf-8", body: PAGE.to_owned() }
            }
            "/status" if self.has_status => self.status_page(),
            "/metrics" => self.metrics_page(),
            "/livez" => self.health("", HealthProbe::live),
            "/readyz" => self.health("no worker", HealthProbe::ready),
            _ => return None,
        })
    }

    pub(super) fn missing(&self) -> Page {
        let status = if self.has_status { STATUS_SERVED } else { "" };
        Page::text(404, format!("no such path; these are served:\n\n{ALWAYS_SERVED}{status}"))
    }

    fn status_page(&self) -> Page {
        let report: StatusReport = self.probes().iter().map(HealthProbe::status).collect();
        Page { code: 200, content_type: "application/json", body: report.to_string() }
    }

    /// Returns the probes of the watched workers. They are called without the lock, because they
    /// may take any other lock.
    fn probes(&self) -> Vec<HealthProbe> {
        self.watched.read().values().cloned().collect()
    }

    pub(super) fn metrics_page(&self) -> Page {
        if self.metrics.registry().is_none() {
            return Page::text(404, "the metrics are disabled");
        }
        match self.metrics.render() {
            Ok(body) => Page { code: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", body },
            Err(error) => Page::text(500, error.with_causes()),
        }
    }

    /// Returns the page of a health check. `unwatched` is the reason if no orchestrator is watched,
    /// and empty if that is not a failure.
    pub(super) fn health(&self, unwatched: &str, check: impl Fn(&HealthProbe) -> Result<(), Unhealthy>) -> Page {
        let watched = self.probes();
        let mut reasons: Vec<String> =
            watched.iter().filter_map(|probe| Some(check(probe).err()?.to_string())).collect();
        if watched.is_empty() && !unwatched.is_empty() {
            reasons.push(unwatched.to_owned());
        }
        if reasons.is_empty() { Page::text(200, "ok") } else { Page::text(503, reasons.join("\n")) }
    }
}

fn misdirected(host: &str) -> Page {
    let shown: String = host.chars().take(100).collect();
    let problem = format!(
        "the status is not served under the host name {shown:?}: use localhost or an IP address, or allow the name \
         (MetricsServerBuilder::allow_hosts)"
    );
    Page::text(421, problem)
}
