use std::sync::Arc;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::super::input::RequestBinding;
use super::super::route_target::RouteTarget;
use super::super::session::Session;
use crate::upstream::{CallerId, ViewName};
use crate::wire::{ClientCapabilities, Era, LogLevel, parse_members};

/// The agent of a call, as far as the call depends on it.
#[derive(Clone)]
pub(in crate::gateway) struct CallAgent {
    pub(in crate::gateway) era: Era,
    pub(in crate::gateway) view: ViewName,
    /// The minimum level of log messages before the response. The meaning of `None` depends on the era.
    pub(in crate::gateway) log_level: Option<LogLevel>,
    /// The capabilities by which servers may ask the agent for input.
    pub(in crate::gateway) capabilities: ClientCapabilities,
    /// The capabilities that the agent has declared, whether it can be asked during this call or not.
    pub(in crate::gateway) declared_capabilities: ClientCapabilities,
    /// The session of a legacy agent.
    pub(in crate::gateway) session: Option<Arc<Session>>,
    /// What tells the agent from others, if anything does.
    pub(in crate::gateway) caller: Option<CallerId>,
    /// The JSON of the request's params; empty for a legacy agent without capabilities.
    pub(in crate::gateway) params: Bytes,
}

impl CallAgent {
    /// Gives up the agent's roots. Those of one agent must not widen what a server permits to others.
    pub(super) fn withhold_roots(&mut self) {
        self.capabilities = self.capabilities.without_roots();
        self.declared_capabilities = self.declared_capabilities.without_roots();
    }

    /// Returns the digest of the request, which a state of it is bound to.
    pub(super) fn binding(&self, target: &RouteTarget) -> RequestBinding {
        let params = std::str::from_utf8(&self.params).ok().and_then(|params| parse_members(params).ok());
        let arguments = params.as_ref().and_then(|params| params.get("arguments"));
        let (identity, server) =
            (self.caller.as_ref().map_or("", CallerId::as_str), target.section().key.to_string());
        let name = target.upstream_name().unwrap_or_default();
        let parts = [identity, target.method.as_str(), &*server, name];
        RequestBinding::new(&parts, arguments.map_or("null", RawValue::get))
    }
}
