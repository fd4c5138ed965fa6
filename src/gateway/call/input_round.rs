//! One round of input that a modern server needs from a legacy agent.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::Gateway;
use super::super::deadline::CallDeadline;
use super::super::input::{InputRequired, MAX_INPUT_ROUNDS, OpenInputs, input_timeout};
use super::super::route_target::RouteTarget;
use super::agent::CallAgent;
use super::dispatch::{Dispatch, DispatchedRequest, dispatch};
use super::end::CallEnd;
use crate::resource::ObjectKey;
use crate::wire::{InputMethod, InputRequest, JsonEdit, RequestParams, RpcResponse, json_string};

/// The key that the server chose, and its request.
pub(super) type RoundInput = (String, InputRequest);

/// The requests of one result, and the responses to them so far.
pub(super) struct InputRound {
    server: ObjectKey,
    pub(super) inputs: OpenInputs<RoundInput>,
    /// The messages for the agent that are not sent yet.
    pub(super) unsent: VecDeque<Bytes>,
    /// The members of `inputResponses`.
    responses: Vec<String>,
    /// The server's state.
    state: Option<String>,
}

impl InputRound {
    /// Asks the agent. What it does not support is declined.
    ///
    /// # Errors
    ///
    /// Returns the text for the agent if the call cannot go on.
    pub(super) fn begin(
        gateway: &Gateway,
        agent: &CallAgent,
        server: &ObjectKey,
        required: InputRequired<'_>,
        number: usize,
    ) -> Result<Self, String> {
        if number > MAX_INPUT_ROUNDS {
            let text = format!("MCP server {server} asked for input more than {MAX_INPUT_ROUNDS} times.");
            return Err(text);
        }
        let mut round = Self {
            server: server.clone(),
            inputs: OpenInputs::default(),
            unsent: VecDeque::new(),
            responses: Vec::new(),
            state: required.state,
        };
        for (key, request) in required.requests {
            let request = request.ok_or_else(|| {
                format!("MCP server {server} asked for input ({key:?}) in a way that is not known.")
            })?;
            let session = agent.session.as_ref().filter(|_| request.is_supported_by(agent.capabilities));
            let Some(session) = session else {
                round.add((key, request.clone()), &request.declined())?;
                continue;
            };
            let (requests, version) = (session.sent_requests(), session.protocol_version());
            let (open, message) =
                requests.open(&gateway.process, &request, version).map_err(|error| error.to_string())?;
            let expires_at = Instant::now() + input_timeout(request.method);
            round.inputs.push((key, request), open, expires_at);
            round.unsent.push_back(message);
        }
        Ok(round)
    }

    /// Adds the agent's response; `None` if there will be none.
    ///
    /// # Errors
    ///
    /// Returns the text for the agent if the call cannot go on.
    pub(super) fn add_response(
        &mut self,
        input: RoundInput,
        response: Option<RpcResponse>,
    ) -> Result<(), String> {
        let response = response.unwrap_or_else(|| input.1.cancelled());
        self.add(input, &response)
    }

    fn add(&mut self, (key, request): RoundInput, response: &RpcResponse) -> Result<(), String> {
        let cancelled;
        let result = match (response, request.method) {
            (RpcResponse::Result(result), _) => result,
            // The modern era has no errors in place of a response.
            (RpcResponse::Error(_), InputMethod::Elicitation) => {
                cancelled = Bytes::from_static(br#"{"action":"cancel"}"#);
                &cancelled
            }
            (RpcResponse::Error(error), method) => {
                return Err(format!(
                    "MCP server {} needs {} of the agent, whose response is an error: {}",
                    self.server,
                    method.as_str(),
                    String::from_utf8_lossy(error)
                ));
            }
        };
        let result = String::from_utf8_lossy(result);
        self.responses.push(format!("{}:{result}", json_string(&key)));
        Ok(())
    }

    /// Gives up waiting for a response that is due. Returns the notification for the agent.
    pub(super) fn expire(&mut self, now: Instant) -> Option<Bytes> {
        let (input, cancellation) = self.inputs.remove(|_, expires_at| expires_at <= now)?;
        // Without it the server asks again, or fails the request.
        let _ = self.add_response(input, None);
        Some(cancellation)
    }

    /// Sends the request again, with the responses and the server's state.
    pub(super) async fn send(
        self: Box<Self>,
        gateway: Arc<Gateway>,
        agent: CallAgent,
        target: RouteTarget,
        deadline: CallDeadline,
    ) -> Result<DispatchedRequest, CallEnd> {
        let responses = format!("{{{}}}", self.responses.join(","));
        let state = self.state.as_deref().map(json_string);
        let edits = [
            JsonEdit::Set("inputResponses", &responses),
            state
                .as_deref()
                .map_or(JsonEdit::Remove("requestState"), |state| JsonEdit::Set("requestState", state)),
        ];
        let text = std::str::from_utf8(&agent.params).unwrap_or_default();
        let unreadable = |error: serde_json::Error| CallEnd::Refused(error.to_string());
        let params = RequestParams::parse(text).map_err(unreadable)?;
        let request = Dispatch { agent: &agent, target: &target, deadline, params: &params, edits: &edits };
        dispatch(&gateway, request).await
    }
}
