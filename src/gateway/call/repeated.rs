//! A request that repeats the state of an earlier result (2026-07-28, Multi Round-Trip Requests).

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use rmcp::model::ErrorCode;
use tokio::time::Instant;

use super::super::Gateway;
use super::super::input::{OpenInputs, StateContent, SuspendedCall};
use super::super::response::{self, ResponseError};
use super::super::routed_method::RoutedMethod;
use super::active::{ActiveCall, Dispatched, Stage};
use super::attended::INPUT_KEY;
use super::end::{CallEnd, PendingResponse};
use crate::wire::{ConnectionError, Era, JsonEdit, RequestParams, RpcResponse, json_string, parse_members};

/// A request, by the state that it repeats.
pub(super) enum RepeatedRequest {
    /// Repeats no state.
    New,
    /// Repeats the state of a call that is open at the server.
    Suspended(Box<SuspendedCall>),
    /// Repeats a state with which it is sent to the server, after this edit of its params.
    Sent(StateEdit),
}

/// The edit of the params of a request that repeats a state.
pub(super) enum StateEdit {
    /// The request is new for the server: it has no state and no responses.
    Remove,
    /// The JSON of the server's own state.
    Set(String),
}

impl StateEdit {
    /// Returns the edits of the params.
    pub(super) fn edits(&self) -> Vec<JsonEdit<'_>> {
        match self {
            Self::Remove => vec![JsonEdit::Remove("requestState"), JsonEdit::Remove("inputResponses")],
            Self::Set(state) => vec![JsonEdit::Set("requestState", state)],
        }
    }
}

/// Reads the state that a request repeats, and takes the call that is open for it.
///
/// # Errors
///
/// Returns the HTTP status and the whole message of the response if the state is refused.
pub(super) async fn read_state(
    gateway: &Gateway,
    response: &PendingResponse,
    params: &RequestParams<'_>,
) -> Result<RepeatedRequest, (StatusCode, Bytes)> {
    let PendingResponse { id, agent, target, .. } = response;
    if agent.era == Era::Legacy || target.method == RoutedMethod::Complete {
        return Ok(RepeatedRequest::New);
    }
    let Some(state) = params.members.get("requestState") else { return Ok(RepeatedRequest::New) };
    let refused = |reason: String| {
        let error = ResponseError::in_band(ErrorCode::INVALID_PARAMS, format!("Invalid params: {reason}"));
        (error.status, error.to_message(Some(id)))
    };
    let state = params
        .members
        .get_string("requestState")
        .ok_or_else(|| refused(format!("requestState is {state}")))?;
    let content = gateway.request_states.open(&state, &agent.binding(target), Timestamp::now());
    match content.map_err(|error| refused(error.to_string()))? {
        StateContent::Server(state) => Ok(RepeatedRequest::Sent(StateEdit::Set(json_string(&state)))),
        StateContent::Repeat if is_accepted(params) => Ok(RepeatedRequest::Sent(StateEdit::Remove)),
        StateContent::Repeat => {
            let server = &target.section().key;
            let text = format!("MCP server {server} needs the URL to be opened, which was declined.");
            Err((StatusCode::OK, response::failure_message(id, &text, target.method, agent.era)))
        }
        StateContent::Suspended(reference) => {
            let call = if gateway.process.holds(&reference) {
                gateway.suspended_calls.resume(reference.number).await
            } else {
                None
            };
            let ended = "the call has ended: it waited too long, or evenkeel was restarted. Send the request again \
                         without requestState";
            call.map(|call| RepeatedRequest::Suspended(Box::new(call)))
                .ok_or_else(|| refused(ended.to_owned()))
        }
    }
}

/// True if every response to an elicitation is `accept`.
fn is_accepted(params: &RequestParams<'_>) -> bool {
    let responses =
        params.members.get("inputResponses").and_then(|responses| parse_members(responses.get()).ok());
    responses.is_some_and(|responses| {
        responses.iter().all(|(_, response)| {
            let response = parse_members(response.get()).ok();
            response.is_some_and(|response| response.get_string("action").as_deref() == Some("accept"))
        })
    })
}

impl SuspendedCall {
    /// Continues the call for a request that repeats its state.
    pub(super) fn into_active_call(
        self,
        response: PendingResponse,
        params: &RequestParams<'_>,
    ) -> ActiveCall {
        let Self { mut deadline, exchange, guard, input, mut further_inputs, end, .. } = self;
        deadline.resume(Instant::now());
        let stage = match (end, guard) {
            (None, Some(guard)) => {
                let responses = params.members.get("inputResponses");
                let responses = responses.and_then(|responses| parse_members(responses.get()).ok());
                let result = responses.as_ref().and_then(|responses| responses.get(INPUT_KEY));
                match (input, result) {
                    (Some(input), Some(result)) => {
                        input.respond(&RpcResponse::Result(Bytes::copy_from_slice(result.get().as_bytes())));
                    }
                    // Without its response the agent is asked again.
                    (Some(input), None) => further_inputs.push_front(input),
                    (None, _) => {}
                }
                let (inputs, queued_inputs) = (OpenInputs::default(), further_inputs);
                Stage::Dispatched(Box::new(Dispatched { exchange, guard, inputs, queued_inputs }))
            }
            (end, _) => {
                let server_era = exchange.connection().handshake().era;
                Stage::Ended(end.map(|end| call_end(end, server_era)))
            }
        };
        ActiveCall { response, in_flight: None, deadline, stage, input_rounds: 0 }
    }
}

fn call_end(end: Result<RpcResponse, ConnectionError>, server_era: Era) -> CallEnd {
    match end.and_then(RpcResponse::require_object) {
        Ok(response) => CallEnd::Response(response, server_era),
        Err(error) => CallEnd::Failed(error),
    }
}
