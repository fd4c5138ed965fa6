//! Steps of attempts: their start, their end, and the time of the next one.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::super::CachedServer;
use super::super::listing::ServerListing;
use super::super::refresh_schedule::RefreshSchedule;
use super::effect::{CallRouting, Effect};
use super::input::{AttachedServer, ConnectionId, StepTime};
use super::lists::next_lists_check;
use super::state::{AttemptState, LiveState, PendingRetry, Progress, RetryTime, ServerState, UseCheck};
use super::{StateMachine, Step};
use crate::net::Delays;
use crate::resource::{Activation, Problem, Reason, UpdateStrategy};
use crate::upstream::CallRefusal;
use crate::wire::{ConnectionError, Era, FailureSource};

/// The process age below which an exit counts as early.
pub(super) const EARLY_EXIT_AGE: Duration = Duration::from_secs(10);
/// The number of early exits in a row that make a crash loop.
const CRASH_LOOP_EXITS: u32 = 3;
/// The delays before a server that refused evenkeel is tried again.
const REFUSAL_DELAYS: Delays = Delays { initial: Duration::from_mins(5), max: Duration::from_hours(1) };
/// The number of failed replacements from which the message says that the two connections may be in conflict.
const CONFLICT_FAILURES: u32 = 3;

impl StateMachine {
    /// Starts an attempt, and cancels one in progress along with everything that it opened.
    ///
    /// The attempt waits until the processes of previous attempts and connections have exited, and with `Recreate`
    /// until all previous connections have closed. It is also deferred while the server's Retry-After is in force.
    /// `last_problem` is the problem of the previous attempt to the same target.
    pub(super) fn connect(&mut self, last_problem: Option<Problem>, step: &mut Step) {
        self.end_attempt(step);
        let progress = self.begin_progress(last_problem, step);
        self.state.set_progress(progress);
    }

    fn begin_progress(&mut self, last_problem: Option<Problem>, step: &mut Step) -> Progress {
        let is_live = self.state.live().is_some();
        let must_wait = self.must_wait_for_closing();
        let retry_after = self.retry_after.target.clone().filter(|period| period.ends_at > step.time.now);
        if let (false, Some(retry_after)) = (must_wait, retry_after) {
            let delay = retry_after.ends_at.duration_since(step.time.now);
            if !is_live {
                self.start_grace_period(step);
                let refusal = CallRefusal::Unavailable(retry_after.problem.clone());
                step.push(Effect::RouteCalls(CallRouting::Refuse(refusal), None));
            }
            let problem = last_problem.unwrap_or(retry_after.problem);
            return Progress::Retrying(PendingRetry {
                problem,
                due: Some(RetryTime::after(delay, step.time)),
            });
        }
        // A server that is not published has no calls.
        if !is_live && self.published.is_some() {
            let problem = last_problem.clone().unwrap_or_else(|| self.connecting_problem());
            step.push(Effect::RouteCalls(self.wait_or_refuse(problem, step), None));
        }
        if must_wait {
            return Progress::WaitingForClose(last_problem);
        }
        self.next_id += 1;
        let id = ConnectionId(self.next_id);
        let (target, opening_era) = (self.target.clone(), self.failures.opening_era);
        let starts_process = target.endpoint.transport.is_stdio();
        step.push(Effect::StartAttempt { id, target, opening_era });
        Progress::Attempting(AttemptState { id, starts_process }, last_problem)
    }

    /// Returns the problem that callers get if the attempt that they wait for does not end in time.
    fn connecting_problem(&self) -> Problem {
        Problem::new(Reason::Connecting, format!("{} is being connected", self.target.key.name))
    }

