//! Forwards a request to one server and its response back to the agent, as raw JSON. The hot path.

mod active;
mod agent;
mod attended;
mod dispatch;
mod end;
mod input_round;
mod own_connection;
mod repeated;

use std::sync::Arc;

use http::{HeaderMap, Response};
use tokio::time::Instant;
use tracing::Instrument;

use super::Gateway;
use super::body::{self, ResponseBody, empty_stream};
use super::deadline::CallDeadline;
use super::in_flight::{InFlightRequest, wait_for_cancel};
use super::limits::ExceededLimit;
use super::response::{self, RouteError};
use super::routed_method::RoutedMethod;
use super::server_response::server_response;
use super::trace::CallSpan;
use crate::upstream::Responder;
use crate::wire::{Era, JsonRpcId, RequestParams};
pub(super) use agent::CallAgent;

use active::{ActiveCall, Stage};
use attended::{AttendedCall, QUIET_INTERVAL, ResponseStart};
use dispatch::{Dispatch, dispatch, resolve_target, wait_for_target};
use end::{CallEnd, PendingResponse};
use repeated::{RepeatedRequest, StateEdit};

/// A request of an agent, and the properties that the response depends on.
pub(super) struct CallRequest<'a> {
    pub(super) id: JsonRpcId,
    /// The protocol version of the agent.
    pub(super) protocol_version: &'a str,
    pub(super) headers: &'a HeaderMap,
    /// The entry among the session's requests in flight; `None` for a modern agent, which has no session.
    pub(super) in_flight: Option<InFlightRequest>,
    /// False if the agent accepts only JSON.
    pub(super) accepts_stream: bool,
    pub(super) agent: CallAgent,
}

/// Forwards a request and returns its response.
pub(super) async fn call(
    gateway: &Arc<Gateway>,
    request: CallRequest<'_>,
    method: RoutedMethod,
    params: &RequestParams<'_>,
) -> Response<ResponseBody> {
    let CallRequest { id, protocol_version, headers, mut in_flight, accepts_stream, mut agent } = request;
    let era = agent.era;
    let found = match resolve_target(gateway, &agent.view, method, params) {
        Err(RouteError::Unknown(..)) => tokio::select! {
            biased;
            () = wait_for_cancel(&mut in_flight) => return empty_stream(),
            found = wait_for_target(gateway, &agent.view, method, params) => found,
        },
        found => found,
    };
    let target = match found {
        Ok(target) => target,
        Err(route_error) => {
            let (status, message) = response::route_error_response(&id, &route_error, method, era);
            return body::json(status, message);
        }
    };
    if era == Era::Modern
        && let Err(error) = target.check_param_headers(headers, &params.members)
    {
        return body::json(error.status, error.to_message(Some(&id)));
    }
    let name = target.upstream_name().unwrap_or_default();
    let local_response = match &target.section().responder {
        Responder::Server(handle) | Responder::Isolated { catalog: handle, .. } => Err(handle.clone()),
        Responder::Local(local) => Ok(local.respond(method.as_str(), name, &params.members)),
    };
    let handle = match local_response {
        Err(handle) => handle,
        Ok(response) => {
            let (status, message) = server_response(&id, &response, &target, None, era);
            return body::json(status, message);
        }
    };
    if !target.section().gets_roots() {
        agent.withhold_roots();
    }
    let deadline = CallDeadline::new(Instant::now(), target.section().call_timeout);
    let span = CallSpan { method, protocol_version, params };
    let timer = gateway.metrics.start_timer(&target.section().key, &span);
    let max_calls = gateway.limits.max_server_calls;
    let slot = handle.count_call(max_calls);
    let mut response = PendingResponse { id, agent, target, timer, slot };
    if response.slot.is_none() {
        gateway.metrics.count_refusal(ExceededLimit::ServerCalls);
        let text = response::busy_server_text(handle.key(), max_calls);
        return response.into_response(gateway, &CallEnd::Refused(text));
    }
    let repeated = if params.members.get("requestState").is_some() {
        // Boxed: the future of every call would hold its memory.
        match Box::pin(repeated::read_state(gateway, &response, params)).await {
            Ok(repeated) => repeated,
            Err((status, message)) => return body::json(status, message),
        }
    } else {
        RepeatedRequest::New
    };
    let quiet_until = Instant::now() + QUIET_INTERVAL;
    let state_edit = match repeated {
        RepeatedRequest::New => None,
        RepeatedRequest::Sent(state_edit) => Some(state_edit),
        RepeatedRequest::Suspended(suspended) => {
            let call = suspended.into_active_call(response, params);
            let attended = AttendedCall { gateway: gateway.clone(), call: Some(call) };
            return Box::pin(attended.into_response(quiet_until, accepts_stream)).await;
        }
    };
    let edits = state_edit.as_ref().map(StateEdit::edits).unwrap_or_default();
    let mut resent = false;
    loop {
        let request =
            Dispatch { agent: &response.agent, target: &response.target, deadline, params, edits: &edits };
        let dispatched = tokio::select! {
            biased;
            () = wait_for_cancel(&mut in_flight) => return response.into_response(gateway, &CallEnd::Cancelled),
            dispatched = dispatch(gateway, request).instrument(response.timer.tracing_span()) => dispatched,
        };
        let stage = match dispatched {
            Ok(dispatched) => Stage::dispatched(dispatched),
            Err(end) => return response.into_response(gateway, &end),
        };
        let call = ActiveCall { response, in_flight, deadline, stage, input_rounds: 0 };
        let mut attended = AttendedCall { gateway: gateway.clone(), call: Some(call) };
        match attended.start_response(quiet_until, accepts_stream).await {
            ResponseStart::Stream(first_event) => return attended.into_stream(first_event),
            ResponseStart::Ended(end) => {
                let Some(call) = attended.call.take() else { return empty_stream() };
                // The server rejected the call because its session is lost: it is sent once more, in the next session.
                if resent || !end.is_rejected_by_lost_session() {
                    return call.response.into_response(gateway, &end);
                }
                resent = true;
                (response, in_flight) = (call.response, call.in_flight);
            }
            ResponseStart::AlreadyEnded => return empty_stream(),
        }
    }
}
