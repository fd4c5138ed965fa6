use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::caller_id::CallerId;
use super::view_name::ViewName;
use crate::resource::ObjectKey;
use crate::wire::{LogLevel, NotificationHandler, ServerNotification, notification_level};

/// The number of notifications that are kept for slow receivers. A receiver that is slower gets a `Lagged` error.
const NOTIFICATION_QUEUE_CAPACITY: usize = 256;
/// The maximum size of a log message that is forwarded to agents, in bytes. With the queue capacity it bounds the
/// memory of queued messages.
const MAX_LOG_MESSAGE_BYTES: usize = 64 << 10;

/// The subscriptions of agents, and the notifications from servers. Cheap to clone; there is one per process.
///
/// Both directions are level-triggered. A connection requests the current subscriptions from its server whenever they
/// change and after each reconnect. A receiver that lagged acts as if every notification had been sent.
#[derive(Clone, Debug)]
pub struct Subscriptions(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    counts: Mutex<SubscriptionCounts>,
    notifications: broadcast::Sender<Arc<PublishedNotification>>,
}

#[derive(Debug, Default)]
struct SubscriptionCounts {
    /// The number of resource subscriptions, by server and by the server's URI.
    resources: BTreeMap<ObjectKey, BTreeMap<Arc<str>, usize>>,
    /// The number of agents that wait for the end of an elicitation by URL, by server and id.
    elicitations: BTreeMap<(ObjectKey, Arc<str>), usize>,
    /// The number of log subscriptions, by view and level.
    levels: BTreeMap<(ViewName, LogLevel), usize>,
    /// The senders that notify the connections of a server about changed subscriptions.
    change_senders: BTreeMap<ObjectKey, watch::Sender<()>>,
}

/// A notification from a server.
#[derive(Debug)]
pub struct PublishedNotification {
    /// The key of the server.
    pub server: ObjectKey,
    /// The only caller that gets it; `None` for all.
    pub caller: Option<CallerId>,
    /// The content.
    pub content: NotificationContent,
}

/// The content of a notification.
#[derive(Debug)]
pub enum NotificationContent {
    /// The resource with this URI of the server changed, or may have changed.
    ResourceUpdated(String),
    /// A log message of this level, as the whole JSON-RPC notification.
    LogMessage(LogLevel, Bytes),
    /// The elicitation by URL with this id is complete, with the whole JSON-RPC notification.
    ElicitationComplete(String, Bytes),
}

/// The notifications that agents currently request from one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestedNotifications {
    /// The lowest level of requested log messages; `None` if no log messages are requested.
    pub log_level: Option<LogLevel>,
    /// The URIs of the resources whose changes are requested.
    pub resource_uris: BTreeSet<Arc<str>>,
}

/// A subscription to changes of a resource. It ends when this is dropped.
#[derive(Debug)]
pub struct ResourceSubscription {
    subscriptions: Subscriptions,
    /// The key of the server.
    pub server: ObjectKey,
    /// The URI that the server uses.
    pub uri: Arc<str>,
}

/// A subscription to the end of an elicitation by URL. It ends when this is dropped.
#[derive(Debug)]
pub struct ElicitationSubscription {
    subscriptions: Subscriptions,
    /// The key of the server, and the id that it chose.
    pub elicitation: (ObjectKey, Arc<str>),
}

/// A subscription to log messages. It ends when this is dropped.
#[derive(Debug)]
pub struct LogSubscription {
    subscriptions: Subscriptions,
    view: ViewName,
    /// The lowest level.
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
    /// Subscribes to changes of a resource of a server.
    pub fn subscribe_resource(&self, server: &ObjectKey, uri: &str) -> ResourceSubscription {
        let uri: Arc<str> = uri.into();
        let mut counts = self.0.counts.lock();
        *counts.resources.entry(server.clone()).or_default().entry(uri.clone()).or_default() += 1;
        counts.notify_changed(server);
        drop(counts);
        ResourceSubscription { subscriptions: self.clone(), server: server.clone(), uri }
    }

