//! What is wrong with a watch: for the person who runs evenkeel, and for who counts. Pure.

use std::time::Duration;

use kube::core::Status;
use kube::runtime::watcher;
use tower::timeout::error::Elapsed;

use super::watch_message::WatchId;
use crate::net::api_server::{RESPONSE_TIMEOUT, WatchTooBrief, describe_error, retry_after, root_cause};
use crate::resource::{GROUP, Problem, Reason};

/// Why a watch broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum WatchError {
    #[error(transparent)]
    Watch(#[from] watcher::Error),
    #[error("could not make sure that objects are gone: {0}")]
    Confirm(#[source] kube::Error),
    #[error("the list of what is there ended before it was whole")]
    ListTruncated,
    #[error("no answer within {} s", RESPONSE_TIMEOUT.as_secs())]
    Timeout,
}

/// The trouble of a watch on `server`.
pub(super) fn watch_problem(error: &WatchError, watch: &WatchId, server: &str) -> Problem {
    if let Some(status) = api_status(error) {
        return status_problem(status, watch, server);
    }
    if is_too_brief(error) {
        return Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the API server {server} answers, but its watches end as soon as they have begun; they are begun again \
                 after a while, and everything stays as it is until they last"
            ),
        );
    }
    let why = request_error(error).map_or_else(|| root_cause(error), describe_error);
    Problem::new(
        Reason::SourceUnavailable,
        format!("the API server {server} cannot be reached: {why}; everything stays as it is until it can"),
    )
}

/// The same in a word, as `docs/metrics.md` lists them.
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

/// How long the API server asks to be left alone.
pub(super) fn requested_delay(error: &WatchError) -> Option<Duration> {
    retry_after(api_status(error)?)
}

fn status_problem(status: &Status, watch: &WatchId, server: &str) -> Problem {
    let Status { code, message, .. } = status;
    match (code, watch) {
        (401, _) => Problem::new(
            Reason::NotPermitted,
            format!("the API server {server} does not accept evenkeel's credentials: {message}"),
        ),
        (403, _) => Problem::new(
            Reason::NotPermitted,
            format!("evenkeel needs the permission to list and watch {watch}: {message}"),
        ),
        (404, WatchId::Servers(_) | WatchId::Skills(_)) => Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the CustomResourceDefinition {}.{GROUP} is not installed; it is waited for (evenkeel crds | \
                 kubectl apply --server-side -f -)",
                watch.plural()
            ),
        ),
        (410, _) => Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the API server {server} no longer knows what {watch} were watched from: {message}; they are listed anew"
            ),
        ),
        (429, _) => {
            let wait =
                retry_after(status).map(|wait| format!(", after the {} s that it asks for", wait.as_secs()));
            Problem::new(
                Reason::SourceUnavailable,
                format!(
                    "the API server {server} has too much to do: {message}; it is asked again{}",
                    wait.unwrap_or_default()
                ),
            )
        }
        _ => Problem::new(
            Reason::SourceUnavailable,
            format!("the API server {server} does not tell {watch}: {message} (HTTP {code})"),
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

/// The request that failed, if it was one.
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

/// True if the request was held back by the pace of watches.
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
                "NotPermitted: the API server https://api does not accept evenkeel's credentials: Unauthorized",
            ),
            (
                api(403, "no"),
                "NotPermitted: evenkeel needs the permission to list and watch mcpservers in namespace team-a: no",
            ),
            (
                api(404, "page not found"),
                "SourceUnavailable: the CustomResourceDefinition mcpservers.evenkeel.dev is not installed; it is waited for (evenkeel crds | kubectl apply --server-side -f -)",
            ),
            (
                api(429, "slow down"),
                "SourceUnavailable: the API server https://api has too much to do: slow down; it is asked again",
            ),
            (
                api(410, "too old"),
                "SourceUnavailable: the API server https://api no longer knows what mcpservers in namespace team-a were watched from: too old; they are listed anew",
            ),
            (
                WatchError::Timeout,
                "SourceUnavailable: the API server https://api cannot be reached: no answer within 10 s; everything stays as it is until it can",
            ),
            (
                WatchError::Watch(watcher::Error::WatchStartFailed(kube::Error::Service(Box::new(
                    WatchTooBrief,
                )))),
                "SourceUnavailable: the API server https://api answers, but its watches end as soon as they have begun; they are begun again after a while, and everything stays as it is until they last",
            ),
        ] {
            assert_eq!(watch_problem(&error, &servers, "https://api").to_string(), expected);
        }
    }
}
