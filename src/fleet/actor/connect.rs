//! Connecting, and handling failed attempts and lost connections.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::super::attach::attach;
use super::super::listing::ServerListing;
use super::super::new_connection::NewConnection;
use super::super::{CachedServer, health, subscriptions};
use super::{Actor, Attempt, BackgroundTask, Closing, LiveConnection};
use crate::net::{Delays, jitter};
use crate::plan::ConnectionTarget;
use crate::resource::{Activation, McpServerSpec, Problem, Reason, UpdateStrategy};
use crate::text;
use crate::upstream::{CallRefusal, UpstreamHandle};
use crate::wire::{Connection, ConnectionContext, ConnectionError, Era, FailureSource, RetryAfter};

/// The connection age from which a loss counts as a first failure.
const STABLE_CONNECTION_AGE: Duration = Duration::from_mins(1);
/// The process age below which an exit counts as early.
const EARLY_EXIT_AGE: Duration = Duration::from_secs(10);
/// The number of early exits in a row that make a crash loop.
const CRASH_LOOP_EXITS: u32 = 3;

impl Actor {
    /// Applies names, filters and limits of the new spec at once, independent of the connection's state.
    pub(super) fn apply_spec(&mut self, previous: &McpServerSpec) {
        if let Some(live) = &mut self.live {
            let current = &self.target.spec;
            if previous.health != current.health || previous.timeouts.call != current.timeouts.call {
                live.health_task = health_checks(&live.connection, self.upstream.handle(), &self.target);
            }
            // While another connection replaces this one, the live connection keeps the target that it was made for.
            if self.target.same_connection(&live.target) {
                live.target = self.target.clone();
            }
        }
        if let Some(published) = &self.published {
            self.publish_lists(published.cached.clone());
        }
        self.idle_check_at = self.next_idle_check_at();
    }

    /// Continues with the live connection or the attempt in progress, which matches the target; connects if there is
    /// neither.
    pub(super) fn ensure_connected(&mut self) {
        if self.idle {
            if self.target.spec.activation == Activation::Always {
                self.connect_on_demand();
            }
        } else if self.attempt.is_none() && !self.is_current() {
            // The change may have fixed the cause of earlier failures.
            self.early_exits = 0;
            self.backoff.reset();
            self.connect();
        }
    }

    /// Returns true if the live connection matches the target.
    pub(super) fn is_current(&self) -> bool {
        self.live.as_ref().is_some_and(|live| self.target.same_connection(&live.target))
    }

    /// Keeps the live connection, which matches the target again, and cancels its replacement.
    pub(super) fn keep_live_connection(&mut self) {
        self.cancel_attempt();
        self.reset_failures();
        self.retry_at = None;
        self.connect_when_closed = false;
    }

    /// Resets the failure state: failures of an earlier target do not apply to the current one.
    fn reset_failures(&mut self) {
        self.backoff.reset();
        self.early_exits = 0;
        self.opening_era = None;
        self.last_problem = None;
    }

    /// Replaces the connection: its target changed, or the server is declared again.
    pub(super) fn replace(&mut self) {
        self.reset_failures();
        let recreate = self.target.spec.update == UpdateStrategy::Recreate
            // Another uid means that the object was deleted and created again.
            || self.live.as_ref().is_some_and(|live| live.target.uid != self.target.uid);
        if recreate {
            let problem =
                Problem::new(Reason::Connecting, format!("{} is being replaced", self.target.key.name));
            self.unpublish_and_drain(
                CallRefusal::Unavailable(problem),
                self.target.spec.timeouts.drain.get(),
            );
        }
        self.connect();
    }

