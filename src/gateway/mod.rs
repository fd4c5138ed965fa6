//! The endpoint that agents talk to: MCP over streamable HTTP in both eras, at `/mcp` and `/ns/NAMESPACE/mcp`.
//!
//! Promises that what passes between agents and servers stays as it is, that a session outlives the
//! process, that every agent hears of every change of its list, and that an agent which stops reading
//! delays nobody. Never connects to a server: calls go out through the catalog's routes.

mod agent_subscriptions;
mod body;
mod call;
mod caller;
mod coarse_timer;
mod deadline;
mod era;
mod handler;
mod instructions;
mod methods;
mod metrics;
mod notification_stream;
mod outcome;
mod response;
mod route_target;
mod routed_method;
mod server;
mod session;
mod session_id;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use metrics::GatewayMetrics;
pub use server::serve_unavailable;
pub use session_id::{SealError, SessionKey};

use crate::catalog::Catalog;
use crate::net::Authorization;
use crate::upstream::Subscriptions;
use crate::wire::InstanceId;
use coarse_timer::CoarseTimer;
use session::Sessions;

/// What the gateway is made with.
#[derive(Debug)]
pub struct GatewayConfig {
    /// Whose requests are answered.
    pub authorization: Authorization,
    /// What session ids are sealed with; the same one after a restart, and on every replica.
    pub session_key: SessionKey,
    /// What agents want to hear of servers, and what those tell.
    pub subscriptions: Subscriptions,
    /// Who this is, should an agent be an evenkeel.
    pub instance_id: InstanceId,
    /// Bounds.
    pub limits: Limits,
}

/// Bounds of connections.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; further ones wait.
    pub max_connections: usize,
    /// How long a connection may be without a request. Longer than agents keep theirs, so that no request
    /// meets a connection that is being closed.
    pub idle_timeout: Duration,
    /// How long an agent may read nothing while there is something to read.
    pub write_stall_timeout: Duration,
    /// How long calls may go on after the end was asked for.
    pub drain_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 8_192,
            idle_timeout: Duration::from_mins(2),
            write_stall_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

/// The agents' side of a catalog.
#[derive(Debug)]
pub struct Gateway {
    authorization: Authorization,
    sessions: Sessions,
    subscriptions: Subscriptions,
    instance_id: InstanceId,
    limits: Limits,
    catalog: Catalog,
    metrics: GatewayMetrics,
    /// Calls that go on though their agents went away.
    detached_calls: TaskTracker,
    coarse_timer: CoarseTimer,
    /// Ends the listener, the notice streams, and what goes on without an agent.
    stop: CancellationToken,
}

impl Gateway {
    /// A gateway that serves nobody yet, and nobody any more once `stop` says so.
    pub fn new(
        config: GatewayConfig,
        catalog: Catalog,
        metrics: GatewayMetrics,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let GatewayConfig {
            authorization,
            session_key,
            subscriptions: listeners,
            instance_id: identity,
            limits,
        } = config;
        let sessions = Sessions::new(session_key);
        let (alone, pulse) = (TaskTracker::new(), CoarseTimer::default());
        Arc::new(Self {
            authorization,
            sessions,
            subscriptions: listeners,
            instance_id: identity,
            limits,
            catalog,
            metrics,
            detached_calls: alone,
            coarse_timer: pulse,
            stop,
        })
    }

    fn update_session_gauge(&self) {
        self.metrics.sessions.set(i64::try_from(self.sessions.len()).unwrap_or(i64::MAX));
    }
}
