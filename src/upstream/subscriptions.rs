use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::view_name::ViewName;
use crate::resource::ObjectKey;
use crate::wire::{LogLevel, NotificationHandler, ServerNotification, notification_level};

/// What is told and not read yet; who reads more slowly is told that something was lost.
const NOTIFICATION_QUEUE_CAPACITY: usize = 256;
/// A longer log message is not passed on to agents: with as many as are kept, it bounds what they hold.
const MAX_LOG_MESSAGE_BYTES: usize = 64 << 10;

/// What agents want to hear of servers, and what servers tell them. Cheap to clone; one for the process.
///
/// Both sides are level-triggered: a connection asks its server for what is wanted now, whenever that changes and
/// whenever it is made again, and a reader that was too slow acts as if everything had been told.
#[derive(Clone, Debug)]
pub struct Subscriptions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counts: Mutex<SubscriptionCounts>,
    notifications: broadcast::Sender<Arc<PublishedNotification>>,
}

#[derive(Debug, Default)]
struct SubscriptionCounts {
    /// By server and its own URI: how many want to know.
    resources: BTreeMap<ObjectKey, BTreeMap<Arc<str>, usize>>,
    /// By view and level.
    levels: BTreeMap<(ViewName, LogLevel), usize>,
    /// Wakes those who ask a server.
    change_senders: BTreeMap<ObjectKey, watch::Sender<()>>,
}

/// Something that a server told.
#[derive(Debug)]
pub struct PublishedNotification {
    /// The server.
    pub server: ObjectKey,
    /// What it told.
    pub content: NotificationContent,
}

/// What servers tell unasked.
#[derive(Debug)]
pub enum NotificationContent {
    /// The resource with this URI of the server changed, or may have.
    ResourceUpdated(String),
    /// A log message of this level, as the whole JSON-RPC notification.
    LogMessage(LogLevel, Bytes),
}

/// What agents want to hear of one server now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedNotifications {
    /// Log messages from this level on.
    pub log_level: Option<LogLevel>,
    /// Changes of these resources.
    pub resource_uris: BTreeSet<Arc<str>>,
}

/// Somebody wants to hear of a resource, until this is dropped.
#[derive(Debug)]
pub struct ResourceSubscription {
    subscriptions: Subscriptions,
    /// The server.
    pub server: ObjectKey,
    /// The server's own URI.
    pub uri: Arc<str>,
}

/// Somebody wants log messages, until this is dropped.
#[derive(Debug)]
pub struct LogSubscription {
    subscriptions: Subscriptions,
    view: ViewName,
    /// From this level on.
    pub level: LogLevel,
}

impl Default for Subscriptions {
    fn default() -> Self {
        Self(Arc::new(Inner {
            counts: Mutex::default(),
            notifications: broadcast::Sender::new(NOTIFICATION_QUEUE_CAPACITY),
        }))
    }
}

impl Subscriptions {
    /// Wants to hear when a resource of a server changes.
    pub fn subscribe_resource(&self, server: &ObjectKey, uri: &str) -> ResourceSubscription {
        let uri: Arc<str> = uri.into();
        let mut asked = self.0.counts.lock();
        *asked.resources.entry(server.clone()).or_default().entry(uri.clone()).or_default() += 1;
        asked.notify_changed(server);
        drop(asked);
        ResourceSubscription { subscriptions: self.clone(), server: server.clone(), uri }
    }

    /// Wants the log messages, from this level on, of all servers that a view shows.
    pub fn subscribe_logs(&self, view: &ViewName, level: LogLevel) -> LogSubscription {
        let mut asked = self.0.counts.lock();
        *asked.levels.entry((view.clone(), level)).or_default() += 1;
        asked.notify_all_changed();
        drop(asked);
        LogSubscription { subscriptions: self.clone(), view: view.clone(), level }
    }

    /// Hears all that any server tells from now on.
    pub fn notifications(&self) -> broadcast::Receiver<Arc<PublishedNotification>> {
        self.0.notifications.subscribe()
    }

