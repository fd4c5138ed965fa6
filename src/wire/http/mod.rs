//! MCP over streamable HTTP. The calling task drives the HTTP connection itself, without a task per connection.

mod body_message;
mod check;
mod client;
mod connect;
mod connect_error;
mod content_coding;
mod credentials;
mod exchange;
mod fetch;
mod header;
mod media_type;
mod notification_stream;
mod pool;
mod post_queue;
mod posting;
mod proxy;
mod resolver;
mod response;
mod resume;
mod session;
mod sse_connection;
mod status_error;
mod streaming_body;

pub(super) use client::HttpClient;
pub(super) use exchange::HttpExchange;
pub use fetch::{AddressScope, address_scope, fetch};
pub(super) use header::encode_header_value;
pub(super) use notification_stream::NotificationStream;
pub(super) use sse_connection::{SseCall, SseConnection};
