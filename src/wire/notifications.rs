//! Dispatches messages of a server that belong to no request: to its log, to agents, and to the list refresh.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::envelope::MalformedMessage;
use super::secret_mask::SecretMask;
use super::server_message::ServerMessage;
use super::{ListKind, ServerLog};

/// A notification of a server for agents.
#[derive(Clone, Copy, Debug)]
pub enum ServerNotification<'a> {
    /// A subscribed resource changed. Holds the server's own URI.
    ResourceUpdated(&'a str),
    /// A log message. Holds the whole JSON-RPC notification.
    LogMessage(&'a Bytes),
}

/// A function that is called with each notification of a server. Cheap to clone.
#[derive(Clone)]
pub struct NotificationHandler(Arc<dyn Fn(ServerNotification<'_>) + Send + Sync>);

impl NotificationHandler {
    /// Wraps a function, which must not block.
    pub fn new(handle: impl Fn(ServerNotification<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handle))
    }

    /// Calls the function.
    pub fn call(&self, notification: ServerNotification<'_>) {
        (self.0)(notification);
    }
}

impl fmt::Debug for NotificationHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NotificationHandler")
    }
}

/// The receiver of one connection's messages that belong to no request. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct NotificationDispatcher(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: ServerLog,
    mask: SecretMask,
    handler: Option<NotificationHandler>,
    /// The changed lists that were not reported yet, each once: a burst of notifications is one change.
    changed_lists: Mutex<Vec<ListKind>>,
    list_changed: Notify,
    /// Set by every message of the server, cleared by [`NotificationDispatcher::received_since_last_check`].
    received: AtomicBool,
    /// Notified if a response calls for a health check.
    health_check_requested: Notify,
}

impl NotificationDispatcher {
    pub(super) fn new(log: ServerLog, handler: Option<NotificationHandler>, mask: SecretMask) -> Self {
        Self(Arc::new(Inner { log, mask, handler, ..Inner::default() }))
    }

    /// Returns the mask that redacts, in the server's texts, the values that evenkeel passed to it.
    pub(super) fn mask(&self) -> &SecretMask {
        &self.0.mask
    }

    /// Records that a message of the server arrived.
    pub(super) fn mark_received(&self) {
        self.0.received.store(true, Ordering::Relaxed);
    }

    /// True if a message has arrived since the last call of this method.
    pub(super) fn received_since_last_check(&self) -> bool {
        self.0.received.swap(false, Ordering::Relaxed)
    }

    /// Requests an immediate health check, after a response that makes the session or the credentials doubtful.
    pub(super) fn request_health_check(&self) {
        self.0.health_check_requested.notify_one();
    }

    /// Waits until a health check is requested. Cancel safe; only one task may wait.
    pub(super) async fn health_check_requested(&self) {
        self.0.health_check_requested.notified().await;
    }

    /// Handles a message that belongs to no request.
    pub(super) fn dispatch(&self, kind: &ServerMessage, message: &Bytes) {
        match kind {
            ServerMessage::ListChanged(list) => self.mark_list_changed(*list),
            ServerMessage::ResourceUpdated(uri) => {
                if let Some(handler) = &self.0.handler {
                    handler.call(ServerNotification::ResourceUpdated(uri));
                }
            }
            ServerMessage::LogMessage => {
                self.record_log_message(message);
                if let Some(handler) = &self.0.handler {
                    handler.call(ServerNotification::LogMessage(message));
                }
            }
            _ => {}
        }
    }

    /// Adds a log message to the server's log. The caller of its request gets it as well.
    pub(super) fn record_log_message(&self, message: &Bytes) {
        self.0.log.push_notification(message, &self.0.mask);
    }

    /// Logs that an invalid message was skipped.
    pub(super) fn log_malformed(&self, error: &MalformedMessage) {
        let error = self.0.mask.redacted_line(&error.to_string(), 200);
        tracing::debug!(error, "the server sent an invalid MCP message; it is skipped");
    }

    /// Marks a list as changed, or possibly changed.
    pub(super) fn mark_list_changed(&self, list: ListKind) {
        let mut changed = self.0.changed_lists.lock();
        if !changed.contains(&list) {
            changed.push(list);
        }
        self.0.list_changed.notify_one();
    }

    /// Waits for the next changed list. Cancel safe; only one task may wait.
    pub(super) async fn next_changed_list(&self) -> ListKind {
        loop {
            let list = {
                let mut changed = self.0.changed_lists.lock();
                if changed.is_empty() { None } else { Some(changed.remove(0)) }
            };
            match list {
                Some(list) => return list,
                None => self.0.list_changed.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn burst_of_list_changes_is_reported_once_per_list() {
        let dispatcher = NotificationDispatcher::default();
        for list in [ListKind::Tools, ListKind::Resources, ListKind::Tools, ListKind::Tools] {
            dispatcher.mark_list_changed(list);
        }
        assert_eq!(dispatcher.next_changed_list().now_or_never(), Some(ListKind::Tools));
        assert_eq!(dispatcher.next_changed_list().now_or_never(), Some(ListKind::Resources));
        assert_eq!(dispatcher.next_changed_list().now_or_never(), None);
        dispatcher.mark_list_changed(ListKind::Prompts);
        assert_eq!(dispatcher.next_changed_list().now_or_never(), Some(ListKind::Prompts));
    }
}
