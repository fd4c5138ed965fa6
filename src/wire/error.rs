//! Errors of connections and requests, and the record of how a connection ended.

use std::time::Duration;

use tokio::sync::SetOnce;

use crate::resource::{Problem, Reason};

/// An error of a connection attempt or of a request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub struct ConnectionError {
    /// The reason and message, for conditions and for the caller.
    pub problem: Problem,
    /// True if the request may have reached the server. It must not be sent again.
    pub dispatched: bool,
    /// The delay that the server requested with Retry-After.
    pub retry_after: Option<Duration>,
    /// The evidence of the failure.
    pub failure_source: FailureSource,
}

/// The evidence that a connection or a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureSource {
    /// The connection itself: it could not be opened, it broke, or its messages are invalid.
    Connection,
    /// An HTTP response with this status.
    Status(http::StatusCode),
    /// The server does not recognize the session any more.
    Session,
    /// The exit of the server's process, which had run for this long.
    Exit(Duration),
    /// A response that is not a JSON-RPC response. The connection is unaffected.
    Response,
    /// Nothing was sent because a Retry-After of the server is in effect. The connection is unaffected.
    RetryAfter,
    /// Nothing was sent because of a limit of this machine or of evenkeel's process. The connection is unaffected.
    LocalLimit,
}

impl ConnectionError {
    /// Returns an error of a request that was not sent.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self::from_problem(Problem::new(reason, message))
    }

    /// Returns an error of a request that was not sent, because of this problem.
    pub fn from_problem(problem: Problem) -> Self {
        Self { problem, dispatched: false, retry_after: None, failure_source: FailureSource::Connection }
    }

    /// True if the connection or its session failed, and not only one request.
    pub fn ends_connection(&self) -> bool {
        match self.failure_source {
            FailureSource::Connection | FailureSource::Exit(_) => !self.dispatched,
            FailureSource::Session => true,
            FailureSource::Status(_)
            | FailureSource::Response
            | FailureSource::RetryAfter
            | FailureSource::LocalLimit => false,
        }
    }

    /// Returns the error marked as that of a request that may have reached the server.
    #[must_use]
    pub fn into_dispatched(self) -> Self {
        Self { dispatched: true, ..self }
    }
}

/// The error that ended a connection, set once by the task that detects it first.
#[derive(Debug, Default)]
pub(super) struct ConnectionEnd(SetOnce<ConnectionError>);

impl ConnectionEnd {
    /// Records the end of the connection. Has no effect if it is recorded already.
    pub(super) fn mark(&self, error: ConnectionError) {
        let _ = self.0.set(error);
    }

    pub(super) fn get(&self) -> Option<&ConnectionError> {
        self.0.get()
    }

    /// Waits until the connection has ended. Cancel safe.
    pub(super) async fn wait(&self) -> ConnectionError {
        self.0.wait().await.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn first_mark_is_kept_and_wakes_waiters() {
        let end = ConnectionEnd::default();
        assert!(end.get().is_none());
        let (first, ()) = tokio::join!(end.wait(), async {
            end.mark(ConnectionError::new(Reason::Exited, "first"));
            end.mark(ConnectionError::new(Reason::Exited, "second"));
        });
        let later = end.wait().await;
        for error in [Some(&first), Some(&later), end.get()] {
            assert_eq!(error.unwrap().problem.message, "first");
        }
    }
}
