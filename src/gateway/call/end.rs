//! The end of a call, and the response to its agent.

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;

use super::super::Gateway;
use super::super::body::{self, ResponseBody, empty_stream};
use super::super::input::{
    InputRequired, StateContent, input_required_result, input_timeout, required_url_elicitations,
};
use super::super::metrics::CallTimer;
use super::super::outcome::CallOutcome;
use super::super::response;
use super::super::route_target::RouteTarget;
use super::super::server_response::server_response;
use super::super::unknown_item::unknown_item_list;
use super::agent::CallAgent;
use crate::upstream::{CallSlot, Responder, UpstreamHandle};
use crate::wire::{
    ClientCapabilities, ConnectionError, Era, FailureSource, InputMethod, InputRequest, JsonRpcId,
    RpcResponse, ServerInputRequest, notification_level,
};

/// The end of a call.
pub(super) enum CallEnd {
    /// The response of a server of this era.
    Response(RpcResponse, Era),
    Refused(String),
    Failed(ConnectionError),
    /// With the description of the exceeded limit.
    TimedOut(String),
    Cancelled,
    /// A legacy server requests input of a modern agent. The call itself stays open.
    Suspend(Box<ServerInputRequest>),
    /// The result that asks a modern agent for input; the call itself stays open.
    Suspended(Bytes),
}

impl CallEnd {
    /// True if the server rejected the call because its session is lost. A call that it may have processed does not
    /// count, although its session was lost meanwhile.
    pub(super) fn is_rejected_by_lost_session(&self) -> bool {
        matches!(self, Self::Failed(error) if error.failure_source == FailureSource::Session && !error.dispatched)
    }

    fn outcome(&self) -> CallOutcome {
        match self {
            Self::Response(RpcResponse::Result(_), _) | Self::Suspend(_) | Self::Suspended(_) => {
                CallOutcome::Ok
            }
            Self::Response(RpcResponse::Error(_), _) => CallOutcome::Error,
            Self::Refused(_) => CallOutcome::Refused,
            Self::Failed(_) => CallOutcome::Failed,
            Self::TimedOut(_) => CallOutcome::Timeout,
            Self::Cancelled => CallOutcome::Cancelled,
        }
    }

    fn response(&self) -> Option<&RpcResponse> {
        match self {
            Self::Response(response, _) => Some(response),
            _ => None,
        }
    }
}

/// The data from which the response to the agent is built.
pub(super) struct PendingResponse {
    pub(super) id: JsonRpcId,
    pub(super) agent: CallAgent,
    pub(super) target: RouteTarget,
    pub(super) timer: CallTimer,
    /// Counts the call among those of its server; `None` for one that is refused because there are too many.
    pub(super) slot: Option<CallSlot>,
}

impl PendingResponse {
    /// True if this notification is forwarded to the agent. Log messages are filtered by the requested level. Without
    /// one, a legacy agent receives all that its server sends and a modern agent none.
    pub(super) fn accepts_notification(&self, notification: &[u8]) -> bool {
        match (notification_level(notification), self.agent.log_level, self.agent.era) {
            (None, ..) | (Some(_), None, Era::Legacy) => true,
            (Some(_), None, Era::Modern) => false,
            (Some(level), Some(minimum), _) => level >= minimum,
        }
    }

    pub(super) fn into_response(self, gateway: &Gateway, end: &CallEnd) -> Response<ResponseBody> {
        if matches!(end, CallEnd::Cancelled) {
            return empty_stream();
        }
        let (status, message) = self.into_message(gateway, end);
        body::json(status, message)
    }

    /// Records the end of a call without an agent.
    pub(super) fn end(self, gateway: &Gateway, end: &CallEnd) {
        self.report_unknown_item(gateway, end);
        self.timer.end(end.outcome(), end.response());
    }

