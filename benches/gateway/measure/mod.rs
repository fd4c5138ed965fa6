//! The measures: each starts what it needs, adds the figures of one round to the report and ends what it started.

pub mod calls;
pub mod controller_setup;
pub mod fleet;
pub mod hang;
pub mod load;
pub mod sessions;

use std::path::PathBuf;
use std::time::Duration;

use crate::report::BenchSubject;

/// Says what is measured, and how much of it.
pub struct BenchPlan {
    /// The evenkeel to measure, and perhaps another build.
    pub programs: Vec<(BenchSubject, PathBuf)>,
    /// Rounds, each with processes of its own.
    pub rounds: usize,
    /// Batches of one caller in each round and era.
    pub latency_batches: usize,
    /// Batches of many callers in each round and era.
    pub crowd_batches: usize,
    /// The fleets.
    pub fleets: Vec<fleet::FleetSize>,
    /// Idle agent sessions.
    pub sessions: usize,
    /// How many servers work and how many hang.
    pub mixtures: Vec<hang::HangMixture>,
}

impl BenchPlan {
    /// Returns the order in which things take turns in a round or batch: each is first once in a while.
    pub fn rotation(number: usize, count: usize) -> impl Iterator<Item = usize> {
        (0..count).map(move |turn| (number + turn) % count)
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn millis_of_nanos(nanos: i128) -> f64 {
    nanos as f64 / 1e6
}
