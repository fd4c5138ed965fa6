use crate::daemon::DaemonError;

/// Why a command did not succeed.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// Called with arguments that make no sense: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// No evenkeel is running, or the answer did not come to its end because evenkeel ended or cannot go on with it: exit
    /// code 1. It may be starting again.
    #[error("{0}")]
    Interrupted(String),
}

impl CommandError {
    #[expect(clippy::needless_pass_by_value, reason = "what map_err gives")]
    pub(super) fn failed(error: impl ToString) -> Self {
        Self::Failed(error.to_string())
    }
}

impl From<DaemonError> for CommandError {
    fn from(error: DaemonError) -> Self {
        Self::failed(error)
    }
}
