//! One server's actor: passes inputs to its state machine, and runs the effects.
//!
//! The state machine decides; the actor holds what is not plain data: futures, connections, channels. The loop itself
//! waits for no I/O, so that an order takes effect at once.

mod attempt;
mod caller_actor;
mod caller_role;
mod drain;
mod effects;
mod left_out;
mod pending;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::new_connection::NewConnection;
use super::state_machine::{
    AttachedServer, ConnectionId, Input, RetryAfterPeriod, RetryAfterState, ServerOrder, StateMachine,
    StepTime,
};
use super::{CachedServer, FleetContext};
use crate::net::jitter;
use crate::plan::ConnectionTarget;
use crate::resource::{Problem, Reason};
use crate::upstream::{CallRefusal, HandleRequest, UpstreamControl, UpstreamHandle};
use crate::wire::{
    Connection, ConnectionError, ConnectionEvent, ConnectionEvents, RetryAfter, SharedStopTimeout, TokenState,
};
use attempt::{AttemptEvent, RunningAttempt};
use caller_role::CallerRole;
use drain::{CloseFuture, DrainDeadline};
use left_out::LeftOutReport;
use pending::{poll_some, sleep_until_some};

/// The longest time between SIGTERM and SIGKILL when evenkeel itself shuts down.
const MAX_SHUTDOWN_STOP_TIMEOUT: Duration = Duration::from_secs(5);

type ReadFuture = Pin<Box<dyn Future<Output = Input> + Send>>;
/// A task that runs as long as a live connection exists.
type BackgroundTask = Pin<Box<dyn Future<Output = Infallible> + Send>>;

/// Held by each actor that the fleet's startup waits for; nothing is ever sent.
pub(super) type StartupGuard = mpsc::Sender<Infallible>;

/// The owner of one server's connection.
pub(super) struct Actor {
    context: Arc<FleetContext>,
    orders: watch::Receiver<ServerOrder>,
    machine: StateMachine,
    upstream: UpstreamControl,
    attempt: Option<RunningAttempt>,
    live: Option<LiveConnection>,
    /// A new connection that the state machine has not decided about yet.
    opened: Option<Box<OpenedConnection>>,
    read: Option<ReadFuture>,
    /// Connections that are draining and closing, and ended attempts.
    closing: Vec<(ConnectionId, CloseFuture)>,
    /// Shortens the drain of closing connections.
    drain_deadline: watch::Sender<Option<DrainDeadline>>,
    /// The Retry-After of the target's endpoint, shared with its attempts.
    retry_after: RetryAfter,
    /// The time that the server's processes have to exit, of its latest declaration.
    stop_timeout: SharedStopTimeout,
    /// Held until the first attempt has ended, for a server that was declared at startup.
    startup_guard: Option<StartupGuard>,
    left_out: LeftOutReport,
    /// The state of the server's OAuth token.
    token_states: Option<watch::Receiver<TokenState>>,
    has_token: bool,
    /// The role of an actor whose connection belongs to one caller.
    role: Option<Box<CallerRole>>,
}

/// The live connection and its tasks.
struct LiveConnection {
    id: ConnectionId,
    connection: Connection,
    events: ConnectionEvents,
    health_task: BackgroundTask,
    /// Maintains the subscriptions that agents requested; `None` if the server supports none.
    subscriptions_task: Option<BackgroundTask>,
}

/// A new connection with its number. Boxed, because an actor holds one for a moment only.
struct OpenedConnection {
    id: ConnectionId,
    connection: Connection,
    events: ConnectionEvents,
}

impl Actor {
    /// Creates the actor of a server. Its catalog of an earlier run, if there is one, is published before this returns.
    pub(super) fn new(
        context: Arc<FleetContext>,
        target: Arc<ConnectionTarget>,
        orders: watch::Receiver<ServerOrder>,
        startup_guard: Option<StartupGuard>,
    ) -> Self {
        let cached = context.server_cache.catalog(target.endpoint.digest());
        Self::start(context, target, orders, (startup_guard, cached), None)
    }

