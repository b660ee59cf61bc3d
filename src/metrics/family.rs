//! A metric and its children by label values.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use prometheus::core::{Atomic, Collector, Desc, GenericGauge};
use prometheus::proto::MetricFamily;
use prometheus::{Histogram, HistogramOpts, IntCounter, Opts};

pub(super) const PREFIX: &str = "pupsourcing_orchestrator_";

/// What is declared about a metric, before it has a value.
pub(super) struct Declared {
    /// The name without the prefix that all names have.
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    /// The label names. Series that are removed together share their first labels.
    pub(super) labels: &'static [&'static str],
    pub(super) help: &'static str,
    pub(super) buckets: &'static [f64],
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// All series of one name.
///
/// Used instead of `prometheus::core::MetricVec`, which distinguishes series by a hash of their
/// concatenated label values: there, replica set "a" with projection "bc" and replica set "ab" with
/// projection "c" count into one series.
pub(super) struct Family<M>(Arc<FamilyInner<M>>);

struct FamilyInner<M> {
    declared: Declared,
    /// The full name.
    name: String,
    desc: Desc,
    /// Used in place of a series that could not be created, so that no caller has to handle this. A
    /// series is refused only for the names of its labels, which are constants that a test covers.
    /// The refusal is not logged, because the application's logger may panic, and the calling
    /// thread may belong to the application.
    spare: M,
    children: RwLock<BTreeMap<Vec<String>, M>>,
}

impl<M: Child> Family<M> {
    pub(super) fn new(declared: Declared) -> Result<Self, prometheus::Error> {
        let name = format!("{PREFIX}{}", declared.name);
        let labels = declared.labels.iter().map(|&label| label.to_owned()).collect();
        let desc = Desc::new(name.clone(), declared.help.to_owned(), labels, HashMap::new())?;
        let spare = M::build(&name, declared.help, HashMap::new(), declared.buckets)?;
        Ok(Self(Arc::new(FamilyInner { declared, name, desc, spare, children: RwLock::default() })))
    }

    /// Returns the series of these label values, and creates it if there is none.
    pub(super) fn child(&self, values: &[impl AsRef<str>]) -> M {
        let values: Vec<String> = values.iter().map(|value| value.as_ref().to_owned()).collect();
        let mut children = self.0.children.write();
        children.entry(values).or_insert_with_key(|values| self.build(values)).clone()
    }

    /// Removes every series whose label values begin with these.
    pub(super) fn remove(&self, prefix: &[impl AsRef<str>]) {
        self.0.children.write().retain(|values, _| !begins_with(values, prefix));
    }

    fn build(&self, values: &[String]) -> M {
        let FamilyInner { declared: Declared { labels, help, buckets, .. }, name, .. } = &*self.0;
        debug_assert_eq!(labels.len(), values.len(), "labels of {name}");
        let labels = labels.iter().map(|&label| label.to_owned()).zip(values.iter().cloned()).collect();
        M::build(name, help, labels, buckets).unwrap_or_else(|_| self.0.spare.clone())
    }
}

impl<P: Atomic + 'static> Family<GenericGauge<P>> {
    /// Replaces every series whose label values begin with `prefix` by these, in one step: no
    /// scrape sees both, or neither.
    pub(super) fn replace(&self, prefix: &[impl AsRef<str>], series: impl IntoIterator<Item = (Vec<String>, P::T)>) {
        let mut children = self.0.children.write();
        children.retain(|values, _| !begins_with(values, prefix));
        for (values, value) in series {
            let child = self.build(&values);
            child.set(value);
            children.insert(values, child);
        }
    }
}

/// A family whose series may be of any kind.
pub(super) trait AnyFamily {
    fn declared(&self) -> &Declared;

    /// Removes every series whose label values begin with these.
    fn remove(&self, prefix: &[&str]);

    /// Shows a series, with the same value for each label.
    #[cfg(test)]
    fn show(&self, value: &str);
}

impl<M: Child> AnyFamily for Family<M> {
    fn declared(&self) -> &Declared {
        &self.0.declared
    }

    fn remove(&self, prefix: &[&str]) {
        Self::remove(self, prefix);
    }

    #[cfg(test)]
    fn show(&self, value: &str) {
        self.child(&vec![value; self.0.declared.labels.len()]);
    }
}

fn begins_with(values: &[String], prefix: &[impl AsRef<str>]) -> bool {
    values.iter().zip(prefix).all(|(value, wanted)| value == wanted.as_ref())
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

    /// Returns one family per series. The registry combines those with the same name.
    fn collect(&self) -> Vec<MetricFamily> {
        self.0.children.read().values().flat_map(Collector::collect).collect()
    }
}

/// A single series.
pub(crate) trait Child: Collector + Clone + 'static {
    const KIND: Kind;

    fn build(
        name: &str,
        help: &str,
        labels: HashMap<String, String>,
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error>;
}

impl Child for IntCounter {
    const KIND: Kind = Kind::Counter;

    fn build(name: &str, help: &str, labels: HashMap<String, String>, _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(Opts::new(name, help).const_labels(labels))
    }
}

impl<P: Atomic + 'static> Child for GenericGauge<P> {
    const KIND: Kind = Kind::Gauge;

    fn build(name: &str, help: &str, labels: HashMap<String, String>, _: &[f64]) -> Result<Self, prometheus::Error> {
        Self::with_opts(Opts::new(name, help).const_labels(labels))
    }
}

impl Child for Histogram {
    const KIND: Kind = Kind::Histogram;

    fn build(
        name: &str,
        help: &str,
        labels: HashMap<String, String>,
        buckets: &[f64],
    ) -> Result<Self, prometheus::Error> {
        Self::with_opts(HistogramOpts::new(name, help).const_labels(labels).buckets(buckets.to_vec()))
    }
}
