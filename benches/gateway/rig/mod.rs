//! What the measures stand on: a fake upstream and a floor proxy (each a process of its own, so that what
//! they cost is not evenkeel's), agents that speak MCP with as little code as will do, and evenkeel itself.

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

/// Any failure; it ends the part of the run that it happens in.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The clock that all processes share: nanoseconds of the Unix epoch.
pub fn unix_nanos() -> i128 {
    jiff::Timestamp::now().as_nanosecond()
}

/// The two ways to speak MCP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Era {
    /// `initialize`, sessions and the GET stream.
    Legacy,
    /// No session: `server/discover` and `subscriptions/listen`.
    Modern,
}

impl Era {
    pub const ALL: [Self; 2] = [Self::Legacy, Self::Modern];

    /// The revision that is spoken.
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
