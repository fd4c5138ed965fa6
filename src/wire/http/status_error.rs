use std::time::Duration;

use http::header::{LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

use super::super::secret_mask::SecretMask;
use super::super::{ConnectionError, FailureSource};
use super::body_message::body_message;
use crate::resource::Reason;

/// The longest part of a body that a message quotes, in characters.
const MAX_EXCERPT_CHARS: usize = 120;

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
    let excerpt = mask.redacted_line(&body_message(&mask.redact(body)), MAX_EXCERPT_CHARS);
    let excerpt = if excerpt.is_empty() { excerpt } else { format!(": {excerpt}") };
    let is_challenge = headers.contains_key(WWW_AUTHENTICATE);
    let (reason, message) = match status {
        StatusCode::UNAUTHORIZED if has_credentials => (
            Reason::CredentialsRejected,
            format!(
                "the server rejected the credentials in spec.http.headers (HTTP {status}{excerpt}); correct them, or the \
                 secret that they come from"
            ),
        ),
        StatusCode::FORBIDDEN if has_credentials => (
            Reason::CredentialsRejected,
            format!(
                "the server refused the request with the credentials in spec.http.headers (HTTP {status}{excerpt}); check \
                 what they permit, and whether a proxy or firewall refuses requests from this machine"
            ),
        ),
        StatusCode::FORBIDDEN if !is_challenge => (
            Reason::AuthRequired,
            format!(
                "the server, or a proxy or firewall in front of it, refused the request (HTTP {status}{excerpt}); check \
                 whether it permits requests from this machine, and whether it requires credentials"
            ),
        ),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let challenge = if is_challenge { "; it requests authorization (WWW-Authenticate)" } else { "" };
            (
                Reason::AuthRequired,
                format!(
                    "the server requires credentials (HTTP {status}{excerpt}){challenge}; \
                     set spec.http.headers with a secretKeyRef"
                ),
            )
        }
        _ if status.is_redirection() => (Reason::ConnectFailed, redirect_message(status, headers, mask)),
        _ => {
            let advice = status_advice(status);
            (Reason::ConnectFailed, format!("the server answered HTTP {status}{excerpt}{advice}"))
        }
    };
    let mut error = ConnectionError::new(reason, message);
    // A server or a proxy may have processed the request before it failed.
    error.dispatched = status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE;
    error.failure_source = FailureSource::Status(status);
    error.retry_after = retry_after(headers, now);
    error
}

fn redirect_message(status: StatusCode, headers: &HeaderMap, mask: &SecretMask) -> String {
    let to = headers.get(LOCATION).and_then(|to| to.to_str().ok()).map(without_query).unwrap_or_default();
    // A page for people to sign in, to which proxies redirect requests without credentials.
    let is_login = ["login", "signin", "sign-in", "sso", "oauth", "auth"].iter().any(|word| {
        to.to_ascii_lowercase()
            .split(['/', '.', '?'])
            .any(|part| part.trim_end_matches(|char: char| char.is_ascii_digit()) == *word)
    });
    let advice = if is_login {
        "if that is a page to sign in, set spec.http.headers with a secretKeyRef"
    } else {
        "set spec.http.url to the server's actual URL"
    };
    let to = if to.is_empty() { String::new() } else { format!(" to {}", mask.redact(to)) };
    format!("the server redirects{to} (HTTP {status}); {advice}")
}

/// Returns what a person can do about a status, after `; `.
fn status_advice(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE => {
            "; check the path in spec.http.url"
        }
        StatusCode::MISDIRECTED_REQUEST => "; the server must permit the host name in spec.http.url",
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            "; a proxy before the server requires credentials, which evenkeel does not have"
        }
        StatusCode::PAYMENT_REQUIRED => "; check the account at the server",
        StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS => "; it refuses requests from this place",
        _ if status.is_server_error() => "; read the server's own logs",
        _ => "",
    }
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
    fn message_quotes_the_body_and_says_what_to_do() {
        let page = "<html><head><title>Attention Required! | Cloudflare</title></head>";
        let json = r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"Invalid Host: x"},"id":null}"#;
        for (status, challenge, credentials, body, expected) in [
            (401, false, false, "no token", "set spec.http.headers with a secretKeyRef"),
            (401, true, true, page, "correct them, or the secret that they come from"),
            (
                403,
                false,
                false,
                page,
                "check whether it permits requests from this machine, and whether it requires credentials",
            ),
            (403, true, false, page, "(WWW-Authenticate); set spec.http.headers with a secretKeyRef"),
            (403, false, true, json, "whether a proxy or firewall refuses requests from this machine"),
            (404, false, false, page, "; check the path in spec.http.url"),
            (405, false, false, "", "; check the path in spec.http.url"),
            (
                407,
                false,
                false,
                page,
                "; a proxy before the server requires credentials, which evenkeel does not have",
            ),
            (
                421,
                false,
                false,
                "Invalid Host header",
                "; the server must permit the host name in spec.http.url",
            ),
            (402, false, true, r#"{"error":"no credits"}"#, "; check the account at the server"),
            (451, false, false, page, "; it refuses requests from this place"),
            (429, false, false, "slow down", ": slow down"),
            (400, false, false, "Client sent an HTTP request to an HTTPS server.", "to an HTTPS server."),
            (502, false, false, page, "; read the server's own logs"),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let mut headers = HeaderMap::new();
            if challenge {
                headers.insert(WWW_AUTHENTICATE, "Bearer".parse().unwrap());
            }
            let error = status_error(status, &headers, body, &SecretMask::default(), credentials, now());
            let message = error.problem.message;
            assert!(message.contains(&format!("HTTP {status}")), "{message}");
            assert!(message.contains(&body_message(body)) && message.contains(expected), "{message}");
            let tells_headers = message.contains("set spec.http.headers");
            assert_eq!(tells_headers, !credentials && (status == 401 || challenge), "{message}");
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
    fn redirect_to_a_login_page_asks_for_credentials() {
        for (to, advice) in [
            ("https://other/mcp/", "spec.http.url"),
            ("https://other/author", "spec.http.url"),
            ("https://sso.example.com/x", "spec.http.headers"),
            ("/Login?next=/mcp", "spec.http.headers"),
            ("/oauth2/start", "spec.http.headers"),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, to.parse().unwrap())]);
            let message = redirect_message(StatusCode::FOUND, &headers, &SecretMask::default());
            assert!(message.contains(advice), "{to}: {message}");
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
