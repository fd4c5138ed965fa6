use std::sync::Arc;

use jiff::Timestamp;

use crate::resource::{Digest, ObjectKey, Problem, Reason};
use crate::wire::ServerDescription;

/// What is true about one server's connection now: all that `report/` needs for its conditions.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation {
    /// The server.
    pub key: ObjectKey,
    /// The uid of the object that this is about.
    pub uid: Arc<str>,
    /// The generation that the actor works on.
    pub generation: i64,
    /// The last request to look at the server that was acted on.
    pub last_handled_request: Option<Arc<str>>,
    /// Where the work on that generation stands.
    pub phase: Phase,
    /// What is live, of this generation or an earlier one; `None` if nothing is.
    pub live_server: Option<Arc<LiveServer>>,
    /// Why nothing is sent to the live server for now: it wants no requests (Retry-After).
    pub paused: Option<Problem>,
    /// In what the live server falls short: a list that could not be read, or an oddity that was tolerated.
    pub degraded: Option<Problem>,
    /// How often the connection was lost and made again.
    pub restarts: u32,
}

/// Where the work on a generation stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Phase {
    /// An attempt is under way.
    Connecting {
        /// Its number, from 1.
        attempt: u32,
        /// Why the attempt before failed, if there was one.
        last_problem: Option<Problem>,
    },
    /// This generation is attached.
    Attached,
    /// This generation is offered without a connection, which the next call makes.
    Idle,
    /// The last attempt failed, or the connection was lost.
    Failed {
        /// Why.
        problem: Problem,
        /// When the next attempt is due; `None` if a person must act first.
        retry_at: Option<Timestamp>,
        /// The number of that attempt.
        attempt: u32,
    },
    /// Going away; calls in flight are finishing.
    Draining(Reason),
    /// Gone: `Removed` or `Suspended`. The last observation of a server.
    Detached(Reason),
}

/// What a live server told of itself.
#[derive(Debug, PartialEq)]
pub struct LiveServer {
    /// The generation that is live.
    pub generation: i64,
    /// What the server told of itself.
    pub description: Arc<ServerDescription>,
    /// Tools offered to agents, after filters.
    pub tools: u32,
    /// Prompts, likewise.
    pub prompts: u32,
    /// Resources, likewise; templates are not counted.
    pub resources: u32,
    /// Digest of everything it lists.
    pub catalog_digest: Digest,
}