    /// Returns the HTTP status and the whole JSON-RPC message.
    pub(super) fn into_message(self, gateway: &Gateway, end: &CallEnd) -> (StatusCode, Bytes) {
        self.report_unknown_item(gateway, end);
        let (method, era, section) = (self.target.method, self.agent.era, self.target.section());
        let text = match end {
            CallEnd::Response(response, server_era) => match self.input_requested(gateway, response) {
                Ok(None) => {
                    self.timer.end(end.outcome(), end.response());
                    return server_response(&self.id, response, &self.target, Some(*server_era), era);
                }
                Ok(Some(response)) => {
                    self.timer.end(CallOutcome::Ok, Some(&response));
                    return server_response(&self.id, &response, &self.target, Some(*server_era), era);
                }
                Err(text) => text,
            },
            CallEnd::Suspended(result) => {
                self.timer.end(CallOutcome::Ok, None);
                return (StatusCode::OK, response::result_message(&self.id, &[result]));
            }
            CallEnd::Refused(text) => text.clone(),
            CallEnd::Failed(error) => response::connection_failure_text(&section.key, error),
            CallEnd::TimedOut(reason) => response::timeout_text(&section.key, reason),
            CallEnd::Cancelled | CallEnd::Suspend(_) => String::from("The call was cancelled."),
        };
        self.timer.end(end.outcome(), end.response());
        (StatusCode::OK, response::failure_message(&self.id, &text, method, era))
    }

    /// Returns the response by which a modern agent is asked for input, if the server's response asks for it.
    ///
    /// # Errors
    ///
    /// Returns the text for the agent if the state of the server cannot be passed on.
    fn input_requested(
        &self,
        gateway: &Gateway,
        response: &RpcResponse,
    ) -> Result<Option<RpcResponse>, String> {
        if self.agent.era == Era::Legacy {
            if let (RpcResponse::Error(raw), Some(session)) = (response, &self.agent.session) {
                let ids = required_url_elicitations(raw).into_iter().flatten();
                let server = &self.target.section().key;
                ids.filter_map(|elicitation| elicitation.elicitation_id())
                    .for_each(|id| session.expect_elicitation(&gateway.subscriptions, server, &id));
            }
            return Ok(None);
        }
        let seal = |content, asks_a_person| {
            let method = if asks_a_person { InputMethod::Elicitation } else { InputMethod::Sampling };
            let (binding, lifetime) = (self.agent.binding(&self.target), input_timeout(method));
            gateway.request_states.seal(binding, content, Timestamp::now(), lifetime).map_err(|_| {
                let server = &self.target.section().key;
                format!("MCP server {server} asked for input with a state that is too large to be passed on.")
            })
        };
        match response {
            RpcResponse::Result(raw) => {
                let Some(required) = InputRequired::from_result(raw) else { return Ok(None) };
                if required.asks_for_roots() && !self.agent.capabilities.contains(ClientCapabilities::ROOTS) {
                    let server = &self.target.section().key;
                    return Err(format!("MCP server {server} asked for roots, which it does not get."));
                }
                // Without a state the agent must send none.
                let Some(state) = required.state.clone() else { return Ok(None) };
                let sealed = seal(StateContent::Server(state), required.asks_a_person())?;
                Ok(Some(RpcResponse::Result(required.with_state(&sealed))))
            }
            RpcResponse::Error(raw) => {
                let Some(elicitations) = required_url_elicitations(raw) else { return Ok(None) };
                if !self.agent.capabilities.contains(ClientCapabilities::URL_ELICITATION) {
                    let error = response::missing_capability_error(ClientCapabilities::URL_ELICITATION);
                    return Ok(Some(RpcResponse::Error(error)));
                }
                let keys: Vec<_> = (1..=elicitations.len()).map(|number| number.to_string()).collect();
                let requests: Vec<(&str, &InputRequest)> =
                    keys.iter().map(String::as_str).zip(&elicitations).collect();
                let sealed = seal(StateContent::Repeat, true)?;
                Ok(Some(RpcResponse::Result(input_required_result(&requests, &sealed))))
            }
        }
    }

    /// Has the list checked if the server does not know the item that it had listed.
    fn report_unknown_item(&self, gateway: &Gateway, end: &CallEnd) {
        if let CallEnd::Response(response, _) = end
            && let Some(list) = unknown_item_list(&self.target, response)
            && let Some(handle) = self.server_handle(gateway)
        {
            handle.report_unknown_item(list);
        }
    }

    /// Returns the handle that the call was made with, unless it was removed.
    fn server_handle(&self, gateway: &Gateway) -> Option<UpstreamHandle> {
        let section = self.target.section();
        match &section.responder {
            Responder::Server(handle) => Some(handle.clone()),
            Responder::Isolated { .. } => {
                gateway.caller_connections.find(&section.key, self.agent.caller.as_ref()?)
            }
            Responder::Local(_) => None,
        }
    }
}
