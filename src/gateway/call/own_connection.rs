//! Calls on a connection that the caller has of its own (`isolation: Session`).

use super::super::Gateway;
use super::super::response;
use super::agent::CallAgent;
use super::end::CallEnd;
use crate::resource::Reason;
use crate::upstream::{CallGuard, CallRefusal, Section, UpstreamHandle};
use crate::wire::{ClientCapabilities, Era};

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
    section: &Section,
    catalog: &UpstreamHandle,
) -> Result<(UpstreamHandle, CallGuard), CallEnd> {
    let server = &section.key;
    let Some(caller) = &agent.caller else {
        return Err(CallEnd::Refused(response::unknown_caller_text(server)));
    };
    let capabilities = connection_capabilities(agent.era, agent.declared_capabilities, section.gets_roots());
    let mut tried = 0;
    loop {
        tried += 1;
        let connections = &gateway.caller_connections;
        let handle = connections.connect(server, caller, capabilities, catalog).await;
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

/// Returns the capabilities that the handshake of a caller's connection declares. A legacy session has the same ones for
/// all calls. A modern agent declares them with each call, and those of its first call do not limit what a later one may
/// be asked for: what one call does not support is declined for that call.
fn connection_capabilities(
    era: Era,
    declared_by_call: ClientCapabilities,
    gets_roots: bool,
) -> ClientCapabilities {
    match era {
        Era::Legacy => declared_by_call,
        Era::Modern => {
            let roots = if gets_roots { ClientCapabilities::ROOTS } else { ClientCapabilities::NONE };
            declared_by_call.with(ClientCapabilities::OF_SHARED_CONNECTIONS).with(roots)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_of_a_modern_agent_declares_what_later_calls_may_support() {
        let all = r#"{"elicitation":{"form":{},"url":{}},"sampling":{},"roots":{}}"#;
        let without_roots = r#"{"elicitation":{"form":{},"url":{}},"sampling":{}}"#;
        let with_tools = r#"{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}}}"#;
        for (era, declared_by_call, gets_roots, expected) in [
            (Era::Legacy, "{}", true, "{}"),
            (Era::Legacy, r#"{"roots":{"listChanged":true}}"#, true, r#"{"roots":{"listChanged":true}}"#),
            (Era::Modern, "{}", true, all),
            (Era::Modern, r#"{"elicitation":{}}"#, true, all),
            (Era::Modern, "{}", false, without_roots),
            (Era::Modern, r#"{"sampling":{"tools":{}}}"#, false, with_tools),
        ] {
            let declared = ClientCapabilities::from_json(declared_by_call);
            let found = connection_capabilities(era, declared, gets_roots).to_json();
            assert_eq!(found, expected, "{era:?} {declared_by_call} {gets_roots}");
        }
    }
}
