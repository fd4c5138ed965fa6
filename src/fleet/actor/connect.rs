//! Making the connection, and what follows when that fails or the connection is lost.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::super::attach::attach;
use super::super::listing::ServerListing;
use super::super::new_connection::NewConnection;
use super::super::{CachedServer, health, subscriptions};
use super::{Actor, Attempt, BackgroundTask, LiveConnection};
use crate::net::{Delays, jitter};
use crate::plan::ConnectionTarget;
use crate::resource::{Activation, McpServerSpec, Problem, Reason, Transport, UpdateStrategy};
use crate::text;
use crate::upstream::{CallRefusal, UpstreamHandle};
use crate::wire::{Connection, ConnectionContext, ConnectionError, Era, FailureSource, RetryAfter};

/// How long a connection must have held for its loss to count as a first failure.
const STABLE_CONNECTION_AGE: Duration = Duration::from_mins(1);
/// Exits this soon after the start, three in a row, are a crash loop.
const CRASH_LOOP: (Duration, u32) = (Duration::from_secs(10), 3);

impl Actor {
    /// Names, filters and limits apply at once, whatever becomes of the connection.
    pub(super) fn apply_spec(&mut self, before: &McpServerSpec) {
        if let Some(live) = &mut self.live {
            let now = &self.target.spec;
            if before.health != now.health || before.timeouts.call != now.timeouts.call {
                live.health_task = health_checks(&live.connection, self.upstream.handle(), &self.target);
            }
            if self.target.same_connection(&live.target) {
                live.target = self.target.clone();
            }
        }
        if let Some(offered) = &self.published {
            self.publish_lists(offered.cached.clone());
        }
        self.idle_check_at = self.next_idle_check_at();
    }

    /// The connection, or the attempt at it, is what is wanted: it goes on.
    pub(super) fn ensure_connected(&mut self) {
        if self.idle {
            if self.target.spec.activation == Activation::Always {
                self.connect_on_demand();
            }
        } else if self.attempt.is_none() && !self.is_current() {
            // Whatever changed may be what was wrong.
            self.early_exits = 0;
            self.backoff.reset();
            self.connect();
        }
    }

    /// True if the live connection is the one that is wanted.
    pub(super) fn is_current(&self) -> bool {
        self.live.as_ref().is_some_and(|live| self.target.same_connection(&live.target))
    }

    /// The live connection is what is wanted after all: whatever was to take its place is given up.
    pub(super) fn keep_live_connection(&mut self) {
        self.cancel_attempt();
        self.reset_failures();
        self.retry_at = None;
        self.connect_when_closed = false;
    }

    /// What failed before says nothing of what is wanted now.
    fn reset_failures(&mut self) {
        self.backoff.reset();
        self.early_exits = 0;
        self.opening_era = None;
        self.last_problem = None;
    }

    /// The connection itself changed, or is wanted again.
    pub(super) fn replace(&mut self) {
        self.reset_failures();
        let recreate = self.target.spec.update == UpdateStrategy::Recreate
            || self.live.as_ref().is_some_and(|live| live.target.uid != self.target.uid);
        if recreate {
            let why = Problem::new(Reason::Connecting, format!("{} is being replaced", self.target.key.name));
            self.unpublish_and_drain(CallRefusal::Unavailable(why), self.target.spec.timeouts.drain.get());
        }
        self.connect();
    }

    /// Starts an attempt; one under way for another target is cancelled with all that it opened. Where two
    /// must not run side by side, it waits for the end of what was there.
    pub(super) fn connect(&mut self) {
        self.retry_at = None;
        self.idle = false;
        self.cancel_attempt();
        self.connect_when_closed =
            self.target.spec.update == UpdateStrategy::Recreate && !self.closing.is_empty();
        if self.connect_when_closed || self.defer_for_retry_after() {
            return;
        }
        let (context, target) = (self.context.clone(), self.target.clone());
        let log = context.logs.get_or_create(&target.uid);
        let notices = Some(context.subscriptions.notification_handler(&target.key));
        let (guard, identity) = (context.process_guard.clone(), context.instance_id.clone());
        let (tasks, pause) = (TaskTracker::new(), self.retry_after.1.clone());
        let host = ConnectionContext {
            tasks,
            guard,
            log,
            notifications: notices,
            instance: identity,
            retry_after: pause,
            ..ConnectionContext::default()
        };
        let (tasks, process, stderr) =
            (host.tasks.clone(), host.process_activity.clone(), host.stderr_tail.clone());
        let is_process = matches!(target.endpoint.transport, Transport::Stdio(_));
        let slow_at = is_process.then(|| Instant::now() + target.spec.timeouts.connect.get());
        let opening = self.opening_era;
        let work = Box::pin(async move { attach(&context, &target, &host, opening).await });
        self.attempt = Some(Attempt { future: work, tasks, process, stderr, slow_start_at: slow_at });
        if self.live.is_none() {
            self.hold_calls(self.last_problem.clone().unwrap_or_else(|| self.connecting_problem()));
        }
    }

