//! Ending attempts and connections, and what waits for their end.

use std::time::Duration;

use super::effect::{Drain, Effect};
use super::input::ConnectionId;
use super::state::{ClosingState, LiveState, Progress, ServerState};
use super::{StateMachine, Step};
use crate::resource::{Problem, UpdateStrategy};

impl StateMachine {
    /// Ends the attempt in progress, if there is one. The caller sets the state that follows.
    pub(super) fn end_attempt(&mut self, step: &mut Step) {
        if let Some(attempt) = self.state.attempt() {
            step.push(Effect::EndAttempt(attempt.id));
            self.closing.push(ClosingState { id: attempt.id, blocks_attempts: attempt.starts_process });
        }
    }

    /// Takes the live connection out of the state, and cancels the read of its lists. The caller sets the state that
    /// follows.
    pub(super) fn take_live(&mut self, step: &mut Step) -> Option<LiveState> {
        match std::mem::replace(&mut self.state, ServerState::Idle) {
            ServerState::Live(live) | ServerState::Replacing(live, _) => {
                if live.reading.is_some() {
                    step.push(Effect::CancelRead);
                }
                Some(live)
            }
            _ => None,
        }
    }

    /// Records that a connection is closing, and returns how it is drained. `may_block` is false if an attempt may run
    /// beside it, which holds only for a connection that `MakeBeforeBreak` has replaced.
    pub(super) fn drain(
        &mut self,
        live: &LiveState,
        limit: Duration,
        problem: Problem,
        may_block: bool,
    ) -> Drain {
        self.mark_closing(live, may_block);
        Drain { id: live.id, limit, problem }
    }

    /// Records that a connection is closing. Its process blocks the next attempt, unless `may_block` is false.
    pub(super) fn mark_closing(&mut self, live: &LiveState, may_block: bool) {
        let blocks_attempts = may_block && live.target.endpoint.transport.is_stdio();
        self.closing.push(ClosingState { id: live.id, blocks_attempts });
    }

    /// True while an attempt would run beside something that it must not overlap with. A connection that a
    /// `MakeBeforeBreak` replacement drains does not count: it may have calls in flight for a long time.
    pub(super) fn must_wait_for_closing(&self) -> bool {
        let recreate = self.target.spec.update == UpdateStrategy::Recreate;
        self.closing.iter().any(|closing| recreate || closing.blocks_attempts)
    }

    /// Starts the attempt that waited for the close, if nothing else is in its way.
    pub(super) fn on_connection_closed(&mut self, id: ConnectionId, step: &mut Step) {
        let count = self.closing.len();
        self.closing.retain(|closing| closing.id != id);
        if self.closing.len() == count {
            return;
        }
        if let Some(Progress::WaitingForClose(last_problem)) = self.state.progress() {
            let last_problem = last_problem.clone();
            self.connect(last_problem, step);
        }
    }
}
