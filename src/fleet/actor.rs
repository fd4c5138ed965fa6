use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::debug;

use super::attach::{Attached, attach, list_tools};
use super::handle::{Drain, Refusal, UpstreamHandle};
use super::health;
use super::{Context, Kept, Listed, Observation, Phase};
use crate::catalog::{Section, Tool};
use crate::plan::{Backoff, Target};
use crate::resource::{Activation, Problem, Reason, Update};
use crate::wire::{Event, Events, Link, LinkError, List};

/// How long a connection must have held for its loss to count as a first failure.
const STABLE: Duration = Duration::from_mins(1);
/// Exits this soon after the start, three in a row, are a crash loop.
const CRASH: (Duration, u32) = (Duration::from_secs(10), 3);

/// How long calls in flight may take when evenkeel itself ends.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// What an actor is told; only the newest counts.
#[derive(Clone, Debug)]
pub(super) enum Order {
    /// Be this.
    Be(Arc<Target>),
    /// Go away: `Removed`, `Suspended`, or `Detached` when evenkeel ends.
    Go(Reason),
}

type Attempt = Pin<Box<dyn Future<Output = Result<Attached, LinkError>> + Send>>;
type Refresh = Pin<Box<dyn Future<Output = Result<Vec<Tool>, LinkError>> + Send>>;
type Ending = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Owns one server's connection: makes it, keeps it, replaces it, ends it.
///
/// A loop over plain state: every input (an order, an event of the connection, the end of an attempt, a
/// timer) changes the state, and what follows from the state is done at once. Waits for no I/O itself.
pub(super) struct Actor {
    context: Arc<Context>,
    orders: watch::Receiver<Order>,
    target: Arc<Target>,
    handle: UpstreamHandle,
    live: Option<Live>,
    attempt: Option<(Arc<Target>, Attempt)>,
    refresh: Option<Refresh>,
    /// A change was told while a refresh was under way.
    refresh_again: bool,
    /// Connections that are draining and closing.
    ending: Vec<Ending>,
    leaving: Option<Reason>,
    backoff: Backoff,
    /// Exits in a row, each soon after its start.
    crashes: u32,
    restarts: u32,
    last: Option<Problem>,
    retry_at: Option<(Instant, Timestamp)>,
    /// When a lost server's tools are withdrawn.
    grace_until: Option<Instant>,
    published: Option<Arc<Section>>,
    /// What is offered while no connection is held (`OnDemand`).
    asleep: Option<Arc<Listed>>,
    /// When to look whether a connection is still in use (`OnDemand`).
    idle_at: Option<Instant>,
    told: Option<Observation>,
}

struct Live {
    target: Arc<Target>,
    link: Link,
    events: Events,
    kept: Kept,
    listed: Option<Arc<Listed>>,
    since: Instant,
    health: Ending,
}

/// What woke the actor.
enum Input {
    Order(bool),
    Event(Event),
    Attempted(Result<Attached, LinkError>),
    Refreshed(Result<Vec<Tool>, LinkError>),
    RetryDue,
    GraceOver,
    IdleDue,
    Wanted,
    Ended,
}

impl Actor {
    pub(super) fn new(context: Arc<Context>, target: Arc<Target>, orders: watch::Receiver<Order>) -> Self {
        let connecting = Problem::new(Reason::Connecting, format!("{} is being attached", target.key.name));
        Self {
            handle: UpstreamHandle::new(target.key.clone(), Refusal::Unavailable(connecting)),
            context,
            orders,
            target,
            live: None,
            attempt: None,
            refresh: None,
            refresh_again: false,
            ending: Vec::new(),
            leaving: None,
            backoff: Backoff::default(),
            crashes: 0,
            restarts: 0,
            last: None,
            retry_at: None,
            grace_until: None,
            published: None,
            asleep: None,
            idle_at: None,
            told: None,
        }
    }

