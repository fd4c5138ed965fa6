//! Calls on a connection that the caller has of its own (`isolation: Session`).

use super::super::Gateway;
use super::super::response;
use super::agent::CallAgent;
use super::end::CallEnd;
use crate::resource::{ObjectKey, Reason};
use crate::upstream::{CallGuard, CallRefusal, UpstreamHandle};

/// The maximum number of connections that are tried, each of which may end as unused just before the call begins.
const MAX_CONNECTIONS: usize = 3;

/// Begins a call on the caller's own connection to a server, and makes the connection if there is none. `catalog` is the
/// handle of the connection from which the server's lists were read.
///
/// # Errors
///
/// Returns the end of a call for which there is no connection.
pub(super) async fn begin_own_call(
    gateway: &Gateway,
    agent: &CallAgent,
    server: &ObjectKey,
    catalog: &UpstreamHandle,
) -> Result<(UpstreamHandle, CallGuard), CallEnd> {
    let Some(caller) = &agent.caller else {
        return Err(CallEnd::Refused(response::unknown_caller_text(server)));
    };
    let mut tried = 0;
    loop {
        tried += 1;
        let connections = &gateway.caller_connections;
        let handle = connections.connect(server, caller, agent.declared_capabilities, catalog).await;
        let handle =
            handle.map_err(|refusal| CallEnd::Refused(response::connect_refusal_text(server, &refusal)))?;
        match handle.begin_call().await {
            Ok(guard) => return Ok((handle, guard)),
            Err(CallRefusal::Unavailable(problem))
                if problem.reason == Reason::Idle && tried < MAX_CONNECTIONS => {}
            Err(refusal) => return Err(CallEnd::Refused(response::refusal_text(server, &refusal))),
        }
    }
}
