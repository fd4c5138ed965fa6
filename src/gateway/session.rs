//! Legacy sessions: what is known of one here, and the table of all.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use super::agent_subscriptions::{AgentNotification, AgentSubscriptions, NotificationReceiver};
use super::session_id::{SealError, SealedSession, SessionKey};
use crate::upstream::{PublishedNotification, Subscriptions, ViewName};
use crate::wire::{JsonRpcId, ListKind, LogLevel};

/// The lists whose changes are told, each by a notice of its own.
pub(super) const NOTIFIED_LISTS: [ListKind; 3] = [ListKind::Tools, ListKind::Prompts, ListKind::Resources];
/// Beyond so many sessions the idle ones are dropped; a sealed id brings one back.
const MAX_SESSIONS: usize = 10_000;
/// So many ended sessions are remembered, so that their ids are refused.
const MAX_ENDED_IDS: usize = 4_096;

/// What this process knows of one session; its id holds all that must outlive the process.
#[derive(Debug)]
pub(super) struct Session {
    view: ViewName,
    /// The protocol version that was agreed on.
    protocol_version: Box<str>,
    /// The version of each list that the agent has, plus one; 0 if that is not known here.
    listed_versions: [(ListKind, AtomicU64); 3],
    /// What the agent wants to hear beside that.
    subscriptions: Mutex<AgentSubscriptions>,
    subscriptions_changed: Notify,
    /// Set by use, cleared by each look for idle sessions.
    recently_used: AtomicBool,
    /// The open notice streams in the order of their opening. Only the newest tells anything.
    open_streams: Mutex<Vec<u64>>,
    next_stream_number: AtomicU64,
    /// Requests in flight; taking one out cancels it.
    in_flight: Mutex<HashMap<JsonRpcId, oneshot::Sender<()>>>,
    ended: CancellationToken,
}

impl Session {
    fn new(handshake: &SealedSession, listed: impl Fn(ListKind) -> u64) -> Arc<Self> {
        Arc::new(Self {
            view: handshake.view(),
            protocol_version: handshake.version.as_str().into(),
            listed_versions: NOTIFIED_LISTS.map(|list| (list, AtomicU64::new(listed(list)))),
            subscriptions: Mutex::default(),
            subscriptions_changed: Notify::new(),
            recently_used: AtomicBool::new(true),
            open_streams: Mutex::default(),
            next_stream_number: AtomicU64::new(0),
            in_flight: Mutex::default(),
            ended: CancellationToken::new(),
        })
    }

    /// The view that the session was opened on.
    pub(super) fn view(&self) -> &ViewName {
        &self.view
    }

    /// Notes that the agent got the list of this version.
    pub(super) fn record_listed(&self, list: ListKind, version: u64) {
        if let Some(listed) = self.listed_version(list) {
            listed.fetch_max(version + 1, Ordering::Relaxed);
        }
    }

    /// True if the agent may have another list than this one.
    pub(super) fn may_be_outdated(&self, list: ListKind, version: u64) -> bool {
        self.listed_version(list).is_some_and(|listed| listed.load(Ordering::Relaxed) < version + 1)
    }

    fn listed_version(&self, list: ListKind) -> Option<&AtomicU64> {
        self.listed_versions.iter().find(|(known, _)| *known == list.notified_as()).map(|(_, listed)| listed)
    }

    /// Changes what the agent wants to hear; the stream that tells takes notice.
    pub(super) fn update_subscriptions<T>(&self, change: impl FnOnce(&mut AgentSubscriptions) -> T) -> T {
        let result = change(&mut self.subscriptions.lock());
        self.subscriptions_changed.notify_waiters();
        result
    }

    /// Where what the agent wants to hear comes in, if no stream has taken it yet.
    pub(super) fn take_receiver(&self) -> Option<NotificationReceiver> {
        self.subscriptions.lock().take_receiver()
    }

    /// The same for a stream that opens, with what may have been missed.
    pub(super) fn receiver_for_new_stream(
        &self,
        listeners: &Subscriptions,
    ) -> Option<(NotificationReceiver, Vec<AgentNotification>)> {
        self.subscriptions.lock().receiver_for_new_stream(listeners)
    }

    /// What the agent is to be told of something that a server told; `None` stands for what was lost.
    pub(super) fn select_notifications(
        &self,
        told: Option<&PublishedNotification>,
        shows: impl Fn(&str) -> bool,
    ) -> Vec<AgentNotification> {
        self.subscriptions.lock().select_notifications(told, shows)
    }

    /// From which level on the agent wants log messages.
    pub(super) fn log_level(&self) -> Option<LogLevel> {
        self.subscriptions.lock().log_level()
    }

