//! The observation of a state, from which the server's conditions are derived.

use std::sync::Arc;

use super::super::{Observation, Phase};
use super::effect::Effect;
use super::input::ConnectionId;
use super::state::{LiveState, Progress, ServerState};
use super::{StateMachine, Step};
use crate::resource::{Problem, Reason};
use crate::wire::ProtocolViolation;

impl StateMachine {
    /// Reports the observation of the current state, if it changed.
    pub(super) fn report(&mut self, step: &mut Step) {
        let observation = self.observe();
        if self.reported.as_ref() != Some(&observation) {
            self.reported = Some(observation.clone());
            step.push(Effect::Report(observation));
        }
    }

    /// Records a violation of the protocol that was tolerated.
    pub(super) fn on_protocol_violated(&mut self, id: ConnectionId, violation: ProtocolViolation) {
        if let Some(live) = self.state.live_mut().filter(|live| live.id == id) {
            live.violations.insert(violation);
        }
    }

    /// Records whether the list changes that the server declares are heard.
    pub(super) fn on_changes_unheard(&mut self, id: ConnectionId, why: Option<Arc<str>>) {
        if let Some(live) = self.state.live_mut().filter(|live| live.id == id) {
            live.changes_unheard = why;
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
            degraded: live.and_then(merge_problems),
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

/// Merges what a live server lacks and what it violates into one problem: its reason is the most severe, which is the
/// first in the enum.
fn merge_problems(live: &LiveState) -> Option<Problem> {
    let violations = live.violations.iter();
    let violations = violations.map(|violation| (Reason::NonCompliant, violation.to_string()));
    let unheard = live.changes_unheard.iter().map(|why| {
        let when = if live.lists_check_at.is_some() { "about every 15 minutes" } else { "when it connects" };
        (Reason::NoticesNotHeard, format!("list changes are not heard: {why}; the lists are read {when}"))
    });
    let lists = live.degraded.values().map(|problem| (problem.reason, problem.message.clone()));
    let (reasons, messages): (Vec<_>, Vec<_>) = lists.chain(unheard).chain(violations).unzip();
    Some(Problem::new(reasons.into_iter().min()?, messages.join("; ")))
}
