use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use imbl::OrdMap;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::caller_id::CallerId;
use super::handle::{CallRefusal, UpstreamHandle};
use crate::resource::{ObjectKey, Problem, Reason};
use crate::wire::ClientCapabilities;

/// The connections that callers have of their own, to servers with `isolation: Session`. Cheap to clone; there is one per
/// process.
///
/// The gateway asks for the connection of a caller; the fleet makes and ends them. A caller gets only its own connection.
#[derive(Clone, Debug, Default)]
pub struct CallerConnections(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    requested: Notify,
    /// The number of connections of each server that has any.
    counts: watch::Sender<OrdMap<ObjectKey, u32>>,
}

#[derive(Debug, Default)]
struct State {
    by_caller: HashMap<CallerId, HashMap<ObjectKey, Entry>>,
    /// The requests that the fleet has not taken yet.
    requests: VecDeque<CallerRequest>,
    /// True once the fleet has ended.
    is_closed: bool,
}

#[derive(Debug)]
struct Entry {
    /// Tells the connection from earlier ones of the same caller.
    number: u64,
    handle: UpstreamHandle,
    /// True if the server gets the roots of the caller.
    has_roots: bool,
    /// When the connection was last given to a call.
    used_at: Instant,
}

/// A connection of a caller: its server, its caller, and its number, which no other one has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CallerConnectionKey {
    /// The server.
    pub server: ObjectKey,
    /// The caller.
    pub caller: CallerId,
    /// The number.
    pub number: u64,
}

/// A request to the fleet.
#[derive(Debug)]
pub enum CallerRequest {
    /// A caller needs a connection.
    Connect(ConnectRequest),
    /// A caller has ended, and its connections with it.
    End(CallerId),
}

/// The request for a connection of a caller.
#[derive(Debug)]
pub struct ConnectRequest {
    /// The server.
    pub server: ObjectKey,
    /// The caller.
    pub caller: CallerId,
    /// The capabilities of the caller, which the handshake declares.
    pub capabilities: ClientCapabilities,
    /// The handle of the connection from which the published lists were read.
    pub catalog: UpstreamHandle,
    /// Takes the answer.
    pub answer: oneshot::Sender<Result<UpstreamHandle, ConnectRefusal>>,
}

/// The reason for which a caller gets no connection. Nothing was sent to the server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectRefusal {
    /// The server has as many connections as `spec.maxSessions` permits.
    #[error("{0} callers have a connection")]
    TooMany(u16),
    /// The server cannot be called.
    #[error("{0}")]
    Refused(CallRefusal),
}

impl CallerConnections {
    /// Returns the handle of a caller's connection to a server, and has the fleet make one if there is none.
    ///
    /// # Errors
    ///
    /// Returns why the caller gets none.
    pub async fn connect(
        &self,
        server: &ObjectKey,
        caller: &CallerId,
        capabilities: ClientCapabilities,
        catalog: &UpstreamHandle,
    ) -> Result<UpstreamHandle, ConnectRefusal> {
        if let Some(handle) = self.find(server, caller) {
            return Ok(handle);
        }
        let (answer, answered) = oneshot::channel();
        let request = ConnectRequest {
            server: server.clone(),
            caller: caller.clone(),
            capabilities,
            catalog: catalog.clone(),
            answer,
        };
        self.request(CallerRequest::Connect(request));
        answered.await.unwrap_or_else(|_| {
            let problem = Problem::new(Reason::Detached, "evenkeel is shutting down");
            Err(ConnectRefusal::Refused(CallRefusal::Unavailable(problem)))
        })
    }

    /// Returns the handle of a caller's connection to a server, if it has one, for a call.
    pub fn find(&self, server: &ObjectKey, caller: &CallerId) -> Option<UpstreamHandle> {
        let mut state = self.0.state.lock();
        let entry = state.by_caller.get_mut(caller)?.get_mut(server)?;
        entry.used_at = Instant::now();
        Some(entry.handle.clone())
    }

    /// Returns the handles of a caller's connections to servers that get its roots.
    pub fn handles_with_roots(&self, caller: &CallerId) -> Vec<UpstreamHandle> {
        let state = self.0.state.lock();
        let entries = state.by_caller.get(caller).into_iter().flat_map(HashMap::values);
        entries.filter(|entry| entry.has_roots).map(|entry| entry.handle.clone()).collect()
    }

    /// Ends all connections of a caller.
    pub fn end(&self, caller: &CallerId) {
        let is_known = {
            let state = self.0.state.lock();
            // A request for a connection may still wait.
            state.by_caller.contains_key(caller) || !state.requests.is_empty()
        };
        if is_known {
            self.request(CallerRequest::End(caller.clone()));
        }
    }

    /// Returns the receiver of the number of connections of each server that has any.
    pub fn counts(&self) -> watch::Receiver<OrdMap<ObjectKey, u32>> {
        self.0.counts.subscribe()
    }

    /// Returns the number of connections of a server.
    pub fn count(&self, server: &ObjectKey) -> u32 {
        self.0.counts.borrow().get(server).copied().unwrap_or_default()
    }

    /// Waits for the next request. Cancel safe; only the fleet may wait.
    pub async fn next_request(&self) -> CallerRequest {
        loop {
            let request = self.0.state.lock().requests.pop_front();
            if let Some(request) = request {
                return request;
            }
            self.0.requested.notified().await;
        }
    }

