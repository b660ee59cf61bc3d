//! What is served: pure but for what the probes know.

use std::collections::BTreeMap;

use parking_lot::RwLock;

use super::{Check, HealthProbe};
use crate::metrics::Metrics;
use crate::plan::WorkerId;

pub(super) const INDEX: &str = "\
pupsourcing-orchestrator

/metrics  Prometheus's text format
/livez    200 while the threads of every worker in this process make progress
/readyz   200 while every worker in this process takes part in its replica set
";

/// What is served: pure but for what the probes know.
pub(super) struct Site {
    pub(super) metrics: Metrics,
    pub(super) watched: RwLock<BTreeMap<WorkerId, HealthProbe>>,
}

/// A response before it is put into bytes.
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
    pub(super) fn page(&self, path: &str) -> Option<Page> {
        Some(match path {
            "/" => Page::text(200, INDEX),
            "/metrics" => self.metrics_page(),
            "/livez" => self.health("", |probe| &probe.live),
            "/readyz" => self.health("no worker", |probe| &probe.ready),
            _ => return None,
        })
    }

    pub(super) fn metrics_page(&self) -> Page {
        if self.metrics.registry().is_none() {
            return Page::text(404, "the metrics are disabled");
        }
        match self.metrics.render() {
            Ok(body) => Page { code: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", body },
            Err(error) => Page::text(500, error.to_string()),
        }
    }

    /// `nobody` is the reason when no orchestrator is watched; none if that is as it should be.
    pub(super) fn health(&self, nobody: &str, check: impl Fn(&HealthProbe) -> &Check) -> Page {
        // The checks are called without the lock: what they take is not known here.
        let watched: Vec<HealthProbe> = self.watched.read().values().cloned().collect();
        let mut reasons: Vec<String> = watched.iter().filter_map(|probe| unhealthy(probe, check(probe))).collect();
        if watched.is_empty() && !nobody.is_empty() {
            reasons.push(nobody.to_owned());
        }
        if reasons.is_empty() { Page::text(200, "ok") } else { Page::text(503, reasons.join("\n")) }
    }
}

pub(super) fn unhealthy(probe: &HealthProbe, check: &Check) -> Option<String> {
    let reason = check().err()?;
    let status = (probe.status)();
    Some(format!("replica_set={} worker={}: {reason}", status.replica_set, status.worker_id))
}
