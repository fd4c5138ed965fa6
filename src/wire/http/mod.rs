//! MCP over streamable HTTP, on connections that the calling task drives itself.

mod answer;
mod client;
mod connect;
mod connection;
mod credentials;
mod header;
mod outbox;
mod posting;
mod refusal;
mod response;
mod session;
mod session_check;
mod stream;
mod trickle;

pub(super) use answer::Answering;
pub(super) use client::Client;
pub(super) use header::encoded;
pub(super) use stream::Stream;
