use std::sync::Arc;

use jiff::Timestamp;

use crate::resource::{Digest, ObjectKey, Problem, Reason};
use crate::wire::ServerDescription;

/// The current state of one server's connection, from which `report/` derives its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The server.
    pub key: ObjectKey,
    /// The uid of the server's object.
    pub uid: Arc<str>,
    /// The generation that the actor is applying.
    pub generation: i64,
    /// The last reconcile request that was handled.
    pub last_handled_request: Option<Arc<str>>,
    /// The phase of that generation.
    pub phase: Phase,
    /// The live server, of this generation or an earlier one; `None` if nothing is live.
    pub live_server: Option<Arc<LiveServer>>,
    /// The reason why no requests are sent to the live server for now (Retry-After).
    pub paused: Option<Problem>,
    /// A problem of the live server: a list that could not be read, or a tolerated protocol violation.
    pub degraded: Option<Problem>,
    /// The number of times that the connection was lost.
    pub restarts: u32,
}

/// The phase of a generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// An attempt is in progress.
    Connecting {
        /// The number of the attempt, from 1.
        attempt: u32,
        /// The problem of the previous attempt, if there was one.
        last_problem: Option<Problem>,
    },
    /// This generation is attached.
    Attached,
    /// This generation is published without a connection; the next call connects.
    Idle,
    /// The last attempt failed, or the connection was lost.
    Failed {
        /// The problem.
        problem: Problem,
        /// When the next attempt is due; `None` if a user must act first.
        retry_at: Option<Timestamp>,
        /// The number of that attempt.
        attempt: u32,
    },
    /// The server is being detached; calls in flight are draining.
    Draining(Reason),
    /// The server is detached: `Removed` or `Suspended`. The last observation of a server.
    Detached(Reason),
}

/// The properties of a live server.
#[derive(Debug, PartialEq)]
pub struct LiveServer {
    /// The generation that is live.
    pub generation: i64,
    /// The server's description of itself.
    pub description: Arc<ServerDescription>,
    /// The number of tools offered to agents, after filters.
    pub tools: u32,
    /// The number of prompts, likewise.
    pub prompts: u32,
    /// The number of resources, likewise; templates are not counted.
    pub resources: u32,
    /// The digest of all lists.
    pub catalog_digest: Digest,
    /// True if its tools are not read, because neither its capabilities nor `spec.capabilities` have tools.
    pub declares_no_tools: bool,
}
