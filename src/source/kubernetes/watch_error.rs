//! Describes a watch error: for the operator, and as a metric label. Pure.

use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;
use tower::timeout::error::Elapsed;

use super::watch_message::WatchId;
use crate::net::api_server::{RESPONSE_TIMEOUT, WatchTooBrief, describe_error, retry_after, root_cause};
use crate::resource::{GROUP, Problem, Reason};

/// The reason a watch failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error(transparent)]
    Watch(#[from] watcher::Error),
    #[error("cannot confirm that objects were deleted: {0}")]
    Confirm(#[source] kube::Error),
    #[error("the list ended before it was complete")]
    ListTruncated,
    #[error("no response within {} s", RESPONSE_TIMEOUT.as_secs())]
    Timeout,
}

/// Returns the problem of a watch on `server`.
pub(super) fn watch_problem(error: &WatchError, watch: &WatchId, server: &str) -> Problem {
    if let Some(status) = api_status(error) {
        return status_problem(status, watch, server);
    }
    if is_too_brief(error) {
        return Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the API server {server} responds, but it ends watches right after their start; they are restarted \
                 after a delay, and the current state is kept until they last"
            ),
        );
    }
    let reason = request_error(error).map_or_else(|| root_cause(error), describe_error);
    Problem::new(
        Reason::SourceUnavailable,
        format!(
            "the API server {server} cannot be reached: {reason}; the current state is kept until it can"
        ),
    )
}

/// Returns the reason as a metric label, as listed in `docs/metrics.md`.
pub(super) fn metric_reason(error: &WatchError) -> &'static str {
    match api_status(error).map(|status| status.code) {
        Some(401 | 403) => "denied",
        Some(404) => "missing",
        Some(410) => "gone",
        Some(429) => "throttled",
        Some(500..) => "server_error",
        Some(_) => "refused",
        None if is_timeout(error) => "silent",
        None if is_too_brief(error) => "brief",
        None => "connection",
    }
}

/// Returns the delay that the API server requested (Retry-After).
pub(super) fn requested_delay(error: &WatchError) -> Option<Duration> {
    retry_after(api_status(error)?)
}

fn status_problem(status: &Status, watch: &WatchId, server: &str) -> Problem {
    let Status { code, message, .. } = status;
    match (code, watch) {
        (401, _) => Problem::new(
            Reason::NotPermitted,
            format!("the API server {server} rejects evenkeel's credentials: {message}"),
        ),
        (403, _) => Problem::new(
            Reason::NotPermitted,
            format!("evenkeel needs the permission to list and watch {watch}: {message}"),
        ),
        (404, WatchId::Servers(_) | WatchId::Skills(_)) => Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the CustomResourceDefinition {}.{GROUP} is not installed; waiting for it to be installed \
                 (evenkeel crds | kubectl apply --server-side -f -)",
                watch.plural()
            ),
        ),
        (410, _) => Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the resourceVersion of the watch of {watch} expired at the API server {server}: \
                 {message}; they are listed again"
            ),
        ),
        (429, _) => {
            let delay =
                retry_after(status).map(|delay| format!(" after the requested {} s", delay.as_secs()));
            Problem::new(
                Reason::SourceUnavailable,
                format!(
                    "the API server {server} is overloaded: {message}; the request is retried{}",
                    delay.unwrap_or_default()
                ),
            )
        }
        _ => Problem::new(
            Reason::SourceUnavailable,
            format!("the API server {server} failed to list or watch {watch}: {message} (HTTP {code})"),
        ),
    }
}

fn api_status(error: &WatchError) -> Option<&Status> {
    match (error, request_error(error)) {
        (WatchError::Watch(watcher::Error::WatchError(status)), _) | (_, Some(kube::Error::Api(status))) => {
            Some(status)
        }
        _ => None,
    }
}

/// Returns the error of the request that failed, if a request failed.
fn request_error(error: &WatchError) -> Option<&kube::Error> {
    match error {
        WatchError::Watch(
            watcher::Error::InitialListFailed(inner)
            | watcher::Error::WatchStartFailed(inner)
            | watcher::Error::WatchFailed(inner),
        )
        | WatchError::Confirm(inner) => Some(inner),
        WatchError::Watch(watcher::Error::WatchError(_) | watcher::Error::NoResourceVersion)
        | WatchError::ListTruncated
        | WatchError::Timeout => None,
    }
}

fn is_timeout(error: &WatchError) -> bool {
    match (error, request_error(error)) {
        (WatchError::Timeout, _) => true,
        (_, Some(kube::Error::Service(inner))) => inner.is::<Elapsed>(),
        _ => false,
    }
}

/// True if the request was delayed by the rate limit of watches.
fn is_too_brief(error: &WatchError) -> bool {
    matches!(request_error(error), Some(kube::Error::Service(inner)) if inner.is::<WatchTooBrief>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_errors_state_the_remedy() {
        let servers = WatchId::Servers(Some("team-a".into()));
        let api = |code, message: &str| {
            let status = Status::failure(message, "").with_code(code).boxed();
            WatchError::Watch(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
        };
        for (error, expected) in [
            (
                api(401, "Unauthorized"),
                "NotPermitted: the API server https://api rejects evenkeel's credentials: Unauthorized",
            ),
            (
                api(403, "no"),
                "NotPermitted: evenkeel needs the permission to list and watch mcpservers in namespace team-a: no",
            ),
            (
                api(404, "page not found"),
                "SourceUnavailable: the CustomResourceDefinition mcpservers.evenkeel.dev is not installed; \
                 waiting for it to be installed (evenkeel crds | kubectl apply --server-side -f -)",
            ),
            (
                api(429, "slow down"),
                "SourceUnavailable: the API server https://api is overloaded: slow down; the request is retried",
            ),
            (
                api(410, "too old"),
                "SourceUnavailable: the resourceVersion of the watch of mcpservers in namespace team-a expired at \
                 the API server https://api: too old; they are listed again",
            ),
            (
                WatchError::Timeout,
                "SourceUnavailable: the API server https://api cannot be reached: no response within 10 s; \
                 the current state is kept until it can",
            ),
            (
                WatchError::Watch(watcher::Error::WatchStartFailed(kube::Error::Service(Box::new(
                    WatchTooBrief,
                )))),
                "SourceUnavailable: the API server https://api responds, but it ends watches right after their start; \
                 they are restarted after a delay, and the current state is kept until they last",
            ),
        ] {
            assert_eq!(watch_problem(&error, &servers, "https://api").to_string(), expected);
        }
    }
}
