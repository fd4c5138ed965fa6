//! What a server says that answers no request: to the log, to agents, and to whoever keeps its lists.

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

/// Something that a server tells agents unasked.
#[derive(Clone, Copy, Debug)]
pub enum ServerNotification<'a> {
    /// A resource changed that somebody asked to be told of, by the server's own URI.
    ResourceUpdated(&'a str),
    /// A log message, as the whole JSON-RPC notification.
    LogMessage(&'a Bytes),
}

/// Called with each notice of a server. Cheap to clone.
#[derive(Clone)]
pub struct NotificationHandler(Arc<dyn Fn(ServerNotification<'_>) + Send + Sync>);

impl NotificationHandler {
    /// Wraps a function, which must not block.
    pub fn new(handle: impl Fn(ServerNotification<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handle))
    }

    /// Passes a notice on.
    pub fn call(&self, notice: ServerNotification<'_>) {
        (self.0)(notice);
    }
}

impl fmt::Debug for NotificationHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoticeHandler")
    }
}

/// The ears of one connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct NotificationDispatcher(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: ServerLog,
    mask: SecretMask,
    handler: Option<NotificationHandler>,
    /// Lists that changed and were not told of yet, each once: a burst of notices is one change.
    changed_lists: Mutex<Vec<ListKind>>,
    list_changed: Notify,
    /// Set by every message of the server, cleared by who asks.
    received: AtomicBool,
    /// A response casts doubt on the connection.
    health_check_requested: Notify,
}

impl NotificationDispatcher {
    pub(super) fn new(log: ServerLog, notices: Option<NotificationHandler>, mask: SecretMask) -> Self {
        Self(Arc::new(Inner { log, mask, handler: notices, ..Inner::default() }))
    }

    /// Takes out of the server's words what it was given.
    pub(super) fn mask(&self) -> &SecretMask {
        &self.0.mask
    }

    /// Notes that the server said something, whatever it was.
    pub(super) fn mark_received(&self) {
        self.0.received.store(true, Ordering::Relaxed);
    }

    /// True if it has said anything since this was asked last.
    pub(super) fn received_since_last_check(&self) -> bool {
        self.0.received.swap(false, Ordering::Relaxed)
    }

    /// Notes that a response casts doubt on the connection: a health check is due at once.
    pub(super) fn request_health_check(&self) {
        self.0.health_check_requested.notify_one();
    }

    /// Waits until one does. Cancel safe; one waits at a time.
    pub(super) async fn health_check_requested(&self) {
        self.0.health_check_requested.notified().await;
    }

    /// Takes up a message that belongs to no request.
    pub(super) fn dispatch(&self, kind: &ServerMessage, message: &Bytes) {
        match kind {
            ServerMessage::ListChanged(list) => self.mark_list_changed(*list),
            ServerMessage::ResourceUpdated(uri) => {
                if let Some(notices) = &self.0.handler {
                    notices.call(ServerNotification::ResourceUpdated(uri));
                }
            }
            ServerMessage::LogMessage => {
                self.record_log_message(message);
                if let Some(notices) = &self.0.handler {
                    notices.call(ServerNotification::LogMessage(message));
                }
            }
            _ => {}
        }
    }

    /// Takes up a log message that its request's caller gets.
    pub(super) fn record_log_message(&self, message: &Bytes) {
        self.0.log.push_notification(message, &self.0.mask);
    }

    /// Something came that is no message at all.
    pub(super) fn log_malformed(&self, error: &MalformedMessage) {
        let error = self.0.mask.redacted_line(&error.to_string(), 200);
        tracing::debug!(error, "the server said something that is not MCP; it was skipped");
    }

    /// A list changed, or may have.
    pub(super) fn mark_list_changed(&self, list: ListKind) {
        let mut changed = self.0.changed_lists.lock();
        if !changed.contains(&list) {
            changed.push(list);
        }
        self.0.list_changed.notify_one();
    }

    /// The next list that changed. Cancel safe; one waits at a time.
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
        let ears = NotificationDispatcher::default();
        for list in [ListKind::Tools, ListKind::Resources, ListKind::Tools, ListKind::Tools] {
            ears.mark_list_changed(list);
        }
        assert_eq!(ears.next_changed_list().now_or_never(), Some(ListKind::Tools));
        assert_eq!(ears.next_changed_list().now_or_never(), Some(ListKind::Resources));
        assert_eq!(ears.next_changed_list().now_or_never(), None);
        ears.mark_list_changed(ListKind::Prompts);
        assert_eq!(ears.next_changed_list().now_or_never(), Some(ListKind::Prompts));
    }
}
