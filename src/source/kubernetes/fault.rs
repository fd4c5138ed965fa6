//! What is wrong with a watch, for the person who runs evenkeel. Pure.

use std::fmt;

use kube::core::Status;
use kube::runtime::watcher;

use super::book::Watch;
use super::watch::Error;
use crate::resource::{GROUP, Problem, Reason};

/// The trouble of a watch on `server`.
pub(super) fn told(error: &Error, watch: &Watch, server: &str) -> Problem {
    match status(error) {
        Some(status) => refused(status, watch, server),
        None => Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the API server {server} cannot be reached: {}; everything stays as it is until it can",
                root(error)
            ),
        ),
    }
}

fn refused(status: &Status, watch: &Watch, server: &str) -> Problem {
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
        (404, Watch::Servers(_) | Watch::Skills(_)) => Problem::new(
            Reason::SourceUnavailable,
            format!(
                "the CustomResourceDefinition {}.{GROUP} is not installed; it is waited for (evenkeel crds | \
                 kubectl apply --server-side -f -)",
                watch.plural()
            ),
        ),
        (429, _) => Problem::new(
            Reason::SourceUnavailable,
            format!("the API server {server} has too much to do: {message}; it is asked again"),
        ),
        _ => Problem::new(
            Reason::SourceUnavailable,
            format!("the API server {server} does not tell {watch}: {message} (HTTP {code})"),
        ),
    }
}

fn status(error: &Error) -> Option<&Status> {
    let inner = match error {
        Error::Watch(watcher::Error::WatchError(status)) => return Some(status),
        Error::Watch(
            watcher::Error::InitialListFailed(inner)
            | watcher::Error::WatchStartFailed(inner)
            | watcher::Error::WatchFailed(inner),
        )
        | Error::Confirm(inner) => inner,
        Error::Watch(watcher::Error::NoResourceVersion) | Error::Silent => return None,
    };
    match inner {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// The innermost cause: what is around it says only that something failed.
fn root(error: &Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Servers(Some(namespace)) | Self::Skills(Some(namespace)) => {
                write!(f, "{} in namespace {namespace}", self.plural())
            }
            Self::Servers(None) | Self::Skills(None) => write!(f, "{} in all namespaces", self.plural()),
            Self::Secret(secret) => write!(f, "secret {} in namespace {}", secret.name, secret.namespace),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_to_do() {
        let servers = Watch::Servers(Some("team-a".into()));
        let api = |code, message: &str| {
            let status = Status::failure(message, "").with_code(code).boxed();
            Error::Watch(watcher::Error::WatchStartFailed(kube::Error::Api(status)))
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
                "SourceUnavailable: the API server https://api does not tell mcpservers in namespace team-a: too old (HTTP 410)",
            ),
            (
                Error::Silent,
                "SourceUnavailable: the API server https://api cannot be reached: no answer within 10 s; everything stays as it is until it can",
            ),
        ] {
            assert_eq!(told(&error, &servers, "https://api").to_string(), expected);
        }
    }
}
