//! A call in progress: its stages, from the request to the server until the end.

use std::collections::VecDeque;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;
use tracing::Instrument;

use super::super::Gateway;
use super::super::deadline::CallDeadline;
use super::super::in_flight::{InFlightRequest, wait_for_cancel};
use super::super::input::{InputRequired, MAX_OPEN_INPUTS, OpenInputs, SuspendedCall, input_timeout};
use super::dispatch::DispatchedRequest;
use super::end::{CallEnd, PendingResponse};
use super::input_round::{InputRound, RoundInput};
use crate::upstream::CallGuard;
use crate::wire::{
    ClientCapabilities, ConnectionError, Era, InputRequest, JsonRpcId, ResponseMessage, RpcResponse,
    ServerInputRequest, UpstreamExchange,
};

/// A call that was sent to its server. If it is dropped before it ends, it is cancelled at the server.
pub(super) struct ActiveCall {
    pub(super) response: PendingResponse,
    pub(super) in_flight: Option<InFlightRequest>,
    pub(super) deadline: CallDeadline,
    pub(super) stage: Stage,
    /// The number of times that the agent was asked for input of a modern server.
    pub(super) input_rounds: usize,
}

/// The stage of a call.
pub(super) enum Stage {
    /// The request is at the server.
    Dispatched(Box<Dispatched>),
    /// A modern server has asked for input, and its legacy agent is asked. Nothing is open at the server.
    Asking(Box<InputRound>),
    /// The request is sent again, with the input.
    Sending(Pin<Box<dyn Future<Output = Result<DispatchedRequest, CallEnd>> + Send>>),
    /// The call has ended.
    Ended(Option<CallEnd>),
}

/// A request at its server.
pub(super) struct Dispatched {
    pub(super) exchange: UpstreamExchange,
    pub(super) guard: CallGuard,
    /// The requests of a legacy server for input that wait for a legacy agent.
    pub(super) inputs: OpenInputs<ServerInputRequest>,
    /// Requests of the server for input that arrived while the call was suspended.
    pub(super) queued_inputs: VecDeque<ServerInputRequest>,
}

/// An event of a stage.
enum StageEvent {
    Message(Result<ResponseMessage, ConnectionError>),
    Input(ServerInputRequest),
    /// The agent's response to a request of a legacy server; `None` if there will be none.
    InputResponse(ServerInputRequest, Option<RpcResponse>),
    /// The agent's response to a request of a modern server.
    RoundResponse(RoundInput, Option<RpcResponse>),
    Sent(Result<DispatchedRequest, CallEnd>),
    Ended(CallEnd),
}

impl Stage {
    pub(super) fn dispatched((exchange, guard): DispatchedRequest) -> Self {
        let (inputs, queued_inputs) = (OpenInputs::default(), VecDeque::new());
        Self::Dispatched(Box::new(Dispatched { exchange, guard, inputs, queued_inputs }))
    }

    /// Waits for the next event. Cancel safe.
    async fn next(&mut self) -> StageEvent {
        match self {
            Self::Dispatched(dispatched) => dispatched.next().await,
            Self::Asking(round) => {
                let (input, response) = round.inputs.next().await;
                StageEvent::RoundResponse(input, response)
            }
            Self::Sending(sending) => StageEvent::Sent(sending.await),
            Self::Ended(end) => match end.take() {
                Some(end) => StageEvent::Ended(end),
                None => pending().await,
            },
        }
    }

    /// Returns the time until which the agent has to respond, while the call waits for it.
    fn inputs_expire_at(&self) -> Option<Instant> {
        match self {
            Self::Dispatched(dispatched) => dispatched.inputs.expires_at(),
            Self::Asking(round) => round.inputs.expires_at(),
            Self::Sending(_) | Self::Ended(_) => None,
        }
    }
}

impl Dispatched {
    async fn next(&mut self) -> StageEvent {
        if let Some(input) = self.queued_inputs.pop_front() {
            return StageEvent::Input(input);
        }
        if self.inputs.is_empty() {
            return StageEvent::Message(self.exchange.next().await);
        }
        tokio::select! {
            biased;
            message = self.exchange.next() => StageEvent::Message(message),
            (input, response) = self.inputs.next() => StageEvent::InputResponse(input, response),
        }
    }
}

impl ActiveCall {
    /// Returns the next message for the agent, or `None` at `quiet_until`. An error is the end of the call. Cancel safe.
    pub(super) async fn next(
        &mut self,
        gateway: &Arc<Gateway>,
        quiet_until: Instant,
    ) -> Result<Option<Bytes>, CallEnd> {
        let span = self.response.timer.tracing_span();
        self.next_message(gateway, quiet_until).instrument(span).await
    }

