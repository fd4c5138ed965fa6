//! What goes wrong with a connection, and where it is written down that it is over.

use std::time::Duration;

use tokio::sync::SetOnce;

use crate::resource::{Problem, Reason};

/// Why a connection could not be made, or a request not be carried out.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct ConnectionError {
    /// What happened, for conditions and for the caller.
    pub problem: Problem,
    /// True if the request may have reached the server: it must not be sent again.
    pub dispatched: bool,
    /// What the server asked for with Retry-After.
    pub retry_after: Option<Duration>,
    /// What shows that it went wrong.
    pub failure_source: FailureSource,
}

/// What shows that a connection or a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureSource {
    /// The connection itself: it could not be made, it broke, or makes no sense.
    Connection,
    /// A response with this HTTP status.
    Status(http::StatusCode),
    /// The server no longer knows the session.
    Session,
    /// The end of the server's process, which had run for so long.
    Exit(Duration),
    /// Nothing was sent, for the server wants to be left alone (Retry-After). The connection is as good as before.
    RetryAfter,
}

impl ConnectionError {
    /// An error of a request that was not dispatched.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            problem: Problem::new(reason, message),
            dispatched: false,
            retry_after: None,
            failure_source: FailureSource::Connection,
        }
    }

    /// True if it is not one request that failed, but the connection or its session.
    pub fn ends_connection(&self) -> bool {
        match self.failure_source {
            FailureSource::Connection | FailureSource::Exit(_) => !self.dispatched,
            FailureSource::Session => true,
            FailureSource::Status(_) | FailureSource::RetryAfter => false,
        }
    }

    /// The same for a request that may have reached the server.
    #[must_use]
    pub fn into_dispatched(self) -> Self {
        Self { dispatched: true, ..self }
    }
}

/// Where the end of a connection is written down, by whoever notices first.
#[derive(Debug, Default)]
pub(super) struct ConnectionEnd(SetOnce<ConnectionError>);

impl ConnectionEnd {
    pub(super) fn mark(&self, error: ConnectionError) {
        // Whoever comes later adds nothing.
        let _ = self.0.set(error);
    }

    pub(super) fn get(&self) -> Option<&ConnectionError> {
        self.0.get()
    }

    pub(super) async fn wait(&self) -> ConnectionError {
        self.0.wait().await.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_mark_is_kept_and_wakes_waiters() {
        let lost = ConnectionEnd::default();
        assert!(lost.get().is_none());
        let (first, ()) = tokio::join!(lost.wait(), async {
            lost.mark(ConnectionError::new(Reason::Exited, "first"));
            lost.mark(ConnectionError::new(Reason::Exited, "second"));
        });
        let later = lost.wait().await;
        for error in [Some(&first), Some(&later), lost.get()] {
            assert_eq!(error.unwrap().problem.message, "first");
        }
    }
}
