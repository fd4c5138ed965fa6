use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::call_slot::{CallCounter, CallSlot};
use super::handle_requests::{HandleRequest, HandleRequests};
use super::item::Item;
use super::lists::ServerLists;
use crate::resource::{ObjectKey, Problem, Reason};
use crate::wire::{Connection, ListKind};

/// A handle for calls to one server. It exists as long as the server is declared, independent of its connection.
///
/// Catalog routes hold clones. [`UpstreamHandle::begin_call`] never takes a lock that is shared with calls to other
/// servers.
#[derive(Clone, Debug)]
pub struct UpstreamHandle(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: ObjectKey,
    state: ArcSwap<State>,
    /// Everything that the server lists, as far as it has been read.
    lists: ArcSwap<ServerLists>,
    state_changed: Notify,
    requests: HandleRequests,
    calls: CallCounter,
}

#[derive(Clone, Debug)]
enum State {
    Live(Arc<CountedConnection>),
    /// An attempt is in progress. Calls wait for its end, at most until the deadline, and then fail with the problem.
    Pending {
        problem: Problem,
        deadline: Instant,
    },
    /// There is no connection until the next call, which waits for it, at most for the timeout.
    Idle {
        connect_timeout: Duration,
    },
    Refused(CallRefusal),
}

/// The reason for which a call cannot begin. Nothing was sent to the server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CallRefusal {
    /// The server was removed. Retrying is useless.
    #[error("{0}")]
    Removed(Problem),
    /// The server has no connection at the moment. A later call may succeed.
    #[error("{0}")]
    Unavailable(Problem),
}

/// A connection with the number of calls in flight on it.
#[derive(Debug)]
struct CountedConnection {
    connection: Connection,
    /// The number of calls in flight. The top bit, [`CLOSED_BIT`], is set if no new calls are accepted.
    calls: AtomicU64,
    drained: Notify,
    connected_at: Instant,
    /// The end of the last call, in milliseconds after `connected_at`.
    last_call_end_millis: AtomicU64,
}

/// The bit of `CountedConnection::calls` that closes a connection to new calls.
const CLOSED_BIT: u64 = 1 << 63;
/// The time for which a call on a failed connection waits for the next state.
const LOST_CONNECTION_WAIT: Duration = Duration::from_secs(1);

impl UpstreamHandle {
    /// Returns the key of the server.
    pub fn key(&self) -> &ObjectKey {
        &self.0.key
    }

    /// Counts a call that arrived for this server until the slot is dropped; `None` if there are `max` already. Those
    /// that wait in [`begin_call`](Self::begin_call) count too.
    pub fn count_call(&self, max: usize) -> Option<CallSlot> {
        self.0.calls.try_begin(max)
    }

    /// Begins a call on the live connection. The call counts as in flight until the guard is dropped.
    ///
    /// Waits only while a lost or idle server is being connected, and at most until the end of the attempt and of the
    /// server's grace period. After waiting ([`CallGuard::waited`]), the caller must check that the called item is
    /// unchanged.
    pub async fn begin_call(&self) -> Result<CallGuard, CallRefusal> {
        let (mut idle_deadline, mut lost_deadline) = (None, None);
        let mut waited = false;
        loop {
            let changed = self.0.state_changed.notified();
            let (problem, deadline) = match &**self.0.state.load() {
                State::Refused(refusal) => return Err(refusal.clone()),
                State::Live(counted) => match CallGuard::try_begin(counted, waited) {
                    // The connection has failed, and the actor is about to publish the next state.
                    Some(guard) if let Some(problem) = guard.connection().end_problem() => {
                        (problem, *lost_deadline.get_or_insert_with(|| Instant::now() + LOST_CONNECTION_WAIT))
                    }
                    Some(guard) => {
                        // A server that sent Retry-After must not get a request before the delay has passed.
                        return guard
                            .connection()
                            .retry_after_problem()
                            .map_or(Ok(guard), |problem| Err(CallRefusal::Unavailable(problem)));
                    }
                    // The connection was closed after the load; the next state is already published.
                    None => continue,
                },
                State::Pending { problem, deadline } => (problem.clone(), *deadline),
                State::Idle { connect_timeout } => {
                    let deadline = *idle_deadline.get_or_insert_with(|| Instant::now() + *connect_timeout);
                    self.0.requests.add(HandleRequest::Connect);
                    let message = format!("not connected within {} s", connect_timeout.as_secs_f64());
                    (Problem::new(Reason::Timeout, message), deadline)
                }
            };
            waited = true;
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err(CallRefusal::Unavailable(problem));
            }
        }
    }

    /// Returns everything that the server lists, as far as it has been read.
    pub fn lists(&self) -> Arc<ServerLists> {
        self.0.lists.load_full()
    }

    /// Returns true if the server lists exactly this item, as far as its lists have been read.
    pub fn lists_item(&self, list: ListKind, item: &Item) -> bool {
        let lists = self.0.lists.load();
        let items = lists.items(list);
        items
            .binary_search_by(|listed| listed.name().cmp(item.name()))
            .is_ok_and(|index| items.get(index) == Some(item))
    }

    /// Returns the live connection; `None` if there is none at the moment.
    pub fn live_connection(&self) -> Option<Connection> {
        match &**self.0.state.load() {
            State::Live(counted) => Some(counted.connection.clone()),
            _ => None,
        }
    }

    /// Returns the time for which the live connection has had no call in flight; `None` if it has one, or if there is
    /// no live connection.
    pub fn idle_for(&self) -> Option<Duration> {
        match &**self.0.state.load() {
            State::Live(counted) => counted.idle_for(),
            _ => None,
        }
    }

    /// Reports that the server did not know an item of a list: the list may have changed without a notification.
    pub fn report_unknown_item(&self, list: ListKind) {
        self.0.requests.add(HandleRequest::CheckList(list));
    }

    /// Requests a connection if the server is idle, without making a call.
    pub fn wake(&self) {
        if matches!(&**self.0.state.load(), State::Idle { .. }) {
            self.0.requests.add(HandleRequest::Connect);
        }
    }
}

