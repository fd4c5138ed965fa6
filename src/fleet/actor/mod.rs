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
    Be(Arc<ConnectionTarget>),
    /// Go away: `Removed`, `Suspended`, or `Detached` when evenkeel ends.
    Go(Reason),
}

type Attaching = Pin<Box<dyn Future<Output = Result<NewConnection, ConnectionError>> + Send>>;
type Refresh = Pin<Box<dyn Future<Output = (ListKind, Result<ListResult, ConnectionError>)> + Send>>;
type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;
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
    live: Option<Live>,
    attempt: Option<Attempt>,
    refresh: Option<Refresh>,
    /// The lists that are to be read again, and when.
    stale: RefreshSchedule,
    /// Connections that are draining and closing.
    ending: Vec<Ending>,
    /// Tells the connections that are ending that they have less time than they were given.
    hurry: watch::Sender<Option<DrainDeadline>>,
    leaving: Option<Reason>,
    /// An attempt is due as soon as nothing is ending (`Recreate`).
    waiting: bool,
    backoff: Backoff,
    /// Exits in a row, each soon after its start.
    crashes: u32,
    /// Until when this endpoint wants to be left alone.
    pause: (Digest, RetryAfter),
    /// How the next attempt opens where the server's era is not known yet; with a probe if this is `None`.
    opening: Option<Era>,
    restarts: u32,
    last: Option<Problem>,
    retry_at: Option<(Instant, Timestamp)>,
    /// When a lost server's tools are withdrawn.
    grace_until: Option<Instant>,
    /// What agents see, with a connection or for some time without.
    offered: Option<Offered>,
    /// No connection is held until somebody calls (`OnDemand`).
    asleep: bool,
    /// When to look whether a connection is still in use (`OnDemand`).
    idle_at: Option<Instant>,
    told: Option<Observation>,
    /// The offer was made in an earlier run, and nothing was attached since.
    recalled: bool,
    /// Held until the first attempt of a server that was declared at the start has ended.
    starting: Option<StartupGuard>,
}

/// Kept by those whom the fleet's start waits for; nothing is ever sent.
pub(super) type StartupGuard = mpsc::Sender<Infallible>;

/// When calls that are still in flight on a connection that ends are given up, and what they are told.
#[derive(Clone, Debug)]
struct DrainDeadline {
    limit: Duration,
    why: Problem,
}

/// An attempt under way.
struct Attempt {
    work: Attaching,
    /// Its tasks, to be waited for once it is given up.
    tasks: TaskTracker,
    process: ProcessActivity,
    stderr: StderrTail,
    /// When to say that the process has not answered yet; `None` if there is nothing to say.
    slow_at: Option<Instant>,
}

struct Live {
    /// What it was made for; of a later target with the same connection, that.
    target: Arc<ConnectionTarget>,
    link: Connection,
    events: ConnectionEvents,
    /// Lists that could not be read, or with oddities that were tolerated.
    degraded: BTreeMap<ListKind, Problem>,
    since: Instant,
    health: BackgroundTask,
    /// Asks the server to tell what agents want to hear; `None` if it tells nothing.
    subscriptions: Option<BackgroundTask>,
}

/// What agents see of the server.
struct Offered {
    kept: Arc<CachedServer>,
    section: Arc<Section>,
    listed: Arc<LiveServer>,
}

