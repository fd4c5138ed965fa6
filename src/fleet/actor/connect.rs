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
use super::{Actor, Attempt, BackgroundTask, Live};
use crate::net::{Delays, jitter};
use crate::plan::ConnectionTarget;
use crate::resource::{Activation, McpServerSpec, Problem, Reason, Transport, UpdateStrategy};
use crate::text;
use crate::upstream::{CallRefusal, UpstreamHandle};
use crate::wire::{Connection, ConnectionContext, ConnectionError, Era, FailureSource, RetryAfter};

/// How long a connection must have held for its loss to count as a first failure.
const STABLE: Duration = Duration::from_mins(1);
/// Exits this soon after the start, three in a row, are a crash loop.
const CRASH: (Duration, u32) = (Duration::from_secs(10), 3);

impl Actor {
    /// Names, filters and limits apply at once, whatever becomes of the connection.
    pub(super) fn adjust(&mut self, before: &McpServerSpec) {
        if let Some(live) = &mut self.live {
            let now = &self.target.spec;
            if before.health != now.health || before.timeouts.call != now.timeouts.call {
                live.health = checks(&live.link, self.upstream.handle(), &self.target);
            }
            if self.target.same_connection(&live.target) {
                live.target = self.target.clone();
            }
        }
        if let Some(offered) = &self.offered {
            self.offer(offered.kept.clone());
        }
        self.idle_at = self.idle_due();
    }

    /// The connection, or the attempt at it, is what is wanted: it goes on.
    pub(super) fn carry_on(&mut self) {
        if self.asleep {
            if self.target.spec.activation == Activation::Always {
                self.wake();
            }
        } else if self.attempt.is_none() && !self.is_current() {
            // Whatever changed may be what was wrong.
            self.crashes = 0;
            self.backoff.reset();
            self.connect();
        }
    }

    /// True if the live connection is the one that is wanted.
    pub(super) fn is_current(&self) -> bool {
        self.live.as_ref().is_some_and(|live| self.target.same_connection(&live.target))
    }

    /// The live connection is what is wanted after all: whatever was to take its place is given up.
    pub(super) fn keep(&mut self) {
        self.cancel_attempt();
        self.start_afresh();
        self.retry_at = None;
        self.waiting = false;
    }

    /// What failed before says nothing of what is wanted now.
    fn start_afresh(&mut self) {
        self.backoff.reset();
        self.crashes = 0;
        self.opening = None;
        self.last = None;
    }

    /// The connection itself changed, or is wanted again.
    pub(super) fn replace(&mut self) {
        self.start_afresh();
        let recreate = self.target.spec.update == UpdateStrategy::Recreate
            || self.live.as_ref().is_some_and(|live| live.target.uid != self.target.uid);
        if recreate {
            let why = Problem::new(Reason::Connecting, format!("{} is being replaced", self.target.key.name));
            self.take_down(CallRefusal::Unavailable(why), self.target.spec.timeouts.drain.get());
        }
        self.connect();
    }

    /// Starts an attempt; one under way for another target is cancelled with all that it opened. Where two
    /// must not run side by side, it waits for the end of what was there.
    pub(super) fn connect(&mut self) {
        self.retry_at = None;
        self.asleep = false;
        self.cancel_attempt();
        self.waiting = self.target.spec.update == UpdateStrategy::Recreate && !self.ending.is_empty();
        if self.waiting || self.is_left_alone() {
            return;
        }
        let (context, target) = (self.context.clone(), self.target.clone());
        let log = context.logs.of(&target.uid);
        let notices = Some(context.listeners.handler(&target.key));
        let (guard, identity) = (context.guard.clone(), context.identity.clone());
        let (tasks, pause) = (TaskTracker::new(), self.pause.1.clone());
        let host =
            ConnectionContext { tasks, guard, log, notices, identity, pause, ..ConnectionContext::default() };
        let (tasks, process, stderr) = (host.tasks.clone(), host.started.clone(), host.last_words.clone());
        let is_process = matches!(target.endpoint.transport, Transport::Stdio(_));
        let slow_at = is_process.then(|| Instant::now() + target.spec.timeouts.connect.get());
        let opening = self.opening;
        let work = Box::pin(async move { attach(&context, &target, &host, opening).await });
        self.attempt = Some(Attempt { work, tasks, process, stderr, slow_at });
        if self.live.is_none() {
            self.let_calls_wait(self.last.clone().unwrap_or_else(|| self.connecting()));
        }
    }

