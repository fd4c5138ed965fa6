//! Legacy sessions: what is known of one here, and the table of all.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::agent_subscriptions::{AgentNotification, AgentSubscriptions, Notifications};
use super::session_id::{SealError, SealedSession, SessionKey};
use crate::upstream::{PublishedNotification, Subscriptions, ViewName};
use crate::wire::{JsonRpcId, ListKind, LogLevel};

/// The lists whose changes are told, each by a notice of its own.
pub(super) const TOLD: [ListKind; 3] = [ListKind::Tools, ListKind::Prompts, ListKind::Resources];
/// Beyond so many sessions the idle ones are dropped; a sealed id brings one back.
const LIMIT: usize = 10_000;
/// So many ended sessions are remembered, so that their ids are refused.
const ENDED: usize = 4_096;

/// What this process knows of one session; its id holds all that must outlive the process.
#[derive(Debug)]
pub(super) struct Session {
    view: ViewName,
    /// The protocol version that was agreed on.
    version: Box<str>,
    /// The version of each list that the agent has, plus one; 0 if that is not known here.
    listed: [(ListKind, AtomicU64); 3],
    /// What the agent wants to hear beside that.
    interest: Mutex<AgentSubscriptions>,
    interested: Notify,
    /// Set by use, cleared by each look for idle sessions.
    used: AtomicBool,
    /// The open notice streams in the order of their opening. Only the newest tells anything.
    streams: Mutex<Vec<u64>>,
    next_stream: AtomicU64,
    /// Requests in flight; taking one out cancels it.
    calls: Mutex<HashMap<JsonRpcId, oneshot::Sender<()>>>,
    ended: CancellationToken,
}

impl Session {
    fn new(handshake: &SealedSession, listed: impl Fn(ListKind) -> u64) -> Arc<Self> {
        Arc::new(Self {
            view: handshake.view(),
            version: handshake.version.as_str().into(),
            listed: TOLD.map(|list| (list, AtomicU64::new(listed(list)))),
            interest: Mutex::default(),
            interested: Notify::new(),
            used: AtomicBool::new(true),
            streams: Mutex::default(),
            next_stream: AtomicU64::new(0),
            calls: Mutex::default(),
            ended: CancellationToken::new(),
        })
    }

    /// The view that the session was opened on.
    pub(super) fn view(&self) -> &ViewName {
        &self.view
    }

    /// Notes that the agent got the list of this version.
    pub(super) fn has_listed(&self, list: ListKind, version: u64) {
        if let Some(listed) = self.listed(list) {
            listed.fetch_max(version + 1, Ordering::Relaxed);
        }
    }

    /// True if the agent may have another list than this one.
    pub(super) fn may_miss(&self, list: ListKind, version: u64) -> bool {
        self.listed(list).is_some_and(|listed| listed.load(Ordering::Relaxed) < version + 1)
    }

    fn listed(&self, list: ListKind) -> Option<&AtomicU64> {
        self.listed.iter().find(|(known, _)| *known == list.told_as()).map(|(_, listed)| listed)
    }

    /// Changes what the agent wants to hear; the stream that tells takes notice.
    pub(super) fn interest<T>(&self, change: impl FnOnce(&mut AgentSubscriptions) -> T) -> T {
        let result = change(&mut self.interest.lock());
        self.interested.notify_waiters();
        result
    }

    /// Where what the agent wants to hear comes in, if no stream has taken it yet.
    pub(super) fn take_ears(&self) -> Option<Notifications> {
        self.interest.lock().take_ears()
    }

    /// The same for a stream that opens, with what may have been missed.
    pub(super) fn new_ears(
        &self,
        listeners: &Subscriptions,
    ) -> Option<(Notifications, Vec<AgentNotification>)> {
        self.interest.lock().new_ears(listeners)
    }

    /// What the agent is to be told of something that a server told; `None` stands for what was lost.
    pub(super) fn sift(
        &self,
        told: Option<&PublishedNotification>,
        shows: impl Fn(&str) -> bool,
    ) -> Vec<AgentNotification> {
        self.interest.lock().sift(told, shows)
    }

    /// From which level on the agent wants log messages.
    pub(super) fn level(&self) -> Option<LogLevel> {
        self.interest.lock().level()
    }

