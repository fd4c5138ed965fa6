use std::time::Duration;

/// Limits on agents.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The maximum number of open connections. Further ones wait in the listener.
    pub max_connections: usize,
    /// The time after which a connection without a request is closed. It is longer than agents keep idle connections,
    /// so that no agent sends a request on a connection that is being closed.
    pub idle_timeout: Duration,
    /// The time after which an agent that does not read pending data is disconnected.
    pub write_stall_timeout: Duration,
    /// The time that calls have to finish after a shutdown was requested.
    pub drain_timeout: Duration,
    /// The maximum size of a request body, in bytes.
    pub max_body_bytes: usize,
    /// The time for a request body to arrive.
    pub body_timeout: Duration,
    /// The maximum number of requests of one session that are in flight at servers.
    pub max_session_calls: usize,
    /// The maximum number of calls of one server, those included that wait for its connection. Half of the connections
    /// by default, so that a server that does not respond leaves the other half to the other servers.
    pub max_server_calls: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 8_192,
            idle_timeout: Duration::from_mins(2),
            write_stall_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            max_body_bytes: 4 << 20,
            body_timeout: Duration::from_secs(30),
            max_session_calls: 256,
            max_server_calls: 4_096,
        }
    }
}

/// A limit beyond which requests are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExceededLimit {
    /// The size of a request body.
    BodySize,
    /// The time for a request body to arrive.
    BodyTime,
    /// The calls of a session.
    SessionCalls,
    /// The calls of a server.
    ServerCalls,
    /// The resources that an agent watches.
    Subscriptions,
}

impl ExceededLimit {
    pub(super) const ALL: [Self; 5] =
        [Self::BodySize, Self::BodyTime, Self::SessionCalls, Self::ServerCalls, Self::Subscriptions];

    /// Returns the value of the `limit` label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::BodySize => "body_size",
            Self::BodyTime => "body_time",
            Self::SessionCalls => "session_calls",
            Self::ServerCalls => "server_calls",
            Self::Subscriptions => "subscriptions",
        }
    }
}