    /// Starts an attempt, and cancels one in progress along with everything that it opened.
    ///
    /// The attempt waits until the processes of previous attempts and lost connections have exited, and with `Recreate`
    /// until all previous connections have closed. It is also deferred while the server's Retry-After is in force.
    pub(super) fn connect(&mut self) {
        self.retry_at = None;
        self.idle = false;
        self.cancel_attempt();
        self.connect_when_closed = self.must_wait_for_closing();
        if self.connect_when_closed || self.defer_for_retry_after() {
            return;
        }
        let (context, target) = (self.context.clone(), self.target.clone());
        let log = context.logs.get_or_create(&target.uid);
        let notifications = Some(context.subscriptions.notification_handler(&target.key));
        let (guard, instance) = (context.process_guard.clone(), context.instance_id.clone());
        let (tasks, retry_after) = (TaskTracker::new(), self.retry_after.1.clone());
        let host = ConnectionContext {
            tasks,
            guard,
            log,
            notifications,
            instance,
            retry_after,
            ..ConnectionContext::default()
        };
        let (tasks, process, stderr) =
            (host.tasks.clone(), host.process_activity.clone(), host.stderr_tail.clone());
        let is_process = target.endpoint.transport.is_stdio();
        let slow_start_at = is_process.then(|| Instant::now() + target.spec.timeouts.connect.get());
        let opening_era = self.opening_era;
        let future = Box::pin(async move { attach(&context, &target, &host, opening_era).await });
        self.attempt =
            Some(Attempt { future, tasks, starts_process: is_process, process, stderr, slow_start_at });
        if self.live.is_none() {
            self.hold_calls(self.last_problem.clone().unwrap_or_else(|| self.connecting_problem()));
        }
    }

    /// Reports a process that has not answered within `timeouts.connect`, and the time that it has left.
    pub(super) fn report_slow_start(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let timeouts = &self.target.spec.timeouts;
        // The process is not started before the attempt has a slot: check again later.
        let Some(started_at) = attempt.process.started_at() else {
            attempt.slow_start_at = Some(Instant::now() + timeouts.connect.get());
            return;
        };
        let remaining = timeouts.start.get().saturating_sub(started_at.elapsed());
        attempt.slow_start_at = None;
        if attempt.process.first_message_at().is_none() && !remaining.is_zero() {
            let (_, until) = deadline_after(remaining);
            let (seconds, until) =
                (started_at.elapsed().as_secs(), text::format_time(until, Timestamp::now()));
            let message = format!(
                "the process has not answered for {seconds} s{}; if it is downloading the server, it has until {until} \
                 (spec.timeouts.start)",
                attempt.stderr.message_suffix()
            );
            self.last_problem = Some(Problem::new(Reason::Connecting, message));
        }
    }

    /// Returns the problem that callers get if the attempt that they wait for does not succeed.
    pub(super) fn connecting_problem(&self) -> Problem {
        Problem::new(Reason::Connecting, format!("{} is being connected", self.target.key.name))
    }

    /// Defers the attempt until the server's Retry-After expires, and returns true if it did. Retry-After applies to
    /// the endpoint, on whichever connection it was received.
    fn defer_for_retry_after(&mut self) -> bool {
        let endpoint = self.target.endpoint.digest();
        if self.retry_after.0 != endpoint {
            self.retry_after = (endpoint, RetryAfter::default());
        }
        let (Some(until), Some(problem)) = (self.retry_after.1.ends_at(), self.retry_after.1.problem())
        else {
            return false;
        };
        self.retry_at = Some(deadline_after(until.duration_since(Instant::now())));
        if self.live.is_none() {
            self.start_grace_period();
            self.upstream.set_refused(CallRefusal::Unavailable(problem.clone()));
        }
        self.last_problem.get_or_insert(problem);
        true
    }

    /// Holds calls until the attempt in progress ends, if the server was attached until recently (within its grace
    /// period) or is published from the cache.
    fn hold_calls(&self, problem: Problem) {
        if self.grace_ends_at.is_some() || self.from_cache {
            self.upstream.set_pending(problem, self.call_hold_deadline());
        }
    }

    /// Returns when calls stop waiting for the attempt in progress.
    fn call_hold_deadline(&self) -> Instant {
        let deadline = Instant::now() + self.target.spec.timeouts.connect.get();
        self.grace_ends_at.map_or(deadline, |grace_end| grace_end.min(deadline))
    }

    /// Starts the grace period, unless it is running: after it the section of a server without a connection is
    /// withdrawn.
    fn start_grace_period(&mut self) {
        if self.published.is_some() {
            self.grace_ends_at.get_or_insert(Instant::now() + self.target.spec.grace_period.get());
        }
    }

