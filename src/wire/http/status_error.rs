use std::time::Duration;

use http::header::{LOCATION, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode};
use jiff::Timestamp;

use super::super::secret_mask::SecretMask;
use super::super::{ConnectionError, FailureSource};
use super::body_message::body_message;
use crate::resource::Reason;

/// The longest part of a body that a message quotes, in characters.
const MAX_EXCERPT_CHARS: usize = 120;

/// The credentials of a request.
#[derive(Clone, Copy, Default)]
pub(super) struct SentCredentials<'a> {
    /// True if the declaration has headers.
    pub(super) declared: bool,
    /// True if the request had an OAuth token.
    pub(super) token: bool,
    /// The command with which a person logs in to the server, if it can have a token.
    pub(super) login_command: Option<&'a str>,
}

/// Builds the error for an HTTP status other than success.
///
/// Rejected and missing credentials get different reasons, because different people must act. `body` is the text of the response's body; `mask` redacts it.
pub(super) fn status_error(
    status: StatusCode,
    headers: &HeaderMap,
    body: &str,
    mask: &SecretMask,
    sent: SentCredentials<'_>,
    now: Timestamp,
) -> ConnectionError {
    let excerpt = mask.redacted_line(&body_message(&mask.redact(body)), MAX_EXCERPT_CHARS);
    let excerpt = if excerpt.is_empty() { excerpt } else { format!(": {excerpt}") };
    let (reason, message) = match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            unauthorized_message(status, headers.get(WWW_AUTHENTICATE), &excerpt, sent)
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

/// Returns the reason and the message for a 401 or 403.
fn unauthorized_message(
    status: StatusCode,
    challenge: Option<&HeaderValue>,
    excerpt: &str,
    sent: SentCredentials<'_>,
) -> (Reason, String) {
    let challenge = challenge.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
    let challenge_has = |word| challenge.as_ref().is_some_and(|challenge| challenge.contains(word));
    match sent.login_command {
        Some(command) if sent.token => {
            let refused = if challenge_has("insufficient_scope") {
                "requires scopes that the OAuth token does not have"
            } else {
                "rejected the OAuth token"
            };
            let message = format!("the server {refused} (HTTP {status}{excerpt}); run: {command}");
            return (Reason::AuthRequired, message);
        }
        Some(command)
            if !sent.declared && (challenge_has("bearer") || challenge_has("resource_metadata")) =>
        {
            let message = format!(
                "the server requires authorization (HTTP {status}{excerpt}); run: {command}; or set spec.http.headers \
                 with a secretKeyRef"
            );
            return (Reason::AuthRequired, message);
        }
        _ => {}
    }
    match status {
        StatusCode::UNAUTHORIZED if sent.declared => (
            Reason::CredentialsRejected,
            format!(
                "the server rejected the credentials in spec.http.headers (HTTP {status}{excerpt}); correct them, or the \
                 secret that they come from"
            ),
        ),
        StatusCode::FORBIDDEN if sent.declared => (
            Reason::CredentialsRejected,
            format!(
                "the server refused the request with the credentials in spec.http.headers (HTTP {status}{excerpt}); check \
                 what they permit, and whether a proxy or firewall refuses requests from this machine"
            ),
        ),
        StatusCode::FORBIDDEN if challenge.is_none() => (
            Reason::AuthRequired,
            format!(
                "the server, or a proxy or firewall in front of it, refused the request (HTTP {status}{excerpt}); check \
                 whether it permits requests from this machine, and whether it requires credentials"
            ),
        ),
        _ => {
            let challenge =
                if challenge.is_some() { "; it requests authorization (WWW-Authenticate)" } else { "" };
            (
                Reason::AuthRequired,
                format!(
                    "the server requires credentials (HTTP {status}{excerpt}){challenge}; \
                     set spec.http.headers with a secretKeyRef"
                ),
            )
        }
    }
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

    fn declared(declared: bool) -> SentCredentials<'static> {
        SentCredentials { declared, ..SentCredentials::default() }
    }

    #[test]
    fn message_for_oauth_names_the_command() {
        for (status, challenge, declared, token, reason, expected) in [
            (
                401,
                "Bearer resource_metadata=\"https://a/\"",
                false,
                false,
                Reason::AuthRequired,
                "run: login x",
            ),
            (401, "Basic realm=x", false, false, Reason::AuthRequired, "set spec.http.headers"),
            (401, "Bearer", true, false, Reason::CredentialsRejected, "spec.http.headers"),
            (
                401,
                "Bearer error=\"invalid_token\"",
                false,
                true,
                Reason::AuthRequired,
                "rejected the OAuth token",
            ),
            (401, "Bearer error=\"invalid_token\"", true, true, Reason::AuthRequired, "run: login x"),
            (
                403,
                "Bearer error=\"insufficient_scope\"",
                false,
                true,
                Reason::AuthRequired,
                "requires scopes",
            ),
        ] {
            let headers = HeaderMap::from_iter([(WWW_AUTHENTICATE, challenge.parse().unwrap())]);
            let sent = SentCredentials { declared, token, login_command: Some("login x") };
            let status = StatusCode::from_u16(status).unwrap();
            let error = status_error(status, &headers, "", &SecretMask::default(), sent, now());
            assert_eq!(error.problem.reason, reason, "{challenge} {declared} {token}");
            assert!(error.problem.message.contains(expected), "{}", error.problem.message);
        }
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
            let error = status_error(
                status,
                &HeaderMap::new(),
                "",
                &SecretMask::default(),
                declared(credentials),
                now(),
            );
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
            let error =
                status_error(status, &headers, body, &SecretMask::default(), declared(credentials), now());
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
        let error =
            status_error(StatusCode::FOUND, &headers, "", &SecretMask::default(), declared(false), now());
        assert!(error.problem.message.contains("https://other/mcp"), "{error}");
        assert!(!error.problem.message.contains("hunter2"), "{error}");
    }
}