    /// Subscribes to the end of an elicitation by URL.
    pub fn subscribe_elicitation(&self, server: &ObjectKey, id: &str) -> ElicitationSubscription {
        let elicitation = (server.clone(), Arc::from(id));
        *self.0.counts.lock().elicitations.entry(elicitation.clone()).or_default() += 1;
        ElicitationSubscription { subscriptions: self.clone(), elicitation }
    }

    /// Subscribes to log messages of at least this level from all servers that a view shows.
    pub fn subscribe_logs(&self, view: &ViewName, level: LogLevel) -> LogSubscription {
        let mut counts = self.0.counts.lock();
        *counts.levels.entry((view.clone(), level)).or_default() += 1;
        counts.notify_all_changed();
        drop(counts);
        LogSubscription { subscriptions: self.clone(), view: view.clone(), level }
    }

    /// Returns a receiver of all notifications that are published from now on, from all servers.
    pub fn notifications(&self) -> broadcast::Receiver<Arc<PublishedNotification>> {
        self.0.notifications.subscribe()
    }

    /// Returns the handler that a connection of a server calls with each notification.
    pub fn notification_handler(&self, server: &ObjectKey) -> NotificationHandler {
        self.handler_for(server, None)
    }

    /// Returns the handler of a connection that one caller has of its own. Only this caller gets the notifications.
    pub fn caller_notification_handler(&self, server: &ObjectKey, caller: &CallerId) -> NotificationHandler {
        self.handler_for(server, Some(caller.clone()))
    }

    fn handler_for(&self, server: &ObjectKey, caller: Option<CallerId>) -> NotificationHandler {
        let (subscriptions, server, oversize_logged) = (self.clone(), server.clone(), AtomicBool::default());
        NotificationHandler::new(move |notification| match notification {
            // Nobody subscribes to resources on a connection of one caller.
            ServerNotification::ResourceUpdated(_) if caller.is_some() => {}
            ServerNotification::ResourceUpdated(uri) => subscriptions.publish_resource_update(&server, uri),
            ServerNotification::LogMessage(message) => {
                subscriptions.publish_log_message(&server, caller.as_ref(), message, &oversize_logged);
            }
            ServerNotification::ElicitationComplete(id, message) => {
                subscriptions.publish_elicitation_complete(&server, caller.as_ref(), id, message);
            }
        })
    }

    /// Publishes that a resource changed, if there is a subscription to it.
    pub fn publish_resource_update(&self, server: &ObjectKey, uri: &str) {
        let is_requested =
            self.0.counts.lock().resources.get(server).is_some_and(|uris| uris.contains_key(uri));
        if is_requested {
            self.publish(server, None, NotificationContent::ResourceUpdated(uri.to_owned()));
        }
    }

    /// Publishes that an elicitation by URL is complete, if an agent waits for it.
    fn publish_elicitation_complete(
        &self,
        server: &ObjectKey,
        caller: Option<&CallerId>,
        id: &str,
        message: &Bytes,
    ) {
        let elicitation = (server.clone(), Arc::from(id));
        if self.0.counts.lock().elicitations.contains_key(&elicitation) {
            let message = Bytes::copy_from_slice(message);
            self.publish(server, caller, NotificationContent::ElicitationComplete(id.to_owned(), message));
        }
    }

