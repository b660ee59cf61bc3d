//! The served pages: pure except for the answers of the probes.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::host::HostNames;
use super::operating::Operating;
use super::page::page;
use super::reply::Page;
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

const COMMANDS_SERVED: &str = "\
/projections/NAME/pause   a command, by POST with the operator's token;
                          also resume, rewind, replay and discard
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
    /// Takes the commands of operators, if that is turned on.
    pub(super) operating: Option<Operating>,
}

impl Site {
    pub(super) fn watch(&self, probe: HealthProbe) {
        self.watched.write().insert(probe.worker_id(), probe);
    }

    /// Returns the page of a path, for a request with these `Host` headers.
    pub(super) fn page(&self, path: &str, hosts: &[String]) -> Option<Page> {
        if ["/", "/status"].contains(&path)
            && self.has_status
            && let Some(refused) = self.misdirected(hosts)
        {
            return Some(refused);
        }
        Some(match path {
            "/" if self.has_status => Page::new(200, "text/html; charset=utf-8", page(self.operating.is_some())),
            "/status" if self.has_status => self.status_page(),
            "/metrics" => self.metrics_page(),
            "/livez" => self.health("", HealthProbe::live),
            "/readyz" => self.health("no worker", HealthProbe::ready),
            _ => return None,
        })
    }

    /// Returns the refusal of a request under a host name that a foreign site may have.
    pub(super) fn misdirected(&self, hosts: &[String]) -> Option<Page> {
        let shown: String = self.status_hosts.stranger(hosts)?.chars().take(100).collect();
        let problem = format!(
            "the status is not served under the host name {shown:?}: use localhost or an IP address, or allow the name \
             (MetricsServerBuilder::allow_hosts)"
        );
        Some(Page::text(421, problem))
    }

    pub(super) fn missing(&self) -> Page {
        let status = if self.has_status { STATUS_SERVED } else { "" };
        let commands = if self.operating.is_some() { COMMANDS_SERVED } else { "" };
        Page::text(404, format!("no such path; these are served:\n\n{ALWAYS_SERVED}{status}{commands}"))
    }

    fn status_page(&self) -> Page {
        let report: StatusReport = self.probes().iter().map(HealthProbe::status).collect();
        Page::new(200, "application/json", report.to_string())
    }

    /// Returns the probes of the watched workers. They are called without the lock, because they
    /// may take any other lock.
    pub(super) fn probes(&self) -> Vec<HealthProbe> {
        self.watched.read().values().cloned().collect()
    }

    pub(super) fn metrics_page(&self) -> Page {
        if self.metrics.registry().is_none() {
            return Page::text(404, "the metrics are disabled");
        }
        match self.metrics.render() {
            Ok(body) => Page::new(200, "text/plain; version=0.0.4; charset=utf-8", body),
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
