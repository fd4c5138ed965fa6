//! What goes wrong with a connection, and where it is written down that it is over.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::Notify;

use crate::resource::{Problem, Reason};

/// Why a connection could not be made, or a request not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct LinkError {
    /// What happened, for conditions and for the caller.
    pub problem: Problem,
    /// True if the request may have reached the server: it must not be sent again.
    pub dispatched: bool,
    /// What the server asked for with Retry-After.
    pub retry_after: Option<Duration>,
    /// What shows that it went wrong.
    pub sign: Sign,
}

/// What shows that a connection or a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// The connection itself: it could not be made, it broke, or makes no sense.
    Connection,
    /// A response with this HTTP status.
    Status(http::StatusCode),
    /// The server no longer knows the session.
    Session,
    /// The end of the server's process, which had run for so long.
    Exit(Duration),
    /// Nothing was sent, for the server wants to be left alone (Retry-After). The connection is as good as before.
    Pause,
}

impl LinkError {
    /// An error of a request that was not dispatched.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            problem: Problem::new(reason, message),
            dispatched: false,
            retry_after: None,
            sign: Sign::Connection,
        }
    }

    /// True if it is not one request that failed, but the connection or its session.
    pub fn ends_the_link(&self) -> bool {
        match self.sign {
            Sign::Connection | Sign::Exit(_) => !self.dispatched,
            Sign::Session => true,
            Sign::Status(_) | Sign::Pause => false,
        }
    }

    /// The same for a request that may have reached the server.
    #[must_use]
    pub fn dispatched(self) -> Self {
        Self { dispatched: true, ..self }
    }
}

/// Where the end of a connection is written down, by whoever notices first.
#[derive(Debug, Default)]
pub(super) struct Lost {
    error: OnceLock<LinkError>,
    noticed: Notify,
}

impl Lost {
    pub(super) fn mark(&self, error: LinkError) {
        if self.error.set(error).is_ok() {
            self.noticed.notify_waiters();
        }
    }

    pub(super) fn get(&self) -> Option<&LinkError> {
        self.error.get()
    }

    pub(super) async fn wait(&self) -> LinkError {
        loop {
            let noticed = self.noticed.notified();
            if let Some(error) = self.error.get() {
                return error.clone();
            }
            noticed.await;
        }
    }
}
