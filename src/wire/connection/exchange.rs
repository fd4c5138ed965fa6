//! The messages that arrive for a request, and its cancellation.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::sleep;

use super::super::envelope::JsonRpcId;
use super::super::error::ConnectionEnd;
use super::super::input_request::InputRequest;
use super::super::response::RpcResponse;
use super::super::response_message::ResponseMessage;
use super::super::server_message::{self, ServerMessage};
use super::super::{ConnectionError, Era, FailureSource};
use super::{
    Connection, ConnectionTransport, ExchangeState, ServerInputRequest, UpstreamExchange, malformed_request,
};
use crate::resource::Reason;

/// The time for the responses that are still to come when the session is lost.
const LAST_RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

impl UpstreamExchange {
    /// Returns the next message for the request. Nothing follows a response or an error. Cancel safe.
    pub async fn next(&mut self) -> Result<ResponseMessage, ConnectionError> {
        loop {
            match self.next_message().await {
                Ok(ResponseMessage::InputRequest(id, request)) if !self.takes_input_requests => {
                    self.input_request(id, request).decline();
                }
                Ok(ResponseMessage::InputCancelled(_)) if !self.takes_input_requests => {}
                message => return message,
            }
        }
    }

    /// Returns the request of the server that [`ResponseMessage::InputRequest`] contains, for its response.
    pub fn input_request(&self, id: JsonRpcId, request: InputRequest) -> ServerInputRequest {
        ServerInputRequest::new(self.connection.clone(), id, request)
    }

    /// Returns the connection.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    async fn next_message(&mut self) -> Result<ResponseMessage, ConnectionError> {
        let (state, id, end) = (&mut self.state, self.id, &self.connection.0.end);
        let other_inputs = &mut self.other_inputs;
        let message = async {
            match state {
                ExchangeState::Stdio(pending) => pending.next().await,
                ExchangeState::Http(exchange) => match other_inputs {
                    None => exchange.next(id).await,
                    Some(other_inputs) => tokio::select! {
                        biased;
                        message = exchange.next(id) => message,
                        input = other_inputs.next() => input,
                    },
                },
                ExchangeState::Sse(call) => call.next().await,
                ExchangeState::Finished => {
                    Err(ConnectionError::new(Reason::Detached, "the exchange is over"))
                }
            }
        };
        let message = tokio::select! {
            biased;
            message = message => message,
            // Over HTTP a response can outlive the MCP connection that it belongs to.
            error = wait_for_end(end) => Err(error.into_dispatched()),
        };
        match message {
            Ok(ResponseMessage::Notification(message) | ResponseMessage::Progress(message)) => {
                self.with_agent_token(message)
            }
            Ok(ResponseMessage::Response(response)) => {
                self.finish();
                Ok(ResponseMessage::Response(response))
            }
            Ok(input) => Ok(input),
            Err(error) => {
                if error.failure_source == FailureSource::Session {
                    end.mark(error.clone());
                }
                self.finish();
                Err(error)
            }
        }
    }

    /// Waits for the response and discards notifications before it.
    pub async fn response(mut self) -> Result<RpcResponse, ConnectionError> {
        loop {
            if let ResponseMessage::Response(response) = self.next().await? {
                return Ok(response);
            }
        }
    }

    /// Stops waiting without cancelling at the server; a late response is discarded.
    pub fn abandon(mut self) {
        self.state = ExchangeState::Finished;
    }

    fn with_agent_token(&self, message: Bytes) -> Result<ResponseMessage, ConnectionError> {
        // Without a token of the agent no message is progress, and none need be read.
        let Some(token) = &self.progress_token else { return Ok(ResponseMessage::Notification(message)) };
        match server_message::read(message.clone()).kind {
            ServerMessage::Progress(_) => server_message::with_progress_token(&message, token)
                .map(ResponseMessage::Progress)
                .map_err(|error| malformed_request(&error)),
            _ => Ok(ResponseMessage::Notification(message)),
        }
    }

    fn finish(&mut self) {
        self.other_inputs = None;
        if let ExchangeState::Http(exchange) = std::mem::replace(&mut self.state, ExchangeState::Finished) {
            exchange.recycle();
        }
    }
}

impl Drop for UpstreamExchange {
    fn drop(&mut self) {
        let modern_http =
            self.connection.handshake().era == Era::Modern && matches!(self.state, ExchangeState::Http(_));
        // Over modern HTTP closing the stream is the cancellation; before the handshake nothing can be cancelled.
        if matches!(self.state, ExchangeState::Finished)
            || modern_http
            || self.connection.0.handshake.get().is_none()
        {
            return;
        }
        let method = "notifications/cancelled";
        let params = format!(r#"{{"requestId":{},"reason":"cancelled by the caller"}}"#, self.id);
        let message = server_message::message(None, method, Some(&params));
        match &self.connection.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.try_send(message),
            ConnectionTransport::Sse(connection) => {
                connection.client().post_in_background(method, message, None);
            }
            // The response stays open until the notification is posted: a legacy server does not take its end as a
            // cancellation, or misinterprets it.
            ConnectionTransport::Http(client) => {
                let open_response = std::mem::replace(&mut self.state, ExchangeState::Finished);
                client.post_in_background(method, message, Some(Box::new(open_response)));
            }
        }
    }
}

/// Waits until a connection has ended and its requests in flight have failed.
///
/// If the session is lost, which another request has shown, the own response of each request is given some time: it
/// says whether the server has processed the request or not, and only one that it rejected is sent again.
async fn wait_for_end(end: &ConnectionEnd) -> ConnectionError {
    let error = end.wait().await;
    if error.failure_source == FailureSource::Session {
        sleep(LAST_RESPONSE_TIMEOUT).await;
    }
    error
}
