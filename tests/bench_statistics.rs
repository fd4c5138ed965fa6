//! Tests of the benchmark's statistics. They are here because the benchmark has no test harness.

#[path = "../benches/gateway/statistics.rs"]
mod statistics;

use statistics::Verdict::{Improved, WithinTolerance, Worse};
use statistics::{LEAST_TOLERANCE, Spread, compare, median, ratios};

#[test]
fn median_of_figures() {
    let table: [(&[f64], Option<f64>); 5] = [
        (&[], None),
        (&[3.0], Some(3.0)),
        (&[1.0, 4.0], Some(2.5)),
        (&[9.0, 1.0, 2.0], Some(2.0)),
        (&[4.0, 1.0, 100.0, 2.0], Some(3.0)),
    ];
    for (figures, expected) in table {
        assert_eq!(median(figures), expected, "{figures:?}");
    }
}

#[test]
fn spread_summarizes_rounds() {
    assert_eq!(Spread::of(&[]), None);
    let spread = Spread::of(&[2.0, 1.0, 2.2, 9.0, 1.9]);
    let Some(Spread { median, min, max, deviation }) = spread else { panic!("no spread") };
    assert_eq!((median, min, max), (2.0, 1.0, 9.0));
    assert!((deviation - 0.2).abs() < 1e-9, "an outlier must not widen it: {deviation}");
}

#[test]
fn tolerance_follows_the_spread() {
    let table: [(&[f64], f64); 5] = [
        (&[2.0, 2.0, 2.0], LEAST_TOLERANCE),
        (&[0.0, 0.0, 0.0], LEAST_TOLERANCE),
        (&[2.0, 2.0, 2.0, 2.0, 2.4], 0.2),
        (&[0.95, 1.0, 1.05, 0.9, 1.1], 0.2),
        (&[9.5, 10.0, 10.6], 0.2),
    ];
    for (figures, expected) in table {
        let tolerance = Spread::of(figures).map(|spread| spread.tolerance()).unwrap_or_default();
        assert!((tolerance - expected).abs() < 1e-9, "{figures:?}: {tolerance}");
    }
}

#[test]
fn ratios_pair_batches_at_one_position() {
    type Rounds = &'static [&'static [f64]];
    let table: [(Rounds, Rounds, &[f64]); 5] = [
        (&[&[4.0], &[9.0]], &[&[2.0], &[3.0]], &[2.0, 3.0]),
        // The machine was ten times slower during the second batch, for both subjects.
        (&[&[4.0, 40.0, 4.2]], &[&[2.0, 20.0, 2.0]], &[2.0]),
        (&[&[4.0, 4.0]], &[&[0.0, 2.0]], &[2.0]),
        (&[&[4.0]], &[&[0.0]], &[]),
        (&[&[4.0], &[4.0]], &[&[2.0]], &[2.0]),
    ];
    let owned = |rounds: &[&[f64]]| rounds.iter().map(|round| round.to_vec()).collect::<Vec<_>>();
    for (figures, twins, expected) in table {
        assert_eq!(ratios(&owned(figures), &owned(twins)), expected, "{figures:?} {twins:?}");
    }
}

#[test]
fn compare_respects_the_tolerance() {
    let table = [
        (2.0, 0.1, 2.0, WithinTolerance),
        (2.0, 0.1, 2.19, WithinTolerance),
        (2.0, 0.1, 2.21, Worse),
        (2.0, 0.1, 1.81, WithinTolerance),
        (2.0, 0.1, 1.79, Improved),
        (0.0, 0.1, 1.0, Worse),
    ];
    for (recorded, tolerance, measured, expected) in table {
        let verdict = compare(recorded, tolerance, measured);
        assert_eq!(verdict, expected, "{recorded} ± {tolerance}, {measured}");
    }
}
