//! Steps of an `OnDemand` server: its connection is closed when it has not been used for a while.

use std::time::Duration;

use super::effect::Effect;
use super::input::ConnectionId;
use super::state::{ServerState, UseCheck};
use super::{StateMachine, Step};

impl StateMachine {
    /// Closes the live connection if the time of the check has come and it is unused.
    pub(super) fn check_use_if_due(&mut self, step: &mut Step) {
        let spec = &self.target.spec;
        let (unused_for, connect_timeout) = (spec.unused_timeout(), spec.timeouts.connect.get());
        // While a replacement is being made, the next call could not make the connection.
        let is_replacing = self.state.progress().is_some();
        let Some(live) = self.state.live_mut() else { return };
        if live.use_check.due_at().is_none_or(|at| at > step.time.now) {
            return;
        }
        if is_replacing {
            live.use_check = UseCheck::DueAt(step.time.now + unused_for);
        } else {
            // The answer sets the time of the next check.
            live.use_check = UseCheck::InProgress;
            step.push(Effect::CloseIfUnused { id: live.id, unused_for, connect_timeout });
        }
    }

    pub(super) fn on_connection_used(&mut self, id: ConnectionId, delay: Duration, step: &Step) {
        let activation = self.target.spec.effective_activation();
        if let Some(live) = self.state.live_mut().filter(|live| live.id == id) {
            live.use_check = UseCheck::new(activation, step.time.now + delay);
        }
    }

    pub(super) fn on_connection_unused(&mut self, id: ConnectionId, step: &mut Step) {
        if matches!(&self.state, ServerState::Live(live) if live.id == id)
            && let Some(live) = self.take_live(step)
        {
            self.mark_closing(&live, true);
        }
    }
}