    /// Says of a process that has not answered for as long as other servers have in all that it has more time.
    pub(super) fn note_slow_start(&mut self) {
        let Some(attempt) = &mut self.attempt else { return };
        let timeouts = &self.target.spec.timeouts;
        // Until it has a slot there is no process.
        let Some(since) = attempt.process.since() else {
            attempt.slow_at = Some(Instant::now() + timeouts.connect.get());
            return;
        };
        let left = timeouts.start.get().saturating_sub(since.elapsed());
        attempt.slow_at = None;
        if attempt.process.answered_at().is_none() && !left.is_zero() {
            let (_, until) = due(left);
            let (seconds, until) = (since.elapsed().as_secs(), text::time(until, Timestamp::now()));
            let message = format!(
                "the process has not answered for {seconds} s{}; if it is downloading the server, it has until {until} \
                 (spec.timeouts.start)",
                attempt.stderr.quoted()
            );
            self.last = Some(Problem::new(Reason::Connecting, message));
        }
    }

    /// What callers are told who wait for an attempt in vain.
    pub(super) fn connecting(&self) -> Problem {
        Problem::new(Reason::Connecting, format!("{} is being connected", self.target.key.name))
    }

    /// Puts the attempt off for as long as the server asked for, on whatever connection to the same endpoint.
    fn is_left_alone(&mut self) -> bool {
        let endpoint = self.target.endpoint.digest();
        if self.pause.0 != endpoint {
            self.pause = (endpoint, RetryAfter::default());
        }
        let (Some(until), Some(why)) = (self.pause.1.until(), self.pause.1.problem()) else { return false };
        self.retry_at = Some(due(until.duration_since(Instant::now())));
        if self.live.is_none() {
            self.begin_grace();
            self.upstream.refuse(CallRefusal::Unavailable(why.clone()));
        }
        self.last.get_or_insert(why);
        true
    }

    /// Calls of a server that was there a moment ago wait for the attempt under way, within its grace.
    fn let_calls_wait(&self, why: Problem) {
        if self.grace_until.is_some() || self.recalled {
            self.upstream.pend(why, self.calls_wait_until());
        }
    }

    /// Until when calls wait for an attempt that is under way.
    fn calls_wait_until(&self) -> Instant {
        let limit = Instant::now() + self.target.spec.timeouts.connect.get();
        self.grace_until.map_or(limit, |grace| grace.min(limit))
    }

    /// What agents see of a server without a connection is withdrawn after a while.
    fn begin_grace(&mut self) {
        if self.offered.is_some() {
            self.grace_until.get_or_insert(Instant::now() + self.target.spec.grace_period.get());
        }
    }

    /// Ends an attempt, if there is one, with all that it opened.
    pub(super) fn cancel_attempt(&mut self) {
        if let Some(Attempt { work, tasks, .. }) = self.attempt.take() {
            drop(work);
            tasks.close();
            self.ending.push(Box::pin(async move { tasks.wait().await }));
        }
    }

    pub(super) fn attached(&mut self, attached: NewConnection) {
        self.attempt = None;
        self.recalled = false;
        self.forget_refresh();
        self.grace_until = None;
        self.last = None;
        let NewConnection { link, events, listings: ServerListing { lists, degraded } } = attached;
        let kept = Arc::new(CachedServer { about: link.peer().about.clone(), lists: Arc::new(lists) });
        self.upstream.set_lists(kept.lists.clone());
        let before = self.upstream.connect(link.clone());
        let since = Instant::now();
        let health = checks(&link, self.upstream.handle(), &self.target);
        let subscriptions = subscriptions::are_offered(&link).then(|| -> BackgroundTask {
            Box::pin(subscriptions::keep(
                link.clone(),
                self.context.listeners.clone(),
                self.target.key.clone(),
            ))
        });
        let target = self.target.clone();
        degraded.iter().filter(|(_, problem)| problem.reason == Reason::ListUnavailable).for_each(
            |(list, _)| {
                self.stale.failed(*list, since, jitter());
            },
        );
        self.live = Some(Live { target, link, events, degraded, since, health, subscriptions });
        self.offer(kept);
        self.idle_at = self.idle_due();
        if let Some(before) = before {
            let limit = self.target.spec.timeouts.call.get();
            let message = format!("{} was replaced, and its calls had time to finish", self.target.key.name);
            self.end(before, limit, Problem::new(Reason::Detached, message));
        }
    }

