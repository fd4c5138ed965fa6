//! The observation of a state, from which the server's conditions are derived.

use std::collections::BTreeMap;

use super::super::{Observation, Phase};
use super::effect::Effect;
use super::state::{Progress, ServerState};
use super::{StateMachine, Step};
use crate::resource::Problem;
use crate::wire::ListKind;

impl StateMachine {
    /// Reports the observation of the current state, if it changed.
    pub(super) fn report(&mut self, step: &mut Step) {
        let observation = self.observe();
        if self.reported.as_ref() != Some(&observation) {
            self.reported = Some(observation.clone());
            step.push(Effect::Report(observation));
        }
    }

    fn observe(&self) -> Observation {
        let live = self.state.live();
        let is_reading = live.is_some_and(|live| live.reading.is_some());
        let is_connecting =
            matches!(self.state.progress(), Some(Progress::WaitingForClose(_) | Progress::Attempting(..)));
        let has_live_server = live.is_some() || self.is_idle();
        let published = self.published.as_ref().filter(|_| has_live_server);
        let handled_before = || self.reported.as_ref()?.last_handled_request.clone();
        Observation {
            key: self.target.key.clone(),
            uid: self.target.uid.clone(),
            generation: self.target.generation,
            // A request is handled when the attempt has ended and the lists have been read.
            last_handled_request: if is_connecting || is_reading {
                handled_before()
            } else {
                self.target.reconcile_requested_at.clone()
            },
            phase: self.phase(),
            live_server: published.map(|published| published.live_server.clone()),
            paused: live.and(self.retry_after.live.as_ref()).map(|period| period.problem.clone()),
            degraded: live.and_then(|live| merge_problems(&live.degraded)),
            restarts: self.restarts,
        }
    }

    fn phase(&self) -> Phase {
        let attempt = self.failures.backoff.failures().saturating_add(1);
        match &self.state {
            ServerState::Idle => Phase::Idle,
            ServerState::Live(_) => Phase::Attached,
            ServerState::Disconnected(progress) | ServerState::Replacing(_, progress) => match progress {
                Progress::WaitingForClose(last_problem) | Progress::Attempting(_, last_problem) => {
                    Phase::Connecting { attempt, last_problem: last_problem.clone() }
                }
                Progress::Retrying(retry) => Phase::Failed {
                    problem: retry.problem.clone(),
                    retry_at: retry.due.map(|due| due.wall_clock),
                    attempt,
                },
            },
            ServerState::Draining(reason) => Phase::Draining(*reason),
            // Reported only once every call has drained and every process has exited.
            ServerState::Detached(reason) => Phase::Detached(*reason),
        }
    }
}

/// Merges the problems of all lists of a server into one: its reason is the most severe, which is the first in the
/// enum.
fn merge_problems(lists: &BTreeMap<ListKind, Problem>) -> Option<Problem> {
    let reason = lists.values().map(|problem| problem.reason).min()?;
    let messages: Vec<_> = lists.values().map(|problem| problem.message.as_str()).collect();
    Some(Problem::new(reason, messages.join("; ")))
}