    /// Gives what a connection of a server calls with its notices.
    pub fn notification_handler(&self, server: &ObjectKey) -> NotificationHandler {
        let (listeners, server, complained) = (self.clone(), server.clone(), AtomicBool::default());
        NotificationHandler::new(move |notice| match notice {
            ServerNotification::ResourceUpdated(uri) => listeners.publish_resource_update(&server, uri),
            ServerNotification::LogMessage(message) => {
                listeners.publish_log_message(&server, message, &complained)
            }
        })
    }

    /// Tells that a resource changed.
    pub fn publish_resource_update(&self, server: &ObjectKey, uri: &str) {
        let wanted = self.0.counts.lock().resources.get(server).is_some_and(|uris| uris.contains_key(uri));
        if wanted {
            self.publish(server, NotificationContent::ResourceUpdated(uri.to_owned()));
        }
    }

    /// Passes a log message on. `complained` says whether it was logged already that this connection's server sends
    /// messages that are too long.
    fn publish_log_message(&self, server: &ObjectKey, message: &Bytes, complained: &AtomicBool) {
        let Some(wanted) = self.0.counts.lock().lowest_level(server) else { return };
        if message.len() > MAX_LOG_MESSAGE_BYTES {
            if !complained.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %server,
                    bytes = message.len(),
                    "a log message is longer than {} KiB; agents do not get it, nor others like it",
                    MAX_LOG_MESSAGE_BYTES >> 10
                );
            }
            return;
        }
        if let Some(level) = notification_level(message).filter(|level| *level >= wanted) {
            // A copy: what came may be a part of something longer.
            self.publish(server, NotificationContent::LogMessage(level, Bytes::copy_from_slice(message)));
        }
    }

    /// Gives what agents want to hear of a server now.
    pub fn requested(&self, server: &ObjectKey) -> RequestedNotifications {
        let asked = self.0.counts.lock();
        let uris = asked.resources.get(server).into_iter().flat_map(BTreeMap::keys);
        RequestedNotifications {
            log_level: asked.lowest_level(server),
            resource_uris: uris.cloned().collect(),
        }
    }

    /// Wakes whenever what is wanted of a server may have changed.
    pub fn changes(&self, server: &ObjectKey) -> SubscriptionChanges {
        let woken = self.0.counts.lock().change_senders.entry(server.clone()).or_default().subscribe();
        SubscriptionChanges { subscriptions: self.clone(), server: server.clone(), receiver: woken }
    }

    fn publish(&self, server: &ObjectKey, word: NotificationContent) {
        // Nobody listens just now.
        let _ = self
            .0
            .notifications
            .send(Arc::new(PublishedNotification { server: server.clone(), content: word }));
    }
}

impl SubscriptionCounts {
    /// The lowest level that somebody wants of a server.
    fn lowest_level(&self, server: &ObjectKey) -> Option<LogLevel> {
        let shown = self.levels.keys().filter(|(view, _)| view.shows(&server.namespace));
        shown.map(|(_, level)| *level).min()
    }

    fn notify_changed(&self, server: &ObjectKey) {
        if let Some(changed) = self.change_senders.get(server) {
            changed.send_replace(());
        }
    }

    fn notify_all_changed(&self) {
        for changed in self.change_senders.values() {
            changed.send_replace(());
        }
    }
}

/// Tells whoever asks one server of changes in what is wanted of it.
pub struct SubscriptionChanges {
    subscriptions: Subscriptions,
    server: ObjectKey,
    receiver: watch::Receiver<()>,
}

impl SubscriptionChanges {
    /// Waits for the next change; one since the last [`mark_seen`](Self::mark_seen) counts. Cancel safe.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The sender is kept for as long as this is.
            std::future::pending::<()>().await;
        }
    }

    /// What changed so far is known.
    pub fn mark_seen(&mut self) {
        self.receiver.mark_unchanged();
    }
}

impl Drop for SubscriptionChanges {
    fn drop(&mut self) {
        let mut asked = self.subscriptions.0.counts.lock();
        let others =
            asked.change_senders.get(&self.server).is_some_and(|changed| changed.receiver_count() > 1);
        if !others {
            asked.change_senders.remove(&self.server);
        }
    }
}

