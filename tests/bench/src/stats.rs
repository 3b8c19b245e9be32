//! Medians, high percentiles, and ratios of turns.

use std::fmt;
use std::time::Duration;

/// Samples of one quantity, in the order they were taken.
#[derive(Debug, Default)]
pub struct Samples(pub Vec<f64>);

impl Samples {
    /// Adds a duration, in milliseconds.
    pub fn push(&mut self, duration: Duration) {
        self.0.push(duration.as_secs_f64() * 1e3);
    }

    /// The value below which this share of the samples lies (nearest rank).
    ///
    /// # Panics
    /// Without samples.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Sample by sample, this divided by `other`.
    pub fn ratios(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect())
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (median, p99) = (self.median(), self.quantile(0.99));
        write!(f, "median {median:.3}, p99 {p99:.3} (n = {})", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_quantile_is_nearest_rank() {
        let samples = Samples(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        assert_eq!(
            [0.0, 0.5, 0.8, 0.99].map(|q| samples.quantile(q)),
            [1.0, 3.0, 4.0, 5.0]
        );
    }
}
