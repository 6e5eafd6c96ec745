//! Medians, spreads and means.

use serde::Serialize;

/// A figure of several runs.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// The least.
    pub least: f64,
    /// The median (of an even number, the upper of the two in the middle).
    pub median: f64,
    /// The most.
    pub most: f64,
    /// All, in the order of the runs.
    pub runs: Vec<f64>,
}

impl Figure {
    /// Of at least one run.
    pub fn of(runs: Vec<f64>) -> Option<Self> {
        let mut sorted = runs.clone();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        Some(Self { least, median: sorted[sorted.len() / 2], most, runs })
    }
}

/// The geometric mean; of nothing there is none.
pub fn geometric_mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.into_iter().fold((0.0, 0), |(sum, count), value| (sum + value.ln(), count + 1));
    (count > 0).then(|| (sum / f64::from(count)).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let figure = Figure::of(vec![3.0, 9.0, 1.0]).unwrap();
        assert_eq!((figure.least, figure.median, figure.most), (1.0, 3.0, 9.0));
        assert_eq!(figure.runs, [3.0, 9.0, 1.0]);
        assert!(Figure::of(vec![]).is_none());
    }

    #[test]
    fn the_mean_is_geometric() {
        assert!((geometric_mean([2.0, 8.0]).unwrap() - 4.0).abs() < 1e-12);
        assert!(geometric_mean([]).is_none());
    }
}
