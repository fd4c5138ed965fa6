//! MCP on the wire: JSON-RPC envelopes, the two transports towards servers, and the opening handshake.
//!
//! Promises that what agents and servers say to each other passes as the bytes it came in: only what
//! must be read is read, only what must change is changed. Sizes are bounded everywhere. Never decides
//! whom to connect to or when to retry.

mod envelope;
mod link;
mod splice;

pub use envelope::{Envelope, Id, Malformed};
pub use link::{Exchange, Incoming, Link, LinkError, Reply, Request};
pub use splice::{Edit, members, rewrite};