    /// Says of a process that has not answered for as long as other servers have in all that it has more time.
    pub(super) fn report_slow_start(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let timeouts = &self.target.spec.timeouts;
        // Until it has a slot there is no process.
        let Some(since) = attempt.process.started_at() else {
            attempt.slow_start_at = Some(Instant::now() + timeouts.connect.get());
            return;
        };
        let left = timeouts.start.get().saturating_sub(since.elapsed());
        attempt.slow_start_at = None;
        if attempt.process.first_message_at().is_none() && !left.is_zero() {
            let (_, until) = deadline_after(left);
            let (seconds, until) = (since.elapsed().as_secs(), text::format_time(until, Timestamp::now()));
            let message = format!(
                "the process has not answered for {seconds} s{}; if it is downloading the server, it has until {until} \
                 (spec.timeouts.start)",
                attempt.stderr.message_suffix()
            );
            self.last_problem = Some(Problem::new(Reason::Connecting, message));
        }
    }

    /// What callers are told who wait for an attempt in vain.
    pub(super) fn connecting_problem(&self) -> Problem {
        Problem::new(Reason::Connecting, format!("{} is being connected", self.target.key.name))
    }

    /// Puts the attempt off for as long as the server asked for, on whatever connection to the same endpoint.
    fn defer_for_retry_after(&mut self) -> bool {
        let endpoint = self.target.endpoint.digest();
        if self.retry_after.0 != endpoint {
            self.retry_after = (endpoint, RetryAfter::default());
        }
        let (Some(until), Some(why)) = (self.retry_after.1.ends_at(), self.retry_after.1.problem()) else {
            return false;
        };
        self.retry_at = Some(deadline_after(until.duration_since(Instant::now())));
        if self.live.is_none() {
            self.start_grace_period();
            self.upstream.set_refused(CallRefusal::Unavailable(why.clone()));
        }
        self.last_problem.get_or_insert(why);
        true
    }

    /// Calls of a server that was there a moment ago wait for the attempt under way, within its grace.
    fn hold_calls(&self, why: Problem) {
        if self.grace_ends_at.is_some() || self.from_cache {
            self.upstream.set_pending(why, self.call_hold_deadline());
        }
    }

    /// Until when calls wait for an attempt that is under way.
    fn call_hold_deadline(&self) -> Instant {
        let limit = Instant::now() + self.target.spec.timeouts.connect.get();
        self.grace_ends_at.map_or(limit, |grace| grace.min(limit))
    }

    /// What agents see of a server without a connection is withdrawn after a while.
    fn start_grace_period(&mut self) {
        if self.published.is_some() {
            self.grace_ends_at.get_or_insert(Instant::now() + self.target.spec.grace_period.get());
        }
    }

    /// Ends an attempt, if there is one, with all that it opened.
    pub(super) fn cancel_attempt(&mut self) {
        if let Some(Attempt { future: work, tasks, .. }) = self.attempt.take() {
            drop(work);
            tasks.close();
            self.closing.push(Box::pin(async move { tasks.wait().await }));
        }
    }

    pub(super) fn on_attached(&mut self, attached: NewConnection) {
        self.attempt = None;
        self.from_cache = false;
        self.cancel_refresh();
        self.grace_ends_at = None;
        self.last_problem = None;
        let NewConnection { connection: link, events, listing: ServerListing { lists, degraded } } = attached;
        let kept = Arc::new(CachedServer {
            description: link.handshake().description.clone(),
            lists: Arc::new(lists),
        });
        self.upstream.set_lists(kept.lists.clone());
        let before = self.upstream.set_connection(link.clone());
        let since = Instant::now();
        let health = health_checks(&link, self.upstream.handle(), &self.target);
        let subscriptions = subscriptions::are_supported(&link).then(|| -> BackgroundTask {
            Box::pin(subscriptions::maintain(
                link.clone(),
                self.context.subscriptions.clone(),
                self.target.key.clone(),
            ))
        });
        let target = self.target.clone();
        degraded.iter().filter(|(_, problem)| problem.reason == Reason::ListUnavailable).for_each(
            |(list, _)| {
                self.refresh_schedule.record_failure(*list, since, jitter());
            },
        );
        self.live = Some(LiveConnection {
            target,
            connection: link,
            events,
            degraded,
            connected_at: since,
            health_task: health,
            subscriptions_task: subscriptions,
        });
        self.publish_lists(kept);
        self.idle_check_at = self.next_idle_check_at();
        if let Some(before) = before {
            let limit = self.target.spec.timeouts.call.get();
            let message = format!("{} was replaced, and its calls had time to finish", self.target.key.name);
            self.drain_and_close(before, limit, Problem::new(Reason::Detached, message));
        }
    }

