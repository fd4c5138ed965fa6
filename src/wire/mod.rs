//! MCP on the wire: JSON-RPC envelopes, the two transports to servers, and the handshake.
//!
//! Promises that messages between agents and servers keep their bytes: it parses only what it needs and changes only
//! what must change. All sizes are bounded. Never decides which server to connect to or when to retry.

mod access_token;
mod attempt_step;
mod child_environment;
mod client_capabilities;
mod connection;
mod connection_callers;
mod connection_context;
mod envelope;
mod error;
#[cfg(test)]
mod fuzz;
mod handshake;
mod handshake_response;
mod handshake_result;
mod http;
mod input_request;
mod json_edit;
mod lenient;
mod list_kind;
mod local_limit;
mod log;
mod log_level;
mod loop_detection;
mod notifications;
mod open;
mod param_headers;
mod pending_calls;
mod process;
mod protocol_violation;
mod response;
mod response_message;
mod retry_after;
mod secret_mask;
mod server_message;
mod sse;
mod stdio;
mod subscription;

pub use access_token::{AccessToken, IssuedToken, TokenState};
pub use attempt_step::AttemptStep;
pub use child_environment::ChildEnvironment;
pub use client_capabilities::ClientCapabilities;
pub use connection::{
    Connection, ConnectionEvent, HealthRequest, ServerInputRequest, UpstreamExchange, UpstreamRequest,
};
pub use connection_callers::ConnectionCallers;
pub use connection_context::ConnectionContext;
pub use envelope::{Envelope, JsonRpcId, MalformedMessage};
pub use error::{ConnectionError, FailureSource};
pub use handshake_result::{Era, HandshakeResult, ServerCapabilities, ServerDescription};
pub use http::{AddressScope, address_scope, fetch};
pub use input_request::{InputMethod, InputRequest};
pub use json_edit::{
    JsonEdit, Member, Members, RequestParams, decode_json_string, json_string, parse_members,
    push_json_string, rewrite,
};
pub use list_kind::ListKind;
pub use local_limit::open_file_limit_error;
pub use log::{LogLine, LogPage, ServerLog};
pub use log_level::{LogLevel, notification_level};
pub use loop_detection::{InstanceId, LOOP_KEY, LoopKind, VIA_KEY};
pub use notifications::{NotificationHandler, ServerNotification};
pub use open::{ConnectionEvents, open};
pub use param_headers::ParamHeaders;
pub use process::{ProcessActivity, ProcessGuard, SharedStopTimeout, StderrTail, guard_children};
pub use protocol_violation::ProtocolViolation;
pub use response::RpcResponse;
pub use response_message::ResponseMessage;
pub use retry_after::RetryAfter;
pub use server_message::is_unknown_method;

/// The maximum size of a message from a server (a response, an event or a line), in bytes.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
