use std::time::Duration;

use http::header::{LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::super::secret_mask::SecretMask;
use super::super::{ConnectionError, FailureSource};
use crate::resource::Reason;
use crate::text;

/// Builds the error for an HTTP status other than success.
///
/// `has_credentials` is true if the declaration has headers. Rejected and missing credentials get different reasons,
/// because different people must act. `body` is the text of the response's body; `mask` redacts it.
pub(super) fn status_error(
    status: StatusCode,
    headers: &HeaderMap,
    body: &str,
    mask: &SecretMask,
    has_credentials: bool,
    now: Timestamp,
) -> ConnectionError {
    let excerpt = body_excerpt(&mask.redact(body));
    let (reason, message) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if has_credentials => (
            Reason::CredentialsRejected,
            format!("the server rejected the credentials in spec.http.headers (HTTP {status}{excerpt})"),
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let challenge = if headers.contains_key(WWW_AUTHENTICATE) {
                "; it requests authorization (WWW-Authenticate)"
            } else {
                ""
            };
            (
                Reason::AuthRequired,
                format!(
                    "the server requires credentials (HTTP {status}{excerpt}){challenge}; \
                     set spec.http.headers with a secretKeyRef"
                ),
            )
        }
        _ if status.is_redirection() => {
            let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).map(without_query);
            let to = to.map(|to| format!(" to {}", mask.redact(to))).unwrap_or_default();
            (
                Reason::ConnectFailed,
                format!(
                    "the server redirects{to} (HTTP {status}); set spec.http.url to the server's actual URL"
                ),
            )
        }
        _ => (Reason::ConnectFailed, format!("the server answered HTTP {status}{excerpt}")),
    };
    let mut error = ConnectionError::new(reason, message);
    // A server or a proxy may have processed the request before it failed.
    error.dispatched = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
    error.failure_source = FailureSource::Status(status);
    error.retry_after = retry_after(headers, now);
    error
}

/// Parses Retry-After: seconds or a date (RFC 9110 §10.2.3). At most a day, so that a server cannot suspend requests
/// indefinitely.
pub(super) fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let delay = if let Ok(seconds) = value.trim().parse::<u64>() {
        Duration::from_secs(seconds)
    } else {
        let at = Timestamp::try_from(httpdate::parse_http_date(value).ok()?).ok()?;
        Duration::try_from(at.duration_since(now)).unwrap_or_default()
    };
    Some(delay.min(Duration::from_hours(24)))
}

fn without_query(location: &str) -> &str {
    location.split(['?', '#']).next().unwrap_or_default()
}

/// Returns the first line of a body for an error message, after `: `. Empty if there is none or it looks like HTML.
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
            assert_eq!(retry_after(&headers, now()).map(|delay| delay.as_secs()), expected, "{value}");
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
