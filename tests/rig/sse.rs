//! The sessions of HTTP+SSE (2024-11-05): each has an event stream, and an endpoint for POST that the stream names.

use std::collections::HashMap;
use std::sync::Mutex;

use hyper::Uri;
use tokio::sync::mpsc;

/// The open sessions, by number.
#[derive(Default)]
pub(super) struct SseSessions(Mutex<HashMap<usize, mpsc::UnboundedSender<String>>>);

impl SseSessions {
    /// Opens a session. Returns its endpoint, and the events that are to be sent on its stream.
    pub(super) fn open(&self) -> (String, mpsc::UnboundedReceiver<String>) {
        let (sender, events) = mpsc::unbounded_channel();
        let mut sessions = self.0.lock().unwrap();
        let number = sessions.len();
        sessions.insert(number, sender);
        (format!("messages?session={number}"), events)
    }

    /// Returns the stream of the session whose endpoint this is, if the stream is open.
    pub(super) fn find(&self, endpoint: &Uri) -> Option<mpsc::UnboundedSender<String>> {
        let number = endpoint.query()?.strip_prefix("session=")?.parse().ok()?;
        let sender = self.0.lock().unwrap().get(&number)?.clone();
        Some(sender).filter(|sender| !sender.is_closed())
    }
}
