use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::super::FleetContext;
use super::super::attach::attach;
use super::super::new_connection::NewConnection;
use super::super::state_machine::ConnectionId;
use super::caller_role::CallerRole;
use super::pending::sleep_until_some;
use crate::plan::ConnectionTarget;
use crate::resource::{Problem, Reason};
use crate::text;
use crate::wire::{
    ConnectionContext, ConnectionError, Era, ProcessActivity, RetryAfter, SharedStopTimeout, StderrTail,
};

type AttachFuture = Pin<Box<dyn Future<Output = Result<NewConnection, ConnectionError>> + Send>>;

/// An attempt in progress.
pub(super) struct RunningAttempt {
    pub(super) id: ConnectionId,
    /// The tasks of everything that it opened. They are waited for if it fails or is cancelled.
    pub(super) tasks: TaskTracker,
    future: AttachFuture,
    target: Arc<ConnectionTarget>,
    process: ProcessActivity,
    stderr: StderrTail,
    /// When to report that the process has not answered yet; `None` if there is nothing to report.
    slow_start_at: Option<Instant>,
}

/// An event of an attempt.
pub(super) enum AttemptEvent {
    /// The process has not answered within `timeouts.connect`.
    Slow(Problem),
    /// The attempt ended.
    Ended(Result<Box<NewConnection>, ConnectionError>),
}

impl RunningAttempt {
    /// Prepares an attempt. It begins with the first [`Self::next_event`].
    pub(super) fn new(
        id: ConnectionId,
        context: &Arc<FleetContext>,
        target: Arc<ConnectionTarget>,
        opening_era: Option<Era>,
        (retry_after, stop_timeout): (RetryAfter, SharedStopTimeout),
        role: Option<&CallerRole>,
    ) -> Self {
        let notifications = match role {
            Some(role) => role.notification_handler(context),
            None => context.subscriptions.notification_handler(&target.key),
        };
        let host = ConnectionContext {
            access_token: context.access_tokens.get_or_create(&target.key),
            guard: context.process_guard.clone(),
            child_environment: context.child_environment.clone(),
            stop_timeout,
            log: context.logs.get_or_create(&target.uid),
            callers: role.map(CallerRole::callers).unwrap_or_default(),
            notifications: Some(notifications),
            instance: context.instance_id.clone(),
            retry_after,
            ..ConnectionContext::default()
        };
        let (tasks, process, stderr) =
            (host.tasks.clone(), host.process_activity.clone(), host.stderr_tail.clone());
        let is_process = target.endpoint.transport.is_stdio();
        let slow_start_at = is_process.then(|| Instant::now() + target.spec.timeouts.connect.get());
        let (context, attach_target) = (context.clone(), target.clone());
        let future = Box::pin(async move { attach(&context, &attach_target, &host, opening_era).await });
        Self { id, tasks, future, target, process, stderr, slow_start_at }
    }

    /// Returns the next event. Nothing follows [`AttemptEvent::Ended`]. Cancel safe.
    pub(super) async fn next_event(&mut self) -> AttemptEvent {
        loop {
            let slow_start_at = self.slow_start_at;
            tokio::select! {
                biased;
                result = &mut self.future => return AttemptEvent::Ended(result.map(Box::new)),
                () = sleep_until_some(slow_start_at) => {
                    if let Some(problem) = self.slow_start_problem() {
                        return AttemptEvent::Slow(problem);
                    }
                }
            }
        }
    }

    /// Returns the problem of a process that has not answered within `timeouts.connect`, with the time that it has left.
    fn slow_start_problem(&mut self) -> Option<Problem> {
        let timeouts = &self.target.spec.timeouts;
        // The process is not started before the attempt has a slot: check again later.
        let Some(started_at) = self.process.started_at() else {
            self.slow_start_at = Some(Instant::now() + timeouts.connect.get());
            return None;
        };
        self.slow_start_at = None;
        let remaining = timeouts.start.get().saturating_sub(started_at.elapsed());
        if self.process.first_message_at().is_some() || remaining.is_zero() {
            return None;
        }
        let now = Timestamp::now();
        let (seconds, until) =
            (started_at.elapsed().as_secs(), text::format_time(now_plus(now, remaining), now));
        let stderr = self.stderr.message_suffix();
        let message = format!(
            "the process has not answered for {seconds} s{stderr}; if it is downloading the server, it has until {until} \
             (spec.timeouts.start)"
        );
        Some(Problem::new(Reason::Connecting, message))
    }
}

fn now_plus(now: Timestamp, delay: Duration) -> Timestamp {
    now.saturating_add(SignedDuration::try_from(delay).unwrap_or_default()).unwrap_or(Timestamp::MAX)
}