    /// Publishes a log message if its level is requested and its size permitted. `oversize_logged` is true if an
    /// oversized message from this connection was already logged.
    fn publish_log_message(
        &self,
        server: &ObjectKey,
        caller: Option<&CallerId>,
        message: &Bytes,
        oversize_logged: &AtomicBool,
    ) {
        let Some(lowest_level) = self.0.counts.lock().lowest_level(server) else { return };
        if message.len() > MAX_LOG_MESSAGE_BYTES {
            if !oversize_logged.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    %server,
                    bytes = message.len(),
                    "a log message longer than {} KiB was dropped; further ones on this connection are not logged",
                    MAX_LOG_MESSAGE_BYTES >> 10
                );
            }
            return;
        }
        if let Some(level) = notification_level(message).filter(|level| *level >= lowest_level) {
            // Copied, because the message may be a slice of a larger buffer.
            let content = NotificationContent::LogMessage(level, Bytes::copy_from_slice(message));
            self.publish(server, caller, content);
        }
    }

    /// Returns the notifications that agents currently request from a server.
    pub fn requested(&self, server: &ObjectKey) -> RequestedNotifications {
        let counts = self.0.counts.lock();
        let uris = counts.resources.get(server).into_iter().flat_map(BTreeMap::keys);
        RequestedNotifications {
            log_level: counts.lowest_level(server),
            resource_uris: uris.cloned().collect(),
        }
    }

    /// Returns a receiver that is notified whenever the requested notifications of a server may have changed.
    pub fn changes(&self, server: &ObjectKey) -> SubscriptionChanges {
        let receiver = self.0.counts.lock().change_senders.entry(server.clone()).or_default().subscribe();
        SubscriptionChanges { subscriptions: self.clone(), server: server.clone(), receiver }
    }

    fn publish(&self, server: &ObjectKey, caller: Option<&CallerId>, content: NotificationContent) {
        let (server, caller) = (server.clone(), caller.cloned());
        // An error only means that there is no receiver.
        let _ = self.0.notifications.send(Arc::new(PublishedNotification { server, caller, content }));
    }
}

impl SubscriptionCounts {
    /// Returns the lowest requested level of a server's log messages.
    fn lowest_level(&self, server: &ObjectKey) -> Option<LogLevel> {
        let levels = self.levels.keys().filter(|(view, _)| view.shows(&server.namespace));
        levels.map(|(_, level)| *level).min()
    }

    fn notify_changed(&self, server: &ObjectKey) {
        if let Some(sender) = self.change_senders.get(server) {
            sender.send_replace(());
        }
    }

    fn notify_all_changed(&self) {
        for sender in self.change_senders.values() {
            sender.send_replace(());
        }
    }
}

/// A receiver of changes to the requested notifications of one server.
pub struct SubscriptionChanges {
    subscriptions: Subscriptions,
    server: ObjectKey,
    receiver: watch::Receiver<()>,
}

impl SubscriptionChanges {
    /// Waits for a change since the last call or the last [`mark_seen`](Self::mark_seen). Cancel safe.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // Unreachable: the sender exists as long as this receiver.
            std::future::pending::<()>().await;
        }
    }

    /// Marks all changes so far as seen.
    pub fn mark_seen(&mut self) {
        self.receiver.mark_unchanged();
    }
}

impl Drop for SubscriptionChanges {
    fn drop(&mut self) {
        let mut counts = self.subscriptions.0.counts.lock();
        let has_other_receivers =
            counts.change_senders.get(&self.server).is_some_and(|sender| sender.receiver_count() > 1);
        if !has_other_receivers {
            counts.change_senders.remove(&self.server);
        }
    }
}

impl Drop for ResourceSubscription {
    fn drop(&mut self) {
        let mut counts = self.subscriptions.0.counts.lock();
        if let Some(uris) = counts.resources.get_mut(&self.server) {
            decrement(uris, &self.uri);
            if uris.is_empty() {
                counts.resources.remove(&self.server);
            }
        }
        counts.notify_changed(&self.server);
    }
}

impl Drop for ElicitationSubscription {
    fn drop(&mut self) {
        decrement(&mut self.subscriptions.0.counts.lock().elicitations, &self.elicitation);
    }
}

