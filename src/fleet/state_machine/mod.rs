//! The state machine of one server's connection: which state follows from an input, and which effects.
//!
//! [`StateMachine::step`] is a pure function: it starts no task, reads no clock and does no I/O. The actor passes inputs
//! in and runs the effects. Promises that
//!
//! - a server is published only once all its lists were read (but for the cached catalog of an earlier run);
//! - a connection that matches its declaration is kept, whatever else changes;
//! - the result of an attempt that is no longer needed changes nothing;
//! - a new attempt never overlaps with an earlier process of the server, except in a `MakeBeforeBreak` replacement.
//!
//! The submodules hold the steps by kind of input: `order`, `attempt`, `loss`, `lists`, `idle`, `close`; `observe`
//! computes the observation that follows from a state.

mod attempt;
mod close;
mod effect;
mod idle;
mod input;
mod lists;
mod loss;
mod observe;
mod order;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use tokio::time::Instant;

use super::{CachedServer, Observation};
use crate::plan::ConnectionTarget;
use crate::upstream::UpstreamHandle;

pub(super) use effect::{CallRouting, Drain, Effect};
pub(super) use input::{
    AttachedServer, ConnectionId, Input, RetryAfterPeriod, RetryAfterState, ServerOrder, StepTime,
};
use state::{ClosingState, FailureState, Progress, PublishedState, ServerState};

/// The state of one server's connection, and what it decides with.
#[derive(Clone, Debug)]
pub(super) struct StateMachine {
    target: Arc<ConnectionTarget>,
    /// The handle for calls, part of each published section.
    handle: UpstreamHandle,
    state: ServerState,
    /// The published section, with a connection or for some time without.
    published: Option<PublishedState>,
    closing: Vec<ClosingState>,
    failures: FailureState,
    retry_after: RetryAfterState,
    /// The number of times that the connection was lost.
    restarts: u32,
    /// True until the first attempt has ended.
    is_starting: bool,
    next_id: u64,
    reported: Option<Observation>,
}

/// One step in progress: its time, and its effects so far.
struct Step {
    time: StepTime,
    effects: Vec<Effect>,
}

impl StateMachine {
    /// Creates the state machine of a new server, and its first effects: an attempt, unless `cached`, the catalog of an
    /// earlier run, makes it an idle `OnDemand` server.
    pub(super) fn start(
        target: Arc<ConnectionTarget>,
        handle: UpstreamHandle,
        cached: Option<Arc<CachedServer>>,
        time: StepTime,
    ) -> (Self, Vec<Effect>) {
        let mut machine = Self {
            target,
            handle,
            state: ServerState::Disconnected(Progress::WaitingForClose(None)),
            published: None,
            closing: Vec::new(),
            failures: FailureState::default(),
            retry_after: RetryAfterState::default(),
            restarts: 0,
            is_starting: true,
            next_id: 0,
            reported: None,
        };
        let mut step = Step { time, effects: Vec::new() };
        machine.begin(cached, &mut step);
        machine.finish_step(&mut step);
        (machine, step.effects)
    }

    /// Applies an input, and returns the effects in the order in which they are to be run.
    pub(super) fn step(&mut self, input: Input, time: StepTime) -> Vec<Effect> {
        let mut step = Step { time, effects: Vec::new() };
        let step_ref = &mut step;
        match input {
            Input::Ordered(ServerOrder::Apply(target)) => self.apply_target(target, step_ref),
            Input::Ordered(ServerOrder::Detach(reason)) => self.detach(reason, step_ref),
            Input::AttemptSucceeded(id, attached) => self.on_attempt_succeeded(id, *attached, step_ref),
            Input::AttemptFailed(id, error) => self.on_attempt_failed(id, &error, step_ref),
            Input::AttemptSlow(id, problem) => self.on_attempt_slow(id, problem),
            Input::ListChanged(id, list) => self.on_list_changed(id, list),
            Input::UnknownItem(list) => self.on_unknown_item(list),
            Input::ListRead(id, list, result) => self.on_list_read(id, list, result, step_ref),
            Input::DescriptionChanged(id, description) => {
                self.on_description_changed(id, description, step_ref);
            }
            Input::ProtocolViolated(id, violation) => self.on_protocol_violated(id, violation),
            Input::ChangesUnheard(id, why) => self.on_changes_unheard(id, why),
            Input::ConnectionLost(id, error) => self.on_connection_lost(id, &error, step_ref),
            Input::ConnectionClosed(id) => self.on_connection_closed(id, step_ref),
            Input::ConnectionUsed(id, delay) => self.on_connection_used(id, delay, step_ref),
            Input::ConnectionUnused(id) => self.on_connection_unused(id, step_ref),
            Input::RetryAfterChanged(retry_after) => self.retry_after = retry_after,
            Input::TokenObtained { is_first } => self.on_token_obtained(is_first, step_ref),
            Input::CallWaiting => self.connect_on_demand(step_ref),
            Input::TimeReached => self.on_time_reached(step_ref),
        }
        self.finish_step(&mut step);
        step.effects
    }

    /// Returns when the next [`Input::TimeReached`] is due; `None` if only another input changes anything.
    pub(super) fn next_wake_at(&self, now: Instant) -> Option<Instant> {
        let retry_at = match self.state.progress() {
            Some(Progress::Retrying(retry)) => retry.due.map(|due| due.at),
            _ => None,
        };
        let withdraw_at = self.published.as_ref().and_then(|published| published.withdraw_at);
        let use_check_at = self.state.live().and_then(|live| live.use_check.due_at());
        let lists_check_at = self.state.live().and_then(|live| live.lists_check_at);
        [retry_at, withdraw_at, use_check_at, lists_check_at, self.next_read_at(now)]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the current target.
    pub(super) fn target(&self) -> &Arc<ConnectionTarget> {
        &self.target
    }

    /// Returns true if the next call makes the connection.
    pub(super) fn is_idle(&self) -> bool {
        matches!(self.state, ServerState::Idle)
    }

    /// Returns the Retry-After that was passed in last.
    pub(super) fn retry_after(&self) -> &RetryAfterState {
        &self.retry_after
    }

    /// Returns true if the server is detached or being detached.
    pub(super) fn is_detaching(&self) -> bool {
        self.state.detach_reason().is_some()
    }

    /// Returns true if the server is detached and everything has closed.
    pub(super) fn is_detached(&self) -> bool {
        matches!(self.state, ServerState::Detached(_))
    }

    fn on_time_reached(&mut self, step: &mut Step) {
        self.retry_if_due(step);
        self.withdraw_if_due(step);
        self.check_use_if_due(step);
        self.check_lists_if_due(step);
    }

    /// Does what follows from any step: a list that is due is read, a drained server is detached, and a changed
    /// observation is reported.
    fn finish_step(&mut self, step: &mut Step) {
        self.read_list_if_due(step);
        if let ServerState::Draining(reason) = self.state
            && self.closing.is_empty()
        {
            self.state = ServerState::Detached(reason);
        }
        self.report(step);
    }
}

impl Step {
    fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }
}
