use crate::daemon::DaemonError;

/// An error of a command.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// Invalid arguments: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Any other failure: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// No instance is running, or it ended or cannot continue before the response was complete: exit code 1.
    ///
    /// The instance may be restarting, so that a retry may succeed.
    #[error("{0}")]
    Interrupted(String),
}

impl CommandError {
    #[expect(clippy::needless_pass_by_value, reason = "the signature that map_err needs")]
    pub(super) fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<DaemonError> for CommandError {
    fn from(error: DaemonError) -> Self {
        Self::failed(error)
    }
}
