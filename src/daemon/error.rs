use std::fmt;

/// An error that prevents startup or ends a running instance.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct DaemonError(pub(super) String);

impl DaemonError {
    pub(super) fn new(error: impl fmt::Display) -> Self {
        Self(error.to_string())
    }
}