    /// Completes when what the agent wants to hear may have changed since this was called.
    pub(super) fn interested(&self) -> Notified<'_> {
        self.interested.notified()
    }

    /// Completes when the agent ended the session.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Opens a notice stream, which then is the one that tells.
    pub(super) fn open_stream(self: &Arc<Self>) -> OpenStream {
        let number = self.next_stream.fetch_add(1, Ordering::Relaxed);
        self.streams.lock().push(number);
        OpenStream { session: self.clone(), number }
    }

    /// Puts a request among those in flight. `None` if one with this id is there already.
    pub(super) fn begin(self: &Arc<Self>, id: JsonRpcId) -> Option<InFlight> {
        let (cancel, cancelled) = oneshot::channel();
        match self.calls.lock().entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => return None,
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(cancel),
        };
        Some(InFlight { session: self.clone(), id, cancelled })
    }

    /// Cancels a request in flight; of others there is nothing to cancel.
    pub(super) fn cancel(&self, id: &JsonRpcId) {
        self.calls.lock().remove(id);
    }

    fn end(&self) {
        self.ended.cancel();
        self.calls.lock().clear();
    }

    fn is_idle(&self) -> bool {
        self.streams.lock().is_empty() && self.calls.lock().is_empty()
    }
}

/// An open notice stream.
#[derive(Debug)]
pub(super) struct OpenStream {
    pub(super) session: Arc<Session>,
    number: u64,
}

impl OpenStream {
    /// True if no newer stream of the session is open: one message goes to one stream.
    pub(super) fn tells(&self) -> bool {
        self.session.streams.lock().last() == Some(&self.number)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.session.streams.lock().retain(|number| *number != self.number);
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    session: Arc<Session>,
    id: JsonRpcId,
    cancelled: oneshot::Receiver<()>,
}

impl InFlight {
    /// The protocol version of its session.
    pub(super) fn version(&self) -> &str {
        &self.session.version
    }

    /// Completes when the agent cancelled the request. Cancel safe; not to be called again after that.
    pub(super) async fn cancelled(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _ = (&mut self.cancelled).await;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // After a cancel the id may be in use again.
        if self.cancelled.try_recv() != Err(oneshot::error::TryRecvError::Closed) {
            self.session.calls.lock().remove(&self.id);
        }
    }
}

/// All sessions that this process knows. Looking one up takes no lock.
#[derive(Debug)]
pub(super) struct Sessions {
    key: SessionKey,
    known: ArcSwap<imbl::HashMap<Arc<str>, Arc<Session>>>,
    changing: Mutex<Ended>,
}

#[derive(Debug, Default)]
struct Ended {
    ids: HashSet<Arc<str>>,
    by_age: VecDeque<Arc<str>>,
}

impl Sessions {
    pub(super) fn new(key: SessionKey) -> Self {
        Self { key, known: ArcSwap::default(), changing: Mutex::default() }
    }

    /// Opens a session whose agent will list what there is now, and gives its id.
    pub(super) fn open(
        &self,
        handshake: &SealedSession,
        version: impl Fn(ListKind) -> u64,
    ) -> Result<String, SealError> {
        let id = self.key.seal(handshake)?;
        let _changing = self.changing.lock();
        self.insert(id.as_str().into(), Session::new(handshake, |list| version(list) + 1));
        Ok(id)
    }

    /// The session with this id on this view: known here, or taken up. `None` is HTTP 404.
    pub(super) fn get(&self, id: &str, view: &ViewName) -> Option<Arc<Session>> {
        let session = match self.known.load().get(id) {
            Some(session) => session.clone(),
            None => self.take_up(id)?,
        };
        session.used.store(true, Ordering::Relaxed);
        (session.view() == view).then_some(session)
    }

    /// Ends a session: its streams close, its requests are cancelled, its id is refused.
    pub(super) fn end(&self, id: &str) {
        let mut ended = self.changing.lock();
        let mut known = imbl::HashMap::clone(&self.known.load());
        if let Some(session) = known.remove(id) {
            self.known.store(Arc::new(known));
            session.end();
        }
        let id: Arc<str> = id.into();
        if ended.ids.insert(id.clone()) {
            ended.by_age.push_back(id);
        }
        if ended.by_age.len() > ENDED
            && let Some(oldest) = ended.by_age.pop_front()
        {
            ended.ids.remove(&oldest);
        }
    }

    /// Forgets the sessions that were not used since the last time this was called.
    pub(super) fn forget_idle(&self) {
        let _changing = self.changing.lock();
        self.retain(|session| session.used.swap(false, Ordering::Relaxed) || !session.is_idle());
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.known.load().len()
    }

    fn take_up(&self, id: &str) -> Option<Arc<Session>> {
        let handshake = self.key.open(id)?;
        let ended = self.changing.lock();
        if ended.ids.contains(id) {
            return None;
        }
        if let Some(session) = self.known.load().get(id) {
            return Some(session.clone());
        }
        let session = Session::new(&handshake, |_| 0);
        self.insert(id.into(), session.clone());
        Some(session)
    }