    /// Returns what calls of a server without a connection get while an attempt is in progress: a wait, at most for
    /// `timeouts.connect` and until the end of the grace period. A server that is not published has no calls.
    pub(super) fn wait_or_refuse(&self, problem: Problem, step: &Step) -> CallRouting {
        let Some(published) = &self.published else {
            return CallRouting::Refuse(CallRefusal::Unavailable(problem));
        };
        let deadline = step.time.now + self.target.spec.timeouts.connect.get();
        let deadline = published.withdraw_at.map_or(deadline, |withdraw_at| withdraw_at.min(deadline));
        CallRouting::Wait(problem, deadline)
    }

    /// Connects because a call needs the connection, or because the server is no longer `OnDemand`.
    pub(super) fn connect_on_demand(&mut self, step: &mut Step) {
        if self.is_idle() {
            self.connect(None, step);
        }
    }

    pub(super) fn on_attempt_slow(&mut self, id: ConnectionId, problem: Problem) {
        if let ServerState::Disconnected(Progress::Attempting(attempt, last_problem))
        | ServerState::Replacing(_, Progress::Attempting(attempt, last_problem)) = &mut self.state
            && attempt.id == id
        {
            *last_problem = Some(problem);
        }
    }

    /// Publishes the lists of a new connection, and drains the connection that it replaces.
    pub(super) fn on_attempt_succeeded(
        &mut self,
        id: ConnectionId,
        attached: AttachedServer,
        step: &mut Step,
    ) {
        if self.state.attempt().is_none_or(|attempt| attempt.id != id) {
            return;
        }
        let replaced = self.take_live(step).map(|replaced| {
            let limit = self.target.spec.timeouts.call.get();
            let message = format!("{} was replaced while the call was in flight", self.target.key.name);
            self.drain(&replaced, limit, Problem::new(Reason::Detached, message), false)
        });
        let AttachedServer { description, capabilities, listing: ServerListing { lists, degraded, .. } } =
            attached;
        let now = step.time.now;
        // The server is attached without these lists; they are read again with a backoff.
        let mut refresh_schedule = RefreshSchedule::default();
        let unavailable = degraded.iter().filter(|(_, problem)| problem.reason == Reason::ListUnavailable);
        unavailable.for_each(|(list, _)| refresh_schedule.record_failure(*list, now, step.time.jitter));
        let activation = self.target.spec.effective_activation();
        self.state = ServerState::Live(LiveState {
            id,
            target: self.target.clone(),
            capabilities,
            connected_at: now,
            degraded,
            violations: BTreeSet::new(),
            changes_unheard: None,
            refresh_schedule,
            lists_check_at: (activation == Activation::Always).then(|| next_lists_check(step.time)),
            reading: None,
            use_check: UseCheck::new(activation, now + self.target.spec.unused_timeout()),
        });
        let cached = Arc::new(CachedServer { description, lists: Arc::new(lists) });
        // The lists come first: a call that waited is checked against them as soon as it gets the connection.
        step.push(Effect::SetLists(cached.lists.clone()));
        step.push(Effect::RouteCalls(CallRouting::Connection(id, self.target.clone()), replaced));
        self.publish(cached, step);
        // Last, so that an unknown name of this server is routed before it counts as unknown for good.
        self.end_startup(step);
    }

    /// Schedules the next attempt. An older connection, if there is one, keeps serving.
    pub(super) fn on_attempt_failed(&mut self, id: ConnectionId, error: &ConnectionError, step: &mut Step) {
        if self.state.attempt().is_none_or(|attempt| attempt.id != id) {
            return;
        }
        self.end_startup(step);
        self.end_attempt(step);
        self.record_exit(error);
        // Some servers crash on the probe, a request that they do not implement: the next attempt skips it.
        let crashed = match error.failure_source {
            FailureSource::Exit(_) => true,
            FailureSource::Status(status) => {
                status.is_server_error() && status != http::StatusCode::SERVICE_UNAVAILABLE
            }
            FailureSource::Connection
            | FailureSource::Session
            | FailureSource::Response
            | FailureSource::RetryAfter
            | FailureSource::LocalLimit => false,
        };
        self.failures.opening_era = (crashed && self.failures.opening_era.is_none()).then_some(Era::Legacy);
        self.schedule_retry(error, step);
    }

