//! What a server says that answers no request: to the log, to agents, and to whoever keeps its lists.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::envelope::Malformed;
use super::inbound::Inbound;
use super::mask::Mask;
use super::{List, Log};

/// Something that a server tells agents unasked.
#[derive(Clone, Copy, Debug)]
pub enum ServerNotice<'a> {
    /// A resource changed that somebody asked to be told of, by the server's own URI.
    Updated(&'a str),
    /// A log message, as the whole JSON-RPC notification.
    Logged(&'a Bytes),
}

/// Called with each notice of a server. Cheap to clone.
#[derive(Clone)]
pub struct NoticeHandler(Arc<dyn Fn(ServerNotice<'_>) + Send + Sync>);

impl NoticeHandler {
    /// Wraps a function, which must not block.
    pub fn new(handle: impl Fn(ServerNotice<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(handle))
    }

    /// Passes a notice on.
    pub fn call(&self, notice: ServerNotice<'_>) {
        (self.0)(notice);
    }
}

impl fmt::Debug for NoticeHandler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoticeHandler")
    }
}

/// The ears of one connection. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Unasked(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    log: Log,
    mask: Mask,
    notices: Option<NoticeHandler>,
    /// Lists that changed and were not told of yet, each once: a burst of notices is one change.
    changed: Mutex<Vec<List>>,
    news: Notify,
    /// Set by every message of the server, cleared by who asks.
    heard: AtomicBool,
    /// A response casts doubt on the connection.
    doubted: Notify,
}

impl Unasked {
    pub(super) fn new(log: Log, notices: Option<NoticeHandler>, mask: Mask) -> Self {
        Self(Arc::new(Inner { log, mask, notices, ..Inner::default() }))
    }

    /// Takes out of the server's words what it was given.
    pub(super) fn mask(&self) -> &Mask {
        &self.0.mask
    }

    /// Notes that the server said something, whatever it was.
    pub(super) fn heard(&self) {
        self.0.heard.store(true, Ordering::Relaxed);
    }

    /// True if it has said anything since this was asked last.
    pub(super) fn heard_lately(&self) -> bool {
        self.0.heard.swap(false, Ordering::Relaxed)
    }

    /// Notes that a response casts doubt on the connection: a health check is due at once.
    pub(super) fn doubt(&self) {
        self.0.doubted.notify_one();
    }

    /// Waits until one does. Cancel safe; one waits at a time.
    pub(super) async fn doubted(&self) {
        self.0.doubted.notified().await;
    }

    /// Takes up a message that belongs to no request.
    pub(super) fn take(&self, kind: &Inbound, message: &Bytes) {
        match kind {
            Inbound::Changed(list) => self.changed(*list),
            Inbound::Updated(uri) => {
                if let Some(notices) = &self.0.notices {
                    notices.call(ServerNotice::Updated(uri));
                }
            }
            Inbound::Logged => {
                self.log(message);
                if let Some(notices) = &self.0.notices {
                    notices.call(ServerNotice::Logged(message));
                }
            }
            _ => {}
        }
    }

    /// Takes up a log message that its request's caller gets.
    pub(super) fn log(&self, message: &Bytes) {
        self.0.log.message(message, &self.0.mask);
    }

    /// Something came that is no message at all.
    pub(super) fn skipped(&self, error: &Malformed) {
        let error = self.0.mask.words(&error.to_string(), 200);
        tracing::debug!(error, "the server said something that is not MCP; it was skipped");
    }

    /// A list changed, or may have.
    pub(super) fn changed(&self, list: List) {
        let mut changed = self.0.changed.lock();
        if !changed.contains(&list) {
            changed.push(list);
        }
        self.0.news.notify_one();
    }

    /// The next list that changed. Cancel safe; one waits at a time.
    pub(super) async fn next_change(&self) -> List {
        loop {
            let list = {
                let mut changed = self.0.changed.lock();
                if changed.is_empty() { None } else { Some(changed.remove(0)) }
            };
            match list {
                Some(list) => return list,
                None => self.0.news.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_burst_is_one_change_of_each_list_and_none_is_lost() {
        let ears = Unasked::default();
        for list in [List::Tools, List::Resources, List::Tools, List::Tools] {
            ears.changed(list);
        }
        assert_eq!(ears.next_change().now_or_never(), Some(List::Tools));
        assert_eq!(ears.next_change().now_or_never(), Some(List::Resources));
        assert_eq!(ears.next_change().now_or_never(), None);
        ears.changed(List::Prompts);
        assert_eq!(ears.next_change().now_or_never(), Some(List::Prompts));
    }
}
