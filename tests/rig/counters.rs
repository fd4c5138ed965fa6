//! What the rig has seen.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counts since the start, and what is open now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// TCP connections accepted; 1 over stdio.
    pub connections: u64,
    /// Requests and notifications by method, and the HTTP methods GET and DELETE.
    pub methods: BTreeMap<String, u64>,
    /// Answers to requests of the rig.
    pub answers: u64,
    /// Sessions given out.
    pub sessions_opened: u64,
    /// Sessions known now.
    pub sessions: u64,
    /// GET and listen streams open now.
    pub streams: u64,
    /// Requests at work now.
    pub in_flight: u64,
    /// Requests that the client cancelled: with the notification, or by closing a modern stream.
    pub cancelled: u64,
    /// Legacy requests whose connection went away before the answer, with no word of cancelling.
    pub abandoned: u64,
    /// Resources that clients watch now; how many streams do so, in the modern era.
    pub watched: BTreeMap<String, u64>,
    /// The level that a legacy client set last.
    pub level: Option<String>,
    /// What clients did that the specification forbids.
    pub complaints: Vec<String>,
}

impl Counters {
    /// How often a method was used.
    pub fn count(&self, method: &str) -> u64 {
        self.methods.get(method).copied().unwrap_or(0)
    }

    /// `initialize` requests.
    pub fn initializes(&self) -> u64 {
        self.count("initialize")
    }

    /// `server/discover` requests.
    pub fn discovers(&self) -> u64 {
        self.count("server/discover")
    }

    /// `tools/list` requests, each page counted.
    pub fn tool_lists(&self) -> u64 {
        self.count("tools/list")
    }

    /// `tools/call` requests.
    pub fn calls(&self) -> u64 {
        self.count("tools/call")
    }
}
