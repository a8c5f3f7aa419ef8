//! Figures and how they are made of samples.

/// A figure with its spread over the rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    /// Of how many values it is made: rounds, starts or changes. One has no spread.
    pub(crate) count: usize,
}

impl Figure {
    /// Of single values.
    pub(crate) fn of(values: &[f64]) -> Self {
        let sorted = sorted(values);
        let end = |value: Option<&f64>| value.copied().unwrap_or(f64::NAN);
        Self { median: median(values), min: end(sorted.first()), max: end(sorted.last()), count: values.len() }
    }

    /// The ratio of two contenders' medians; min and max of the ratios round by round.
    pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Self {
        let rounds: Vec<f64> = ours.iter().zip(theirs).map(|(our, their)| our / their).collect();
        Self { median: median(ours) / median(theirs), ..Self::of(&rounds) }
    }
}

/// The median; not a number if there are none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// The mean of the middle half: some of many short runs are interrupted, and the clock may be a coarse one.
pub(crate) fn middle_mean(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    let quarter = sorted.len() / 4;
    let middle = &sorted[quarter..sorted.len() - quarter];
    middle.iter().sum::<f64>() / middle.len() as f64
}

/// The value that a share of all values doesn't exceed (the nearest rank); not a number if there are none.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let sorted = sorted(values);
    let rank = (share * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// A figure as people read it: three digits that count, whatever its size.
pub(crate) fn shown(value: f64) -> String {
    let decimals = match value.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_medians_and_its_spread_of_rounds() {
        let figure = Figure::ratio(&[2.0, 4.0, 9.0], &[2.0, 2.0, 3.0]);
        assert_eq!((figure.median, figure.min, figure.max, figure.count), (2.0, 1.0, 3.0, 3));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(&[]).is_nan());
        assert_eq!(middle_mean(&[9000.0, 2.0, 4.0, -100.0]), 3.0);
        assert!(middle_mean(&[]).is_nan());
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!((percentile(&hundred, 0.5), percentile(&hundred, 0.99), percentile(&[7.0], 0.99)), (50.0, 99.0, 7.0));
        assert!(percentile(&[], 0.5).is_nan());
    }

    #[test]
    fn small_figures_keep_their_digits() {
        assert_eq!([1234.5, 56.78, 1.234, 0.0127].map(shown), ["1234", "56.8", "1.23", "0.013"]);
    }
}