/// Sets the connection state of one server. Only the server's connection actor holds it.
#[derive(Debug)]
pub struct UpstreamControl(UpstreamHandle);

impl UpstreamControl {
    /// Creates the control of a server without a connection.
    pub fn new(key: ObjectKey, refusal: CallRefusal) -> Self {
        Self(UpstreamHandle(Arc::new(Inner {
            key,
            state: ArcSwap::from_pointee(State::Refused(refusal)),
            lists: ArcSwap::default(),
            state_changed: Notify::new(),
            requests: HandleRequests::default(),
            calls: CallCounter::default(),
        })))
    }

    /// Returns the handle for calls.
    pub fn handle(&self) -> &UpstreamHandle {
        &self.0
    }

    /// Stores the lists of the server. Must be called before [`set_connection`](Self::set_connection) for the
    /// connection from which they were read.
    pub fn set_lists(&self, lists: Arc<ServerLists>) {
        self.0.0.lists.store(lists);
    }

    /// Sets the live connection. Returns the previous one, which no longer accepts calls.
    pub fn set_connection(&self, connection: Connection) -> Option<DrainingConnection> {
        let counted = Arc::new(CountedConnection {
            connection,
            calls: AtomicU64::new(0),
            drained: Notify::new(),
            connected_at: Instant::now(),
            last_call_end_millis: AtomicU64::new(0),
        });
        self.swap(State::Live(counted))
    }

    /// Makes calls wait for an attempt in progress. Returns the previous connection, which no longer accepts calls.
    pub fn set_pending(&self, problem: Problem, deadline: Instant) -> Option<DrainingConnection> {
        self.swap(State::Pending { problem, deadline })
    }

    /// Removes the connection until the next call. Returns it; it no longer accepts calls.
    pub fn set_idle(&self, connect_timeout: Duration) -> Option<DrainingConnection> {
        // Earlier requests to connect were satisfied by the previous connection.
        self.0.0.requests.remove(HandleRequest::Connect);
        self.swap(State::Idle { connect_timeout })
    }

    /// Removes the live connection until the next call, if it has had no call for `unused_for`. No call can begin in
    /// between, so the connection that is returned has none in flight.
    ///
    /// # Errors
    ///
    /// Returns the delay after which to check again.
    pub fn set_idle_if_unused(
        &self,
        unused_for: Duration,
        connect_timeout: Duration,
    ) -> Result<DrainingConnection, Duration> {
        let state = self.0.0.state.load_full();
        let State::Live(counted) = &*state else { return Err(unused_for) };
        let idle_for = counted.idle_for().unwrap_or_default();
        if idle_for < unused_for {
            return Err(unused_for.saturating_sub(idle_for));
        }
        // Closed first: a call that begins now waits for the next state, which is set below.
        let closed = counted.calls.compare_exchange(0, CLOSED_BIT, Ordering::AcqRel, Ordering::Acquire);
        closed.ok().and_then(|_| self.set_idle(connect_timeout)).ok_or(unused_for)
    }

    /// Waits for the next request of the handle's users. Cancel safe; only one task may wait.
    pub async fn next_request(&self) -> HandleRequest {
        self.0.0.requests.next().await
    }

    /// Removes the connection and makes calls fail. Returns it; it no longer accepts calls.
    pub fn set_refused(&self, refusal: CallRefusal) -> Option<DrainingConnection> {
        self.swap(State::Refused(refusal))
    }

