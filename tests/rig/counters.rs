//! The counters of a fake server.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Counts since the start, and the current numbers of open things.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// TCP connections accepted; 1 over stdio.
    pub connections: u64,
    /// Requests and notifications by method, and the HTTP methods GET and DELETE.
    pub methods: BTreeMap<String, u64>,
    /// The paths of all POST requests over HTTP.
    pub posted_paths: BTreeSet<String>,
    /// Responses of clients to requests of the server.
    pub answers: u64,
    /// Sessions created.
    pub sessions_opened: u64,
    /// Current sessions.
    pub sessions: u64,
    /// Currently open GET and listen streams.
    pub streams: u64,
    /// Requests currently in flight.
    pub in_flight: u64,
    /// Requests cancelled by the client: by the notification, or by closing a modern stream.
    pub cancelled: u64,
    /// Legacy requests whose connection was closed before the response, without a cancel notification.
    pub abandoned: u64,
    /// The resources that clients currently subscribe to, with the number of streams (1 in the legacy era).
    pub watched: BTreeMap<String, u64>,
    /// The capabilities that legacy clients declared, as JSON.
    pub client_capabilities: Vec<String>,
    /// The log level that a legacy client set last.
    pub level: Option<String>,
    /// Violations of the specification by clients.
    pub complaints: Vec<String>,
}

impl Counters {
    /// Returns how often a method was used.
    pub fn count(&self, method: &str) -> u64 {
        self.methods.get(method).copied().unwrap_or(0)
    }

    /// Returns the number of `initialize` requests.
    pub fn initializes(&self) -> u64 {
        self.count("initialize")
    }

    /// Returns the number of `server/discover` requests.
    pub fn discovers(&self) -> u64 {
        self.count("server/discover")
    }

    /// Returns the number of `tools/list` requests; each page counts.
    pub fn tool_lists(&self) -> u64 {
        self.count("tools/list")
    }

    /// Returns the number of `tools/call` requests.
    pub fn calls(&self) -> u64 {
        self.count("tools/call")
    }
}
