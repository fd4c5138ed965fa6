use bytes::Bytes;

/// A message that arrives for a request.
#[derive(Debug)]
pub enum ResponseMessage {
    /// A notification that belongs to this request, as a whole JSON-RPC message.
    Notification(Bytes),
    /// A progress notification, with the agent's own progress token restored.
    Progress(Bytes),
    /// The response. Nothing follows it.
    Response(RpcResponse),
}

/// A JSON-RPC response.
#[derive(Clone, Debug)]
pub enum RpcResponse {
    /// The raw JSON of `result`.
    Result(Bytes),
    /// The raw JSON of `error`: an object with `code` and `message`.
    Error(Bytes),
}
