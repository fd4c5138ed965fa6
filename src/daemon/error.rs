use std::fmt;

/// Why a daemon did not start, or ended by itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DaemonError(pub(super) String);

impl DaemonError {
    pub(super) fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}