impl Drop for ResourceSubscription {
    fn drop(&mut self) {
        let mut asked = self.subscriptions.0.counts.lock();
        if let Some(uris) = asked.resources.get_mut(&self.server) {
            decrement(uris, &self.uri);
            if uris.is_empty() {
                asked.resources.remove(&self.server);
            }
        }
        asked.notify_changed(&self.server);
    }
}

impl Drop for LogSubscription {
    fn drop(&mut self) {
        let mut asked = self.subscriptions.0.counts.lock();
        decrement(&mut asked.levels, &(self.view.clone(), self.level));
        asked.notify_all_changed();
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
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

    fn log_message(level: &str) -> Bytes {
        format!(
            r#"{{"jsonrpc":"2.0","method":"notifications/message","params":{{"level":"{level}","data":1}}}}"#
        )
        .into()
    }

    #[test]
    fn subscription_lasts_until_its_last_holder_is_dropped() {
        let listeners = Subscriptions::default();
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("team", "b"));
        let woken = |changes: &mut SubscriptionChanges| {
            futures_util::FutureExt::now_or_never(changes.changed()).is_some()
        };
        let (mut changes, mut others) = (listeners.changes(&a), listeners.changes(&b));
        let first = listeners.subscribe_resource(&a, "x:1");
        let second = listeners.subscribe_resource(&a, "x:1");
        assert!(woken(&mut changes) && !woken(&mut changes));
        drop(first);
        assert_eq!(listeners.requested(&a).resource_uris, ["x:1".into()].into());
        assert!(listeners.requested(&b).resource_uris.is_empty());
        drop(second);
        assert!(
            listeners.requested(&a).resource_uris.is_empty() && woken(&mut changes) && !woken(&mut others)
        );
        assert!(listeners.0.counts.lock().resources.is_empty());

        let all = listeners.subscribe_logs(&ViewName::All, LogLevel::Warning);
        let team = listeners.subscribe_logs(&ViewName::Namespace("team".into()), LogLevel::Debug);
        assert_eq!(
            (listeners.requested(&a).log_level, listeners.requested(&b).log_level),
            (Some(LogLevel::Warning), Some(LogLevel::Debug))
        );
        assert!(woken(&mut changes) && woken(&mut others));
        drop((all, team));
        assert_eq!(listeners.requested(&b), RequestedNotifications::default());
        assert!(listeners.0.counts.lock().levels.is_empty());

        // Of two connections of a server the one that goes leaves the other awake.
        drop((listeners.changes(&a), others));
        let _subscription = listeners.subscribe_resource(&a, "x:1");
        assert!(woken(&mut changes));
        drop(changes);
        assert!(listeners.0.counts.lock().change_senders.is_empty());
    }

    #[test]
    fn only_requested_notifications_are_published() {
        let listeners = Subscriptions::default();
        let key = ObjectKey::new("default", "a");
        let handler = listeners.notification_handler(&key);
        let mut told = listeners.notifications();
        handler.call(ServerNotification::LogMessage(&log_message("error")));
        handler.call(ServerNotification::ResourceUpdated("x:1"));
        assert!(told.try_recv().is_err());
        let _log = listeners.subscribe_logs(&ViewName::All, LogLevel::Warning);
        let _resource = listeners.subscribe_resource(&key, "x:1");
        for level in ["info", "error", "nonsense"] {
            handler.call(ServerNotification::LogMessage(&log_message(level)));
        }
        let mut long = log_message("error").to_vec();
        long.resize(MAX_LOG_MESSAGE_BYTES + 1, b' ');
        handler.call(ServerNotification::LogMessage(&long.into()));
        handler.call(ServerNotification::ResourceUpdated("x:2"));
        handler.call(ServerNotification::ResourceUpdated("x:1"));
        assert!(
            matches!(&told.try_recv().unwrap().content, NotificationContent::LogMessage(LogLevel::Error, text) if *text == log_message("error"))
        );
        assert!(
            matches!(&told.try_recv().unwrap().content, NotificationContent::ResourceUpdated(uri) if uri == "x:1")
        );
        assert!(told.try_recv().is_err());
    }
}
