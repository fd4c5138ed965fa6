use std::time::Duration;

/// Names who writes, as the API server notes it of every field.
pub(super) const MANAGER: &str = "evenkeel";
/// Limits how long one request may take.
pub(super) const REQUEST: Duration = Duration::from_secs(5);