    /// Completes when what the agent wants to hear may have changed since this was called.
    pub(super) fn subscriptions_changed(&self) -> Notified<'_> {
        self.subscriptions_changed.notified()
    }

    /// Completes when the agent ended the session.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Opens a notice stream, which then is the one that tells.
    pub(super) fn open_stream(self: &Arc<Self>) -> OpenStream {
        let number = self.next_stream_number.fetch_add(1, Ordering::Relaxed);
        self.open_streams.lock().push(number);
        OpenStream { session: self.clone(), number }
    }

    /// Puts a request among those in flight. `None` if one with this id is there already.
    pub(super) fn begin_request(self: &Arc<Self>, id: JsonRpcId) -> Option<InFlightRequest> {
        let (cancel, cancelled) = oneshot::channel();
        match self.in_flight.lock().entry(id.clone()) {
            std::collections::hash_map::Entry::Occupied(_) => return None,
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(cancel),
        };
        Some(InFlightRequest { session: self.clone(), id, cancelled })
    }

    /// Cancels a request in flight; of others there is nothing to cancel.
    pub(super) fn cancel_request(&self, id: &JsonRpcId) {
        self.in_flight.lock().remove(id);
    }

    fn end(&self) {
        self.ended.cancel();
        self.in_flight.lock().clear();
    }

    fn is_idle(&self) -> bool {
        self.open_streams.lock().is_empty() && self.in_flight.lock().is_empty()
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
    pub(super) fn is_newest(&self) -> bool {
        self.session.open_streams.lock().last() == Some(&self.number)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.session.open_streams.lock().retain(|number| *number != self.number);
    }
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct InFlightRequest {
    session: Arc<Session>,
    id: JsonRpcId,
    cancelled: oneshot::Receiver<()>,
}

impl InFlightRequest {
    /// The protocol version of its session.
    pub(super) fn protocol_version(&self) -> &str {
        &self.session.protocol_version
    }

    /// Completes when the agent cancelled the request. Cancel safe; not to be called again after that.
    pub(super) async fn cancelled(&mut self) {
        // Nothing is ever sent: the sender is dropped.
        let _ = (&mut self.cancelled).await;
    }
}

impl Drop for InFlightRequest {
    fn drop(&mut self) {
        // After a cancel the id may be in use again.
        if self.cancelled.try_recv() != Err(oneshot::error::TryRecvError::Closed) {
            self.session.in_flight.lock().remove(&self.id);
        }
    }
}

/// All sessions that this process knows. Looking one up takes no lock.
#[derive(Debug)]
pub(super) struct Sessions {
    key: SessionKey,
    by_id: ArcSwap<imbl::HashMap<Arc<str>, Arc<Session>>>,
    ended: Mutex<EndedSessions>,
}

#[derive(Debug, Default)]
struct EndedSessions {
    ids: HashSet<Arc<str>>,
    by_age: VecDeque<Arc<str>>,
}

impl Sessions {
    pub(super) fn new(key: SessionKey) -> Self {
        Self { key, by_id: ArcSwap::default(), ended: Mutex::default() }
    }

    /// Opens a session whose agent will list what there is now, and gives its id.
    pub(super) fn open(
        &self,
        handshake: &SealedSession,
        version: impl Fn(ListKind) -> u64,
    ) -> Result<String, SealError> {
        let id = self.key.seal(handshake)?;
        let _changing = self.ended.lock();
        self.insert(id.as_str().into(), Session::new(handshake, |list| version(list) + 1));
        Ok(id)
    }

    /// The session with this id on this view: known here, or taken up. `None` is HTTP 404.
    pub(super) fn get(&self, id: &str, view: &ViewName) -> Option<Arc<Session>> {
        let session = match self.by_id.load().get(id) {
            Some(session) => session.clone(),
            None => self.restore(id)?,
        };
        session.recently_used.store(true, Ordering::Relaxed);
        (session.view() == view).then_some(session)
    }

    /// Ends a session: its streams close, its requests are cancelled, its id is refused.
    pub(super) fn end(&self, id: &str) {
        let mut ended = self.ended.lock();
        let mut known = imbl::HashMap::clone(&self.by_id.load());
        if let Some(session) = known.remove(id) {
            self.by_id.store(Arc::new(known));
            session.end();
        }
        let id: Arc<str> = id.into();
        if ended.ids.insert(id.clone()) {
            ended.by_age.push_back(id);
        }
        if ended.by_age.len() > MAX_ENDED_IDS
            && let Some(oldest) = ended.by_age.pop_front()
        {
            ended.ids.remove(&oldest);
        }
    }

    /// Forgets the sessions that were not used since the last time this was called.
    pub(super) fn remove_idle(&self) {
        let _changing = self.ended.lock();
        self.retain(|session| session.recently_used.swap(false, Ordering::Relaxed) || !session.is_idle());
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.by_id.load().len()
    }

    fn restore(&self, id: &str) -> Option<Arc<Session>> {
        let handshake = self.key.open(id)?;
        let ended = self.ended.lock();
        if ended.ids.contains(id) {
            return None;
        }
        if let Some(session) = self.by_id.load().get(id) {
            return Some(session.clone());
        }
        let session = Session::new(&handshake, |_| 0);
        self.insert(id.into(), session.clone());
        Some(session)
    }

    fn insert(&self, id: Arc<str>, session: Arc<Session>) {
        if self.len() >= MAX_SESSIONS {
            self.retain(|session| !session.is_idle());
        }
        let mut known = imbl::HashMap::clone(&self.by_id.load());
        known.insert(id, session);
        self.by_id.store(Arc::new(known));
    }

    fn retain(&self, keep: impl Fn(&Session) -> bool) {
        let mut known = imbl::HashMap::clone(&self.by_id.load());
        known.retain(|_, session| keep(session));
        self.by_id.store(Arc::new(known));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(SessionKey::new(b"k").unwrap())
    }

    fn sealed_session() -> SealedSession {
        SealedSession {
            version: "2025-11-25".into(),
            client: "a".into(),
            client_version: "1".into(),
            namespace: None,
            issued_at: 0,
        }
    }

    const EVERYTHING: ViewName = ViewName::All;

    #[test]
    fn session_is_restored_by_another_process() {
        let id = sessions().open(&sealed_session(), |_| 7).unwrap();
        let other = sessions();
        assert!(other.get(&id, &ViewName::Namespace("default".into())).is_none());
        let session = other.get(&id, &EVERYTHING).unwrap();
        assert!(session.may_be_outdated(ListKind::Tools, 0), "what its agent has is not known here");
        session.record_listed(ListKind::Tools, 3);
        assert!(!session.may_be_outdated(ListKind::Tools, 3) && session.may_be_outdated(ListKind::Tools, 4));
        session.record_listed(ListKind::Templates, 2);
        assert!(!session.may_be_outdated(ListKind::Tools, 3));
        assert!(
            !session.may_be_outdated(ListKind::Resources, 2) && session.may_be_outdated(ListKind::Prompts, 2)
        );
        assert!(Arc::ptr_eq(&session, &other.get(&id, &EVERYTHING).unwrap()));
    }

    #[test]
    fn ended_session_is_not_restored() {
        let sessions = sessions();
        let id = sessions.open(&sealed_session(), |_| 0).unwrap();
        let session = sessions.get(&id, &EVERYTHING).unwrap();
        let mut call = session.begin_request(JsonRpcId::from_number(1)).unwrap();
        sessions.end(&id);
        assert!(sessions.get(&id, &EVERYTHING).is_none());
        assert!(call.cancelled.try_recv().is_err() && session.ended.is_cancelled());
        for _ in 0..MAX_ENDED_IDS {
            sessions.end("x");
            sessions.end(&sessions.open(&sealed_session(), |_| 0).unwrap());
        }
        assert!(sessions.ended.lock().ids.len() <= MAX_ENDED_IDS);
    }

    #[test]
    fn idle_sessions_are_removed_and_busy_ones_kept() {
        let sessions = sessions();
        let [idle, streaming, calling] = [(); 3].map(|()| sessions.open(&sealed_session(), |_| 0).unwrap());
        let _stream = sessions.get(&streaming, &EVERYTHING).unwrap().open_stream();
        let _call =
            sessions.get(&calling, &EVERYTHING).unwrap().begin_request(JsonRpcId::from_number(1)).unwrap();
        sessions.remove_idle();
        assert_eq!(sessions.len(), 3);
        sessions.remove_idle();
        assert_eq!(sessions.len(), 2);
        assert!(sessions.get(&idle, &EVERYTHING).unwrap().may_be_outdated(ListKind::Tools, 0));
        assert!(!sessions.get(&streaming, &EVERYTHING).unwrap().may_be_outdated(ListKind::Tools, 0));
    }

    #[test]
    fn newest_stream_is_active_then_the_previous_one() {
        let sessions = sessions();
        let id = sessions.open(&sealed_session(), |_| 0).unwrap();
        let session = sessions.get(&id, &EVERYTHING).unwrap();
        let first = session.open_stream();
        let second = session.open_stream();
        assert!(!first.is_newest() && second.is_newest());
        drop(second);
        assert!(first.is_newest());
    }

    #[test]
    fn cancelled_request_frees_its_id() {
        let sessions = sessions();
        let id = sessions.open(&sealed_session(), |_| 0).unwrap();
        let session = sessions.get(&id, &EVERYTHING).unwrap();
        let mut first = session.begin_request(JsonRpcId::from_number(1)).unwrap();
        assert!(session.begin_request(JsonRpcId::from_number(1)).is_none());
        session.cancel_request(&JsonRpcId::from_number(2));
        assert_eq!(first.cancelled.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        session.cancel_request(&JsonRpcId::from_number(1));
        let second = session.begin_request(JsonRpcId::from_number(1)).unwrap();
        drop(first);
        assert!(session.begin_request(JsonRpcId::from_number(1)).is_none(), "the second is in flight still");
        drop(second);
        assert!(session.begin_request(JsonRpcId::from_number(1)).is_some());
    }
}