    /// Runs until the server is gone for good.
    pub(super) async fn run(mut self) {
        if !self.recall() {
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
                Input::Event(Event::Changed(List::Tools)) => self.refresh(),
                Input::Event(Event::Changed(list)) => debug!(?list, "a list that is not served yet changed"),
                Input::Event(Event::Lost(error)) => self.lose(&error),
                Input::Attempted(Ok(attached)) => self.attached(attached),
                Input::Attempted(Err(error)) => self.failed(&error),
                Input::Refreshed(result) => self.refreshed(result),
                Input::RetryDue => self.connect(),
                Input::GraceOver => self.grace_over(),
                Input::IdleDue => self.maybe_sleep(),
                Input::Wanted => self.wake(),
                Input::Ended => {}
            }
        }
    }

    async fn wait(&mut self) -> Input {
        let event = async {
            match &mut self.live {
                // The health check ends never; what it finds comes as an event.
                Some(live) => tokio::select! {
                    event = live.events.next() => event,
                    () = &mut live.health => std::future::pending().await,
                },
                None => std::future::pending().await,
            }
        };
        let attempt = async {
            match &mut self.attempt {
                Some((_, attempt)) => attempt.await,
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
            result = attempt => Input::Attempted(result),
            result = refresh => Input::Refreshed(result),
            () = at(self.retry_at.map(|(at, _)| at)) => Input::RetryDue,
            () = at(self.grace_until) => Input::GraceOver,
            () = at(self.idle_at) => Input::IdleDue,
            () = self.handle.wanted(), if self.asleep.is_some() => Input::Wanted,
            () = one_of(&mut self.ending) => Input::Ended,
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Go(reason) => self.leave(reason),
            Order::Be(target) => {
                let same_connection = same(&self.target, &target) && self.leaving.is_none();
                let look = self.target.requested != target.requested;
                self.leaving = None;
                self.target = target;
                if same_connection {
                    self.adjust();
                    if look {
                        self.refresh();
                    }
                } else {
                    self.replace();
                }
            }
        }
    }

    /// Names, filters or limits changed: the connection, or the attempt at it, goes on.
    fn adjust(&mut self) {
        if let Some(live) = self.live.as_mut().filter(|live| same(&live.target, &self.target)) {
            if live.target.settings.health != self.target.settings.health {
                let checks = self.target.settings.health.clone();
                live.health = Box::pin(health::watch(live.link.clone(), checks, jitter()));
            }
            live.target = self.target.clone();
            self.publish();
            self.idle_at = self.idle_due();
        } else if self.asleep.is_some() {
            // The digest of the declaration may be another, but what it connects to is not.
            if self.target.settings.activation == Activation::Always || !self.recall() {
                self.wake();
            }
        } else if self.attempt.is_none() {
            // Whatever changed may be what was wrong.
            self.crashes = 0;
            self.backoff.reset();
            self.connect();
        }
    }

    /// The connection itself changed, or is wanted again.
    fn replace(&mut self) {
        self.backoff.reset();
        self.crashes = 0;
        self.last = None;
        self.asleep = None;
        let recreate = self.target.settings.update == Update::Recreate
            || self.live.as_ref().is_some_and(|live| live.target.uid != self.target.uid);
        if recreate {
            let why = Problem::new(
                Reason::Connecting,
                format!("{} is being replaced; retry", self.target.key.name),
            );
            self.take_down(Refusal::Unavailable(why));
        }
        self.connect();
    }

    /// Starts an attempt; one under way for another target is cancelled with all that it opened.
    fn connect(&mut self) {
        self.retry_at = None;
        let (context, target) = (self.context.clone(), self.target.clone());
        let limit = target.settings.timeouts.connect.get();
        let endpoint = target.endpoint.clone();
        let attempt = Box::pin(async move { attach(&context, &endpoint, limit).await });
        self.attempt = Some((target, attempt));
        // Calls of a server that was there a moment ago wait for it, within its grace.
        if let (None, Some(grace), Some(why)) = (&self.live, self.grace_until, &self.last) {
            self.handle.pend(why.clone(), grace.min(Instant::now() + limit));
        }
    }

    fn attached(&mut self, attached: Attached) {
        self.attempt = None;
        self.refresh = None;
        self.refresh_again = false;
        self.grace_until = None;
        self.last = None;
        let Attached { link, events, tools } = attached;
        let before = self.handle.connect(link.clone());
        let kept = Kept {
            server_info: link.peer().info.clone(),
            protocol_version: link.peer().version.clone(),
            tools,
        };
        let since = Instant::now();
        let health = Box::pin(health::watch(link.clone(), self.target.settings.health.clone(), jitter()));
        self.live =
            Some(Live { target: self.target.clone(), link, events, kept, listed: None, since, health });
        self.publish();
        self.idle_at = self.idle_due();
        if let Some(before) = before {
            let limit = self.target.settings.timeouts.call.get();
            self.end(before, limit);
        }
    }

    /// Publishes what the live server offers.
    fn publish(&mut self) {
        let Some(live) = self.live.take() else { return };
        if let (Activation::OnDemand, Some(digest)) =
            (live.target.settings.activation, live.target.spec_digest)
        {
            self.context.memory.keep_catalog(digest, live.kept.clone());
        }
        let listed = Some(self.offer(&live.target, &live.kept));
        self.live = Some(Live { listed, ..live });
    }

    /// Makes a section of what a server lists and publishes it, unless agents see just that already.
    fn offer(&mut self, target: &Target, kept: &Kept) -> Arc<Listed> {
        let section = Arc::new(Section::new(target, &kept.tools, self.handle.clone()));
        let listed = Listed {
            generation: target.generation,
            server_info: kept.server_info.clone(),
            protocol_version: kept.protocol_version.clone(),
            tools: u32::try_from(section.tools.len()).unwrap_or(u32::MAX),
            catalog_digest: crate::catalog::digest(&kept.tools),
        };
        if !self.published.as_ref().is_some_and(|published| published.offers_the_same(&section)) {
            self.context.catalog.publish(section.clone());
            self.published = Some(section);
        }
        Arc::new(listed)
    }

    /// Offers an `OnDemand` server from memory, without a connection. False if nothing is remembered.
    fn recall(&mut self) -> bool {
        let target = self.target.clone();
        let digest = target.spec_digest.filter(|_| target.settings.activation == Activation::OnDemand);
        let Some(kept) = digest.and_then(|digest| self.context.memory.catalog(digest)) else {
            return false;
        };
        self.asleep = Some(self.offer(&target, &kept));
        self.handle.sleep(target.settings.timeouts.connect.get());
        true
    }

    /// When to look whether the live connection is still in use; never for one that is always held.
    fn idle_due(&self) -> Option<Instant> {
        let live =
            self.live.as_ref().filter(|live| live.target.settings.activation == Activation::OnDemand)?;
        let unused = self.handle.unused_for().unwrap_or_default();
        Some(Instant::now() + live.target.settings.timeouts.idle.get().saturating_sub(unused))
    }

    /// Lets go of a connection that nobody has used for long enough.
    fn maybe_sleep(&mut self) {
        self.idle_at = self.idle_due();
        let idle = self.target.settings.timeouts.idle.get();
        if self.attempt.is_some() || self.handle.unused_for().is_none_or(|unused| unused < idle) {
            return;
        }
        self.idle_at = None;
        self.refresh = None;
        self.asleep = self.live.take().and_then(|live| live.listed);
        if let Some(before) = self.handle.sleep(self.target.settings.timeouts.connect.get()) {
            self.end(before, idle);
        }
    }

    /// Somebody called: connects.
    fn wake(&mut self) {
        self.asleep = None;
        self.connect();
        let why = Problem::new(Reason::Connecting, format!("{} is being connected", self.target.key.name));
        self.handle.pend(why, Instant::now() + self.target.settings.timeouts.connect.get());
    }

    fn refresh(&mut self) {
        let Some(live) = &self.live else { return };
        if self.refresh.is_some() {
            self.refresh_again = true;
            return;
        }
        let link = live.link.clone();
        let limit = live.target.settings.timeouts.connect.get();
        self.refresh = Some(Box::pin(async move {
            match tokio::time::timeout(limit, list_tools(&link)).await {
                Ok(result) => result,
                Err(_) => {
                    Err(super::attach::timeout(format!("tools/list was not answered within {limit:?}")))
                }
            }
        }));
    }

    fn refreshed(&mut self, result: Result<Vec<Tool>, LinkError>) {
        self.refresh = None;
        match result {
            Ok(tools) => {
                if let Some(live) = &mut self.live {
                    live.kept.tools = tools;
                }
                self.publish();
            }
            Err(error) => {
                tracing::warn!(server = %self.target.key, %error, "the list could not be read again; the last one stays");
            }
        }
        if std::mem::take(&mut self.refresh_again) {
            self.refresh();
        }
    }

    /// The attempt failed. An older connection, if there is one, goes on serving.
    fn failed(&mut self, error: &LinkError) {
        self.attempt = None;
        self.schedule(error);
    }

    /// The live connection is gone.
    fn lose(&mut self, error: &LinkError) {
        let Some(live) = self.live.take() else { return };
        self.refresh = None;
        let lived = live.since.elapsed();
        if lived >= STABLE {
            self.backoff.reset();
        }
        self.restarts = self.restarts.saturating_add(1);
        self.crashes = match error.problem.reason {
            Reason::Exited if lived < CRASH.0 => self.crashes.saturating_add(1),
            _ => 0,
        };
        self.idle_at = None;
        let asleep = Some(live.listed).filter(|_| {
            // It is called for again when it is needed; one that ends as soon as it starts has to wait.
            live.target.settings.activation == Activation::OnDemand
                && lived >= CRASH.0
                && self.attempt.is_none()
        });
        if let Some(listed) = asleep {
            self.asleep = listed;
            if let Some(gone) = self.handle.sleep(self.target.settings.timeouts.connect.get()) {
                self.end(gone, Duration::ZERO);
            }
            return;
        }
        self.grace_until = Some(Instant::now() + self.target.settings.grace);
        if let Some(gone) = self.handle.refuse(Refusal::Unavailable(error.problem.clone())) {
            self.end(gone, Duration::ZERO);
        }
        if self.attempt.is_some() {
            // At a newer generation, and under way already.
            return;
        }
        if lived >= STABLE || error.http_status == Some(http::StatusCode::NOT_FOUND) {
            // Not a failing server: one that went after a good while, or that forgot a session.
            self.last = Some(error.problem.clone());
            self.connect();
        } else {
            self.schedule(error);
        }
    }

    /// Decides when to try again, if at all.
    fn schedule(&mut self, error: &LinkError) {
        let mut problem = error.problem.clone();
        if problem.reason == Reason::Exited && self.live.is_none() && self.told_connecting() {
            // It ended before it was attached: that is an early exit too.
            self.crashes = self.crashes.saturating_add(1);
        }
        if self.crashes >= CRASH.1 && problem.reason == Reason::Exited {
            problem = Problem::new(
                Reason::CrashLoop,
                format!("{} times in a row: {}", self.crashes, problem.message),
            );
        }
        let retry = &self.target.settings.retry;
        let delay = self.backoff.fail(retry, jitter(), error.retry_after);
        let wait = match problem.reason {
            // Looked for again without a start: it costs nothing, and installing it is what a person does.
            Reason::CommandNotFound => Some(retry.max.get()),
            reason if reason.needs_a_person() => None,
            _ => Some(delay.wait),
        };
        self.retry_at = wait.map(|wait| {
            let at =
                Timestamp::now().saturating_add(jiff::SignedDuration::try_from(wait).unwrap_or_default());
            (Instant::now() + wait, at.unwrap_or(Timestamp::MAX))
        });
        let stuck = self.backoff.failures() >= 3 && self.target.settings.update == Update::MakeBeforeBreak;
        match &self.live {
            None => {
                self.handle.refuse(Refusal::Unavailable(problem.clone()));
            }
            Some(_) if stuck => problem.message.push_str(
                "; the previous generation goes on serving; if two of this server cannot run side by side, set spec.update to Recreate",
            ),
            Some(_) => problem.message.push_str("; the previous generation goes on serving"),
        }
        self.last = Some(problem);
    }

    fn told_connecting(&self) -> bool {
        matches!(self.told.as_ref().map(|told| &told.phase), Some(Phase::Connecting { .. }))
    }

    fn grace_over(&mut self) {
        self.grace_until = None;
        if self.live.is_none() && self.published.take().is_some() {
            let why = self
                .last
                .clone()
                .unwrap_or_else(|| Problem::new(Reason::Reconnecting, "the connection was lost"));
            self.context.catalog.withdraw(self.target.key.clone(), why);
        }
    }

    /// Goes away: unpublishes at once, then lets calls finish.
    fn leave(&mut self, reason: Reason) {
        if self.leaving.replace(reason).is_some() {
            return;
        }
        let name = &self.target.key.name;
        let why = Problem::new(
            Reason::Removed,
            match reason {
                Reason::Suspended => format!("{name} was suspended; do not retry"),
                Reason::Removed => format!("{name} was removed; do not retry"),
                _ => format!("evenkeel is shutting down and detached {name}"),
            },
        );
        self.take_down(Refusal::Removed(why));
        self.attempt = None;
        self.retry_at = None;
        self.asleep = None;
    }

    /// Unpublishes and drains the live connection.
    fn take_down(&mut self, refusal: Refusal) {
        let (Refusal::Removed(why) | Refusal::Unavailable(why)) = &refusal;
        self.grace_until = None;
        self.idle_at = None;
        self.refresh = None;
        if self.published.take().is_some() {
            self.context.catalog.withdraw(self.target.key.clone(), why.clone());
        }
        self.live = None;
        if let Some(before) = self.handle.refuse(refusal) {
            let drain = self.target.settings.timeouts.drain.get();
            let limit = if self.leaving == Some(Reason::Detached) { drain.min(LAST_CALLS) } else { drain };
            self.end(before, limit);
        }
    }

    /// Lets the calls of a connection finish within a limit, then closes it.
    fn end(&mut self, connection: Drain, limit: Duration) {
        self.ending.push(Box::pin(async move {
            if tokio::time::timeout(limit, connection.drained()).await.is_err() {
                debug!(
                    calls = connection.in_flight(),
                    "calls were still in flight when the connection closed"
                );
            }
            connection.link().close().await;
        }));
    }

    /// Tells what is true now, if it is news.
    fn tell(&mut self) {
        let attempt = self.backoff.failures().saturating_add(1);
        let phase = match (self.leaving, &self.attempt, &self.live) {
            (Some(reason), ..) if self.ending.is_empty() => Phase::Detached(reason),
            (Some(reason), ..) => Phase::Draining(reason),
            (None, Some(_), _) => Phase::Connecting { attempt, last: self.last.clone() },
            (None, None, None) if self.asleep.is_some() => Phase::Idle,
            (None, None, Some(live)) if live.target.generation == self.target.generation => Phase::Attached,
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
            requested: self.target.requested.clone(),
            phase,
            listed: self.live.as_ref().and_then(|live| live.listed.clone()).or_else(|| self.asleep.clone()),
            restarts: self.restarts,
        };
        if self.told.as_ref() != Some(&observation) {
            self.told = Some(observation.clone());
            // The reporter outlives the fleet but for the very end.
            let _ = self.context.observations.send(observation);
        }
    }
}

/// True if both targets are the same connection.
fn same(one: &Target, other: &Target) -> bool {
    one.uid == other.uid && one.endpoint.digest() == other.endpoint.digest()
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

/// A random number from 0 to 1.
fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the delay is only not jittered.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX)
}
