//! A line of the report.

use crate::support::samples::{Ratio, Samples};
use crate::support::units::Unit;

/// The target of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// The figure is only reported.
    None,
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// The lower bound of the measured median.
    AtLeast(f64),
    /// The upper bound of the measured median.
    AtMost(f64),
    /// The upper bound of all measured values.
    AllAtMost(f64),
}

#[derive(Clone, Debug)]
pub(crate) struct Line {
    name: String,
    unit: Unit,
    measured: Samples,
    percentiles: &'static [usize],
    baseline: Option<(String, Samples)>,
    target: Target,
}

impl Line {
    pub(crate) const HEADINGS: [&'static str; 7] = ["what", "measured", "baseline", "ratio", "target", "reached", "n"];

    pub(crate) fn new(name: impl Into<String>, unit: Unit, measured: &Samples) -> Self {
        Self {
            name: name.into(),
            unit,
            measured: measured.clone(),
            percentiles: &[],
            baseline: None,
            target: Target::None,
        }
    }

    /// Sets the baseline, which was measured in turn with the values.
    pub(crate) fn beside(mut self, name: impl Into<String>, baseline: &Samples) -> Self {
        self.baseline = Some((name.into(), baseline.clone()));
        self
    }

    pub(crate) fn target(mut self, target: Target) -> Self {
        self.target = target;
        self
    }

    /// Shows these percentiles instead of the extremes.
    pub(crate) fn percentiles(mut self, percentiles: &'static [usize]) -> Self {
        self.percentiles = percentiles;
        self
    }

    pub(crate) fn cells(&self) -> [String; 7] {
        let ratio = self.baseline.as_ref().map(|(_, baseline)| Ratio::of(&self.measured, baseline));
        let (bound, is_reached) = self.judge(ratio);
        [
            self.name.clone(),
            self.figure(&self.measured),
            self.baseline
                .as_ref()
                .map_or_else(String::new, |(name, samples)| format!("{name}: {}", self.figure(samples))),
            ratio.map_or_else(String::new, |ratio| format!("{:.2} ({:.2})", ratio.of_pairs, ratio.of_medians)),
            bound,
            is_reached.map_or("", |reached| if reached { "yes" } else { "**no**" }).to_owned(),
            self.measured.values().len().to_string(),
        ]
    }

    fn judge(&self, ratio: Option<Ratio>) -> (String, Option<bool>) {
        match self.target {
            Target::None => (String::new(), None),
            Target::RatioAtLeast(bound) => (format!("≥ {bound}"), ratio.map(|ratio| ratio.of_pairs >= bound)),
            Target::RatioAtMost(bound) => (format!("≤ {bound}"), ratio.map(|ratio| ratio.of_pairs <= bound)),
            Target::AtLeast(bound) => (format!("≥ {}", self.unit.show(bound)), Some(self.measured.median() >= bound)),
            Target::AtMost(bound) => (format!("≤ {}", self.unit.show(bound)), Some(self.measured.median() <= bound)),
            Target::AllAtMost(bound) => {
                (format!("all ≤ {}", self.unit.show(bound)), Some(self.measured.percentile(100) <= bound))
            }
        }
    }

    fn figure(&self, samples: &Samples) -> String {
        let number = |percent| self.unit.number(samples.percentile(percent));
        let spread = match self.percentiles {
            [] => format!("{} to {}", number(0), number(100)),
            some => {
                let named = |&percent: &usize| match percent {
                    100 => format!("max {}", number(100)),
                    _ => format!("p{percent} {}", number(percent)),
                };
                some.iter().map(named).collect::<Vec<_>>().join(", ")
            }
        };
        match samples.values() {
            [one] => self.unit.show(*one),
            _ => format!("{} ({spread})", self.unit.show(samples.median())),
        }
    }
}