    fn start(
        context: Arc<FleetContext>,
        target: Arc<ConnectionTarget>,
        orders: watch::Receiver<ServerOrder>,
        (startup_guard, cached): (Option<StartupGuard>, Option<Arc<CachedServer>>),
        role: Option<Box<CallerRole>>,
    ) -> Self {
        let connecting = Problem::new(Reason::Connecting, format!("{} is being attached", target.key.name));
        let upstream = UpstreamControl::new(target.key.clone(), CallRefusal::Unavailable(connecting));
        let left_out = LeftOutReport::new(target.key.clone(), context.clone());
        let token_states = context.access_tokens.get_or_create(&target.key).subscribe();
        let order = ServerOrder::Apply(target.clone());
        let (machine, effects) = StateMachine::start(target, upstream.handle().clone(), cached, step_time());
        let mut actor = Self {
            context,
            orders,
            machine,
            upstream,
            attempt: None,
            live: None,
            opened: None,
            read: None,
            closing: Vec::new(),
            drain_deadline: watch::Sender::default(),
            retry_after: RetryAfter::default(),
            stop_timeout: SharedStopTimeout::default(),
            startup_guard,
            left_out,
            has_token: token_states.as_ref().is_some_and(|states| states.borrow().token.is_some()),
            token_states,
            role,
        };
        actor.update_stop_timeout(&order);
        // The first effects need no answer.
        for effect in effects {
            actor.run_effect(effect);
        }
        actor
    }

    /// Runs until the server is detached. Takes a reference, since a future holds an argument by value twice.
    pub(super) async fn run(&mut self) {
        while !self.machine.is_detached() {
            let input = self.next_input().await;
            self.apply(input);
            self.update_caller_connection();
        }
    }

    /// Returns the handle for calls.
    pub(super) fn handle(&self) -> &UpstreamHandle {
        self.upstream.handle()
    }

    /// Applies an input, and the answers to the effects that follow from it.
    fn apply(&mut self, input: Input) {
        let retry_after = self.retry_after_state();
        let mut next = Some(input);
        if *self.machine.retry_after() != retry_after {
            self.step(Input::RetryAfterChanged(retry_after));
        }
        while let Some(input) = next.take() {
            next = self.step(input);
        }
        if let Some(opened) = self.opened.take() {
            self.closing.push((opened.id, drain::close(opened.connection)));
        }
    }

    /// Applies one input. Returns the answer to an effect.
    fn step(&mut self, input: Input) -> Option<Input> {
        if let Input::Ordered(order) = &input {
            // The next call of the caller gets another connection.
            if self.role.is_some() && self.machine.is_detaching() && matches!(order, ServerOrder::Apply(_)) {
                return None;
            }
            self.update_stop_timeout(order);
        }
        let effects = self.machine.step(input, step_time());
        let mut answer = None;
        for effect in effects {
            answer = self.run_effect(effect).or(answer);
        }
        answer
    }

    /// Applies the stop timeout of the newest declaration to all processes of the server.
    fn update_stop_timeout(&self, order: &ServerOrder) {
        match order {
            ServerOrder::Apply(target) => {
                if let Some(stdio) = &target.spec.stdio {
                    self.stop_timeout.set(stdio.stop.get());
                }
            }
            ServerOrder::Detach(Reason::Detached) => self.stop_timeout.limit(MAX_SHUTDOWN_STOP_TIMEOUT),
            ServerOrder::Detach(_) => {}
        }
    }

    async fn next_input(&mut self) -> Input {
        let machine = &self.machine;
        let wake_at = machine.next_wake_at(Instant::now());
        let is_detaching = machine.is_detaching();
        let live_retry_after = self.live.as_ref().map(|live| live.connection.retry_after().clone());
        tokio::select! {
            // Orders come first: a newer target makes the other inputs obsolete.
            biased;
            // A closed order channel is always ready: while detaching it is ignored, since nothing is left to change.
            order = self.orders.changed(), if !(is_detaching && self.orders.has_changed().is_err()) => {
                Input::Ordered(match order {
                    Ok(()) => self.orders.borrow_and_update().clone(),
                    // The fleet has ended, so no more orders come.
                    Err(_) => ServerOrder::Detach(Reason::Detached),
                })
            }
            event = next_event(&mut self.live) => event,
            (id, event) = next_attempt_event(&mut self.attempt) => match event {
                AttemptEvent::Slow(problem) => Input::AttemptSlow(id, problem),
                AttemptEvent::Ended(Ok(new)) => self.take_opened(id, *new),
                AttemptEvent::Ended(Err(error)) => Input::AttemptFailed(id, error),
            },
            input = poll_some(&mut self.read) => {
                self.read = None;
                if let (Input::ListRead(_, list, Ok(read)), None) = (&input, &self.role) {
                    self.left_out.record(*list, read.left_out.clone());
                }
                input
            }
            () = sleep_until_some(wake_at) => Input::TimeReached,
            () = sleep_until_some(self.role.as_ref().filter(|_| !is_detaching).map(|role| role.wake_at())) => {
                Input::TimeReached
            }
            () = token_changed(self.token_states.as_mut()) => self.token_input(),
            () = self.retry_after.changed() => Input::RetryAfterChanged(self.retry_after_state()),
            () = retry_after_changed(live_retry_after.as_ref()) => {
                Input::RetryAfterChanged(self.retry_after_state())
            }
            request = self.upstream.next_request() => match request {
                HandleRequest::Connect => Input::CallWaiting,
                HandleRequest::CheckList(list) => Input::UnknownItem(list),
            },
            id = next_closed(&mut self.closing) => Input::ConnectionClosed(id),
        }
    }

