use std::time::Duration;

use http::header::{LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::super::secret_mask::SecretMask;
use super::super::{ConnectionError, FailureSource};
use crate::resource::Reason;
use crate::text;

/// What an HTTP status that is no success means.
///
/// `credentials` tells whether the declaration sends headers of its own: rejected credentials and missing
/// ones need different hands. `body` is what the response's body says to people; `mask` is for the server's words.
pub(super) fn status_error(
    status: StatusCode,
    headers: &HeaderMap,
    body: &str,
    mask: &SecretMask,
    credentials: bool,
    now: Timestamp,
) -> ConnectionError {
    let said = body_excerpt(&mask.redact(body));
    let (reason, message) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if credentials => (
            Reason::CredentialsRejected,
            format!("the server rejected the credentials in spec.http.headers (HTTP {status}{said})"),
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let asks =
                if headers.contains_key(WWW_AUTHENTICATE) { "; it asks for authorization" } else { "" };
            (
                Reason::AuthRequired,
                format!(
                    "the server wants credentials (HTTP {status}{said}){asks}; set spec.http.headers with a secretKeyRef"
                ),
            )
        }
        _ if status.is_redirection() => {
            let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).map(without_query);
            let to = to.map(|to| format!(" to {}", mask.redact(to))).unwrap_or_default();
            (
                Reason::ConnectFailed,
                format!("the server redirects{to} (HTTP {status}); set spec.http.url to where the server is"),
            )
        }
        _ => (Reason::ConnectFailed, format!("the server answered HTTP {status}{said}")),
    };
    let mut error = ConnectionError::new(reason, message);
    // A server or a proxy that fails may have done the work before.
    error.dispatched = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
    error.failure_source = FailureSource::Status(status);
    error.retry_after = retry_after(headers, now);
    error
}

/// How long the server wants to be left alone: seconds, or a date (RFC 9110 §10.2.3). At most a day, so that nobody can
/// park a server for good.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let wait = if let Ok(seconds) = value.trim().parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let at = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
        Duration::try_from(at.duration_since(now)).unwrap_or_default()
    };
    Some(wait.min(Duration::from_hours(24)))
}

fn without_query(location: &str) -> &str {
    location.split(['?', '#']).next().unwrap_or_default()
}

/// The first line of what a body says, for the message.
fn body_excerpt(body: &str) -> String {
    let line = text::sanitize(body.lines().next().unwrap_or_default(), 120);
    if line.is_empty() || line.starts_with('<') { String::new() } else { format!(": {line}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-21T12:00:00Z".parse().unwrap()
    }

    #[test]
    fn reason_depends_on_status_and_declared_credentials() {
        for (status, credentials, reason) in [
            (401, false, Reason::AuthRequired),
            (403, false, Reason::AuthRequired),
            (401, true, Reason::CredentialsRejected),
            (403, true, Reason::CredentialsRejected),
            (500, true, Reason::ConnectFailed),
            (429, false, Reason::ConnectFailed),
            (302, false, Reason::ConnectFailed),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error =
                status_error(status, &HeaderMap::new(), "", &SecretMask::default(), credentials, now());
            assert_eq!(error.problem.reason, reason, "{status}");
        }
    }

    #[test]
    fn retry_after_accepts_seconds_and_dates() {
        for (value, expected) in [
            ("120", Some(120)),
            ("Sat, 21 Nov 2026 12:01:00 GMT", Some(60)),
            ("Sat, 21 Nov 2026 11:00:00 GMT", Some(0)),
            ("999999999", Some(86_400)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now()).map(|wait| wait.as_secs()), expected, "{value}");
        }
    }

    #[test]
    fn redirect_message_omits_the_query() {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, "https://other/mcp?token=hunter2".parse().unwrap());
        let error = status_error(StatusCode::FOUND, &headers, "", &SecretMask::default(), false, now());
        assert!(error.problem.message.contains("https://other/mcp"), "{error}");
        assert!(!error.problem.message.contains("hunter2"), "{error}");
    }
}
