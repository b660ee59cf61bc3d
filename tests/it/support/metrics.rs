//! Reads the metrics of a worker in this process.

use pupsourcing_orchestrator::Handle;

#[path = "../../../examples/support/series.rs"]
pub(crate) mod series;

use series::{text, values};

/// The value of a metric's series with these labels; none if there is no such series.
pub(crate) fn metric(handle: &Handle, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    values(&text(handle.metrics()), name, labels).first().copied()
}

/// The value of a counter or gauge of one projection.
pub(crate) fn projection_metric(handle: &Handle, name: &str, projection: &str) -> Option<f64> {
    metric(handle, name, &[("projection", projection)])
}

/// The value of a counter or gauge, over all its labels.
pub(crate) fn total(handle: &Handle, name: &str) -> u64 {
    values(&text(handle.metrics()), name, &[]).iter().sum()
}
