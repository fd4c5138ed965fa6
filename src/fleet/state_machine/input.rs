use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::super::listing::{ListResult, ServerListing};
use crate::plan::{ConnectionTarget, DeclarationChange};
use crate::resource::{Problem, Reason};
use crate::wire::{ConnectionError, ListKind, ProtocolViolation, ServerCapabilities, ServerDescription};

/// An order of the fleet to one server's state machine; only the newest counts.
#[derive(Clone, Debug)]
pub(in crate::fleet) enum ServerOrder {
    /// Connect to this target, or apply it to the existing connection.
    Apply(Arc<ConnectionTarget>),
    /// Detach the server: `Removed`, `Suspended`, or `Detached` when evenkeel shuts down.
    Detach(Reason),
}

impl From<DeclarationChange<Arc<ConnectionTarget>>> for ServerOrder {
    /// Returns the order that carries out a change. The state machine itself compares targets, so that an order also
    /// leads to the declared state if earlier orders were lost.
    fn from(change: DeclarationChange<Arc<ConnectionTarget>>) -> Self {
        match change {
            DeclarationChange::Attach(target)
            | DeclarationChange::Replace(target, _)
            | DeclarationChange::Refilter(target, _)
            | DeclarationChange::Refresh(target)
            | DeclarationChange::Stay(target) => Self::Apply(target),
            DeclarationChange::Detach(reason) => Self::Detach(reason),
        }
    }
}

/// The number of an attempt, and of the connection that it opens. Unique within one state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::fleet) struct ConnectionId(pub(in crate::fleet) u64);

/// An input of a state machine. An input about a connection or attempt that is no longer in use changes nothing.
#[derive(Clone, Debug)]
pub(in crate::fleet) enum Input {
    /// The fleet sent a new order.
    Ordered(ServerOrder),
    /// An attempt opened its connection and read all lists.
    AttemptSucceeded(ConnectionId, Box<AttachedServer>),
    /// An attempt failed.
    AttemptFailed(ConnectionId, ConnectionError),
    /// The process of an attempt has not answered yet, and may need more time.
    AttemptSlow(ConnectionId, Problem),
    /// The server reported that a list changed, or its notifications may have been missed.
    ListChanged(ConnectionId, ListKind),
    /// The server did not know an item that it had listed.
    UnknownItem(ListKind),
    /// The read of a list ended ([`Effect::ReadList`](super::Effect::ReadList)).
    ListRead(ConnectionId, ListKind, Result<ListResult, ConnectionError>),
    /// The server describes itself otherwise than before.
    DescriptionChanged(ConnectionId, Arc<ServerDescription>),
    /// The server violated the protocol for the first time in this way, which was tolerated.
    ProtocolViolated(ConnectionId, ProtocolViolation),
    /// The list changes that the server declares are not heard, for this reason; `None` if they are again.
    ChangesUnheard(ConnectionId, Option<Arc<str>>),
    /// The live connection ended.
    ConnectionLost(ConnectionId, ConnectionError),
    /// Everything that belongs to an attempt or connection has ended, its process and the process's children included.
    ConnectionClosed(ConnectionId),
    /// The live connection is in use and is to be checked again after this delay
    /// ([`Effect::CloseIfUnused`](super::Effect::CloseIfUnused)).
    ConnectionUsed(ConnectionId, Duration),
    /// The live connection was not in use: calls find an idle server now, and it is closing.
    ConnectionUnused(ConnectionId),
    /// The server's Retry-After began, was extended or expired.
    RetryAfterChanged(RetryAfterState),
    /// The server has an OAuth token, or another one.
    TokenObtained {
        /// True if it had none before.
        is_first: bool,
    },
    /// A call needs the connection of an idle server.
    CallWaiting,
    /// The time that [`StateMachine::next_wake_at`](super::StateMachine::next_wake_at) returned has come.
    TimeReached,
}

/// The result of a successful attempt.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct AttachedServer {
    /// The server's description of itself.
    pub(in crate::fleet) description: Arc<ServerDescription>,
    /// The server's capabilities.
    pub(in crate::fleet) capabilities: ServerCapabilities,
    /// All lists.
    pub(in crate::fleet) listing: ServerListing,
}

/// The Retry-After of the endpoint to which the next attempt goes, and of the one to which the live connection goes.
/// They differ while a server is replaced by one with another endpoint.
/// Boxed, because few servers send one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::fleet) struct RetryAfterState {
    pub(in crate::fleet) target: Option<Box<RetryAfterPeriod>>,
    pub(in crate::fleet) live: Option<Box<RetryAfterPeriod>>,
}

/// The time until which a server accepts no requests, and the problem that says so.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::fleet) struct RetryAfterPeriod {
    pub(in crate::fleet) ends_at: Instant,
    pub(in crate::fleet) problem: Problem,
}

/// The time and the random number of one step. They are arguments, so that the same inputs give the same effects.
#[derive(Clone, Copy, Debug)]
pub(in crate::fleet) struct StepTime {
    /// The monotonic time.
    pub(in crate::fleet) now: Instant,
    /// The wall-clock time, for messages.
    pub(in crate::fleet) wall_clock: Timestamp,
    /// A random number from 0 to 1, for delays.
    pub(in crate::fleet) jitter: f64,
}
