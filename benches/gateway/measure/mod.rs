//! The measures. Each starts its processes, adds the figures of one round to the report and ends its processes.

pub mod calls;
pub mod controller_setup;
pub mod fleet;
pub mod hang;
pub mod load;
pub mod sessions;

use std::path::PathBuf;
use std::time::Duration;

use crate::report::BenchSubject;

/// The extent of a run.
pub struct BenchPlan {
    /// The evenkeel program to measure, and optionally another build.
    pub programs: Vec<(BenchSubject, PathBuf)>,
    /// The number of rounds, each with processes of its own.
    pub rounds: usize,
    /// The number of batches with one caller, per round and era.
    pub latency_batches: usize,
    /// The number of batches with many callers, per round and era.
    pub crowd_batches: usize,
    /// The fleet sizes.
    pub fleets: Vec<fleet::FleetSize>,
    /// The number of idle agent sessions.
    pub sessions: usize,
    /// The numbers of working and hanging servers.
    pub mixtures: Vec<hang::HangMixture>,
}

impl BenchPlan {
    /// Returns the order of `count` subjects in a round or batch. The first one changes with `number`.
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
