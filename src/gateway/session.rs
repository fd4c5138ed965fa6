//! Legacy sessions: the state of one session, and the table of all.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio_util::sync::CancellationToken;

use super::agent_subscriptions::{AgentNotification, AgentSubscriptions, NotificationReceiver};
use super::in_flight::{InFlightRequest, InFlightRequests, UnacceptedRequest};
use super::input::SentInputRequests;
use super::seal::{SealError, SessionKey};
use super::session_id::SealedSession;
use crate::resource::ObjectKey;
use crate::upstream::{CallerConnections, CallerId, PublishedNotification, Subscriptions, ViewName};
use crate::wire::{ClientCapabilities, JsonRpcId, ListKind, LogLevel};

/// The lists whose changes are notified, each by its own notification.
pub(super) const NOTIFIED_LISTS: [ListKind; 3] = [ListKind::Tools, ListKind::Prompts, ListKind::Resources];
/// The number of sessions beyond which the idle ones are removed. A sealed id restores a removed session.
const MAX_SESSIONS: usize = 10_000;
/// The maximum number of ids of ended sessions that are recorded so that they are rejected.
const MAX_ENDED_IDS: usize = 4_096;

/// The state of one session in this process. The session id contains everything that must survive a restart.
#[derive(Debug)]
pub(super) struct Session {
    id: Arc<str>,
    view: ViewName,
    /// The id in the endpoint path that the session was opened on.
    path_id: Option<Arc<str>>,
    /// The negotiated protocol version.
    protocol_version: Box<str>,
    /// The version of each list that the agent last requested, plus one; 0 if it is not known to this process.
    listed_versions: [(ListKind, AtomicU64); 3],
    /// The agent's subscriptions to resources and log messages.
    subscriptions: Mutex<AgentSubscriptions>,
    subscriptions_changed: Notify,
    /// Set by each request, cleared by each removal of idle sessions.
    recently_used: AtomicBool,
    /// The numbers of the open notification streams, oldest first. Only the newest one sends notifications.
    open_streams: Mutex<Vec<u64>>,
    next_stream_number: AtomicU64,
    in_flight: InFlightRequests,
    /// The capabilities by which servers may ask the agent for input.
    input_capabilities: ClientCapabilities,
    /// The requests for input that wait for the agent.
    sent_requests: SentInputRequests,
    ended: CancellationToken,
}

