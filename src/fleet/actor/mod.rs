//! One server's actor: its state, what wakes it, and what it tells. What it does is in the files beside.

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

/// What an actor is told; only the newest counts.
#[derive(Clone, Debug)]
pub(super) enum ActorOrder {
    /// Be this.
    Apply(Arc<ConnectionTarget>),
    /// Go away: `Removed`, `Suspended`, or `Detached` when evenkeel ends.
    Detach(Reason),
}

type AttachFuture = Pin<Box<dyn Future<Output = Result<NewConnection, ConnectionError>> + Send>>;
type RefreshFuture = Pin<Box<dyn Future<Output = (ListKind, Result<ListResult, ConnectionError>)> + Send>>;
type CloseFuture = Pin<Box<dyn Future<Output = ()> + Send>>;
/// What works beside a live connection for as long as it is there.
type BackgroundTask = Pin<Box<dyn Future<Output = Infallible> + Send>>;

/// Owns one server's connection: makes it, keeps it, replaces it, ends it.
///
/// A loop over plain state: every input (an order, an event of the connection, the end of an attempt, a
/// timer) changes the state, and what follows from the state is done at once. Waits for no I/O itself.
pub(super) struct Actor {
    context: Arc<FleetContext>,
    orders: watch::Receiver<ActorOrder>,
    target: Arc<ConnectionTarget>,
    upstream: UpstreamControl,
    live: Option<LiveConnection>,
    attempt: Option<Attempt>,
    refresh: Option<RefreshFuture>,
    /// The lists that are to be read again, and when.
    refresh_schedule: RefreshSchedule,
    /// Connections that are draining and closing.
    closing: Vec<CloseFuture>,
    /// Tells the connections that are ending that they have less time than they were given.
    drain_deadline: watch::Sender<Option<DrainDeadline>>,
    detaching: Option<Reason>,
    /// An attempt is due as soon as nothing is ending (`Recreate`).
    connect_when_closed: bool,
    backoff: Backoff,
    /// Exits in a row, each soon after its start.
    early_exits: u32,
    /// Until when this endpoint wants to be left alone.
    retry_after: (Digest, RetryAfter),
    /// How the next attempt opens where the server's era is not known yet; with a probe if this is `None`.
    opening_era: Option<Era>,
    restarts: u32,
    last_problem: Option<Problem>,
    retry_at: Option<(Instant, Timestamp)>,
    /// When a lost server's tools are withdrawn.
    grace_ends_at: Option<Instant>,
    /// What agents see, with a connection or for some time without.
    published: Option<PublishedServer>,
    /// No connection is held until somebody calls (`OnDemand`).
    idle: bool,
    /// When to look whether a connection is still in use (`OnDemand`).
    idle_check_at: Option<Instant>,
    last_observation: Option<Observation>,
    /// The offer was made in an earlier run, and nothing was attached since.
    from_cache: bool,
    /// Held until the first attempt of a server that was declared at the start has ended.
    startup_guard: Option<StartupGuard>,
}

/// Kept by those whom the fleet's start waits for; nothing is ever sent.
pub(super) type StartupGuard = mpsc::Sender<Infallible>;

/// When calls that are still in flight on a connection that ends are given up, and what they are told.
#[derive(Clone, Debug)]
struct DrainDeadline {
    timeout: Duration,
    problem: Problem,
}

/// An attempt under way.
struct Attempt {
    future: AttachFuture,
    /// Its tasks, to be waited for once it is given up.
    tasks: TaskTracker,
    process: ProcessActivity,
    stderr: StderrTail,
    /// When to say that the process has not answered yet; `None` if there is nothing to say.
    slow_start_at: Option<Instant>,
}

struct LiveConnection {
    /// What it was made for; of a later target with the same connection, that.
    target: Arc<ConnectionTarget>,
    connection: Connection,
    events: ConnectionEvents,
    /// Lists that could not be read, or with oddities that were tolerated.
    degraded: BTreeMap<ListKind, Problem>,
    connected_at: Instant,
    health_task: BackgroundTask,
    /// Asks the server to tell what agents want to hear; `None` if it tells nothing.
    subscriptions_task: Option<BackgroundTask>,
}

/// What agents see of the server.
struct PublishedServer {
    cached: Arc<CachedServer>,
    section: Arc<Section>,
    live_server: Arc<LiveServer>,
}

/// What woke the actor.
enum Input {
    OrderChanged(bool),
    Event(ConnectionEvent),
    AttemptEnded(Result<Box<NewConnection>, ConnectionError>),
    /// The process of the attempt may be slow to answer.
    SlowStartDue,
    ListRead(ListKind, Result<ListResult, ConnectionError>),
    RefreshDue,
    RetryDue,
    GraceExpired,
    IdleCheckDue,
    /// The server asked to be left alone, or may be asked again.
    RetryAfterChanged,
    Called,
    ConnectionClosed,
}

