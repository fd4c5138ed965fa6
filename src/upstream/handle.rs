use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::item::Item;
use super::lists::ServerLists;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::wire::{Connection, ListKind};

/// The way to one server for calls; lives as long as the server is declared, whatever its connection does.
///
/// Catalog routes hold clones. [`UpstreamHandle::begin_call`] takes no lock that another server's calls take.
#[derive(Clone, Debug)]
pub struct UpstreamHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: ObjectKey,
    state: ArcSwap<State>,
    /// Everything that the server lists, as far as it was read.
    lists: ArcSwap<ServerLists>,
    state_changed: Notify,
    wake_requested: Notify,
}

#[derive(Clone, Debug)]
enum State {
    Live(Arc<CountedConnection>),
    /// An attempt is under way; a call waits for its end, but not longer than this.
    Pending {
        problem: Problem,
        deadline: Instant,
    },
    /// There is no connection until somebody calls; a call waits for it, so long at most.
    Idle {
        connect_timeout: Duration,
    },
    Refused(CallRefusal),
}

/// Why a call cannot begin. Nothing has been dispatched.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallRefusal {
    /// The server was taken away: retrying is no use.
    #[error("{0}")]
    Removed(Problem),
    /// The server has no connection now; it may have one again later.
    #[error("{0}")]
    Unavailable(Problem),
}

/// One connection and the calls in flight on it.
#[derive(Debug)]
struct CountedConnection {
    connection: Connection,
    /// The calls in flight, and in the top bit whether the lane is closed to new ones.
    calls: AtomicU64,
    drained: Notify,
    connected_at: Instant,
    /// When the last call ended, in milliseconds after `since`.
    last_call_end_millis: AtomicU64,
}

const CLOSED_BIT: u64 = 1 << 63;
/// How long a call waits for what becomes of a connection whose end is known.
const LOST_CONNECTION_WAIT: Duration = Duration::from_secs(1);

impl UpstreamHandle {
    /// The server.
    pub fn key(&self) -> &ObjectKey {
        &self.0.key
    }

    /// Begins a call on the live connection; the guard counts as in flight until it is dropped.
    ///
    /// Waits only while a lost server is being connected again, and no longer than the attempt and the
    /// server's grace period allow. Whoever waited looks whether what it calls is still the same:
    /// [`CallGuard::waited`].
    pub async fn begin_call(&self) -> Result<CallGuard, CallRefusal> {
        let (mut asleep_until, mut lost_until) = (None, None);
        let mut waited = false;
        loop {
            let changed = self.0.state_changed.notified();
            let (why, until) = match &**self.0.state.load() {
                State::Refused(refusal) => return Err(refusal.clone()),
                State::Live(lane) => match CallGuard::try_begin(lane, waited) {
                    // Its end is known, and what follows is about to be decided.
                    Some(guard) if let Some(why) = guard.connection().end_problem() => {
                        (why, *lost_until.get_or_insert_with(|| Instant::now() + LOST_CONNECTION_WAIT))
                    }
                    Some(guard) => {
                        return guard
                            .connection()
                            .retry_after_problem()
                            .map_or(Ok(guard), |why| Err(CallRefusal::Unavailable(why)));
                    }
                    // Closed between the load and the entry: its successor is in place already.
                    None => continue,
                },
                State::Pending { problem: why, deadline: until } => (why.clone(), *until),
                State::Idle { connect_timeout: limit } => {
                    let until = *asleep_until.get_or_insert_with(|| Instant::now() + *limit);
                    self.0.wake_requested.notify_one();
                    let message = format!("not connected within {} s", limit.as_secs_f64());
                    (Problem::new(Reason::Timeout, message), until)
                }
            };
            waited = true;
            if tokio::time::timeout_at(until, changed).await.is_err() {
                return Err(CallRefusal::Unavailable(why));
            }
        }
    }

    /// True if the server, as far as its lists were read, lists this very item.
    pub fn lists_item(&self, list: ListKind, item: &Item) -> bool {
        let lists = self.0.lists.load();
        let items = lists.items(list);
        items
            .binary_search_by(|listed| listed.name().cmp(item.name()))
            .is_ok_and(|at| items.get(at) == Some(item))
    }

    /// The live connection, if there is one just now.
    pub fn live_connection(&self) -> Option<Connection> {
        match &**self.0.state.load() {
            State::Live(lane) => Some(lane.connection.clone()),
            _ => None,
        }
    }

    /// Gives how long the live connection has had no call in flight; `None` if it has one now.
    pub fn idle_for(&self) -> Option<Duration> {
        match &**self.0.state.load() {
            State::Live(lane) if lane.calls.load(Ordering::Acquire) == 0 => {
                let last = Duration::from_millis(lane.last_call_end_millis.load(Ordering::Acquire));
                Some(lane.connected_at.elapsed().saturating_sub(last))
            }
            _ => None,
        }
    }

    /// Wakes the server if it is asleep, without calling it.
    pub fn wake(&self) {
        if matches!(&**self.0.state.load(), State::Idle { .. }) {
            self.0.wake_requested.notify_one();
        }
    }
}

/// Puts the connections of one server in place and takes them away; held by the server's actor alone.
#[derive(Debug)]
pub struct UpstreamControl(UpstreamHandle);

impl UpstreamControl {
    /// A server with no connection yet.
    pub fn new(key: ObjectKey, refusal: CallRefusal) -> Self {
        Self(UpstreamHandle(Arc::new(Inner {
            key,
            state: ArcSwap::from_pointee(State::Refused(refusal)),
            lists: ArcSwap::default(),
            state_changed: Notify::new(),
            wake_requested: Notify::new(),
        })))
    }