impl Session {
    fn new(id: Arc<str>, sealed: &SealedSession, listed: impl Fn(ListKind) -> u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            view: sealed.view(),
            path_id: sealed.path_id.clone(),
            protocol_version: sealed.version.as_str().into(),
            listed_versions: NOTIFIED_LISTS.map(|list| (list, AtomicU64::new(listed(list)))),
            subscriptions: Mutex::default(),
            subscriptions_changed: Notify::new(),
            recently_used: AtomicBool::new(true),
            open_streams: Mutex::default(),
            next_stream_number: AtomicU64::new(0),
            in_flight: InFlightRequests::default(),
            input_capabilities: sealed.input_capabilities(),
            sent_requests: SentInputRequests::default(),
            ended: CancellationToken::new(),
        })
    }

    /// Returns what tells the agent from others.
    pub(super) fn caller_id(&self) -> CallerId {
        CallerId::Session(self.id.clone())
    }

    /// Returns the view that the session was opened on.
    pub(super) fn view(&self) -> &ViewName {
        &self.view
    }

    /// Records that the agent received this version of a list.
    pub(super) fn record_listed(&self, list: ListKind, version: u64) {
        if let Some(listed) = self.listed_version(list) {
            listed.fetch_max(version + 1, Ordering::Relaxed);
        }
    }

    /// True if the agent may have an older version of a list than this one.
    pub(super) fn may_be_outdated(&self, list: ListKind, version: u64) -> bool {
        self.listed_version(list).is_some_and(|listed| listed.load(Ordering::Relaxed) < version + 1)
    }

    fn listed_version(&self, list: ListKind) -> Option<&AtomicU64> {
        self.listed_versions.iter().find(|(kind, _)| *kind == list.notified_as()).map(|(_, listed)| listed)
    }

    /// Changes the agent's subscriptions and wakes the notification stream.
    pub(super) fn update_subscriptions<T>(&self, change: impl FnOnce(&mut AgentSubscriptions) -> T) -> T {
        let result = change(&mut self.subscriptions.lock());
        self.subscriptions_changed.notify_waiters();
        result
    }

    /// Has the agent notified once an elicitation by URL of a server is complete.
    pub(super) fn expect_elicitation(&self, subscriptions: &Subscriptions, server: &ObjectKey, id: &str) {
        let subscription = subscriptions.subscribe_elicitation(server, id);
        self.update_subscriptions(|agent| agent.subscribe_elicitation(subscriptions, subscription));
    }

    /// Takes the receiver of the agent's notifications, if no stream has taken it yet.
    pub(super) fn take_receiver(&self) -> Option<NotificationReceiver> {
        self.subscriptions.lock().take_receiver()
    }

    /// Returns the receiver for a stream that opens, with the notifications that may have been missed.
    pub(super) fn receiver_for_new_stream(
        &self,
        subscriptions: &Subscriptions,
    ) -> Option<(NotificationReceiver, Vec<AgentNotification>)> {
        self.subscriptions.lock().receiver_for_new_stream(subscriptions)
    }

    /// Returns the notifications for the agent that follow from a server's notification; `None` stands for lost ones.
    pub(super) fn select_notifications(
        &self,
        notification: Option<&PublishedNotification>,
        is_visible: impl Fn(&str) -> bool,
    ) -> Vec<AgentNotification> {
        let caller = notification.and_then(|notification| notification.caller.as_ref());
        if caller.is_some_and(|caller| *caller != self.caller_id()) {
            return Vec::new();
        }
        self.subscriptions.lock().select_notifications(notification, is_visible)
    }

    /// Returns the minimum level of log messages that the agent has set.
    pub(super) fn log_level(&self) -> Option<LogLevel> {
        self.subscriptions.lock().log_level()
    }

    /// Completes when the agent's subscriptions may have changed after this call.
    pub(super) fn subscriptions_changed(&self) -> Notified<'_> {
        self.subscriptions_changed.notified()
    }

    /// Completes when the agent has ended the session.
    pub(super) async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// Opens a notification stream. It becomes the one that sends notifications.
    pub(super) fn open_stream(self: &Arc<Self>) -> OpenStream {
        let number = self.next_stream_number.fetch_add(1, Ordering::Relaxed);
        self.open_streams.lock().push(number);
        OpenStream { session: self.clone(), number }
    }

    /// Returns the negotiated protocol version.
    pub(super) fn protocol_version(&self) -> &str {
        &self.protocol_version
    }

    /// Returns the capabilities by which servers may ask the agent for input.
    pub(super) fn input_capabilities(&self) -> ClientCapabilities {
        self.input_capabilities
    }

    /// Returns the requests for input that wait for the agent.
    pub(super) fn sent_requests(&self) -> &SentInputRequests {
        &self.sent_requests
    }

    /// Registers a request in flight, unless `max` are, or the agent waits for another request with this id.
    pub(super) fn begin_request(
        &self,
        id: JsonRpcId,
        max: usize,
    ) -> Result<InFlightRequest, UnacceptedRequest> {
        self.in_flight.begin(id, max)
    }

    /// Cancels the newest request in flight with this id. Does nothing for other ids.
    pub(super) fn cancel_request(&self, id: &JsonRpcId) {
        self.in_flight.cancel(id);
    }

    fn end(&self) {
        self.ended.cancel();
        self.in_flight.cancel_all();
    }

    fn is_idle(&self) -> bool {
        self.open_streams.lock().is_empty() && self.in_flight.is_empty()
    }
}

/// An open notification stream.
#[derive(Debug)]
pub(super) struct OpenStream {
    pub(super) session: Arc<Session>,
    number: u64,
}

impl OpenStream {
    /// True if no newer stream of the session is open. A message is sent on one stream only.
    pub(super) fn is_newest(&self) -> bool {
        self.session.open_streams.lock().last() == Some(&self.number)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.session.open_streams.lock().retain(|number| *number != self.number);
    }
}