    /// Cancels the attempt in progress, if there is one, along with everything that it opened.
    pub(super) fn cancel_attempt(&mut self) {
        if let Some(Attempt { future, tasks, starts_process, .. }) = self.attempt.take() {
            drop(future);
            tasks.close();
            let future = Box::pin(async move { tasks.wait().await });
            self.closing.push(Closing { future, blocks_attempts: starts_process });
        }
    }

    /// True while an attempt would run beside something that it must not overlap with. A connection that a
    /// `MakeBeforeBreak` replacement drains does not count: it may have calls in flight for a long time.
    fn must_wait_for_closing(&self) -> bool {
        let recreate = self.target.spec.update == UpdateStrategy::Recreate;
        self.closing.iter().any(|closing| recreate || closing.blocks_attempts)
    }

    pub(super) fn on_attached(&mut self, attached: NewConnection) {
        self.attempt = None;
        self.from_cache = false;
        self.cancel_refresh();
        self.grace_ends_at = None;
        self.last_problem = None;
        let NewConnection { connection, events, listing: ServerListing { lists, degraded } } = attached;
        let cached = Arc::new(CachedServer {
            description: connection.handshake().description.clone(),
            lists: Arc::new(lists),
        });
        self.upstream.set_lists(cached.lists.clone());
        let replaced = self.upstream.set_connection(connection.clone());
        let connected_at = Instant::now();
        let health_task = health_checks(&connection, self.upstream.handle(), &self.target);
        let subscriptions_task = subscriptions::are_supported(&connection).then(|| -> BackgroundTask {
            Box::pin(subscriptions::maintain(
                connection.clone(),
                self.context.subscriptions.clone(),
                self.target.key.clone(),
            ))
        });
        let target = self.target.clone();
        // The server is attached without these lists; they are read again with a backoff.
        degraded.iter().filter(|(_, problem)| problem.reason == Reason::ListUnavailable).for_each(
            |(list, _)| {
                self.refresh_schedule.record_failure(*list, connected_at, jitter());
            },
        );
        self.live = Some(LiveConnection {
            target,
            connection,
            events,
            degraded,
            connected_at,
            health_task,
            subscriptions_task,
        });
        self.publish_lists(cached);
        self.idle_check_at = self.next_idle_check_at();
        if let Some(replaced) = replaced {
            let limit = self.target.spec.timeouts.call.get();
            let message = format!("{} was replaced while the call was in flight", self.target.key.name);
            self.drain_and_close(replaced, limit, Problem::new(Reason::Detached, message), false);
        }
    }

    /// Handles a failed attempt. An older connection, if there is one, keeps serving.
    pub(super) fn on_attempt_failed(&mut self, error: &ConnectionError) {
        self.cancel_attempt();
        self.record_exit(error);
        // Some servers crash on the probe, a request that they do not implement: the next attempt skips it.
        let crashed = match error.failure_source {
            FailureSource::Exit(_) => true,
            FailureSource::Status(status) => {
                status.is_server_error() && status != http::StatusCode::SERVICE_UNAVAILABLE
            }
            FailureSource::Connection | FailureSource::Session | FailureSource::RetryAfter => false,
        };
        self.opening_era = (crashed && self.opening_era.is_none()).then_some(Era::Legacy);
        self.schedule_retry(error);
    }