    /// Adds a connection, which replaces an earlier one of the same caller to the same server.
    pub fn add(&self, key: &CallerConnectionKey, handle: UpstreamHandle, has_roots: bool) {
        let CallerConnectionKey { server, caller, number } = key;
        let entry = Entry { number: *number, handle, has_roots, used_at: Instant::now() };
        let mut state = self.0.state.lock();
        let replaced = state.by_caller.entry(caller.clone()).or_default().insert(server.clone(), entry);
        if replaced.is_none() {
            self.0.counts.send_modify(|counts| *counts.entry(server.clone()).or_default() += 1);
        }
    }

    /// Removes a connection: the next call of its caller needs another one. Does nothing if it is not there any more.
    pub fn remove(&self, key: &CallerConnectionKey) {
        let CallerConnectionKey { server, caller, number } = key;
        let mut state = self.0.state.lock();
        let Some(servers) = state.by_caller.get_mut(caller) else { return };
        if servers.get(server).is_none_or(|entry| entry.number != *number) {
            return;
        }
        servers.remove(server);
        if servers.is_empty() {
            state.by_caller.remove(caller);
        }
        self.0.counts.send_modify(|counts| match counts.get(server) {
            Some(count @ 2..) => drop(counts.insert(server.clone(), count - 1)),
            _ => drop(counts.remove(server)),
        });
    }

    /// Returns the time since a connection was last given to a call; `None` if it was removed.
    pub fn unused_for(&self, key: &CallerConnectionKey) -> Option<Duration> {
        let state = self.0.state.lock();
        let entry = state.by_caller.get(&key.caller)?.get(&key.server)?;
        (entry.number == key.number).then(|| entry.used_at.elapsed())
    }

    /// Refuses all requests from now on: the fleet has ended.
    pub fn close(&self) {
        let mut state = self.0.state.lock();
        state.is_closed = true;
        state.requests.clear();
    }

    fn request(&self, request: CallerRequest) {
        let mut state = self.0.state.lock();
        if !state.is_closed {
            state.requests.push_back(request);
            self.0.requested.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::upstream::UpstreamControl;

    fn server(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    fn connection(name: &str, caller: &str, number: u64) -> (CallerConnectionKey, UpstreamHandle) {
        let refusal = CallRefusal::Unavailable(Problem::new(Reason::Connecting, "why"));
        let handle = UpstreamControl::new(server(name), refusal).handle().clone();
        (CallerConnectionKey { server: server(name), caller: CallerId::Path(caller.into()), number }, handle)
    }

    #[test]
    fn connections_are_found_by_their_callers_and_counted() {
        let connections = CallerConnections::default();
        let counts = connections.counts();
        for (name, caller, number) in [("s", "a", 1), ("s", "b", 2), ("t", "a", 3)] {
            let (key, handle) = connection(name, caller, number);
            connections.add(&key, handle, name == "t");
        }
        let (a, b, c) =
            (CallerId::Path("a".into()), CallerId::Path("b".into()), CallerId::Session("a".into()));
        let found = |caller| connections.find(&server("s"), caller).is_some();
        assert_eq!([found(&a), found(&b), found(&c)], [true, true, false]);
        assert_eq!(counts.borrow().iter().map(|(_, count)| *count).collect::<Vec<_>>(), [2, 1]);
        assert_eq!([&a, &b].map(|caller| connections.handles_with_roots(caller).len()), [1, 0]);

        // A connection of the same caller was made meanwhile.
        connections.remove(&connection("s", "a", 9).0);
        assert!(found(&a) && connections.unused_for(&connection("s", "a", 9).0).is_none());
        assert!(connections.unused_for(&connection("s", "a", 1).0).is_some());
        connections.remove(&connection("s", "a", 1).0);
        connections.remove(&connection("s", "a", 1).0);
        assert_eq!((found(&a), found(&b), connections.count(&server("s"))), (false, true, 1));
        connections.remove(&connection("s", "b", 2).0);
        assert_eq!((connections.count(&server("s")), counts.borrow().len()), (0, 1));
    }

    #[tokio::test]
    async fn caller_without_a_connection_asks_the_fleet() {
        let connections = CallerConnections::default();
        let caller = CallerId::Path("a".into());
        connections.end(&caller);
        assert!(connections.next_request().now_or_never().is_none(), "there is nothing to end");
        let (key, handle) = connection("s", "a", 1);
        let server = server("s");
        let connecting = connections.connect(&server, &caller, ClientCapabilities::ROOTS, &handle);
        let answering = async {
            let CallerRequest::Connect(request) = connections.next_request().await else { panic!() };
            assert_eq!((&request.server, request.capabilities), (&server, ClientCapabilities::ROOTS));
            connections.add(&key, handle.clone(), false);
            request.answer.send(Ok(handle.clone())).unwrap();
        };
        let (connected, ()) = tokio::join!(connecting, answering);
        connected.unwrap();
        // The second call needs no request.
        connections
            .connect(&server, &caller, ClientCapabilities::NONE, &handle)
            .now_or_never()
            .unwrap()
            .unwrap();
        connections.end(&caller);
        assert!(matches!(connections.next_request().await, CallerRequest::End(ended) if ended == caller));
        connections.close();
        let other = CallerId::Path("b".into());
        let refused = connections.connect(&server, &other, ClientCapabilities::NONE, &handle).await;
        assert!(refused.unwrap_err().to_string().contains("shutting down"));
    }
}
