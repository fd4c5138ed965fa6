//! One server's actor: its state, its inputs, and its observations. The submodules implement its transitions.

mod connect;
mod drain;
mod publish;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::listing::ListResult;
use super::new_connection::NewConnection;
use super::refresh_schedule::RefreshSchedule;
use super::{CachedServer, FleetContext, LiveServer, Observation, Phase};
use crate::net::Backoff;
use crate::plan::ConnectionTarget;
use crate::resource::{Digest, Problem, Reason};
use crate::upstream::Section;
use crate::upstream::{CallRefusal, UpstreamControl};
use crate::wire::{
    Connection, ConnectionError, ConnectionEvent, ConnectionEvents, Era, ListKind, ProcessActivity,
    RetryAfter, StderrTail,
};

/// An order to an actor; only the newest counts.
#[derive(Clone, Debug)]
pub(super) enum ActorOrder {
    /// Connect to this target, or apply it to the existing connection.
    Apply(Arc<ConnectionTarget>),
    /// Detach the server: `Removed`, `Suspended`, or `Detached` when evenkeel shuts down.
    Detach(Reason),
}

type AttachFuture = Pin<Box<dyn Future<Output = Result<NewConnection, ConnectionError>> + Send>>;
type RefreshFuture = Pin<Box<dyn Future<Output = (ListKind, Result<ListResult, ConnectionError>)> + Send>>;
type CloseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// A task that runs as long as a live connection exists.
type BackgroundTask = Pin<Box<dyn Future<Output = Infallible> + Send>>;

/// The owner of one server's connection: creates, maintains, replaces and closes it.
///
/// A loop over plain state: every input (an order, an event of the connection, the end of an attempt, a
/// timer) changes the state, and the resulting actions start at once. The loop itself waits for no I/O.
pub(super) struct Actor {
    context: Arc<FleetContext>,
    orders: watch::Receiver<ActorOrder>,
    target: Arc<ConnectionTarget>,
    upstream: UpstreamControl,
    live: Option<LiveConnection>,
    attempt: Option<Attempt>,
    refresh: Option<RefreshFuture>,
    /// The lists to be refreshed, and when.
    refresh_schedule: RefreshSchedule,
    /// Connections that are draining and closing, and cancelled attempts.
    closing: Vec<Closing>,
    /// Shortens the drain of closing connections.
    drain_deadline: watch::Sender<Option<DrainDeadline>>,
    detaching: Option<Reason>,
    /// True if an attempt is due as soon as [`Actor::must_wait_for_closing`] is false.
    connect_when_closed: bool,
    backoff: Backoff,
    /// Exits in a row, each soon after the start.
    early_exits: u32,
    /// The endpoint and its Retry-After.
    retry_after: (Digest, RetryAfter),
    /// The era in which the next attempt opens if the server's era is not cached; `None` for a probe.
    opening_era: Option<Era>,
    restarts: u32,
    last_problem: Option<Problem>,
    retry_at: Option<(Instant, Timestamp)>,
    /// When the section of a lost server is withdrawn.
    grace_ends_at: Option<Instant>,
    /// The published section, with a connection or for some time without.
    published: Option<PublishedServer>,
    /// True if no connection is held until the next call (`OnDemand`).
    idle: bool,
    /// When to check whether the connection is still in use (`OnDemand`).
    idle_check_at: Option<Instant>,
    last_observation: Option<Observation>,
    /// True if the published section comes from the cache, and no attempt has succeeded since.
    from_cache: bool,
    /// Held until the first attempt has ended, for a server that was declared at startup.
    startup_guard: Option<StartupGuard>,
}

/// Held by each actor that the fleet's startup waits for; nothing is ever sent.
pub(super) type StartupGuard = mpsc::Sender<Infallible>;

/// The drain timeout of a closing connection, and the problem with which calls fail that are then still in flight.
#[derive(Clone, Debug)]
struct DrainDeadline {
    timeout: Duration,
    problem: Problem,
}

/// A connection or attempt that is closing.
struct Closing {
    /// Completes when everything that belongs to it has ended, its process and the process's children included.
    future: CloseFuture,
    /// True if no attempt starts before: its process may hold a port, a lock or a file that the next one needs.
    blocks_attempts: bool,
}

/// An attempt in progress.
struct Attempt {
    future: AttachFuture,
    /// Its tasks, which are waited for after a cancellation.
    tasks: TaskTracker,
    /// True if the attempt starts a process.
    starts_process: bool,
    process: ProcessActivity,
    stderr: StderrTail,
    /// When to report that the process has not answered yet; `None` if there is nothing to report.
    slow_start_at: Option<Instant>,
}

struct LiveConnection {
    /// The target that the connection was made for, or a later one with the same connection.
    target: Arc<ConnectionTarget>,
    connection: Connection,
    events: ConnectionEvents,
    /// The problems of lists that could not be read, and tolerated protocol violations.
    degraded: BTreeMap<ListKind, Problem>,
    connected_at: Instant,
    health_task: BackgroundTask,
    /// Maintains the subscriptions that agents requested; `None` if the server supports none.
    subscriptions_task: Option<BackgroundTask>,
}

