use std::time::Duration;

/// Names who writes, as the API server notes it of every field.
pub(super) const FIELD_MANAGER: &str = "evenkeel";
/// Limits how long one request may take.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