impl Actor {
    pub(super) fn new(
        context: Arc<FleetContext>,
        target: Arc<ConnectionTarget>,
        orders: watch::Receiver<ActorOrder>,
        starting: Option<StartupGuard>,
    ) -> Self {
        let pause = (target.endpoint.digest(), RetryAfter::default());
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
            retry_after: pause,
            opening_era: None,
            restarts: 0,
            last_problem: None,
            retry_at: None,
            grace_ends_at: None,
            published: None,
            idle: false,
            idle_check_at: None,
            last_observation: None,
            startup_guard: starting,
            from_cache: false,
        };
        actor.restore_from_cache();
        actor
    }

    /// Runs until the server is gone for good.
    pub(super) async fn run(mut self) {
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
                // Nobody is left to give orders.
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
                // What a health check finds comes as an event.
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
        let leaving = self.detaching.is_some();
        tokio::select! {
            biased;
            order = self.orders.changed(), if !(leaving && self.orders.has_changed().is_err()) => Input::OrderChanged(order.is_ok()),
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
                let same_connection = target.same_connection(&self.target) && self.detaching.is_none();
                let is_live = self.live.as_ref().is_some_and(|live| target.same_connection(&live.target));
                let before = std::mem::replace(&mut self.target, target);
                self.detaching = None;
                if self.target.reconnect_requested_at != before.reconnect_requested_at {
                    // Whoever asks for a new connection knows better than the server when to make it.
                    self.retry_after.1 = RetryAfter::default();
                }
                if is_live && !same_connection {
                    self.keep_live_connection();
                }
                let stays = same_connection || is_live;
                // What is offered without a connection was learned on the one before.
                self.idle &= stays;
                self.apply_spec(&before.spec);
                if !stays {
                    self.replace();
                    return;
                }
                self.ensure_connected();
                if self.target.reconcile_requested_at != before.reconcile_requested_at {
                    self.refresh_all_lists();
                }
            }
        }
    }

    /// Tells what is true now, if it is news.
    fn report(&mut self) {
        let attempt = self.backoff.failures().saturating_add(1);
        let phase = match (self.detaching, &self.attempt, &self.live) {
            (Some(reason), ..) if self.closing.is_empty() => Phase::Detached(reason),
            (Some(reason), ..) => Phase::Draining(reason),
            (None, Some(_), _) => Phase::Connecting { attempt, last_problem: self.last_problem.clone() },
            (None, None, None) if self.connect_when_closed => {
                Phase::Connecting { attempt, last_problem: self.last_problem.clone() }
            }
            (None, None, None) if self.idle => Phase::Idle,
            // A rotated secret makes another connection of the same generation.
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
            // What was asked for is done when the attempt has ended and the lists have been read.
            last_handled_request: if self.attempt.is_some()
                || self.connect_when_closed
                || self.refresh.is_some()
            {
                self.last_observation.as_ref().and_then(|told| told.last_handled_request.clone())
            } else {
                self.target.reconcile_requested_at.clone()
            },
            phase,
            live_server: self
                .published
                .as_ref()
                .filter(|_| self.live.is_some() || self.idle)
                .map(|offered| offered.live_server.clone()),
            paused: self.live.as_ref().and_then(|live| live.connection.retry_after_problem()),
            degraded: self.live.as_ref().and_then(|live| merge_problems(&live.degraded)),
            restarts: self.restarts,
        };
        if self.last_observation.as_ref() != Some(&observation) {
            self.last_observation = Some(observation.clone());
            // The reporter outlives the fleet but for the very end.
            let _ = self.context.observations.send(observation);
        }
    }
}

/// One problem for all lists of a server: of several reasons the worst, which is the first of its enum.
fn merge_problems(lists: &BTreeMap<ListKind, Problem>) -> Option<Problem> {
    let reason = lists.values().map(|problem| problem.reason).min()?;
    let messages: Vec<_> = lists.values().map(|problem| problem.message.as_str()).collect();
    Some(Problem::new(reason, messages.join("; ")))
}

async fn poll_background(work: &mut Option<BackgroundTask>) -> Option<Infallible> {
    Some(work.as_mut()?.await)
}

async fn sleep_until_some(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Waits until one of the futures is done and drops it.
async fn any_closed(futures: &mut Vec<CloseFuture>) {
    if futures.is_empty() {
        std::future::pending::<()>().await;
    }
    std::future::poll_fn(|context| {
        let before = futures.len();
        futures.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if futures.len() < before { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