    /// The attempt failed. An older connection, if there is one, goes on serving.
    pub(super) fn failed(&mut self, error: &ConnectionError) {
        self.cancel_attempt();
        self.count_exit(error);
        // Some servers do not survive a question that they do not know, the probe.
        let broke = match error.sign {
            FailureSource::Exit(_) => true,
            FailureSource::Status(status) => {
                status.is_server_error() && status != http::StatusCode::SERVICE_UNAVAILABLE
            }
            FailureSource::Connection | FailureSource::Session | FailureSource::Pause => false,
        };
        self.opening = (broke && self.opening.is_none()).then_some(Era::Legacy);
        self.schedule(error);
    }

    /// The live connection is gone.
    pub(super) fn lose(&mut self, error: &ConnectionError) {
        let Some(live) = self.live.take() else { return };
        self.forget_refresh();
        let lived = live.since.elapsed();
        self.backoff.ended(lived, STABLE);
        self.restarts = self.restarts.saturating_add(1);
        self.count_exit(error);
        self.idle_at = None;
        // It is called for again when it is needed; one that ends as soon as it starts has to wait.
        if self.may_sleep() && lived >= CRASH.0 && self.target.same_connection(&live.target) {
            self.fall_asleep(Duration::ZERO, error.problem.clone());
            return;
        }
        self.begin_grace();
        // At a newer generation, and under way already.
        let under_way = self.attempt.is_some();
        // A server that forgot a session is not failing, unless it goes on forgetting.
        let forgot = error.sign == FailureSource::Session && self.backoff.failures() == 0;
        let at_once = under_way || forgot || lived >= STABLE;
        let gone = if at_once {
            self.upstream.pend(error.problem.clone(), self.calls_wait_until())
        } else {
            self.upstream.refuse(CallRefusal::Unavailable(error.problem.clone()))
        };
        if let Some(gone) = gone {
            self.end(gone, Duration::ZERO, error.problem.clone());
        }
        if under_way {
            return;
        }
        if forgot {
            self.count_failure(None);
        }
        if at_once {
            self.last = Some(error.problem.clone());
            self.connect();
        } else {
            self.schedule(error);
        }
    }

    /// Exits in a row, each soon after its start.
    fn count_exit(&mut self, error: &ConnectionError) {
        let early = matches!(error.sign, FailureSource::Exit(lived) if lived < CRASH.0);
        self.crashes = if early { self.crashes.saturating_add(1) } else { 0 };
    }

    /// Counts a failed attempt and gives the delay before the next one.
    fn count_failure(&mut self, retry_after: Option<Duration>) -> Duration {
        let retry = &self.target.spec.retry;
        let delays = Delays { initial: retry.initial.get(), max: retry.max.get() };
        self.backoff.fail(delays, jitter(), retry_after)
    }

    /// Decides when to try again, if at all.
    pub(super) fn schedule(&mut self, error: &ConnectionError) {
        let mut problem = error.problem.clone();
        if self.crashes >= CRASH.1 {
            problem = Problem::new(
                Reason::CrashLoop,
                format!("{} times in a row: {}", self.crashes, problem.message),
            );
        }
        let delay = self.count_failure(error.retry_after);
        let wait = match problem.reason {
            // Looked for again without a start: it costs nothing, and installing it is what a person does.
            Reason::CommandNotFound => Some(self.target.spec.retry.max.get()),
            reason if reason.needs_a_person() => None,
            _ => Some(delay),
        };
        self.retry_at = wait.map(due);
        let stuck =
            self.backoff.failures() >= 3 && self.target.spec.update == UpdateStrategy::MakeBeforeBreak;
        match &self.live {
            None => {
                self.begin_grace();
                self.upstream.refuse(CallRefusal::Unavailable(problem.clone()));
            }
            Some(_) if stuck => problem.message.push_str(
                "; the previous generation goes on serving; if two of this server cannot run side by side, set spec.update to Recreate",
            ),
            Some(_) => problem.message.push_str("; the previous generation goes on serving"),
        }
        self.last = Some(problem);
    }
}

/// Watches whether the server of a live connection still answers.
fn checks(link: &Connection, handle: &UpstreamHandle, target: &ConnectionTarget) -> BackgroundTask {
    let (health, call) = (target.spec.health.clone(), target.spec.timeouts.call.get());
    Box::pin(health::watch(link.clone(), handle.clone(), health, call, jitter()))
}

/// An instant that is so far away, for the clock and for people.
fn due(wait: Duration) -> (Instant, Timestamp) {
    let at = Timestamp::now().saturating_add(jiff::SignedDuration::try_from(wait).unwrap_or_default());
    (Instant::now() + wait, at.unwrap_or(Timestamp::MAX))
}
