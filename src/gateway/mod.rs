//! The MCP endpoint for agents: streamable HTTP in both eras, at `/mcp` and `/ns/NAMESPACE/mcp`, for one agent at
//! `/as/ID/mcp` and `/as/ID/ns/NAMESPACE/mcp`.
//!
//! Promises that messages between agents and servers are forwarded unchanged, that a session survives a restart of
//! the process, that every agent is notified of every change of its lists, and that an agent that stops reading
//! delays no other agent. Never connects to a server: calls use the catalog's routes.

mod agent_subscriptions;
mod batch;
mod body;
mod call;
mod caller;
mod coarse_timer;
mod cors;
mod deadline;
mod endpoint_path;
mod era;
mod handler;
mod in_flight;
mod input;
mod instructions;
mod known_namespaces;
mod limits;
mod methods;
mod metrics;
mod not_found;
mod notification_stream;
mod outcome;
mod param_header_check;
mod replica;
mod request_body;
mod response;
mod result_for_era;
mod roots;
mod route_target;
mod routed_method;
mod seal;
mod server;
mod server_response;
mod session;
mod session_id;
mod skill_methods;
mod structured_content;
mod trace;
mod unknown_item;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use known_namespaces::KnownNamespaces;
pub use limits::Limits;
pub use metrics::GatewayMetrics;
pub use seal::{SealError, SessionKey};
pub use server::serve_unavailable;

use crate::catalog::Catalog;
use crate::net::Authorization;
use crate::upstream::{CallerConnections, Subscriptions};
use crate::wire::InstanceId;
use coarse_timer::CoarseTimer;
use input::{OwnProcess, RequestStates, SuspendedCalls};
use session::Sessions;

/// The configuration of a [`Gateway`].
#[derive(Debug)]
pub struct GatewayConfig {
    /// The check that every request must pass.
    pub authorization: Authorization,
    /// The key that seals session ids. It must be the same after a restart and on every replica.
    pub session_key: SessionKey,
    /// The agents' subscriptions, and the notifications that servers send for them.
    pub subscriptions: Subscriptions,
    /// The connections that callers have of their own.
    pub caller_connections: CallerConnections,
    /// The id of this instance, which detects an evenkeel instance that connects to itself.
    pub instance_id: InstanceId,
    /// The address (`HOST:PORT`) at which other replicas reach this process, if there are any. A response of an agent
    /// that belongs to a request of another replica is passed on to that one.
    pub replica_address: Option<String>,
    /// The namespaces that agents may use in a path.
    pub namespaces: KnownNamespaces,
    /// The limits on agents.
    pub limits: Limits,
}

/// The agent-facing side of a catalog.
#[derive(Debug)]
pub struct Gateway {
    authorization: Authorization,
    sessions: Sessions,
    process: OwnProcess,
    request_states: RequestStates,
    suspended_calls: SuspendedCalls,
    subscriptions: Subscriptions,
    caller_connections: CallerConnections,
    instance_id: InstanceId,
    namespaces: KnownNamespaces,
    limits: Limits,
    catalog: Catalog,
    metrics: GatewayMetrics,
    /// Calls that continue although their agents have disconnected.
    detached_calls: TaskTracker,
    coarse_timer: CoarseTimer,
    /// Stops the listener, the notification streams and the detached calls.
    stop: CancellationToken,
}

impl Gateway {
    /// Creates a gateway. It serves agents after [`serve`](Self::serve) is called, until `stop` is cancelled.
    pub fn new(
        config: GatewayConfig,
        catalog: Catalog,
        metrics: GatewayMetrics,
        stop: CancellationToken,
    ) -> Arc<Self> {
        let GatewayConfig {
            authorization,
            session_key,
            subscriptions,
            caller_connections,
            instance_id,
            replica_address,
            namespaces,
            limits,
        } = config;
        let session_key = Arc::new(session_key);
        let sessions = Sessions::new(session_key.clone(), caller_connections.clone());
        let process = OwnProcess::new(instance_id.clone(), replica_address, session_key.clone());
        let request_states = RequestStates::new(session_key);
        let suspended_calls = SuspendedCalls::new(metrics.suspended_calls.clone());
        let (detached_calls, coarse_timer) = (TaskTracker::new(), CoarseTimer::default());
        Arc::new(Self {
            authorization,
            sessions,
            process,
            request_states,
            suspended_calls,
            subscriptions,
            caller_connections,
            instance_id,
            namespaces,
            limits,
            catalog,
            metrics,
            detached_calls,
            coarse_timer,
            stop,
        })
    }

    fn update_session_gauge(&self) {
        self.metrics.sessions.set(i64::try_from(self.sessions.len()).unwrap_or(i64::MAX));
    }
}
