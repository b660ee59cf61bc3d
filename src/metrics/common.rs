//! The labels that a registry gives to all its series.

use prometheus::core::Collector;
use prometheus::proto::{Metric, MetricFamily};
use prometheus::{IntGauge, Registry};

use super::families::Families;
use super::family::PREFIX;
use crate::error::Error;

/// The label of a histogram's buckets.
const BUCKET: &str = "le";

/// Refuses a registry that gives its series a label which the families have as well. The series
/// would have the label twice, which no scraper accepts.
pub(super) fn refuse_labels(registry: &Registry, families: &Families) -> Result<(), Error> {
    let own = |label: &str| label == BUCKET || families.all().iter().any(|of| of.declared().labels.contains(&label));
    match labels(registry)?.into_iter().find(|label| own(label)) {
        Some(label) => Err(Error::config(
            "registry",
            format!("one with the common label {label:?}"),
            "series of the orchestrator have a label of this name themselves: take another name, or another registry",
        )),
        None => Ok(()),
    }
}

/// Returns the names of the labels. A registry shows them only in a series, so this registers one
/// for a moment.
fn labels(registry: &Registry) -> Result<Vec<String>, Error> {
    let name = format!("{PREFIX}probe");
    let refused = |source| Error::Metrics { metric: name.clone(), source };
    let probe = IntGauge::new(name.clone(), "Shows the labels of the registry.").map_err(refused)?;
    registry.register(Box::new(probe.clone())).map_err(refused)?;
    let shown = registry.gather();
    let probe: Box<dyn Collector> = Box::new(probe);
    registry.unregister(probe).map_err(refused)?;
    // The registry may give names a prefix.
    let of_probe = shown.iter().filter(|family| family.name().ends_with(&name)).flat_map(MetricFamily::get_metric);
    Ok(of_probe.flat_map(Metric::get_label).map(|label| label.name().to_owned()).collect())
}