/// The sessions of this process. A lookup takes no lock.
#[derive(Debug)]
pub(super) struct Sessions {
    key: Arc<SessionKey>,
    by_id: ArcSwap<imbl::HashMap<Arc<str>, Arc<Session>>>,
    /// The connections of sessions, which end with them.
    caller_connections: CallerConnections,
    ended: Mutex<EndedSessions>,
}

#[derive(Debug, Default)]
struct EndedSessions {
    ids: HashSet<Arc<str>>,
    by_age: VecDeque<Arc<str>>,
}

impl Sessions {
    pub(super) fn new(key: Arc<SessionKey>, caller_connections: CallerConnections) -> Self {
        Self { key, by_id: ArcSwap::default(), caller_connections, ended: Mutex::default() }
    }

    /// Opens a session and returns its id. Only changes after the current list versions will be notified.
    pub(super) fn open(
        &self,
        sealed: &SealedSession,
        version: impl Fn(ListKind) -> u64,
    ) -> Result<String, SealError> {
        let id = self.key.seal_session(sealed)?;
        // Held while the table changes.
        let _ended = self.ended.lock();
        self.insert(Session::new(id.as_str().into(), sealed, |list| version(list) + 1));
        Ok(id)
    }

    /// Returns the session with this id on the path with this view and id; restores it from the id if this process has
    /// none. `None` means HTTP 404.
    pub(super) fn get(&self, id: &str, view: &ViewName, path_id: Option<&str>) -> Option<Arc<Session>> {
        let session = match self.by_id.load().get(id) {
            Some(session) => session.clone(),
            None => self.restore(id)?,
        };
        session.recently_used.store(true, Ordering::Relaxed);
        let is_same_path = session.view() == view && session.path_id.as_deref() == path_id;
        is_same_path.then_some(session)
    }

