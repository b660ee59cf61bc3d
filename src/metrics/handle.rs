//! The handles with which a part of the library reports a metric: the series with its own labels.

use std::fmt;

use prometheus::core::{Atomic, Collector, GenericGauge};

use super::family::{Child, Family};

/// A handle is created from a family for given label values. Its type determines when a series is
/// shown: a child at once, a [`Reading`] with its first value, [`Series`] once their remaining
/// labels are known.
pub(super) trait Handle {
    type Child: Child;

    fn new(family: &Family<Self::Child>, values: &[&str]) -> Self;
}

impl<M: Child> Handle for M {
    type Child = M;

    fn new(family: &Family<M>, values: &[&str]) -> Self {
        family.child(values)
    }
}

/// A gauge that is shown from its first value until it is cleared.
#[derive(Clone)]
pub(crate) struct Reading<M> {
    family: Family<M>,
    values: Vec<String>,
}

impl<M: Child> Handle for Reading<M> {
    type Child = M;

    fn new(family: &Family<M>, values: &[&str]) -> Self {
        Self { family: family.clone(), values: owned(values) }
    }
}

impl<P: Atomic + 'static> Reading<GenericGauge<P>> {
    pub(crate) fn set(&self, value: P::T) {
        self.family.child(&self.values).set(value);
    }

    /// Removes the gauge, because its value is no longer known.
    pub(crate) fn clear(&self) {
        self.family.remove(&self.values);
    }
}

impl<M: Child> fmt::Debug for Reading<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Reading").field(&self.family.desc()).field(&self.values).finish()
    }
}

/// All series with the same first labels. Their remaining labels are given together with a value.
#[derive(Clone)]
pub(crate) struct Series<M> {
    family: Family<M>,
    first: Vec<String>,
}

impl<M: Child> Handle for Series<M> {
    type Child = M;

    fn new(family: &Family<M>, values: &[&str]) -> Self {
        Self { family: family.clone(), first: owned(values) }
    }
}

impl<M: Child> Series<M> {
    pub(super) fn child<const N: usize>(&self, remaining: [&str; N]) -> M {
        self.family.child(&self.values(remaining.map(str::to_owned)))
    }

    fn values(&self, remaining: impl IntoIterator<Item = String>) -> Vec<String> {
        self.first.iter().cloned().chain(remaining).collect()
    }
}

impl<P: Atomic + 'static> Series<GenericGauge<P>> {
    /// Replaces all existing series by these.
    pub(super) fn replace<const N: usize>(&self, series: impl IntoIterator<Item = ([String; N], P::T)>) {
        let series = series.into_iter().map(|(remaining, value)| (self.values(remaining), value));
        self.family.replace(&self.first, series);
    }
}

impl<M: Child> fmt::Debug for Series<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Series").field(&self.family.desc()).field(&self.first).finish()
    }
}

fn owned(values: &[&str]) -> Vec<String> {
    values.iter().map(|&value| value.to_owned()).collect()
}
