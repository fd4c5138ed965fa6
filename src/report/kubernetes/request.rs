use std::time::Duration;

/// The field manager of all writes.
pub(super) const FIELD_MANAGER: &str = "evenkeel";
/// The timeout of one request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
