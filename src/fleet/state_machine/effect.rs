use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::super::{CachedServer, Observation};
use super::input::ConnectionId;
use crate::plan::ConnectionTarget;
use crate::resource::{Digest, Problem};
use crate::upstream::{CallRefusal, Section, ServerLists};
use crate::wire::{ConnectionError, Era, ListKind};

/// An effect of a step, for the actor to run. Effects are run in order.
#[derive(Clone, Debug)]
pub(in crate::fleet) enum Effect {
    /// Starts an attempt to connect and to read all lists. It ends with
    /// [`Input::AttemptSucceeded`](super::Input::AttemptSucceeded) or
    /// [`Input::AttemptFailed`](super::Input::AttemptFailed).
    StartAttempt {
        /// The number of the attempt.
        id: ConnectionId,
        /// The target to connect to.
        target: Arc<ConnectionTarget>,
        /// The era in which the attempt opens if the server's era is not cached; `None` for a probe.
        opening_era: Option<Era>,
    },
    /// Ends an attempt that failed or is cancelled, along with everything that it opened. It is reported as
    /// [`Input::ConnectionClosed`](super::Input::ConnectionClosed).
    EndAttempt(ConnectionId),
    /// Sets what calls get from now on. The connection that they got before, if there is one, accepts no more calls; it
    /// is drained and closed as the second value says, and reported as
    /// [`Input::ConnectionClosed`](super::Input::ConnectionClosed).
    RouteCalls(CallRouting, Option<Drain>),
    /// Makes the server idle and closes its live connection if it has been unused for `unused_for`, in one step: no call
    /// can begin in between. It answers with [`Input::ConnectionUnused`](super::Input::ConnectionUnused) or
    /// [`Input::ConnectionUsed`](super::Input::ConnectionUsed).
    CloseIfUnused {
        /// The live connection.
        id: ConnectionId,
        /// The time without calls after which the connection counts as unused.
        unused_for: Duration,
        /// The longest time that a call waits for the next connection.
        connect_timeout: Duration,
    },
    /// Shortens the drains in progress that would last longer. Calls that do not end in time fail with the problem.
    LimitDrains(Duration, Problem),
    /// Ends the live connection: its next event is the loss.
    EndConnection(ConnectionId, ConnectionError),
    /// Restarts the health checks of the live connection with the settings of this target.
    RestartHealthChecks(Arc<ConnectionTarget>),
    /// Reads a list of the live connection.
    ReadList {
        /// The live connection.
        id: ConnectionId,
        /// The list.
        list: ListKind,
        /// The target of the connection, whose spec says what is wanted of the list, and the time limit.
        target: Arc<ConnectionTarget>,
    },
    /// Cancels the read of a list.
    CancelRead,
    /// Stores the lists of the server, against which calls that waited are checked.
    SetLists(Arc<ServerLists>),
    /// Publishes a section, replacing the previous one.
    Publish(Arc<Section>),
    /// Withdraws the published section. Callers of its items get the problem.
    Withdraw(Problem),
    /// Stores the catalog of a connection for the next run, unless the same is stored already.
    StoreCatalog(Digest, Arc<CachedServer>),
    /// Forgets the server's Retry-After.
    ResetRetryAfter,
    /// Reports that the first attempt has ended; the startup waits for it.
    EndStartup,
    /// Reports a changed observation.
    Report(Observation),
}

/// The connection, wait or refusal that calls to a server get.
#[derive(Clone, Debug)]
pub(in crate::fleet) enum CallRouting {
    /// The new connection, which is live from now on.
    Connection(ConnectionId, Arc<ConnectionTarget>),
    /// A wait for the attempt in progress, at most until the deadline; then they fail with the problem.
    Wait(Problem, Instant),
    /// A wait for the connection that the first call of an idle server requests, each at most for this time.
    WaitForConnection(Duration),
    /// A refusal.
    Refuse(CallRefusal),
}

/// A connection that is to be drained and closed.
#[derive(Clone, Debug)]
pub(in crate::fleet) struct Drain {
    /// The connection.
    pub(in crate::fleet) id: ConnectionId,
    /// The longest time that calls in flight have to end.
    pub(in crate::fleet) limit: Duration,
    /// The problem with which the others fail.
    pub(in crate::fleet) problem: Problem,
}