    pub(super) fn end_startup(&mut self, step: &mut Step) {
        if std::mem::replace(&mut self.is_starting, false) {
            step.push(Effect::EndStartup);
        }
    }

    /// Counts early exits in a row; anything else resets the count.
    pub(super) fn record_exit(&mut self, error: &ConnectionError) {
        let early = matches!(error.failure_source, FailureSource::Exit(age) if age < EARLY_EXIT_AGE);
        self.failures.early_exits = if early { self.failures.early_exits.saturating_add(1) } else { 0 };
    }

    /// Counts a failure and returns the delay before the next attempt.
    pub(super) fn record_failure(&mut self, retry_after: Option<Duration>, step: &Step) -> Duration {
        let retry = &self.target.spec.retry;
        let delays = Delays { initial: retry.initial.get(), max: retry.max.get() };
        self.failures.backoff.record_failure(delays, step.time.jitter, retry_after)
    }

    /// Counts a failure and returns the delay before the next attempt; `None` if a person must act first.
    fn retry_delay(
        &mut self,
        reason: Reason,
        retry_after: Option<Duration>,
        step: &Step,
    ) -> Option<Duration> {
        let delay = self.record_failure(retry_after, step);
        if reason.is_refusal() {
            return Some(self.failures.refusals.record_failure(
                REFUSAL_DELAYS,
                step.time.jitter,
                retry_after,
            ));
        }
        self.failures.refusals.reset();
        match reason {
            // Checking whether the command exists is cheap and starts nothing, so it is checked again until a user
            // installs it.
            Reason::CommandNotFound => Some(self.target.spec.retry.max.get()),
            _ if reason.requires_user_action() => None,
            _ => Some(delay),
        }
    }

    /// Schedules the next attempt, or none if the problem requires user action, and records the problem. There is no
    /// attempt in progress.
    pub(super) fn schedule_retry(&mut self, error: &ConnectionError, step: &mut Step) {
        let mut problem = error.problem.clone();
        let early_exits = self.failures.early_exits;
        if early_exits >= CRASH_LOOP_EXITS {
            let message = format!("{early_exits} times in a row: {}", problem.message);
            problem = Problem::new(Reason::CrashLoop, message);
        }
        let delay = self.retry_delay(problem.reason, error.retry_after, step);
        let due = delay.map(|delay| RetryTime::after(delay, step.time));
        if self.state.live().is_some() {
            problem.message.push_str("; the previous generation keeps serving");
            if self.target.spec.update == UpdateStrategy::MakeBeforeBreak
                && self.failures.backoff.failures() >= CONFLICT_FAILURES
            {
                problem.message.push_str(
                    "; if two connections to this server cannot coexist, set spec.update to Recreate",
                );
            }
        } else {
            if problem.reason == Reason::PolicyDenied {
                // What is no longer permitted is not offered for another grace period.
                self.withdraw(&problem, step);
            }
            self.start_grace_period(step);
            let refusal = CallRefusal::Unavailable(problem.clone());
            step.push(Effect::RouteCalls(CallRouting::Refuse(refusal), None));
        }
        self.state.set_progress(Progress::Retrying(PendingRetry { problem, due }));
    }

    /// Starts the next attempt if its time has come.
    pub(super) fn retry_if_due(&mut self, step: &mut Step) {
        if let Some(Progress::Retrying(PendingRetry { problem, due: Some(due) })) = self.state.progress()
            && due.at <= step.time.now
        {
            let last_problem = problem.clone();
            self.connect(Some(last_problem), step);
        }
    }
}

impl RetryTime {
    fn after(delay: Duration, time: StepTime) -> Self {
        let wall_clock = time.wall_clock.saturating_add(SignedDuration::try_from(delay).unwrap_or_default());
        Self { at: time.now + delay, wall_clock: wall_clock.unwrap_or(Timestamp::MAX) }
    }
}
