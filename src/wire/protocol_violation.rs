use std::fmt;

/// A violation of the protocol by a server that evenkeel tolerates. The condition `Degraded` reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProtocolViolation {
    /// Text that is not JSON where only messages may be (MCP, Transports, stdio and Streamable HTTP).
    NotJson,
    /// A message whose text is not UTF-8, or begins with a byte order mark (RFC 8259 §8.1).
    NotUtf8,
    /// A message that deviates from JSON-RPC 2.0 in a way that does not change its meaning: `"jsonrpc"` is missing, a
    /// response has both `result` and `error`, an error is not an object.
    InvalidEnvelope,
    /// A response that repeats the number in the request's id as a string or with a fraction (JSON-RPC 2.0 §5: it must be
    /// the same).
    ResponseId,
    /// A response whose result is not an object, such as null. All results of MCP are objects.
    ResultType,
    /// A response with another Content-Type than `application/json` or `text/event-stream`, or none (MCP, Transports,
    /// Streamable HTTP).
    ContentType,
    /// The result of the handshake has members of other types than the specification defines.
    InvalidHandshake,
    /// `notifications/initialized` is rejected (MCP, Lifecycle, Initialization).
    NotificationRejected,
    /// The transport HTTP+SSE of 2024-11-05, which MCP deprecated (MCP, Transports, Backwards Compatibility).
    DeprecatedTransport,
    /// `ping` gets no response (MCP, Ping: the receiver must respond promptly).
    PingUnanswered,
}

impl fmt::Display for ProtocolViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotJson => {
                "the server sends text that is not a JSON-RPC message where only messages are allowed (`evenkeel logs` shows it)"
            }
            Self::NotUtf8 => "the server sends messages that are not UTF-8; invalid bytes are replaced",
            Self::InvalidEnvelope => {
                "the server sends messages that are not quite JSON-RPC 2.0, such as a response with both a result and an error"
            }
            Self::ResponseId => "the server's responses do not repeat the id of the request exactly (such as \"1\" for 1)",
            Self::ResultType => "the server sends results that are not objects, such as null",
            Self::ContentType => {
                "the server's responses have another Content-Type than application/json or text/event-stream, or none"
            }
            Self::InvalidHandshake => "the server's result of the handshake has members of the wrong type",
            Self::NotificationRejected => "the server rejects notifications/initialized",
            Self::DeprecatedTransport => {
                "the server uses HTTP+SSE, which MCP deprecated in 2025-03-26; if it also offers streamable HTTP, declare that URL"
            }
            Self::PingUnanswered => {
                "the server does not answer ping; the health checks of spec.health request a list instead"
            }
        })
    }
}
