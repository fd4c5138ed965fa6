//! MCP on the wire: JSON-RPC envelopes, the two transports towards servers, and the opening handshake.
//!
//! Promises that what agents and servers say to each other passes as the bytes it came in: only what
//! must be read is read, only what must change is changed. Sizes are bounded everywhere. Never decides
//! whom to connect to or when to retry.

mod connection;
mod connection_context;
mod envelope;
mod error;
mod handshake;
mod handshake_result;
mod http;
mod json_edit;
mod list_kind;
mod log;
mod log_level;
mod loop_detection;
mod notifications;
mod open;
mod param_headers;
mod process;
mod response;
mod retry_after;
mod secret_mask;
mod server_message;
mod sse;
mod stdio;
mod subscription;

pub use connection::{Connection, ConnectionEvent, UpstreamExchange, UpstreamRequest};
pub use connection_context::ConnectionContext;
pub use envelope::{Envelope, JsonRpcId, MalformedMessage};
pub use error::{ConnectionError, FailureSource};
pub use handshake_result::{Era, HandshakeResult, ServerCapabilities, ServerDescription};
pub use json_edit::{
    JsonEdit, Member, Members, RequestParams, json_string, members, push_json_string, rewrite, text,
};
pub use list_kind::ListKind;
pub use log::{LogLine, LogPage, ServerLog};
pub use log_level::{LogLevel, notification_level};
pub use loop_detection::{InstanceId, LOOP_KEY, LoopKind, VIA_KEY};
pub use notifications::{NotificationHandler, ServerNotification};
pub use open::{ConnectionEvents, open};
pub use process::{ProcessActivity, ProcessGuard, StderrTail, guard_children};
pub use response::{ResponseMessage, RpcResponse};
pub use retry_after::RetryAfter;
pub use server_message::is_unknown_method;

/// The longest message taken from a server: an answer, an event or a line.
pub const MESSAGE_LIMIT: usize = 16 << 20;