/// What woke the actor.
enum Input {
    Order(bool),
    Event(ConnectionEvent),
    Attempted(Result<Box<NewConnection>, ConnectionError>),
    /// The process of the attempt may be slow to answer.
    SlowStart,
    Refreshed(ListKind, Result<ListResult, ConnectionError>),
    RefreshDue,
    RetryDue,
    GraceOver,
    IdleDue,
    /// The server asked to be left alone, or may be asked again.
    Paused,
    Wanted,
    Ended,
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
            stale: RefreshSchedule::default(),
            ending: Vec::new(),
            hurry: watch::Sender::default(),
            leaving: None,
            waiting: false,
            backoff: Backoff::default(),
            crashes: 0,
            pause,
            opening: None,
            restarts: 0,
            last: None,
            retry_at: None,
            grace_until: None,
            offered: None,
            asleep: false,
            idle_at: None,
            told: None,
            starting,
            recalled: false,
        };
        actor.recall();
        actor
    }

    /// Runs until the server is gone for good.
    pub(super) async fn run(mut self) {
        if self.asleep {
            self.starting = None;
        } else {
            self.connect();
        }
        loop {
            self.tell();
            if self.leaving.is_some() && self.ending.is_empty() {
                return;
            }
            match self.wait().await {
                Input::Order(true) => {
                    let order = self.orders.borrow_and_update().clone();
                    self.obey(order);
                }
                // Nobody is left to give orders.
                Input::Order(false) => self.leave(Reason::Detached),
                Input::Event(ConnectionEvent::Changed(list)) => self.changed(list),
                Input::Event(ConnectionEvent::Lost(error)) => self.lose(&error),
                Input::Attempted(result) => {
                    match result {
                        Ok(attached) => self.attached(*attached),
                        Err(error) => self.failed(&error),
                    }
                    self.starting = None;
                }
                Input::Refreshed(list, result) => self.refreshed(list, result),
                Input::SlowStart => self.note_slow_start(),
                Input::RefreshDue => self.refresh(),
                Input::RetryDue => self.connect(),
                Input::GraceOver => self.grace_over(),
                Input::IdleDue => self.maybe_sleep(),
                Input::Wanted => self.wake(),
                Input::Ended if self.waiting => self.connect(),
                Input::Paused | Input::Ended => {}
            }
        }
    }

    async fn wait(&mut self) -> Input {
        let refresh_due = self.refresh_due();
        let slow_start = self.attempt.as_ref().and_then(|attempt| attempt.slow_at);
        let event = async {
            match &mut self.live {
                // What a health check finds comes as an event.
                Some(live) => tokio::select! {
                    event = live.events.next() => event,
                    never = &mut live.health => match never {},
                    Some(never) = beside(&mut live.subscriptions) => match never {},
                },
                None => std::future::pending().await,
            }
        };
        let attempt = async {
            match &mut self.attempt {
                Some(attempt) => (&mut attempt.work).await,
                None => std::future::pending().await,
            }
        };
        let refresh = async {
            match &mut self.refresh {
                Some(refresh) => refresh.await,
                None => std::future::pending().await,
            }
        };
        let leaving = self.leaving.is_some();
        tokio::select! {
            biased;
            order = self.orders.changed(), if !(leaving && self.orders.has_changed().is_err()) => Input::Order(order.is_ok()),
            event = event => Input::Event(event),
            result = attempt => Input::Attempted(result.map(Box::new)),
            (list, result) = refresh => Input::Refreshed(list, result),
            () = at(slow_start) => Input::SlowStart,
            () = at(refresh_due) => Input::RefreshDue,
            () = at(self.retry_at.map(|(at, _)| at)) => Input::RetryDue,
            () = at(self.grace_until) => Input::GraceOver,
            () = at(self.idle_at) => Input::IdleDue,
            () = self.pause.1.changed() => Input::Paused,
            () = self.upstream.wanted(), if self.asleep => Input::Wanted,
            () = one_of(&mut self.ending) => Input::Ended,
        }
    }

    fn obey(&mut self, order: ActorOrder) {
        match order {
            ActorOrder::Go(reason) => self.leave(reason),
            ActorOrder::Be(target) => {
                let same_connection = target.same_connection(&self.target) && self.leaving.is_none();
                let is_live = self.live.as_ref().is_some_and(|live| target.same_connection(&live.target));
                let before = std::mem::replace(&mut self.target, target);
                self.leaving = None;
                if self.target.reconnect != before.reconnect {
                    // Whoever asks for a new connection knows better than the server when to make it.
                    self.pause.1 = RetryAfter::default();
                }
                if is_live && !same_connection {
                    self.keep();
                }
                let stays = same_connection || is_live;
                // What is offered without a connection was learned on the one before.
                self.asleep &= stays;
                self.adjust(&before.spec);
                if !stays {
                    self.replace();
                    return;
                }
                self.carry_on();
                if self.target.requested != before.requested {
                    self.look_again();
                }
            }
        }
    }

    /// Tells what is true now, if it is news.
    fn tell(&mut self) {
        let attempt = self.backoff.failures().saturating_add(1);
        let phase = match (self.leaving, &self.attempt, &self.live) {
            (Some(reason), ..) if self.ending.is_empty() => Phase::Detached(reason),
            (Some(reason), ..) => Phase::Draining(reason),
            (None, Some(_), _) => Phase::Connecting { attempt, last: self.last.clone() },
            (None, None, None) if self.waiting => Phase::Connecting { attempt, last: self.last.clone() },
            (None, None, None) if self.asleep => Phase::Idle,
            // A rotated secret makes another connection of the same generation.
            (None, None, Some(live))
                if self.target.same_connection(&live.target)
                    && live.target.generation == self.target.generation =>
            {
                Phase::Attached
            }
            (None, None, _) => Phase::Failed {
                problem: self
                    .last
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
            requested: if self.attempt.is_some() || self.waiting || self.refresh.is_some() {
                self.told.as_ref().and_then(|told| told.requested.clone())
            } else {
                self.target.requested.clone()
            },
            phase,
            listed: self
                .offered
                .as_ref()
                .filter(|_| self.live.is_some() || self.asleep)
                .map(|offered| offered.listed.clone()),
            paused: self.live.as_ref().and_then(|live| live.link.paused()),
            degraded: self.live.as_ref().and_then(|live| degraded(&live.degraded)),
            restarts: self.restarts,
        };
        if self.told.as_ref() != Some(&observation) {
            self.told = Some(observation.clone());
            // The reporter outlives the fleet but for the very end.
            let _ = self.context.observations.send(observation);
        }
    }
}

/// One problem for all lists of a server: of several reasons the worst, which is the first of its enum.
fn degraded(lists: &BTreeMap<ListKind, Problem>) -> Option<Problem> {
    let reason = lists.values().map(|problem| problem.reason).min()?;
    let messages: Vec<_> = lists.values().map(|problem| problem.message.as_str()).collect();
    Some(Problem::new(reason, messages.join("; ")))
}

async fn beside(work: &mut Option<BackgroundTask>) -> Option<Infallible> {
    Some(work.as_mut()?.await)
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

/// Waits until one of the futures is done and drops it.
async fn one_of(futures: &mut Vec<Ending>) {
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
