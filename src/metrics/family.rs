//! A metric and its children by label values.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, OnceLock};

use parking_lot::RwLock;
use prometheus::core::{Atomic, Collector, Desc, GenericGauge};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, Opts};

/// All series of one name.
///
/// This stands in for `prometheus::core::MetricVec`, which tells series apart by a hash of their label values run together:
/// there, replica set "a" with projection "bc" and replica set "ab" with projection "c" count into one series.
pub(super) struct Family<M>(pub(super) Arc<FamilyInner<M>>);

pub(super) struct FamilyInner<M> {
    pub(super) name: String,
    pub(super) help: &'static str,
    pub(super) labels: &'static [&'static str],
    pub(super) buckets: &'static [f64],
    pub(super) desc: Desc,
    /// Counts where a series could not be made, so that nobody has to handle what does not happen: a series is refused only for
    /// its labels' names, and those are constants.
    pub(super) spare: M,
    pub(super) children: RwLock<BTreeMap<Vec<String>, M>>,
}

impl<M: Child> Family<M> {
    /// The series of these label values, made if there is none.
    pub(super) fn child(&self, values: &[impl AsRef<str>]) -> M {
        let values: Vec<String> = values.iter().map(|value| value.as_ref().to_owned()).collect();
        let mut children = self.0.children.write();
        children.entry(values).or_insert_with_key(|values| self.build(values)).clone()
    }

    fn build(&self, values: &[String]) -> M {
        let of = &*self.0;
        debug_assert_eq!(of.labels.len(), values.len(), "labels of {}", of.name);
        let labels = of.labels.iter().map(|&label| label.to_owned()).zip(values.iter().cloned()).collect();
        M::build(&of.name, of.help, labels, of.buckets).unwrap_or_else(|error| {
            log::error!("a metric is not shown: name={} error={error}", of.name);
            of.spare.clone()
        })
    }

    /// Removes every series whose label values begin with these.
    pub(super) fn remove(&self, prefix: &[&str]) {
        self.0.children.write().retain(|values, _| !begins_with(values, prefix));
    }
}

impl<P: Atomic + 'static> Family<GenericGauge<P>> {
    pub(super) fn reading(&self, values: &[&str]) -> Reading<P> {
        let labels = values.iter().map(|&value| value.to_owned()).collect();
        Reading { family: self.clone(), labels, child: Arc::default() }
    }

    /// Puts these series in place of every one whose label values begin with `prefix`, at once: no scrape sees both, or neither.
    pub(super) fn replace(&self, prefix: &[&str], series: impl IntoIterator<Item = (Vec<String>, P::T)>) {
        let mut children = self.0.children.write();
        children.retain(|values, _| !begins_with(values, prefix));
        for (values, value) in series {
            let child = self.build(&values);
            child.set(value);
            children.insert(values, child);
        }
    }
}

pub(super) fn begins_with(values: &[String], prefix: &[&str]) -> bool {
    values.iter().zip(prefix).all(|(value, wanted)| value == wanted)
}

impl<M> Clone for Family<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Child> Collector for Family<M> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.0.desc]
    }

    /// One family per series: the registry puts those of one name together.
    fn collect(&self) -> Vec<MetricFamily> {
        self.0.children.read().values().flat_map(Collector::collect).collect()
    }
}

/// A single series.
pub(super) trait Child: Collector + Clone + 'static {
    fn build(
        name: &str,
        help: &str,
        labels: HashMap<String, String>,
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error>;
}

impl Child for IntCounter {
    fn build(name: &str, help: &str, labels: HashMap<String, String>, _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(Opts::new(name, help).const_labels(labels))
    }
}

impl<P: Atomic + 'static> Child for GenericGauge<P> {
    fn build(name: &str, help: &str, labels: HashMap<String, String>, _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(Opts::new(name, help).const_labels(labels))
    }
}

impl Child for Histogram {
    fn build(
        name: &str,
        help: &str,
        labels: HashMap<String, String>,
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error> {
        Self::with_opts(HistogramOpts::new(name, help).const_labels(labels).buckets(buckets.to_vec()))
    }
}

/// A gauge that shows itself with its first value.
pub(crate) struct Reading<P: Atomic> {
    family: Family<GenericGauge<P>>,
    labels: Vec<String>,
    child: Arc<OnceLock<GenericGauge<P>>>,
}

impl<P: Atomic + 'static> Reading<P> {
    pub(crate) fn set(&self, value: P::T) {
        self.child.get_or_init(|| self.family.child(&self.labels)).set(value);
    }
}

impl<P: Atomic> Clone for Reading<P> {
    fn clone(&self) -> Self {
        Self { family: self.family.clone(), labels: self.labels.clone(), child: self.child.clone() }
    }
}

impl<P: Atomic> fmt::Debug for Reading<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reading").field(&self.family.0.name).field(&self.labels).finish()
    }
}