/// The server's section in the catalog, and the lists that it was made from.
struct PublishedServer {
    cached: Arc<CachedServer>,
    section: Arc<Section>,
    live_server: Arc<LiveServer>,
}

/// An input that wakes the actor.
enum Input {
    OrderChanged(bool),
    Event(ConnectionEvent),
    AttemptEnded(Result<Box<NewConnection>, ConnectionError>),
    /// The process of the attempt has not answered for a while.
    SlowStartDue,
    ListRead(ListKind, Result<ListResult, ConnectionError>),
    RefreshDue,
    RetryDue,
    GraceExpired,
    IdleCheckDue,
    /// The server's Retry-After began or expired.
    RetryAfterChanged,
    Called,
    ConnectionClosed,
}

impl Actor {
    pub(super) fn new(
        context: Arc<FleetContext>,
        target: Arc<ConnectionTarget>,
        orders: watch::Receiver<ActorOrder>,
        startup_guard: Option<StartupGuard>,
    ) -> Self {
        let retry_after = (target.endpoint.digest(), RetryAfter::default());
        let connecting = Problem::new(Reason::Connecting, format!("{} is being attached", target.key.name));
        let mut actor = Self {
            upstream: UpstreamControl::new(target.key.clone(), CallRefusal::Unavailable(connecting)),
            context,
            orders,
            target,
            live: None,
            attempt: None,
            refresh: None,
            refresh_schedule: RefreshSchedule::default(),
            closing: Vec::new(),
            drain_deadline: watch::Sender::default(),
            detaching: None,
            connect_when_closed: false,
            backoff: Backoff::default(),
            early_exits: 0,
            retry_after,
            opening_era: None,
            restarts: 0,
            last_problem: None,
            retry_at: None,
            grace_ends_at: None,
            published: None,
            idle: false,
            idle_check_at: None,
            last_observation: None,
            startup_guard,
            from_cache: false,
        };
        actor.restore_from_cache();
        actor
    }

    /// Runs until the server is detached.
    pub(super) async fn run(mut self) {
        // An idle server is published already and does not delay the startup.
        if self.idle {
            self.startup_guard = None;
        } else {
            self.connect();
        }
        loop {
            self.report();
            if self.detaching.is_some() && self.closing.is_empty() {
                return;
            }
            match self.next_input().await {
                Input::OrderChanged(true) => {
                    let order = self.orders.borrow_and_update().clone();
                    self.apply_order(order);
                }
                // The fleet has ended, so no more orders come.
                Input::OrderChanged(false) => self.detach(Reason::Detached),
                Input::Event(ConnectionEvent::ListChanged(list)) => self.on_list_changed(list),
                Input::Event(ConnectionEvent::Lost(error)) => self.on_connection_lost(&error),
                Input::AttemptEnded(result) => {
                    match result {
                        Ok(attached) => self.on_attached(*attached),
                        Err(error) => self.on_attempt_failed(&error),
                    }
                    self.startup_guard = None;
                }
                Input::ListRead(list, result) => self.on_list_read(list, result),
                Input::SlowStartDue => self.report_slow_start(),
                Input::RefreshDue => self.start_refresh(),
                Input::RetryDue => self.connect(),
                Input::GraceExpired => self.on_grace_expired(),
                Input::IdleCheckDue => self.disconnect_if_idle(),
                Input::Called => self.connect_on_demand(),
                Input::ConnectionClosed if self.connect_when_closed => self.connect(),
                Input::RetryAfterChanged | Input::ConnectionClosed => {}
            }
        }
    }

    async fn next_input(&mut self) -> Input {
        let refresh_due = self.next_refresh_at();
        let slow_start = self.attempt.as_ref().and_then(|attempt| attempt.slow_start_at);
        let event = async {
            match &mut self.live {
                // The result of a health check arrives as an event of the connection.
                Some(live) => tokio::select! {
                    event = live.events.next() => event,
                    never = &mut live.health_task => match never {},
                    Some(never) = poll_background(&mut live.subscriptions_task) => match never {},
                },
                None => std::future::pending().await,
            }
        };
        let attempt = async {
            match &mut self.attempt {
                Some(attempt) => (&mut attempt.future).await,
                None => std::future::pending().await,
            }
        };
        let refresh = async {
            match &mut self.refresh {
                Some(refresh) => refresh.await,
                None => std::future::pending().await,
            }
        };
        let detaching = self.detaching.is_some();
        tokio::select! {
            // Orders come first: a newer target makes the other inputs obsolete.
            biased;
            // A closed order channel is always ready: while detaching it is ignored, since nothing is left to change.
            order = self.orders.changed(), if !(detaching && self.orders.has_changed().is_err()) => {
                Input::OrderChanged(order.is_ok())
            }
            event = event => Input::Event(event),
            result = attempt => Input::AttemptEnded(result.map(Box::new)),
            (list, result) = refresh => Input::ListRead(list, result),
            () = sleep_until_some(slow_start) => Input::SlowStartDue,
            () = sleep_until_some(refresh_due) => Input::RefreshDue,
            () = sleep_until_some(self.retry_at.map(|(at, _)| at)) => Input::RetryDue,
            () = sleep_until_some(self.grace_ends_at) => Input::GraceExpired,
            () = sleep_until_some(self.idle_check_at) => Input::IdleCheckDue,
            () = self.retry_after.1.changed() => Input::RetryAfterChanged,
            () = self.upstream.wake_requested(), if self.idle => Input::Called,
            () = any_closed(&mut self.closing) => Input::ConnectionClosed,
        }
    }

