//! The programs of a measurement: a fake upstream and floors (each a process of its own, whose cost is not counted as
//! evenkeel's), agents with a minimal MCP client, and evenkeel itself.

pub mod agent;
pub mod bridge;
pub mod connection;
pub mod controller;
pub mod cores;
pub mod directory;
pub mod floor;
pub mod process;
pub mod samples;
pub mod upstream;

use std::fmt;

/// The result type of the benchmark. An error ends the part of the run in which it occurs.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Returns the time of the clock that all processes share: nanoseconds since the Unix epoch.
pub fn unix_nanos() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}

/// The two protocol eras of MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Era {
    /// `initialize`, sessions and the GET stream.
    Legacy,
    /// No session: `server/discover` and `subscriptions/listen`.
    Modern,
}

impl Era {
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Modern];

    /// Returns the protocol revision of this era.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Legacy => "2025-11-25",
            Self::Modern => "2026-07-28",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Modern => "modern",
        }
    }
}

impl fmt::Display for Era {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