    /// The attempt failed. An older connection, if there is one, goes on serving.
    pub(super) fn on_attempt_failed(&mut self, error: &ConnectionError) {
        self.cancel_attempt();
        self.record_exit(error);
        // Some servers do not survive a question that they do not know, the probe.
        let broke = match error.failure_source {
            FailureSource::Exit(_) => true,
            FailureSource::Status(status) => {
                status.is_server_error() && status != http::StatusCode::SERVICE_UNAVAILABLE
            }
            FailureSource::Connection | FailureSource::Session | FailureSource::RetryAfter => false,
        };
        self.opening_era = (broke && self.opening_era.is_none()).then_some(Era::Legacy);
        self.schedule_retry(error);
    }

    /// The live connection is gone.
    pub(super) fn on_connection_lost(&mut self, error: &ConnectionError) {
        let Some(live) = self.live.take() else { return };
        self.cancel_refresh();
        let lived = live.connected_at.elapsed();
        self.backoff.record_end(lived, STABLE_CONNECTION_AGE);
        self.restarts = self.restarts.saturating_add(1);
        self.record_exit(error);
        self.idle_check_at = None;
        // It is called for again when it is needed; one that ends as soon as it starts has to wait.
        if self.may_become_idle() && lived >= CRASH_LOOP.0 && self.target.same_connection(&live.target) {
            self.become_idle(Duration::ZERO, error.problem.clone());
            return;
        }
        self.start_grace_period();
        // At a newer generation, and under way already.
        let under_way = self.attempt.is_some();
        // A server that forgot a session is not failing, unless it goes on forgetting.
        let forgot = error.failure_source == FailureSource::Session && self.backoff.failures() == 0;
        let at_once = under_way || forgot || lived >= STABLE_CONNECTION_AGE;
        let gone = if at_once {
            self.upstream.set_pending(error.problem.clone(), self.call_hold_deadline())
        } else {
            self.upstream.set_refused(CallRefusal::Unavailable(error.problem.clone()))
        };
        if let Some(gone) = gone {
            self.drain_and_close(gone, Duration::ZERO, error.problem.clone());
        }
        if under_way {
            return;
        }
        if forgot {
            self.record_failure(None);
        }
        if at_once {
            self.last_problem = Some(error.problem.clone());
            self.connect();
        } else {
            self.schedule_retry(error);
        }
    }

    /// Exits in a row, each soon after its start.
    fn record_exit(&mut self, error: &ConnectionError) {
        let early = matches!(error.failure_source, FailureSource::Exit(lived) if lived < CRASH_LOOP.0);
        self.early_exits = if early { self.early_exits.saturating_add(1) } else { 0 };
    }

    /// Counts a failed attempt and gives the delay before the next one.
    fn record_failure(&mut self, retry_after: Option<Duration>) -> Duration {
        let retry = &self.target.spec.retry;
        let delays = Delays { initial: retry.initial.get(), max: retry.max.get() };
        self.backoff.record_failure(delays, jitter(), retry_after)
    }

    /// Decides when to try again, if at all.
    pub(super) fn schedule_retry(&mut self, error: &ConnectionError) {
        let mut problem = error.problem.clone();
        if self.early_exits >= CRASH_LOOP.1 {
            problem = Problem::new(
                Reason::CrashLoop,
                format!("{} times in a row: {}", self.early_exits, problem.message),
            );
        }
        let delay = self.record_failure(error.retry_after);
        let wait = match problem.reason {
            // Looked for again without a start: it costs nothing, and installing it is what a person does.
            Reason::CommandNotFound => Some(self.target.spec.retry.max.get()),
            reason if reason.requires_user_action() => None,
            _ => Some(delay),
        };
        self.retry_at = wait.map(deadline_after);
        let stuck =
            self.backoff.failures() >= 3 && self.target.spec.update == UpdateStrategy::MakeBeforeBreak;
        match &self.live {
            None => {
                self.start_grace_period();
                self.upstream.set_refused(CallRefusal::Unavailable(problem.clone()));
            }
            Some(_) if stuck => problem.message.push_str(
                "; the previous generation goes on serving; if two of this server cannot run side by side, set spec.update to Recreate",
            ),
            Some(_) => problem.message.push_str("; the previous generation goes on serving"),
        }
        self.last_problem = Some(problem);
    }
}

/// Watches whether the server of a live connection still answers.
fn health_checks(link: &Connection, handle: &UpstreamHandle, target: &ConnectionTarget) -> BackgroundTask {
    let (health, call) = (target.spec.health.clone(), target.spec.timeouts.call.get());
    Box::pin(health::run_health_checks(link.clone(), handle.clone(), health, call, jitter()))
}

/// An instant that is so far away, for the clock and for people.
fn deadline_after(wait: Duration) -> (Instant, Timestamp) {
    let at = Timestamp::now().saturating_add(jiff::SignedDuration::try_from(wait).unwrap_or_default());
    (Instant::now() + wait, at.unwrap_or(Timestamp::MAX))
}
