use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::super::envelope::JsonRpcId;
use super::super::input_request::InputRequest;
use super::super::response::RpcResponse;
use super::super::server_message;
use super::{Connection, ConnectionTransport};

/// The timeout for sending the response.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// A request of a server for input that waits for its response. If it is dropped without one, the server gets the
/// response for an agent that gave no answer ([`InputRequest::cancelled`]).
#[derive(Debug)]
pub struct ServerInputRequest {
    connection: Connection,
    id: JsonRpcId,
    request: InputRequest,
    is_pending: bool,
}

impl ServerInputRequest {
    pub(super) fn new(connection: Connection, id: JsonRpcId, request: InputRequest) -> Self {
        Self { connection, id, request, is_pending: true }
    }

    /// Returns the request.
    pub fn request(&self) -> &InputRequest {
        &self.request
    }

    /// Returns the id that the server chose.
    pub fn id(&self) -> &JsonRpcId {
        &self.id
    }

    /// Sends the agent's response in the background. The server has 30 s to accept it.
    pub fn respond(mut self, response: &RpcResponse) {
        self.is_pending = false;
        self.connection.send_in_background(server_message::response_message(&self.id, response));
    }

    /// Responds that the agent does not support the request. The response is queued, and lost if the queue is full: a
    /// server can send any number of such requests.
    pub fn decline(mut self) {
        self.is_pending = false;
        self.connection.queue(server_message::response_message(&self.id, &self.request.declined()));
    }

    /// Sends no response: the server has cancelled the request.
    pub fn forget(mut self) {
        self.is_pending = false;
    }
}

impl Drop for ServerInputRequest {
    fn drop(&mut self) {
        if self.is_pending {
            let response = self.request.cancelled();
            self.connection.queue(server_message::response_message(&self.id, &response));
        }
    }
}

impl Connection {
    /// Queues a response to a request of the server, if there is room. Does nothing outside of the runtime.
    fn queue(&self, message: Bytes) {
        if Handle::try_current().is_err() {
            return;
        }
        match &self.0.transport {
            ConnectionTransport::Stdio(pipes) => pipes.try_send(message),
            ConnectionTransport::Http(client) => client.post_in_background("", message, None),
            ConnectionTransport::Sse(sse) => sse.client().post_in_background("", message, None),
        }
    }

    /// Sends the response to a request of the server. Does nothing outside of the runtime.
    fn send_in_background(&self, message: Bytes) {
        let Ok(runtime) = Handle::try_current() else { return };
        let connection = self.clone();
        let sending = async move {
            let sending = async {
                match &connection.0.transport {
                    ConnectionTransport::Stdio(pipes) => pipes.send(message).await,
                    ConnectionTransport::Http(client) => client.notify("", message).await,
                    ConnectionTransport::Sse(sse) => sse.client().notify("", message).await,
                }
            };
            match timeout(SEND_TIMEOUT, sending).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "the response to a request of the server was lost"),
                Err(_) => tracing::debug!("the server did not accept the response to its request in time"),
            }
        };
        self.0.tasks.spawn_on(sending, &runtime);
    }
}
