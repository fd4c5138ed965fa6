use bytes::Bytes;

/// What comes back for a request.
#[derive(Debug)]
pub enum ResponseMessage {
    /// A notification that belongs to this request, as a whole JSON-RPC message.
    Notification(Bytes),
    /// The request makes progress; the notification carries the agent's own token again.
    Progress(Bytes),
    /// The answer; nothing follows.
    Response(RpcResponse),
}

/// An answer.
#[derive(Clone, Debug)]
pub enum RpcResponse {
    /// The raw JSON of `result`.
    Result(Bytes),
    /// The raw JSON of `error`: an object with `code` and `message`.
    Error(Bytes),
}