    fn swap(&self, state: State) -> Option<DrainingConnection> {
        let previous = self.0.0.state.swap(Arc::new(state));
        self.0.0.state_changed.notify_waiters();
        match &*previous {
            State::Live(counted) => {
                counted.calls.fetch_or(CLOSED_BIT, Ordering::AcqRel);
                Some(DrainingConnection(counted.clone()))
            }
            State::Pending { .. } | State::Idle { .. } | State::Refused(_) => None,
        }
    }
}

impl Drop for UpstreamControl {
    /// Refuses calls from now on, if the owner ended without setting a state that is final.
    fn drop(&mut self) {
        if !matches!(&**self.0.0.state.load(), State::Refused(_)) {
            let message = format!("the task that manages {} ended unexpectedly", self.0.0.key.name);
            let problem = Problem::new(Reason::ConnectFailed, message);
            self.set_refused(CallRefusal::Unavailable(problem));
        }
    }
}

impl CountedConnection {
    /// Returns the time since the last call ended; `None` if one is in flight.
    fn idle_for(&self) -> Option<Duration> {
        let last_call_end = Duration::from_millis(self.last_call_end_millis.load(Ordering::Acquire));
        let is_idle = self.calls.load(Ordering::Acquire) == 0;
        is_idle.then(|| self.connected_at.elapsed().saturating_sub(last_call_end))
    }
}

/// A call in flight. It ends when this guard is dropped.
#[derive(Debug)]
pub struct CallGuard {
    counted: Arc<CountedConnection>,
    waited: bool,
}

impl CallGuard {
    fn try_begin(counted: &Arc<CountedConnection>, waited: bool) -> Option<Self> {
        let before = counted.calls.fetch_add(1, Ordering::AcqRel);
        // The guard is created first, so that dropping it decrements the count if the connection is closed.
        let guard = Self { counted: counted.clone(), waited };
        (before & CLOSED_BIT == 0).then_some(guard)
    }

    /// Returns true if the call waited for the connection. The called item may have changed in the meantime.
    pub fn waited(&self) -> bool {
        self.waited
    }

    /// Returns the connection for the call.
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

/// A connection that accepts no new calls.
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

    /// Returns the number of calls in flight.
    pub fn in_flight(&self) -> u64 {
        self.0.calls.load(Ordering::Acquire) & !CLOSED_BIT
    }

    /// Returns the connection, for closing it.
    pub fn connection(&self) -> &Connection {
        &self.0.connection
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn problem(reason: Reason) -> Problem {
        Problem::new(reason, "why")
    }

    fn control() -> UpstreamControl {
        UpstreamControl::new(ObjectKey::new("default", "a"), CallRefusal::Removed(problem(Reason::Removed)))
    }

    /// Begins a call that waits for a pending attempt.
    async fn waiting_call(control: &UpstreamControl) -> tokio::task::JoinHandle<Result<(), CallRefusal>> {
        control.set_pending(problem(Reason::Exited), Instant::now() + Duration::from_hours(1));
        let handle = control.handle().clone();
        let waiting = tokio::spawn(async move { handle.begin_call().await.map(drop) });
        tokio::task::yield_now().await;
        waiting
    }

    #[tokio::test(start_paused = true)]
    async fn call_waits_for_a_pending_attempt_until_its_deadline() {
        let control = control();
        let handle = control.handle().clone();
        assert!(matches!(handle.begin_call().await, Err(CallRefusal::Removed(_))));
        let deadline = Instant::now() + Duration::from_secs(5);
        control.set_pending(problem(Reason::Exited), deadline);
        let refusal = handle.begin_call().await.unwrap_err();
        assert!(matches!(refusal, CallRefusal::Unavailable(problem) if problem.reason == Reason::Exited));
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn idle_upstream_waits_for_the_next_wake() {
        let control = control();
        let handle = control.handle().clone();
        control.set_idle(Duration::from_secs(1));
        handle.wake();
        assert!(control.next_request().now_or_never().is_some());
        // A wake request that the previous connection satisfied does not count.
        handle.wake();
        control.set_idle(Duration::from_secs(1));
        assert!(control.next_request().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_call_fails_when_the_attempt_ends() {
        let control = control();
        let waiting = waiting_call(&control).await;
        control.set_refused(CallRefusal::Unavailable(problem(Reason::Timeout)));
        let refusal = waiting.await.unwrap().unwrap_err();
        assert!(matches!(refusal, CallRefusal::Unavailable(problem) if problem.reason == Reason::Timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_refused_once_the_owner_is_gone() {
        let control = control();
        let waiting = waiting_call(&control).await;
        drop(control);
        let refusal = waiting.await.unwrap().unwrap_err();
        assert!(
            matches!(refusal, CallRefusal::Unavailable(problem) if problem.message.contains("unexpectedly"))
        );
        // A final state is kept.
        let control = self::control();
        let handle = control.handle().clone();
        drop(control);
        assert!(matches!(handle.begin_call().await, Err(CallRefusal::Removed(_))));
    }
}
