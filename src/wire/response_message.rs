use bytes::Bytes;

use super::envelope::JsonRpcId;
use super::input_request::InputRequest;
use super::response::RpcResponse;

/// A message that arrives for a request.
#[derive(Debug)]
pub enum ResponseMessage {
    /// A notification that belongs to this request, as a whole JSON-RPC message.
    Notification(Bytes),
    /// A progress notification, with the agent's own progress token restored.
    Progress(Bytes),
    /// A request of the server for input of the agent, with its id. It gets its
    /// response by [`UpstreamExchange::input_request`](super::UpstreamExchange::input_request).
    InputRequest(JsonRpcId, InputRequest),
    /// The server cancelled its request with this id.
    InputCancelled(JsonRpcId),
    /// The response. Nothing follows it.
    Response(RpcResponse),
}