impl Drop for LogSubscription {
    fn drop(&mut self) {
        let mut counts = self.subscriptions.0.counts.lock();
        decrement(&mut counts.levels, &(self.view.clone(), self.level));
        counts.notify_all_changed();
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
        let subscriptions = Subscriptions::default();
        let (a, b) = (ObjectKey::new("default", "a"), ObjectKey::new("team", "b"));
        let is_notified = |changes: &mut SubscriptionChanges| {
            futures_util::FutureExt::now_or_never(changes.changed()).is_some()
        };
        let (mut changes, mut other_changes) = (subscriptions.changes(&a), subscriptions.changes(&b));
        let first = subscriptions.subscribe_resource(&a, "x:1");
        let second = subscriptions.subscribe_resource(&a, "x:1");
        assert!(is_notified(&mut changes) && !is_notified(&mut changes));
        drop(first);
        assert_eq!(subscriptions.requested(&a).resource_uris, ["x:1".into()].into());
        assert!(subscriptions.requested(&b).resource_uris.is_empty());
        drop(second);
        assert!(
            subscriptions.requested(&a).resource_uris.is_empty()
                && is_notified(&mut changes)
                && !is_notified(&mut other_changes)
        );
        assert!(subscriptions.0.counts.lock().resources.is_empty());

        let all = subscriptions.subscribe_logs(&ViewName::All, LogLevel::Warning);
        let team = subscriptions.subscribe_logs(&ViewName::Namespace("team".into()), LogLevel::Debug);
        assert_eq!(
            (subscriptions.requested(&a).log_level, subscriptions.requested(&b).log_level),
            (Some(LogLevel::Warning), Some(LogLevel::Debug))
        );
        assert!(is_notified(&mut changes) && is_notified(&mut other_changes));
        drop((all, team));
        assert_eq!(subscriptions.requested(&b), RequestedNotifications::default());
        assert!(subscriptions.0.counts.lock().levels.is_empty());

        // Dropping one of two receivers of a server does not affect the other.
        drop((subscriptions.changes(&a), other_changes));
        let _subscription = subscriptions.subscribe_resource(&a, "x:1");
        assert!(is_notified(&mut changes));
        drop(changes);
        assert!(subscriptions.0.counts.lock().change_senders.is_empty());
    }

    #[test]
    fn only_requested_notifications_are_published() {
        let subscriptions = Subscriptions::default();
        let key = ObjectKey::new("default", "a");
        let handler = subscriptions.notification_handler(&key);
        let mut notifications = subscriptions.notifications();
        handler.call(ServerNotification::LogMessage(&log_message("error")));
        handler.call(ServerNotification::ResourceUpdated("x:1"));
        assert!(notifications.try_recv().is_err());
        let complete = Bytes::from_static(b"{}");
        let elicitation = subscriptions.subscribe_elicitation(&key, "e");
        handler.call(ServerNotification::ElicitationComplete("other", &complete));
        handler.call(ServerNotification::ElicitationComplete("e", &complete));
        drop(elicitation);
        handler.call(ServerNotification::ElicitationComplete("e", &complete));
        assert!(matches!(
            &notifications.try_recv().unwrap().content,
            NotificationContent::ElicitationComplete(id, _) if id == "e"
        ));
        assert!(notifications.try_recv().is_err());
        let _log = subscriptions.subscribe_logs(&ViewName::All, LogLevel::Warning);
        let _resource = subscriptions.subscribe_resource(&key, "x:1");
        for level in ["info", "error", "nonsense"] {
            handler.call(ServerNotification::LogMessage(&log_message(level)));
        }
        let mut long = log_message("error").to_vec();
        long.resize(MAX_LOG_MESSAGE_BYTES + 1, b' ');
        handler.call(ServerNotification::LogMessage(&long.into()));
        handler.call(ServerNotification::ResourceUpdated("x:2"));
        handler.call(ServerNotification::ResourceUpdated("x:1"));
        assert!(matches!(
            &notifications.try_recv().unwrap().content,
            NotificationContent::LogMessage(LogLevel::Error, text) if *text == log_message("error")
        ));
        assert!(matches!(
            &notifications.try_recv().unwrap().content,
            NotificationContent::ResourceUpdated(uri) if uri == "x:1"
        ));
        assert!(notifications.try_recv().is_err());
    }
}