    /// Gives the handle for calls.
    pub fn handle(&self) -> &UpstreamHandle {
        &self.0
    }

    /// Takes note of what the server lists. To be told before the connection on which it was read is put in place.
    pub fn set_lists(&self, lists: Arc<ServerLists>) {
        self.0.0.lists.store(lists);
    }

    /// Puts a connection in place. Returns the one before, closed to new calls.
    pub fn set_connection(&self, link: Connection) -> Option<DrainingConnection> {
        let lane = Arc::new(CountedConnection {
            connection: link,
            calls: AtomicU64::new(0),
            drained: Notify::new(),
            connected_at: Instant::now(),
            last_call_end_millis: AtomicU64::new(0),
        });
        self.swap(State::Live(lane))
    }

    /// Lets calls wait for an attempt that is under way. Returns the connection before, closed to new calls.
    pub fn set_pending(&self, why: Problem, until: Instant) -> Option<DrainingConnection> {
        self.swap(State::Pending { problem: why, deadline: until })
    }

    /// Lets go of the connection until somebody calls. Returns it, closed to new calls.
    pub fn set_idle(&self, limit: Duration) -> Option<DrainingConnection> {
        // Whoever called before was served by the connection that goes.
        let _ = self.0.0.wake_requested.notified().now_or_never();
        self.swap(State::Idle { connect_timeout: limit })
    }

    /// Waits until somebody calls a server that is asleep.
    pub async fn wake_requested(&self) {
        self.0.0.wake_requested.notified().await;
    }

    /// Takes the connection away. Returns it, closed to new calls.
    pub fn set_refused(&self, refusal: CallRefusal) -> Option<DrainingConnection> {
        self.swap(State::Refused(refusal))
    }

    fn swap(&self, state: State) -> Option<DrainingConnection> {
        let before = self.0.0.state.swap(Arc::new(state));
        self.0.0.state_changed.notify_waiters();
        match &*before {
            State::Live(lane) => {
                lane.calls.fetch_or(CLOSED_BIT, Ordering::AcqRel);
                Some(DrainingConnection(lane.clone()))
            }
            State::Pending { .. } | State::Idle { .. } | State::Refused(_) => None,
        }
    }
}

/// A call in flight.
#[derive(Debug)]
pub struct CallGuard {
    counted: Arc<CountedConnection>,
    waited: bool,
}

impl CallGuard {
    fn try_begin(lane: &Arc<CountedConnection>, waited: bool) -> Option<Self> {
        let before = lane.calls.fetch_add(1, Ordering::AcqRel);
        // The guard is made first, so that a refused entry is counted out again.
        let guard = Self { counted: lane.clone(), waited };
        (before & CLOSED_BIT == 0).then_some(guard)
    }

    /// True if the call waited for the connection: what it is for may have changed meanwhile.
    pub fn waited(&self) -> bool {
        self.waited
    }

    /// The connection to call on.
    pub fn connection(&self) -> &Connection {
        &self.counted.connection
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        let end = u64::try_from(self.counted.connected_at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.counted.last_call_end_millis.fetch_max(end, Ordering::AcqRel);
        let before = self.counted.calls.fetch_sub(1, Ordering::AcqRel);
        if before == CLOSED_BIT | 1 {
            self.counted.drained.notify_waiters();
        }
    }
}

/// A connection that takes no new calls.
#[derive(Debug)]
pub struct DrainingConnection(Arc<CountedConnection>);

impl DrainingConnection {
    /// Waits until no call is in flight.
    pub async fn wait_until_drained(&self) {
        loop {
            let notified = self.0.drained.notified();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }

    /// The calls in flight.
    pub fn in_flight(&self) -> u64 {
        self.0.calls.load(Ordering::Acquire) & !CLOSED_BIT
    }

    /// The connection, to close it.
    pub fn connection(&self) -> &Connection {
        &self.0.connection
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(reason: Reason) -> Problem {
        Problem::new(reason, "why")
    }

    fn control() -> UpstreamControl {
        UpstreamControl::new(ObjectKey::new("default", "a"), CallRefusal::Removed(problem(Reason::Removed)))
    }

    #[tokio::test(start_paused = true)]
    async fn call_waits_for_a_pending_attempt_until_its_deadline() {
        let control = control();
        let handle = control.handle().clone();
        assert!(matches!(handle.begin_call().await, Err(CallRefusal::Removed(_))));
        let until = Instant::now() + Duration::from_secs(5);
        control.set_pending(problem(Reason::Exited), until);
        let refusal = handle.begin_call().await.unwrap_err();
        assert!(matches!(refusal, CallRefusal::Unavailable(problem) if problem.reason == Reason::Exited));
        assert!(Instant::now() >= until);
    }

    #[test]
    fn idle_upstream_waits_for_the_next_wake() {
        let control = control();
        let handle = control.handle().clone();
        control.set_idle(Duration::from_secs(1));
        handle.wake();
        assert!(control.wake_requested().now_or_never().is_some());
        // Two called at once, and one connection was enough for both.
        handle.wake();
        control.set_idle(Duration::from_secs(1));
        assert!(control.wake_requested().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_call_fails_when_the_attempt_ends() {
        let control = control();
        let handle = control.handle().clone();
        control.set_pending(problem(Reason::Exited), Instant::now() + Duration::from_hours(1));
        let waiting = tokio::spawn({
            let handle = handle.clone();
            async move { handle.begin_call().await.map(drop) }
        });
        tokio::task::yield_now().await;
        control.set_refused(CallRefusal::Unavailable(problem(Reason::Timeout)));
        let refusal = waiting.await.unwrap().unwrap_err();
        assert!(matches!(refusal, CallRefusal::Unavailable(problem) if problem.reason == Reason::Timeout));
    }
}
