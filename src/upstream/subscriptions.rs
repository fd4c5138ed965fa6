use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::view_name::ViewName;
use crate::resource::ObjectKey;
use crate::wire::{LogLevel, NotificationHandler, ServerNotification, level_of};

/// What is told and not read yet; who reads more slowly is told that something was lost.
const TOLD: usize = 256;
/// A longer log message is not passed on to agents: with as many as are kept, it bounds what they hold.
const LONGEST: usize = 64 << 10;

/// What agents want to hear of servers, and what servers tell them. Cheap to clone; one for the process.
///
/// Both sides are level-triggered: a connection asks its server for what is wanted now, whenever that changes and
/// whenever it is made again, and a reader that was too slow acts as if everything had been told.
#[derive(Clone, Debug)]
pub struct Subscriptions(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    asked: Mutex<SubscriptionCounts>,
    told: broadcast::Sender<Arc<PublishedNotification>>,
}

#[derive(Debug, Default)]
struct SubscriptionCounts {
    /// By server and its own URI: how many want to know.
    resources: BTreeMap<ObjectKey, BTreeMap<Arc<str>, usize>>,
    /// By view and level.
    levels: BTreeMap<(ViewName, LogLevel), usize>,
    /// Wakes those who ask a server.
    changed: BTreeMap<ObjectKey, watch::Sender<()>>,
}

/// Something that a server told.
#[derive(Debug)]
pub struct PublishedNotification {
    /// The server.
    pub server: ObjectKey,
    /// What it told.
    pub word: NotificationContent,
}

/// What servers tell unasked.
#[derive(Debug)]
pub enum NotificationContent {
    /// The resource with this URI of the server changed, or may have.
    Updated(String),
    /// A log message of this level, as the whole JSON-RPC notification.
    Logged(LogLevel, Bytes),
}

/// What agents want to hear of one server now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedNotifications {
    /// Log messages from this level on.
    pub level: Option<LogLevel>,
    /// Changes of these resources.
    pub uris: BTreeSet<Arc<str>>,
}

/// Somebody wants to hear of a resource, until this is dropped.
#[derive(Debug)]
pub struct ResourceSubscription {
    listeners: Subscriptions,
    /// The server.
    pub server: ObjectKey,
    /// The server's own URI.
    pub uri: Arc<str>,
}

/// Somebody wants log messages, until this is dropped.
#[derive(Debug)]
pub struct LogSubscription {
    listeners: Subscriptions,
    view: ViewName,
    /// From this level on.
    pub level: LogLevel,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self(Arc::new(Shared { asked: Mutex::default(), told: broadcast::Sender::new(TOLD) }))
    }
}

impl Subscriptions {
    /// Wants to hear when a resource of a server changes.
    pub fn subscribe(&self, server: &ObjectKey, uri: &str) -> ResourceSubscription {
        let uri: Arc<str> = uri.into();
        let mut asked = self.0.asked.lock();
        *asked.resources.entry(server.clone()).or_default().entry(uri.clone()).or_default() += 1;
        asked.wake(server);
        drop(asked);
        ResourceSubscription { listeners: self.clone(), server: server.clone(), uri }
    }

    /// Wants the log messages, from this level on, of all servers that a view shows.
    pub fn log_from(&self, view: &ViewName, level: LogLevel) -> LogSubscription {
        let mut asked = self.0.asked.lock();
        *asked.levels.entry((view.clone(), level)).or_default() += 1;
        asked.wake_all();
        drop(asked);
        LogSubscription { listeners: self.clone(), view: view.clone(), level }
    }

    /// Hears all that any server tells from now on.
    pub fn hear(&self) -> broadcast::Receiver<Arc<PublishedNotification>> {
        self.0.told.subscribe()
    }

    /// Gives what a connection of a server calls with its notices.
    pub fn handler(&self, server: &ObjectKey) -> NotificationHandler {
        let (listeners, server, complained) = (self.clone(), server.clone(), AtomicBool::default());
        NotificationHandler::new(move |notice| match notice {
            ServerNotification::Updated(uri) => listeners.updated(&server, uri),
            ServerNotification::Logged(message) => listeners.logged(&server, message, &complained),
        })
    }

    /// Tells that a resource changed.
    pub fn updated(&self, server: &ObjectKey, uri: &str) {
        let wanted = self.0.asked.lock().resources.get(server).is_some_and(|uris| uris.contains_key(uri));
        if wanted {
            self.tell(server, NotificationContent::Updated(uri.to_owned()));
        }
    }

    /// Passes a log message on. `complained` says whether it was logged already that this connection's server sends
    /// messages that are too long.
    fn logged(&self, server: &ObjectKey, message: &Bytes, complained: &AtomicBool) {
        let Some(wanted) = self.0.asked.lock().level(server) else { return };
        if message.len() > LONGEST {
            if !complained.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %server,
                    bytes = message.len(),
                    "a log message is longer than {} KiB; agents do not get it, nor others like it",
                    LONGEST >> 10
                );
            }
            return;
        }
        if let Some(level) = level_of(message).filter(|level| *level >= wanted) {
            // A copy: what came may be a part of something longer.
            self.tell(server, NotificationContent::Logged(level, Bytes::copy_from_slice(message)));
        }
    }

    /// Gives what agents want to hear of a server now.
    pub fn wanted(&self, server: &ObjectKey) -> RequestedNotifications {
        let asked = self.0.asked.lock();
        let uris = asked.resources.get(server).into_iter().flat_map(BTreeMap::keys);
        RequestedNotifications { level: asked.level(server), uris: uris.cloned().collect() }
    }

    /// Wakes whenever what is wanted of a server may have changed.
    pub fn changes(&self, server: &ObjectKey) -> SubscriptionChanges {
        let woken = self.0.asked.lock().changed.entry(server.clone()).or_default().subscribe();
        SubscriptionChanges { listeners: self.clone(), server: server.clone(), woken }
    }

    fn tell(&self, server: &ObjectKey, word: NotificationContent) {
        // Nobody listens just now.
        let _ = self.0.told.send(Arc::new(PublishedNotification { server: server.clone(), word }));
    }
}

