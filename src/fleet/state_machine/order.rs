//! Steps for the orders of the fleet: a target to apply, or a detach.

use std::sync::Arc;
use std::time::Duration;

use super::effect::{CallRouting, Effect};
use super::lists::next_lists_check;
use super::state::{FailureState, Progress, ServerState, UseCheck};
use super::{StateMachine, Step};
use crate::plan::ConnectionTarget;
use crate::resource::{Activation, Isolation, McpServerSpec, Problem, Reason, UpdateStrategy};
use crate::upstream::CallRefusal;

/// The longest drain of calls in flight when evenkeel itself shuts down.
const SHUTDOWN_DRAIN_TIMEOUT: Duration = Duration::from_secs(3);

impl StateMachine {
    /// Applies a target: keeps the connection if it matches, and replaces it otherwise.
    pub(super) fn apply_target(&mut self, target: Arc<ConnectionTarget>, step: &mut Step) {
        // A server that is being detached has no connection to continue with, even if the target is the same.
        let same_connection = target.same_connection(&self.target) && self.state.detach_reason().is_none();
        let is_live = self.state.live().is_some_and(|live| target.same_connection(&live.target));
        let previous = std::mem::replace(&mut self.target, target);
        let reconnect_requested = self.target.reconnect_requested_at.is_some()
            && self.target.reconnect_requested_at != previous.reconnect_requested_at;
        if reconnect_requested || self.target.endpoint.digest() != previous.endpoint.digest() {
            // Retry-After applies to the endpoint, and an explicit request overrides it.
            self.retry_after.target = None;
            step.push(Effect::ResetRetryAfter);
        }
        let keeps_connection = same_connection || is_live;
        if is_live {
            // The declaration was reverted while its replacement was pending.
            if self.state.progress().is_some() {
                self.keep_live_connection(step);
            }
        } else if !keeps_connection {
            self.end_attempt(step);
            self.state.set_progress(Progress::WaitingForClose(None));
        }
        self.apply_settings(&previous.spec, step);
        // The update strategy was changed while the replacement was being connected beside the live connection.
        let may_not_coexist = self.target.spec.update == UpdateStrategy::Recreate
            && matches!(self.state, ServerState::Replacing(..));
        if !keeps_connection || may_not_coexist {
            self.replace(step);
            return;
        }
        self.ensure_connected(step);
        if self.target.reconcile_requested_at != previous.reconcile_requested_at {
            self.request_all_lists(step);
            // Calls never connect an isolated server, so its lists would not be read again.
            if self.target.spec.isolation == Isolation::Session {
                self.connect_on_demand(step);
            }
        }
    }

    /// Keeps the live connection, which the target matches again, and cancels its replacement.
    fn keep_live_connection(&mut self, step: &mut Step) {
        self.end_attempt(step);
        self.failures = FailureState::default();
        if let ServerState::Replacing(live, _) = std::mem::replace(&mut self.state, ServerState::Idle) {
            self.state = ServerState::Live(live);
        }
    }

    /// Applies names, filters and limits of the new spec at once, independent of the connection's state.
    fn apply_settings(&mut self, previous: &McpServerSpec, step: &mut Step) {
        let current = &self.target;
        let activation = current.spec.effective_activation();
        if let Some(live) = self.state.live_mut() {
            let (before, now) = (&previous.timeouts, &current.spec.timeouts);
            if previous.health != current.spec.health || before.call != now.call {
                step.push(Effect::RestartHealthChecks(current.clone()));
            }
            // While another connection replaces this one, the live connection keeps the target that it was made for.
            if current.same_connection(&live.target) {
                live.target = current.clone();
            }
            live.use_check = UseCheck::new(activation, step.time.now);
            let lists_check_at = live.lists_check_at.unwrap_or_else(|| next_lists_check(step.time));
            live.lists_check_at = (activation == Activation::Always).then_some(lists_check_at);
        }
        if let Some(published) = &self.published {
            self.publish(published.cached.clone(), step);
        }
        self.request_affected_lists(previous, step);
    }