    fn insert(&self, id: Arc<str>, session: Arc<Session>) {
        if self.len() >= LIMIT {
            self.retain(|session| !session.is_idle());
        }
        let mut known = imbl::HashMap::clone(&self.known.load());
        known.insert(id, session);
        self.known.store(Arc::new(known));
    }

    fn retain(&self, keep: impl Fn(&Session) -> bool) {
        let mut known = imbl::HashMap::clone(&self.known.load());
        known.retain(|_, session| keep(session));
        self.known.store(Arc::new(known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(SessionKey::new(b"k").unwrap())
    }

    fn handshake() -> SealedSession {
        SealedSession {
            version: "2025-11-25".into(),
            client: "a".into(),
            client_version: "1".into(),
            namespace: None,
            issued_at: 0,
        }
    }

    const ALL: ViewName = ViewName::Everything;

    #[test]
    fn another_process_takes_a_session_up() {
        let id = sessions().open(&handshake(), |_| 7).unwrap();
        let other = sessions();
        assert!(other.get(&id, &ViewName::Namespace("default".into())).is_none());
        let session = other.get(&id, &ALL).unwrap();
        assert!(session.may_miss(ListKind::Tools, 0), "what its agent has is not known here");
        session.has_listed(ListKind::Tools, 3);
        assert!(!session.may_miss(ListKind::Tools, 3) && session.may_miss(ListKind::Tools, 4));
        session.has_listed(ListKind::Templates, 2);
        assert!(!session.may_miss(ListKind::Tools, 3));
        assert!(!session.may_miss(ListKind::Resources, 2) && session.may_miss(ListKind::Prompts, 2));
        assert!(Arc::ptr_eq(&session, &other.get(&id, &ALL).unwrap()));
    }

    #[test]
    fn an_ended_session_does_not_come_back() {
        let sessions = sessions();
        let id = sessions.open(&handshake(), |_| 0).unwrap();
        let session = sessions.get(&id, &ALL).unwrap();
        let mut call = session.begin(JsonRpcId::number(1)).unwrap();
        sessions.end(&id);
        assert!(sessions.get(&id, &ALL).is_none());
        assert!(call.cancelled.try_recv().is_err() && session.ended.is_cancelled());
        for _ in 0..ENDED {
            sessions.end("x");
            sessions.end(&sessions.open(&handshake(), |_| 0).unwrap());
        }
        assert!(sessions.changing.lock().ids.len() <= ENDED);
    }

    #[test]
    fn idle_sessions_are_forgotten_and_busy_ones_are_not() {
        let sessions = sessions();
        let [idle, streaming, calling] = [(); 3].map(|()| sessions.open(&handshake(), |_| 0).unwrap());
        let _stream = sessions.get(&streaming, &ALL).unwrap().open_stream();
        let _call = sessions.get(&calling, &ALL).unwrap().begin(JsonRpcId::number(1)).unwrap();
        sessions.forget_idle();
        assert_eq!(sessions.len(), 3);
        sessions.forget_idle();
        assert_eq!(sessions.len(), 2);
        assert!(sessions.get(&idle, &ALL).unwrap().may_miss(ListKind::Tools, 0));
        assert!(!sessions.get(&streaming, &ALL).unwrap().may_miss(ListKind::Tools, 0));
    }

    #[test]
    fn the_newest_stream_tells_and_the_one_before_follows() {
        let sessions = sessions();
        let id = sessions.open(&handshake(), |_| 0).unwrap();
        let session = sessions.get(&id, &ALL).unwrap();
        let first = session.open_stream();
        let second = session.open_stream();
        assert!(!first.tells() && second.tells());
        drop(second);
        assert!(first.tells());
    }

    #[test]
    fn a_request_is_cancelled_once_and_its_id_is_free_after_that() {
        let sessions = sessions();
        let id = sessions.open(&handshake(), |_| 0).unwrap();
        let session = sessions.get(&id, &ALL).unwrap();
        let mut first = session.begin(JsonRpcId::number(1)).unwrap();
        assert!(session.begin(JsonRpcId::number(1)).is_none());
        session.cancel(&JsonRpcId::number(2));
        assert_eq!(first.cancelled.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        session.cancel(&JsonRpcId::number(1));
        let second = session.begin(JsonRpcId::number(1)).unwrap();
        drop(first);
        assert!(session.begin(JsonRpcId::number(1)).is_none(), "the second is in flight still");
        drop(second);
        assert!(session.begin(JsonRpcId::number(1)).is_some());
    }
}