    /// Handles the loss of the live connection.
    pub(super) fn on_connection_lost(&mut self, error: &ConnectionError) {
        let Some(live) = self.live.take() else { return };
        self.cancel_refresh();
        let age = live.connected_at.elapsed();
        self.backoff.record_end(age, STABLE_CONNECTION_AGE);
        self.restarts = self.restarts.saturating_add(1);
        self.record_exit(error);
        self.idle_check_at = None;
        // An OnDemand server is connected again by the next call. One that exits soon after its start backs off
        // instead.
        if self.may_become_idle() && age >= EARLY_EXIT_AGE && self.target.same_connection(&live.target) {
            self.become_idle(Duration::ZERO, error.problem.clone());
            return;
        }
        self.start_grace_period();
        // A replacement for a newer generation is already connecting.
        let replacing = self.attempt.is_some() || self.connect_when_closed;
        // A server that lost a session (after a restart, say) is not failing, unless it does so repeatedly.
        let session_lost = error.failure_source == FailureSource::Session && self.backoff.failures() == 0;
        // A connection that held for long, or only lost its session, is replaced without delay, and calls wait for
        // that.
        let reconnect_now = replacing || session_lost || age >= STABLE_CONNECTION_AGE;
        let lost = if reconnect_now {
            self.upstream.set_pending(error.problem.clone(), self.call_hold_deadline())
        } else {
            self.upstream.set_refused(CallRefusal::Unavailable(error.problem.clone()))
        };
        if let Some(lost) = lost {
            let is_process = live.target.endpoint.transport.is_stdio();
            self.drain_and_close(lost, Duration::ZERO, error.problem.clone(), is_process);
        }
        if replacing {
            return;
        }
        if session_lost {
            self.record_failure(None);
        }
        if reconnect_now {
            self.last_problem = Some(error.problem.clone());
            self.connect();
        } else {
            self.schedule_retry(error);
        }
    }

    /// Counts early exits in a row; anything else resets the count.
    fn record_exit(&mut self, error: &ConnectionError) {
        let early = matches!(error.failure_source, FailureSource::Exit(age) if age < EARLY_EXIT_AGE);
        self.early_exits = if early { self.early_exits.saturating_add(1) } else { 0 };
    }

    /// Counts a failure and returns the delay before the next attempt.
    fn record_failure(&mut self, retry_after: Option<Duration>) -> Duration {
        let retry = &self.target.spec.retry;
        let delays = Delays { initial: retry.initial.get(), max: retry.max.get() };
        self.backoff.record_failure(delays, jitter(), retry_after)
    }

    /// Schedules the next attempt, or none if the problem requires user action, and records the problem.
    pub(super) fn schedule_retry(&mut self, error: &ConnectionError) {
        let mut problem = error.problem.clone();
        if self.early_exits >= CRASH_LOOP_EXITS {
            problem = Problem::new(
                Reason::CrashLoop,
                format!("{} times in a row: {}", self.early_exits, problem.message),
            );
        }
        let delay = self.record_failure(error.retry_after);
        let delay = match problem.reason {
            // Checking whether the command exists is cheap and starts nothing, so it is checked again until a user
            // installs it.
            Reason::CommandNotFound => Some(self.target.spec.retry.max.get()),
            reason if reason.requires_user_action() => None,
            _ => Some(delay),
        };
        self.retry_at = delay.map(deadline_after);
        // After several failures of a make-before-break replacement, the two connections may be in conflict.
        let may_conflict =
            self.backoff.failures() >= 3 && self.target.spec.update == UpdateStrategy::MakeBeforeBreak;
        match &self.live {
            None => {
                // What is no longer permitted is not offered for another grace period.
                if problem.reason == Reason::PolicyDenied {
                    self.grace_ends_at = None;
                    self.withdraw(&problem);
                }
                self.start_grace_period();
                self.upstream.set_refused(CallRefusal::Unavailable(problem.clone()));
            }
            Some(_) if may_conflict => problem.message.push_str(
                "; the previous generation keeps serving; if two connections to this server cannot coexist, \
                 set spec.update to Recreate",
            ),
            Some(_) => problem.message.push_str("; the previous generation keeps serving"),
        }
        self.last_problem = Some(problem);
    }
}

/// Returns the task that checks the health of a live connection.
fn health_checks(
    connection: &Connection,
    handle: &UpstreamHandle,
    target: &ConnectionTarget,
) -> BackgroundTask {
    let (health, call) = (target.spec.health.clone(), target.spec.timeouts.call.get());
    Box::pin(health::run_health_checks(connection.clone(), handle.clone(), health, call, jitter()))
}

/// Returns the instant after a delay, as monotonic and as wall-clock time.
fn deadline_after(delay: Duration) -> (Instant, Timestamp) {
    let at = Timestamp::now().saturating_add(jiff::SignedDuration::try_from(delay).unwrap_or_default());
    (Instant::now() + delay, at.unwrap_or(Timestamp::MAX))
}
