//! MCP on the wire: JSON-RPC envelopes, the two transports towards servers, and the opening handshake.
//!
//! Promises that what agents and servers say to each other passes as the bytes it came in: only what
//! must be read is read, only what must change is changed. Sizes are bounded everywhere. Never decides
//! whom to connect to or when to retry.

mod envelope;
mod error;
mod handshake;
mod host;
mod http;
mod identity;
mod inbound;
mod level;
mod link;
mod list;
mod log;
mod mask;
mod mirror;
mod open;
mod pause;
mod peer;
mod process;
mod reply;
mod splice;
mod sse;
mod stdio;
mod subscription;
mod unasked;

pub use envelope::{Envelope, Id, Malformed};
pub use error::{LinkError, Sign};
pub use host::Host;
pub use identity::{Identity, RING_KEY, Ring, VIA_KEY};
pub use inbound::is_unknown_method;
pub use level::{Level, level_of};
pub use link::{Event, Exchange, Link, Request};
pub use list::List;
pub use log::{Log, LogLine, LogPage};
pub use open::{Events, open};
pub use pause::Pause;
pub use peer::{About, Capabilities, Era, Peer};
pub use process::{Guard, LastWords, Started, watch as guard_children};
pub use reply::{Incoming, Reply};
pub use splice::{Edit, Member, Members, Params, json_string, members, push_json_string, rewrite, text};
pub use unasked::{NoticeHandler, ServerNotice};

/// The longest message taken from a server: an answer, an event or a line.
pub const MESSAGE_LIMIT: usize = 16 << 20;
