use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::super::refresh_schedule::RefreshSchedule;
use super::super::{CachedServer, LiveServer};
use super::input::ConnectionId;
use crate::net::Backoff;
use crate::plan::ConnectionTarget;
use crate::resource::{Activation, Problem, Reason};
use crate::upstream::Section;
use crate::wire::{Era, ListKind, ProtocolViolation, ServerCapabilities};

/// The state of one server's connection. Each variant carries what is true only in it.
#[derive(Clone, Debug)]
pub(super) enum ServerState {
    /// The server is published without a connection; the next call connects (`OnDemand`).
    Idle,
    /// There is no connection; one is being made.
    Disconnected(Progress),
    /// The connection of the current target serves.
    Live(LiveState),
    /// The connection of an earlier target serves while its replacement is being made.
    Replacing(LiveState, Progress),
    /// The server is detached: unpublished, and its connections are draining and closing.
    Draining(Reason),
    /// The server is detached, and everything has closed. The machine ignores all inputs but an order.
    Detached(Reason),
}

/// The progress of a new connection.
#[derive(Clone, Debug)]
pub(super) enum Progress {
    /// The attempt starts as soon as the connections and attempts have closed that it must not overlap with.
    /// Carries the problem of the previous attempt.
    WaitingForClose(Option<Problem>),
    /// The attempt is in progress. Carries the problem of the previous one.
    Attempting(AttemptState, Option<Problem>),
    /// The last attempt failed, or the connection was lost.
    Retrying(PendingRetry),
}

/// An attempt in progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct AttemptState {
    pub(super) id: ConnectionId,
    /// True if the attempt starts a process.
    pub(super) starts_process: bool,
}

/// The problem of the last attempt, and when the next one is due; `None` if a user must act first.
#[derive(Clone, Debug)]
pub(super) struct PendingRetry {
    pub(super) problem: Problem,
    pub(super) due: Option<RetryTime>,
}

/// The time of the next attempt on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct RetryTime {
    pub(super) at: Instant,
    pub(super) wall_clock: Timestamp,
}

/// A connection that serves calls.
#[derive(Clone, Debug)]
pub(super) struct LiveState {
    pub(super) id: ConnectionId,
    /// The target that the connection was made for, or a later one with the same connection.
    pub(super) target: Arc<ConnectionTarget>,
    pub(super) capabilities: ServerCapabilities,
    pub(super) connected_at: Instant,
    /// The problems of lists that could not be read, and tolerated violations in lists.
    pub(super) degraded: BTreeMap<ListKind, Problem>,
    /// The violations of the protocol that were tolerated.
    pub(super) violations: BTreeSet<ProtocolViolation>,
    /// The reason for which the list changes that the server declares are not heard.
    pub(super) changes_unheard: Option<Arc<str>>,
    /// The lists that are to be read again, and when.
    pub(super) refresh_schedule: RefreshSchedule,
    /// When to check whether lists changed without a notification; `None` for an `OnDemand` server, whose lists are
    /// read with each new connection.
    pub(super) lists_check_at: Option<Instant>,
    /// The list that is being read.
    pub(super) reading: Option<ListKind>,
    /// The check whether the connection is still in use (`OnDemand`).
    pub(super) use_check: UseCheck,
}

/// The next check whether a connection is still in use.
#[derive(Clone, Copy, Debug)]
pub(super) enum UseCheck {
    /// The connection is kept whether it is used or not.
    None,
    /// The check is due at this time.
    DueAt(Instant),
    /// The check was requested, and its answer is the next input. No list is read meanwhile: the connection may be
    /// closed already.
    InProgress,
}

impl UseCheck {
    /// Returns the check of an `OnDemand` connection, which is due at this time, or of another one.
    pub(super) fn new(activation: Activation, due_at: Instant) -> Self {
        match activation {
            Activation::OnDemand => Self::DueAt(due_at),
            Activation::Always => Self::None,
        }
    }

    /// Returns when the check is due, if it is.
    pub(super) fn due_at(self) -> Option<Instant> {
        match self {
            Self::DueAt(at) => Some(at),
            Self::None | Self::InProgress => None,
        }
    }
}

/// The server's published section, and the lists that it was made from.
#[derive(Clone, Debug)]
pub(super) struct PublishedState {
    pub(super) cached: Arc<CachedServer>,
    pub(super) section: Arc<Section>,
    pub(super) live_server: Arc<LiveServer>,
    /// When the section is withdrawn: the end of the grace period of a server that lost its connection.
    pub(super) withdraw_at: Option<Instant>,
}

/// An attempt that was ended, or a connection that is draining and closing.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClosingState {
    pub(super) id: ConnectionId,
    /// True if no attempt starts before: its process may hold a port, a lock or a file that the next one needs.
    pub(super) blocks_attempts: bool,
}

/// The failures that count for the next attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct FailureState {
    pub(super) backoff: Backoff,
    /// Refusals in a row, which have longer delays.
    pub(super) refusals: Backoff,
    /// Exits in a row, each soon after the start.
    pub(super) early_exits: u32,
    /// The era in which the next attempt opens if the server's era is not cached; `None` for a probe.
    pub(super) opening_era: Option<Era>,
}

impl ServerState {
    /// Returns the connection that serves calls.
    pub(super) fn live(&self) -> Option<&LiveState> {
        match self {
            Self::Live(live) | Self::Replacing(live, _) => Some(live),
            Self::Idle | Self::Disconnected(_) | Self::Draining(_) | Self::Detached(_) => None,
        }
    }

    /// Returns the connection that serves calls.
    pub(super) fn live_mut(&mut self) -> Option<&mut LiveState> {
        match self {
            Self::Live(live) | Self::Replacing(live, _) => Some(live),
            Self::Idle | Self::Disconnected(_) | Self::Draining(_) | Self::Detached(_) => None,
        }
    }

    /// Returns the progress of a new connection.
    pub(super) fn progress(&self) -> Option<&Progress> {
        match self {
            Self::Disconnected(progress) | Self::Replacing(_, progress) => Some(progress),
            Self::Idle | Self::Live(_) | Self::Draining(_) | Self::Detached(_) => None,
        }
    }

    /// Returns the attempt in progress.
    pub(super) fn attempt(&self) -> Option<AttemptState> {
        match self.progress()? {
            Progress::Attempting(attempt, _) => Some(*attempt),
            Progress::WaitingForClose(_) | Progress::Retrying(_) => None,
        }
    }

    /// Returns why the server is detached or being detached.
    pub(super) fn detach_reason(&self) -> Option<Reason> {
        match self {
            Self::Draining(reason) | Self::Detached(reason) => Some(*reason),
            Self::Idle | Self::Disconnected(_) | Self::Live(_) | Self::Replacing(..) => None,
        }
    }

    /// Sets the progress of a new connection, beside the live one if there is one.
    pub(super) fn set_progress(&mut self, progress: Progress) {
        *self = match std::mem::replace(self, Self::Idle) {
            Self::Live(live) | Self::Replacing(live, _) => Self::Replacing(live, progress),
            Self::Idle | Self::Disconnected(_) | Self::Draining(_) | Self::Detached(_) => {
                Self::Disconnected(progress)
            }
        };
    }
}

impl Progress {
    /// Returns the problem of the previous attempt.
    pub(super) fn last_problem(&self) -> Option<&Problem> {
        match self {
            Self::WaitingForClose(problem) | Self::Attempting(_, problem) => problem.as_ref(),
            Self::Retrying(retry) => Some(&retry.problem),
        }
    }
}
