//! Calculates medians, ratios of figures measured side by side, their spread, and the comparison of a run with the
//! recorded figures. Pure functions: no clock, no file, no process.

/// The median, the extremes and the median absolute deviation of the figures of all rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    /// The median absolute deviation.
    pub deviation: f64,
}

impl Spread {
    /// Summarizes one figure per round. Returns `None` if there are no rounds.
    pub fn of(rounds: &[f64]) -> Option<Self> {
        let median = median(rounds)?;
        let distances: Vec<f64> = rounds.iter().map(|figure| (figure - median).abs()).collect();
        Some(Self {
            median,
            min: rounds.iter().copied().fold(f64::INFINITY, f64::min),
            max: rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            deviation: self::median(&distances)?,
        })
    }

    /// Returns the permitted deviation of the median of another run of the same program, as a share of the median. It
    /// is the larger of two distances: four median absolute deviations (about 3.5 standard deviations of the difference
    /// of two medians of five rounds), and the range (rounds may be bimodal, with either mode in the majority). It is
    /// rounded up to a whole percent, and at least [`LEAST_TOLERANCE`].
    pub fn tolerance(&self) -> f64 {
        let distance = f64::max(4.0 * self.deviation, self.max - self.min);
        let share = if self.median == 0.0 { 0.0 } else { distance / self.median.abs() };
        // Division can yield 12.000000000000002 for 12, which must not be rounded up to 13.
        let percent = (100.0 * share - 1e-6).ceil() / 100.0;
        percent.max(LEAST_TOLERANCE)
    }
}

/// The least tolerance, as a share: runs differ by this much beyond the spread within each of them.
pub const LEAST_TOLERANCE: f64 = 0.1;

/// Returns the median, or `None` if there are no figures. For an even number, it is the mean of the two middle figures.
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (low, high) = (sorted.len().checked_sub(1)? / 2, sorted.len() / 2);
    Some(f64::midpoint(*sorted.get(low)?, *sorted.get(high)?))
}

/// Divides the figures pairwise within each round and returns the median quotient of each round. A round has the
/// figures of one or more short batches; the batches at the same position were measured one directly after the other.
pub fn ratios(figures: &[Vec<f64>], twins: &[Vec<f64>]) -> Vec<f64> {
    let quotients = |(round, twin): (&Vec<f64>, &Vec<f64>)| {
        let quotients: Vec<f64> = round
            .iter()
            .zip(twin)
            .filter(|(_, twin)| **twin != 0.0)
            .map(|(figure, twin)| figure / twin)
            .collect();
        median(&quotients)
    };
    figures.iter().zip(twins).filter_map(quotients).collect()
}

/// The result of comparing a measured figure with the recorded one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    WithinTolerance,
    Worse,
    Improved,
}

/// Compares a measured figure with the recorded one. Less is better. The tolerance is a share of the recorded figure.
pub fn compare(recorded: f64, tolerance: f64, measured: f64) -> Verdict {
    let distance = tolerance * recorded.abs();
    if measured - recorded > distance {
        Verdict::Worse
    } else if recorded - measured > distance {
        Verdict::Improved
    } else {
        Verdict::WithinTolerance
    }
}
