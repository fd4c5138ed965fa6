//! The step after the loss of the live connection.

use std::time::Duration;

use super::attempt::EARLY_EXIT_AGE;
use super::effect::{CallRouting, Effect};
use super::input::ConnectionId;
use super::state::{Progress, ServerState};
use super::{StateMachine, Step};
use crate::resource::{Activation, Reason};
use crate::upstream::CallRefusal;
use crate::wire::{ConnectionError, FailureSource};

/// The connection age from which a loss counts as a first failure.
const STABLE_CONNECTION_AGE: Duration = Duration::from_mins(1);

impl StateMachine {
    /// Handles the loss of the live connection: its section stays published for the grace period while the server is
    /// connected again. An `OnDemand` server becomes idle instead.
    pub(super) fn on_connection_lost(&mut self, id: ConnectionId, error: &ConnectionError, step: &mut Step) {
        if self.state.live().is_none_or(|live| live.id != id) {
            return;
        }
        let progress = self.state.progress().cloned();
        let Some(live) = self.take_live(step) else { return };
        let age = step.time.now.duration_since(live.connected_at);
        self.failures.backoff.record_end(age, STABLE_CONNECTION_AGE);
        self.failures.refusals.record_end(age, STABLE_CONNECTION_AGE);
        self.restarts = self.restarts.saturating_add(1);
        self.record_exit(error);
        let drain = self.drain(&live, Duration::ZERO, error.problem.clone(), true);
        // The next call connects an OnDemand server again. One that exits soon after its start backs off instead.
        if self.target.spec.effective_activation() == Activation::OnDemand
            && progress.is_none()
            && age >= EARLY_EXIT_AGE
        {
            let connect_timeout = self.target.spec.timeouts.connect.get();
            step.push(Effect::RouteCalls(CallRouting::WaitForConnection(connect_timeout), Some(drain)));
            self.state = ServerState::Idle;
            return;
        }
        self.start_grace_period(step);
        // A replacement is being connected already, and calls wait for it.
        if let Some(progress @ (Progress::Attempting(..) | Progress::WaitingForClose(_))) = progress {
            step.push(Effect::RouteCalls(self.wait_or_refuse(error.problem.clone(), step), Some(drain)));
            self.state = ServerState::Disconnected(progress);
            return;
        }
        // A server that lost a session (after a restart, say) is not failing, unless it does so repeatedly.
        let session_lost =
            error.failure_source == FailureSource::Session && self.failures.backoff.failures() == 0;
        if session_lost {
            self.record_failure(None, step);
        }
        // A connection that lasted, or only lost its session, is replaced without delay, and calls wait for that.
        let is_permitted = error.problem.reason != Reason::PolicyDenied;
        if is_permitted && (session_lost || age >= STABLE_CONNECTION_AGE) {
            step.push(Effect::RouteCalls(self.wait_or_refuse(error.problem.clone(), step), Some(drain)));
            self.connect(Some(error.problem.clone()), step);
        } else {
            let refusal = CallRefusal::Unavailable(error.problem.clone());
            step.push(Effect::RouteCalls(CallRouting::Refuse(refusal), Some(drain)));
            self.schedule_retry(error, step);
        }
    }
}