    fn apply_order(&mut self, order: ActorOrder) {
        match order {
            ActorOrder::Detach(reason) => self.detach(reason),
            ActorOrder::Apply(target) => {
                // A detaching actor has no connection to continue with, even if the target is the same.
                let same_connection = target.same_connection(&self.target) && self.detaching.is_none();
                let is_live = self.live.as_ref().is_some_and(|live| target.same_connection(&live.target));
                let previous = std::mem::replace(&mut self.target, target);
                self.detaching = None;
                if self.target.reconnect_requested_at != previous.reconnect_requested_at {
                    // An explicit reconnect request overrides the server's Retry-After.
                    self.retry_after.1 = RetryAfter::default();
                }
                // The declaration was reverted to the live connection while its replacement was pending.
                if is_live && !same_connection {
                    self.keep_live_connection();
                }
                let keeps_connection = same_connection || is_live;
                // The published lists of an idle server belong to its previous connection, so another one must be made.
                self.idle &= keeps_connection;
                self.apply_spec(&previous.spec);
                if !keeps_connection {
                    self.replace();
                    return;
                }
                self.ensure_connected();
                if self.target.reconcile_requested_at != previous.reconcile_requested_at {
                    self.refresh_all_lists();
                }
            }
        }
    }

    /// Sends an observation of the current state, if it changed.
    fn report(&mut self) {
        let attempt = self.backoff.failures().saturating_add(1);
        let phase = match (self.detaching, &self.attempt, &self.live) {
            // Detached only once every call has drained and every process has exited.
            (Some(reason), ..) if self.closing.is_empty() => Phase::Detached(reason),
            (Some(reason), ..) => Phase::Draining(reason),
            (None, Some(_), _) => Phase::Connecting { attempt, last_problem: self.last_problem.clone() },
            // An attempt that waits for an earlier process to exit counts as connecting.
            (None, None, _) if self.connect_when_closed => {
                Phase::Connecting { attempt, last_problem: self.last_problem.clone() }
            }
            (None, None, None) if self.idle => Phase::Idle,
            // A live connection of another generation is reported as the failure of its replacement below.
            // A rotated secret changes the connection within the same generation, so both are compared.
            (None, None, Some(live))
                if self.target.same_connection(&live.target)
                    && live.target.generation == self.target.generation =>
            {
                Phase::Attached
            }
            (None, None, _) => Phase::Failed {
                problem: self
                    .last_problem
                    .clone()
                    .unwrap_or_else(|| Problem::new(Reason::Connecting, "not attached yet")),
                retry_at: self.retry_at.map(|(_, at)| at),
                attempt,
            },
        };
        let observation = Observation {
            key: self.target.key.clone(),
            uid: self.target.uid.clone(),
            generation: self.target.generation,
            // A request is handled when the attempt has ended and the lists have been read.
            last_handled_request: if self.attempt.is_some()
                || self.connect_when_closed
                || self.refresh.is_some()
            {
                self.last_observation
                    .as_ref()
                    .and_then(|observation| observation.last_handled_request.clone())
            } else {
                self.target.reconcile_requested_at.clone()
            },
            phase,
            live_server: self
                .published
                .as_ref()
                .filter(|_| self.live.is_some() || self.idle)
                .map(|published| published.live_server.clone()),
            paused: self.live.as_ref().and_then(|live| live.connection.retry_after_problem()),
            degraded: self.live.as_ref().and_then(|live| merge_problems(&live.degraded)),
            restarts: self.restarts,
        };
        if self.last_observation.as_ref() != Some(&observation) {
            self.last_observation = Some(observation.clone());
            // The reporter outlives the fleet except at the very end of a shutdown.
            let _ = self.context.observations.send(observation);
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

async fn poll_background(task: &mut Option<BackgroundTask>) -> Option<Infallible> {
    Some(task.as_mut()?.await)
}

async fn sleep_until_some(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Waits until at least one of the futures has completed, and drops those that have.
async fn any_closed(closing: &mut Vec<Closing>) {
    if closing.is_empty() {
        std::future::pending::<()>().await;
    }
    std::future::poll_fn(|context| {
        let count = closing.len();
        closing.retain_mut(|closing| closing.future.as_mut().poll(context).is_pending());
        if closing.len() < count { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
