//! Measured values, and their statistics.

/// Returns the smallest value that this percentage of all values does not exceed; `None` if there
/// are no values.
pub(crate) fn percentile<T: Copy + PartialOrd>(values: &[T], percent: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).expect("comparable values"));
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// The values of one quantity that was measured several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }

    /// Returns the middle value, or the mean of the two in the middle.
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        }
    }

    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        percentile(&self.0, percent).unwrap_or(f64::NAN)
    }

    pub(crate) fn map(&self, change: impl Fn(f64) -> f64) -> Self {
        self.0.iter().copied().map(change).collect()
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// The ratio of one quantity to another that was measured in turn with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    /// The median of the ratios of neighbours. Other load on the machine was the same for both.
    pub(crate) of_pairs: f64,
    pub(crate) of_medians: f64,
}

impl Ratio {
    pub(crate) fn of(measured: &Samples, baseline: &Samples) -> Self {
        let pairs: Samples = measured.0.iter().zip(&baseline.0).map(|(a, b)| a / b).collect();
        Self { of_pairs: pairs.median(), of_medians: measured.median() / baseline.median() }
    }
}

/// Measures several quantities in turn: A B C A B C …, `rounds` times. If there are several rounds,
/// one that does not count precedes them.
pub(crate) fn in_turn<C, const N: usize>(
    rounds: usize,
    context: &mut C,
    contenders: [&dyn Fn(&mut C) -> f64; N],
) -> [Samples; N] {
    if rounds > 1 {
        for contender in contenders {
            contender(context);
        }
    }
    let mut samples = [const { Samples(Vec::new()) }; N];
    for _ in 0..rounds {
        for (samples, contender) in samples.iter_mut().zip(contenders) {
            samples.push(contender(context));
        }
    }
    samples
}
