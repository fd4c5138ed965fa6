//! The measures: each starts what it needs, adds its rows to the report and ends what it started.

pub mod calls;
pub mod fleet;
pub mod hang;
pub mod sessions;

use std::path::PathBuf;
use std::time::Duration;

/// What is measured, and how much of it.
pub struct Plan {
    /// The evenkeel to measure.
    pub program: PathBuf,
    /// Rounds of the one caller, each over every way to the server.
    pub latency_rounds: usize,
    /// Rounds of the many callers, of one second for each way.
    pub throughput_rounds: usize,
    /// The fleets.
    pub fleets: Vec<fleet::Size>,
    /// Idle agent sessions.
    pub sessions: usize,
    /// Starts beside a server that hangs.
    pub starts: usize,
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
