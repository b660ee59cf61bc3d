//! Metrics as text, and the only code that parses it: it reads the series of this library's
//! metrics.
#![allow(dead_code, reason = "several programs compile this file, and few of them call every function")]

use pupsourcing_orchestrator::Metrics;

/// Returns the metrics of this process, as `/metrics` serves them.
pub(crate) fn text(metrics: &Metrics) -> String {
    let families = metrics.registry().expect("metrics are on").gather();
    prometheus::TextEncoder::new().encode_to_string(&families).expect("metrics can be encoded")
}

/// Returns the value of each series of a metric that has all these labels. `name` is the metric's
/// name without the library's prefix.
pub(crate) fn values<N: std::str::FromStr>(text: &str, name: &str, labels: &[(&str, &str)]) -> Vec<N> {
    let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let value = |line: &str| {
        let rest = line.strip_prefix("pupsourcing_orchestrator_")?.strip_prefix(name)?;
        let is_wanted = rest.starts_with(['{', ' ']) && labels.iter().all(|label| rest.contains(label.as_str()));
        let value = rest.rsplit(' ').next().filter(|_| is_wanted)?;
        Some(value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
    };
    text.lines().filter_map(value).collect()
}