    /// Continues with the connection or the attempt that matches the target; connects if there is neither.
    fn ensure_connected(&mut self, step: &mut Step) {
        match &self.state {
            ServerState::Idle if self.target.spec.effective_activation() == Activation::Always => {
                self.connect_on_demand(step);
            }
            ServerState::Disconnected(Progress::Retrying(retry))
            | ServerState::Replacing(_, Progress::Retrying(retry)) => {
                // The change may have fixed the cause of earlier failures.
                let last_problem = retry.problem.clone();
                self.failures.early_exits = 0;
                self.failures.backoff.reset();
                self.failures.refusals.reset();
                self.connect(Some(last_problem), step);
            }
            _ => {}
        }
    }

    /// Tries again at once if the server refused requests without this token.
    pub(super) fn on_token_obtained(&mut self, is_first: bool, step: &mut Step) {
        if let Some(Progress::Retrying(retry)) = self.state.progress()
            && (is_first || retry.problem.reason.is_refusal())
        {
            self.ensure_connected(step);
        }
    }

    /// Replaces the connection: its target changed, or the server is declared again.
    fn replace(&mut self, step: &mut Step) {
        // Failures of an earlier target do not apply to this one.
        self.failures = FailureState::default();
        let recreate = self.target.spec.update == UpdateStrategy::Recreate
            // Another uid means that the object was deleted and created again.
            || self.state.live().is_some_and(|live| live.target.uid != self.target.uid);
        if recreate {
            let name = &self.target.key.name;
            let problem = Problem::new(Reason::Connecting, format!("{name} is being replaced"));
            let limit = self.target.spec.timeouts.drain.get();
            self.unpublish_and_drain(CallRefusal::Unavailable(problem), limit, step);
        }
        self.connect(None, step);
    }

    /// Detaches the server: unpublishes it at once, then drains its calls.
    pub(super) fn detach(&mut self, reason: Reason, step: &mut Step) {
        let name = &self.target.key.name;
        let message = match reason {
            Reason::Suspended => format!("{name} was suspended; do not retry"),
            Reason::Removed => format!("{name} was removed; do not retry"),
            Reason::Idle => format!("the caller's connection to {name} has ended"),
            _ => format!("evenkeel is shutting down and detached {name}"),
        };
        let refusal = match reason {
            // The next call of the caller gets another connection.
            Reason::Idle => CallRefusal::Unavailable(Problem::new(reason, message)),
            _ => CallRefusal::Removed(Problem::new(Reason::Removed, message)),
        };
        let drain = self.target.spec.timeouts.drain.get();
        let limit = if reason == Reason::Detached { drain.min(SHUTDOWN_DRAIN_TIMEOUT) } else { drain };
        let earlier = self.state.detach_reason();
        self.unpublish_and_drain(refusal, limit, step);
        // A removal or suspension before the shutdown stays the reported reason.
        let reason = earlier.filter(|_| reason == Reason::Detached).unwrap_or(reason);
        self.state = ServerState::Draining(reason);
    }

    /// Unpublishes the server, ends the attempt in progress, and drains the live connection and earlier ones within
    /// `limit`. There is no connection afterwards.
    fn unpublish_and_drain(&mut self, refusal: CallRefusal, limit: Duration, step: &mut Step) {
        let (CallRefusal::Removed(problem) | CallRefusal::Unavailable(problem)) = &refusal;
        let problem = problem.clone();
        self.withdraw(&problem, step);
        self.end_attempt(step);
        step.push(Effect::LimitDrains(limit, problem.clone()));
        let live = self.take_live(step);
        let drain = live.map(|live| self.drain(&live, limit, problem, true));
        step.push(Effect::RouteCalls(CallRouting::Refuse(refusal), drain));
    }
}