    async fn next_message(
        &mut self,
        gateway: &Arc<Gateway>,
        quiet_until: Instant,
    ) -> Result<Option<Bytes>, CallEnd> {
        loop {
            if let Stage::Asking(round) = &mut self.stage {
                if let Some(message) = round.unsent.pop_front() {
                    return Ok(Some(message));
                }
                if round.inputs.is_empty() {
                    self.send_again(gateway);
                }
            }
            let inputs_expire_at = self.stage.inputs_expire_at();
            let expires_at = inputs_expire_at.unwrap_or_else(|| self.deadline.expires_at());
            let event = tokio::select! {
                biased;
                event = self.stage.next() => event,
                () = wait_for_cancel(&mut self.in_flight) => return Err(CallEnd::Cancelled),
                () = gateway.coarse_timer.sleep_until(quiet_until.min(expires_at)) => {
                    if quiet_until < expires_at {
                        return Ok(None);
                    }
                    match inputs_expire_at.and_then(|_| self.expire_input()) {
                        Some(cancellation) => return Ok(Some(cancellation)),
                        None => return Err(CallEnd::TimedOut(self.deadline.timeout_reason())),
                    }
                }
            };
            if let Some(message) = self.handle(gateway, event)? {
                return Ok(Some(message));
            }
        }
    }

    /// Handles an event. Returns the message for the agent, if there is one.
    fn handle(&mut self, gateway: &Gateway, event: StageEvent) -> Result<Option<Bytes>, CallEnd> {
        let message = match event {
            StageEvent::Message(message) => message.map_err(CallEnd::Failed)?,
            StageEvent::Input(input) => return self.request_input(gateway, input),
            StageEvent::InputResponse(input, response) => {
                // Without a response the server learns that there is none.
                if let Some(response) = response {
                    input.respond(&response);
                }
                self.continue_deadline();
                return Ok(None);
            }
            StageEvent::RoundResponse(input, response) => {
                if let Stage::Asking(round) = &mut self.stage {
                    round.add_response(input, response).map_err(CallEnd::Refused)?;
                }
                return Ok(None);
            }
            StageEvent::Sent(sent) => {
                self.stage = Stage::dispatched(sent?);
                return Ok(None);
            }
            StageEvent::Ended(end) => return Err(end),
        };
        match message {
            ResponseMessage::Notification(notification) => {
                Ok(Some(notification).filter(|text| self.response.accepts_notification(text)))
            }
            ResponseMessage::Progress(notification) => {
                self.deadline.record_progress(Instant::now());
                Ok(Some(notification))
            }
            ResponseMessage::InputRequest(id, request) => self.receive_input_request(gateway, id, request),
            ResponseMessage::InputCancelled(id) => Ok(self.cancel_input(&id)),
            ResponseMessage::Response(response) => self.receive_response(gateway, response),
        }
    }

    fn receive_response(
        &mut self,
        gateway: &Gateway,
        response: RpcResponse,
    ) -> Result<Option<Bytes>, CallEnd> {
        let response = response.require_object().map_err(CallEnd::Failed)?;
        let Stage::Dispatched(dispatched) = &self.stage else { return Ok(None) };
        let server_era = dispatched.exchange.connection().handshake().era;
        let Some(round) = self.input_round(gateway, &response, server_era)? else {
            return Err(CallEnd::Response(response, server_era));
        };
        self.deadline.pause(Instant::now());
        self.stage = Stage::Asking(Box::new(round));
        Ok(None)
    }

    /// Begins to ask a legacy agent for the input that a modern server needs; `None` if this is not the case.
    fn input_round(
        &mut self,
        gateway: &Gateway,
        response: &RpcResponse,
        server_era: Era,
    ) -> Result<Option<InputRound>, CallEnd> {
        let eras = (self.response.agent.era, server_era);
        let (RpcResponse::Result(result), (Era::Legacy, Era::Modern)) = (response, eras) else {
            return Ok(None);
        };
        let Some(required) = InputRequired::from_result(result) else { return Ok(None) };
        self.input_rounds += 1;
        let server = &self.response.target.section().key;
        InputRound::begin(gateway, &self.response.agent, server, required, self.input_rounds)
            .map(Some)
            .map_err(CallEnd::Refused)
    }