    /// Returns the input for a changed OAuth token.
    fn token_input(&mut self) -> Input {
        let Some(states) = &mut self.token_states else { return Input::TimeReached };
        let TokenState { url: _, token, problem } = states.borrow_and_update().clone();
        let had_token = std::mem::replace(&mut self.has_token, token.is_some());
        match &self.live {
            _ if token.is_some() => Input::TokenObtained { is_first: !had_token },
            Some(live) if had_token || problem.is_some() => {
                let logged_out = || Problem::new(Reason::AuthRequired, "the token was removed by a logout");
                let error = ConnectionError::from_problem(problem.unwrap_or_else(logged_out));
                Input::ConnectionLost(live.id, error)
            }
            _ => Input::TimeReached,
        }
    }

    /// Keeps a new connection until the state machine has decided about it.
    fn take_opened(&mut self, id: ConnectionId, new: NewConnection) -> Input {
        let NewConnection { connection, events, mut listing } = new;
        let left_out = std::mem::take(&mut listing.left_out);
        // The lists of a caller's connection are not offered.
        for (list, items) in left_out.into_iter().filter(|_| self.role.is_none()) {
            self.left_out.record(list, items);
        }
        let handshake = connection.handshake();
        let (description, capabilities) = (handshake.description.clone(), handshake.capabilities);
        self.attempt = None;
        self.opened = Some(Box::new(OpenedConnection { id, connection, events }));
        Input::AttemptSucceeded(id, Box::new(AttachedServer { description, capabilities, listing }))
    }

    fn retry_after_state(&self) -> RetryAfterState {
        let live = self.live.as_ref().and_then(|live| retry_after_period(live.connection.retry_after()));
        RetryAfterState { target: retry_after_period(&self.retry_after), live }
    }
}

fn step_time() -> StepTime {
    StepTime { now: Instant::now(), wall_clock: Timestamp::now(), jitter: jitter() }
}

fn retry_after_period(retry_after: &RetryAfter) -> Option<Box<RetryAfterPeriod>> {
    Some(Box::new(RetryAfterPeriod { ends_at: retry_after.ends_at()?, problem: retry_after.problem()? }))
}

/// Waits for the next event of the live connection, and runs its tasks. The result of a health check arrives as an event
/// of the connection.
async fn next_event(live: &mut Option<LiveConnection>) -> Input {
    let Some(live) = live else { return std::future::pending().await };
    let event = tokio::select! {
        event = live.events.next() => event,
        never = &mut live.health_task => match never {},
        never = poll_some(&mut live.subscriptions_task) => match never {},
    };
    match event {
        ConnectionEvent::ListChanged(list) => Input::ListChanged(live.id, list),
        ConnectionEvent::DescriptionChanged(description) => Input::DescriptionChanged(live.id, description),
        ConnectionEvent::ProtocolViolation(violation) => Input::ProtocolViolated(live.id, violation),
        ConnectionEvent::ChangesUnheard(why) => Input::ChangesUnheard(live.id, why),
        ConnectionEvent::Lost(error) => Input::ConnectionLost(live.id, error),
    }
}

async fn next_attempt_event(attempt: &mut Option<RunningAttempt>) -> (ConnectionId, AttemptEvent) {
    match attempt {
        Some(attempt) => (attempt.id, attempt.next_event().await),
        None => std::future::pending().await,
    }
}

async fn retry_after_changed(retry_after: Option<&RetryAfter>) {
    match retry_after {
        Some(retry_after) => retry_after.changed().await,
        None => std::future::pending().await,
    }
}

async fn token_changed(states: Option<&mut watch::Receiver<TokenState>>) {
    let changed = match states {
        Some(states) => states.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// Waits until one of the futures has completed, and removes it.
async fn next_closed(closing: &mut Vec<(ConnectionId, CloseFuture)>) -> ConnectionId {
    std::future::poll_fn(|context| {
        let closed = closing.iter_mut().position(|(_, future)| future.as_mut().poll(context).is_ready());
        closed.map_or(Poll::Pending, |index| Poll::Ready(closing.swap_remove(index).0))
    })
    .await
}