    /// Ends a session: closes its streams, cancels its requests, and rejects its id from now on.
    pub(super) fn end(&self, id: &str) {
        let mut ended = self.ended.lock();
        let mut by_id = imbl::HashMap::clone(&self.by_id.load());
        if let Some(session) = by_id.remove(id) {
            self.by_id.store(Arc::new(by_id));
            session.end();
            self.caller_connections.end(&session.caller_id());
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

    /// Removes the idle sessions that were not used since the last call.
    pub(super) fn remove_idle(&self) {
        // Held while the table changes.
        let _ended = self.ended.lock();
        self.retain(|session| session.recently_used.swap(false, Ordering::Relaxed) || !session.is_idle());
    }

    /// Returns the number of sessions.
    pub(super) fn len(&self) -> usize {
        self.by_id.load().len()
    }

    fn restore(&self, id: &str) -> Option<Arc<Session>> {
        let sealed = self.key.open_session(id)?;
        let ended = self.ended.lock();
        if ended.ids.contains(id) {
            return None;
        }
        if let Some(session) = self.by_id.load().get(id) {
            return Some(session.clone());
        }
        let session = Session::new(id.into(), &sealed, |_| 0);
        self.insert(session.clone());
        Some(session)
    }

    fn insert(&self, session: Arc<Session>) {
        if self.len() >= MAX_SESSIONS {
            self.retain(|session| !session.is_idle());
        }
        let mut by_id = imbl::HashMap::clone(&self.by_id.load());
        by_id.insert(session.id.clone(), session);
        self.by_id.store(Arc::new(by_id));
    }

    fn retain(&self, keep: impl Fn(&Session) -> bool) {
        let mut by_id = imbl::HashMap::clone(&self.by_id.load());
        by_id.retain(|_, session| {
            let is_kept = keep(session);
            if !is_kept {
                self.caller_connections.end(&session.caller_id());
            }
            is_kept
        });
        self.by_id.store(Arc::new(by_id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions() -> Sessions {
        Sessions::new(SessionKey::new(b"k").unwrap().into(), CallerConnections::default())
    }

    fn sealed_session() -> SealedSession {
        SealedSession {
            version: "2025-11-25".into(),
            client: "a".into(),
            client_version: "1".into(),
            namespace: None,
            path_id: None,
            issued_at: 0,
            capabilities: 0,
        }
    }

    const EVERYTHING: ViewName = ViewName::All;

    #[test]
    fn session_belongs_to_the_path_on_which_it_was_opened() {
        let sealed = SealedSession { path_id: Some("a".into()), ..sealed_session() };
        let id = sessions().open(&sealed, |_| 0).unwrap();
        let restored = sessions();
        for path_id in [None, Some("b")] {
            assert!(restored.get(&id, &EVERYTHING, path_id).is_none(), "{path_id:?}");
        }
        assert!(restored.get(&id, &EVERYTHING, Some("a")).is_some());
    }

    #[test]
    fn session_is_restored_by_another_process() {
        let id = sessions().open(&sealed_session(), |_| 7).unwrap();
        let other = sessions();
        assert!(other.get(&id, &ViewName::Namespace("default".into()), None).is_none());
        assert!(other.get(&id, &EVERYTHING, Some("a")).is_none());
        let session = other.get(&id, &EVERYTHING, None).unwrap();
        assert!(session.may_be_outdated(ListKind::Tools, 0), "the restoring process has no list versions");
        session.record_listed(ListKind::Tools, 3);
        assert!(!session.may_be_outdated(ListKind::Tools, 3) && session.may_be_outdated(ListKind::Tools, 4));
        session.record_listed(ListKind::Templates, 2);
        assert!(!session.may_be_outdated(ListKind::Tools, 3));
        assert!(
            !session.may_be_outdated(ListKind::Resources, 2) && session.may_be_outdated(ListKind::Prompts, 2)
        );
        assert!(Arc::ptr_eq(&session, &other.get(&id, &EVERYTHING, None).unwrap()));
    }

    #[test]
    fn ended_session_is_not_restored() {
        let sessions = sessions();
        let id = sessions.open(&sealed_session(), |_| 0).unwrap();
        let session = sessions.get(&id, &EVERYTHING, None).unwrap();
        sessions.end(&id);
        assert!(sessions.get(&id, &EVERYTHING, None).is_none());
        assert!(session.ended.is_cancelled());
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
        let _stream = sessions.get(&streaming, &EVERYTHING, None).unwrap().open_stream();
        let _call = sessions
            .get(&calling, &EVERYTHING, None)
            .unwrap()
            .begin_request(JsonRpcId::from_number(1), 1)
            .unwrap();
        sessions.remove_idle();
        assert_eq!(sessions.len(), 3);
        sessions.remove_idle();
        assert_eq!(sessions.len(), 2);
        assert!(sessions.get(&idle, &EVERYTHING, None).unwrap().may_be_outdated(ListKind::Tools, 0));
        assert!(!sessions.get(&streaming, &EVERYTHING, None).unwrap().may_be_outdated(ListKind::Tools, 0));
    }

    #[test]
    fn idle_sessions_beyond_the_maximum_are_removed_and_restored_from_their_ids() {
        let sessions = sessions();
        let open = || sessions.open(&sealed_session(), |_| 0).unwrap();
        let (first, busy) = (open(), open());
        let stream = sessions.get(&busy, &EVERYTHING, None).unwrap().open_stream();
        for _ in 0..MAX_SESSIONS {
            open();
        }
        assert!(sessions.len() <= MAX_SESSIONS, "{}", sessions.len());
        assert!(sessions.by_id.load().contains_key(&*busy) && !sessions.by_id.load().contains_key(&*first));
        assert!(sessions.get(&first, &EVERYTHING, None).is_some());
        drop(stream);
    }

    #[test]
    fn newest_stream_is_active_then_the_previous_one() {
        let sessions = sessions();
        let id = sessions.open(&sealed_session(), |_| 0).unwrap();
        let session = sessions.get(&id, &EVERYTHING, None).unwrap();
        let first = session.open_stream();
        let second = session.open_stream();
        assert!(!first.is_newest() && second.is_newest());
        drop(second);
        assert!(first.is_newest());
    }
}