    /// Sends the request again once all input is there.
    fn send_again(&mut self, gateway: &Arc<Gateway>) {
        self.deadline.resume(Instant::now());
        let ended = Stage::Ended(Some(CallEnd::Cancelled));
        if let Stage::Asking(round) = std::mem::replace(&mut self.stage, ended) {
            let (agent, target) = (self.response.agent.clone(), self.response.target.clone());
            self.stage = Stage::Sending(Box::pin(round.send(gateway.clone(), agent, target, self.deadline)));
        }
    }

    fn receive_input_request(
        &mut self,
        gateway: &Gateway,
        id: JsonRpcId,
        request: InputRequest,
    ) -> Result<Option<Bytes>, CallEnd> {
        let Stage::Dispatched(dispatched) = &self.stage else { return Ok(None) };
        let input = dispatched.exchange.input_request(id, request);
        self.request_input(gateway, input)
    }

    /// Asks the agent for input of a legacy server, or declines. Returns the message for a legacy agent; a modern one is
    /// asked by the result of its request.
    fn request_input(
        &mut self,
        gateway: &Gateway,
        input: ServerInputRequest,
    ) -> Result<Option<Bytes>, CallEnd> {
        let agent = &self.response.agent;
        let Stage::Dispatched(dispatched) = &mut self.stage else { return Ok(None) };
        if !input.request().is_supported_by(agent.capabilities) || dispatched.inputs.len() >= MAX_OPEN_INPUTS
        {
            input.decline();
            return Ok(None);
        }
        let Some(session) = &agent.session else { return Err(CallEnd::Suspend(Box::new(input))) };
        let (requests, version) = (session.sent_requests(), session.protocol_version());
        let Ok((request, message)) = requests.open(&gateway.process, input.request(), version) else {
            input.decline();
            return Ok(None);
        };
        if let Some(id) = input.request().elicitation_id() {
            session.expect_elicitation(&gateway.subscriptions, &self.response.target.section().key, &id);
        }
        let now = Instant::now();
        let expires_at = now + input_timeout(input.request().method);
        dispatched.inputs.push(input, request, expires_at);
        self.deadline.pause(now);
        Ok(Some(message))
    }

    /// Handles the server's cancellation of its request. Returns the notification for the agent.
    fn cancel_input(&mut self, id: &JsonRpcId) -> Option<Bytes> {
        let Stage::Dispatched(dispatched) = &mut self.stage else { return None };
        let (input, cancellation) = dispatched.inputs.remove(|input, _| input.id() == id)?;
        input.forget();
        self.continue_deadline();
        Some(cancellation)
    }

    /// Gives up waiting for the agent's responses that are due. Returns the notification for the agent.
    fn expire_input(&mut self) -> Option<Bytes> {
        let now = Instant::now();
        let cancellation = match &mut self.stage {
            // The server learns that there is no response.
            Stage::Dispatched(dispatched) => {
                dispatched.inputs.remove(|_, expires_at| expires_at <= now).map(|(_, message)| message)
            }
            Stage::Asking(round) => round.expire(now),
            Stage::Sending(_) | Stage::Ended(_) => None,
        };
        self.continue_deadline();
        cancellation
    }

    /// Continues the time of the call, unless it still waits for the agent.
    fn continue_deadline(&mut self) {
        if self.stage.inputs_expire_at().is_none() {
            self.deadline.resume(Instant::now());
        }
    }

    /// Prepares the call for going on without its agent: it can no longer be asked. Returns false if the call cannot go
    /// on.
    pub(super) fn detach(&mut self) -> bool {
        self.response.agent.capabilities = ClientCapabilities::NONE;
        match &mut self.stage {
            Stage::Dispatched(dispatched) => {
                // The server learns that there are no responses.
                dispatched.inputs = OpenInputs::default();
                self.continue_deadline();
                true
            }
            Stage::Sending(_) => true,
            Stage::Asking(_) | Stage::Ended(_) => false,
        }
    }

    /// Takes apart a call whose modern agent obtains input.
    pub(super) fn suspend(&mut self, input: ServerInputRequest) -> Option<SuspendedCall> {
        let Stage::Dispatched(dispatched) = std::mem::replace(&mut self.stage, Stage::Ended(None)) else {
            return None;
        };
        self.deadline.pause(Instant::now());
        let Dispatched { exchange, guard, queued_inputs, .. } = *dispatched;
        Some(SuspendedCall {
            target: self.response.target.clone(),
            deadline: self.deadline,
            exchange,
            guard: Some(guard),
            input: Some(input),
            further_inputs: queued_inputs,
            end: None,
        })
    }
}