impl SubscriptionCounts {
    /// The lowest level that somebody wants of a server.
    fn level(&self, server: &ObjectKey) -> Option<LogLevel> {
        let shown = self.levels.keys().filter(|(view, _)| view.shows(&server.namespace));
        shown.map(|(_, level)| *level).min()
    }

    fn wake(&self, server: &ObjectKey) {
        if let Some(changed) = self.changed.get(server) {
            changed.send_replace(());
        }
    }

    fn wake_all(&self) {
        for changed in self.changed.values() {
            changed.send_replace(());
        }
    }
}

/// Tells whoever asks one server of changes in what is wanted of it.
pub struct SubscriptionChanges {
    listeners: Subscriptions,
    server: ObjectKey,
    woken: watch::Receiver<()>,
}

impl SubscriptionChanges {
    /// Waits for the next change; one since the last [`mark_seen`](Self::mark_seen) counts. Cancel safe.
    pub async fn next(&mut self) {
        if self.woken.changed().await.is_err() {
            // The sender is kept for as long as this is.
            std::future::pending::<()>().await;
        }
    }

    /// What changed so far is known.
    pub fn mark_seen(&mut self) {
        self.woken.mark_unchanged();
    }
}

impl Drop for SubscriptionChanges {
    fn drop(&mut self) {
        let mut asked = self.listeners.0.asked.lock();
        let others = asked.changed.get(&self.server).is_some_and(|changed| changed.receiver_count() > 1);
        if !others {
            asked.changed.remove(&self.server);
        }
    }
}

impl Drop for ResourceSubscription {
    fn drop(&mut self) {
        let mut asked = self.listeners.0.asked.lock();
        if let Some(uris) = asked.resources.get_mut(&self.server) {
            take_one(uris, &self.uri);
            if uris.is_empty() {
                asked.resources.remove(&self.server);
            }
        }
        asked.wake(&self.server);
    }
}

impl Drop for LogSubscription {
    fn drop(&mut self) {
        let mut asked = self.listeners.0.asked.lock();
        take_one(&mut asked.levels, &(self.view.clone(), self.level));
        asked.wake_all();
    }
}

fn take_one<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(level: &str) -> Bytes {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","data":1}}}}"#
        )
        .into()
    }

    #[test]
    fn what_is_wanted_is_wanted_until_the_last_lets_go() {
        let listeners = Subscriptions::default();
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("team", "b"));
        let woken = |changes: &mut SubscriptionChanges| {
            futures_util::FutureExt::now_or_never(changes.next()).is_some()
        };
        let (mut changes, mut others) = (listeners.changes(&a), listeners.changes(&b));
        let first = listeners.subscribe(&a, "x:1");
        let second = listeners.subscribe(&a, "x:1");
        assert!(woken(&mut changes) && !woken(&mut changes));
        drop(first);
        assert_eq!(listeners.wanted(&a).uris, ["x:1".into()].into());
        assert!(listeners.wanted(&b).uris.is_empty());
        drop(second);
        assert!(listeners.wanted(&a).uris.is_empty() && woken(&mut changes) && !woken(&mut others));
        assert!(listeners.0.asked.lock().resources.is_empty());

        let all = listeners.log_from(&ViewName::Everything, LogLevel::Warning);
        let team = listeners.log_from(&ViewName::Namespace("team".into()), LogLevel::Debug);
        assert_eq!(
            (listeners.wanted(&a).level, listeners.wanted(&b).level),
            (Some(LogLevel::Warning), Some(LogLevel::Debug))
        );
        assert!(woken(&mut changes) && woken(&mut others));
        drop((all, team));
        assert_eq!(listeners.wanted(&b), RequestedNotifications::default());
        assert!(listeners.0.asked.lock().levels.is_empty());

        // Of two connections of a server the one that goes leaves the other awake.
        drop((listeners.changes(&a), others));
        let _subscription = listeners.subscribe(&a, "x:1");
        assert!(woken(&mut changes));
        drop(changes);
        assert!(listeners.0.asked.lock().changed.is_empty());
    }

    #[test]
    fn only_what_somebody_wants_is_told() {
        let listeners = Subscriptions::default();
        let key = ObjectKey::new("default", "a");
        let handler = listeners.handler(&key);
        let mut told = listeners.hear();
        handler.call(ServerNotification::Logged(&message("error")));
        handler.call(ServerNotification::Updated("x:1"));
        assert!(told.try_recv().is_err());
        let _log = listeners.log_from(&ViewName::Everything, LogLevel::Warning);
        let _resource = listeners.subscribe(&key, "x:1");
        for level in ["info", "error", "nonsense"] {
            handler.call(ServerNotification::Logged(&message(level)));
        }
        let mut long = message("error").to_vec();
        long.resize(LONGEST + 1, b' ');
        handler.call(ServerNotification::Logged(&long.into()));
        handler.call(ServerNotification::Updated("x:2"));
        handler.call(ServerNotification::Updated("x:1"));
        assert!(
            matches!(&told.try_recv().unwrap().word, NotificationContent::Logged(LogLevel::Error, text) if *text == message("error"))
        );
        assert!(matches!(&told.try_recv().unwrap().word, NotificationContent::Updated(uri) if uri == "x:1"));
        assert!(told.try_recv().is_err());
    }
}
