//! Whether an HTTP request may be answered: the one step that every request to the MCP endpoint and to the status API
//! passes first.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, HeaderName, StatusCode};
use ring::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};

/// Decides for each request whether it may be answered, and whether it may change anything. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorization {
    allowed_hosts: Option<Arc<AllowedHosts>>,
    token: Option<BearerToken>,
}

impl Authorization {
    /// Answers every request, for a listener that only those reach who may: a socket of the owner, a kubelet.
    pub fn unchecked() -> Self {
        Self { allowed_hosts: None, token: None }
    }

    /// Answers requests that name a known host and come from no page of an unknown origin.
    pub fn new(allowed: AllowedHosts) -> Self {
        Self { allowed_hosts: Some(Arc::new(allowed)), token: None }
    }

    /// Lets only those change anything who show a token.
    #[must_use]
    pub fn with_token(self, token: BearerToken) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Checks whether a request may be answered, by its headers.
    pub fn check_request(&self, headers: &HeaderMap) -> Result<(), AuthorizationError> {
        self.allowed_hosts.as_ref().map_or(Ok(()), |allowed| allowed.check(headers))
    }

    /// Checks whether an admitted request may change something, by its bearer token.
    pub fn check_write(&self, headers: &HeaderMap) -> Result<(), AuthorizationError> {
        let Some(token) = &self.token else { return Ok(()) };
        let shown = headers.get(AUTHORIZATION).and_then(|shown| shown.to_str().ok()).unwrap_or_default();
        let shown = shown.strip_prefix("Bearer ").unwrap_or_default();
        // Digests, so that the time it takes tells nothing about the token.
        let [shown, token] = [shown, token.expose()].map(|text| digest(&SHA256, text.as_bytes()));
        if shown.as_ref() == token.as_ref() { Ok(()) } else { Err(AuthorizationError::InvalidToken) }
    }
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationError {
    /// It names no host, or more than one.
    #[error("one Host header is needed")]
    HostCount,
    /// It names a host that is not known.
    #[error(
        "the Host {0:?} is not allowed; ask localhost or, if it is meant, start evenkeel with --allowed-host"
    )]
    HostNotAllowed(String),
    /// It comes from a web page of an origin that is not known.
    #[error("the Origin {0:?} is not allowed; if it is meant, start evenkeel with --allowed-origin")]
    OriginNotAllowed(String),
    /// It would change something and shows no token, or another one.
    #[error("this needs the token of the kubeconfig, whose path `evenkeel kubeconfig` prints")]
    InvalidToken,
}

impl AuthorizationError {
    /// Gives the HTTP status of the answer.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::HostCount => StatusCode::BAD_REQUEST,
            Self::HostNotAllowed(_) | Self::OriginNotAllowed(_) => StatusCode::FORBIDDEN,
            Self::InvalidToken => StatusCode::UNAUTHORIZED,
        }
    }
}

/// Hosts and origins beside the loopback ones.
///
/// A web page must not reach a local endpoint by a name of its own that resolves here (DNS rebinding), so
/// every request names a host that we know, and one that a browser sends from a page names a known origin.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts {
    /// `host` for any port, or `host:port`.
    pub hosts: Vec<String>,
    /// Whole origins, `https://app.example.com`.
    pub origins: Vec<String>,
}

/// What a client shows to ask for work: it stands in the kubeconfig, which only its owner can read.
#[derive(Clone, Debug)]
pub struct BearerToken(Arc<SecretString>);

impl BearerToken {
    /// The token of this text.
    pub fn new(text: SecretString) -> Self {
        Self(Arc::new(text))
    }

    /// The text, for the kubeconfig.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl AllowedHosts {
    /// Checks `Host` and `Origin`.
    fn check(&self, headers: &HeaderMap) -> Result<(), AuthorizationError> {
        let values = |name: HeaderName| {
            headers
                .get_all(name)
                .into_iter()
                .map(|value| value.to_str().map_err(|_| "text that is not ASCII"))
        };
        let mut hosts = values(HOST);
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(AuthorizationError::HostCount);
        };
        match host {
            Ok(host) if self.allows_host(host) => {}
            Ok(host) | Err(host) => return Err(AuthorizationError::HostNotAllowed(host.to_owned())),
        }
        for origin in values(ORIGIN) {
            match origin {
                Ok(origin) if self.allows_origin(origin) => {}
                Ok(origin) | Err(origin) => {
                    return Err(AuthorizationError::OriginNotAllowed(origin.to_owned()));
                }
            }
        }
        Ok(())
    }

    /// True if `host`, the value of a `Host` header, is ours.
    fn allows_host(&self, host: &str) -> bool {
        let name = without_port(host);
        is_loopback(name)
            || self
                .hosts
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
    }

    fn allows_origin(&self, origin: &str) -> bool {
        let local = |scheme| {
            let host = origin.strip_prefix(scheme)?;
            Some(is_loopback(without_port(host)))
        };
        local("http://").or_else(|| local("https://")) == Some(true)
            || self.origins.iter().any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last colon of a bare IPv6 address stands before no port.
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

fn is_loopback(name: &str) -> bool {
    let v6 = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.parse().is_ok_and(|address: Ipv4Addr| address.is_loopback())
        || v6.is_some_and(|name| name.parse().is_ok_and(|address: Ipv6Addr| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn rejection_status(headers: &[(HeaderName, &str)]) -> Option<u16> {
        let allowed = AllowedHosts {
            hosts: vec!["mcp.team.svc".into(), "proxy:8080".into()],
            origins: vec!["https://app.example.com".into()],
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        Authorization::new(allowed).check_request(&map).err().map(|denied| denied.status().as_u16())
    }

    #[test]
    fn only_allowed_hosts_are_accepted() {
        for host in [
            "localhost",
            "LocalHost:7717",
            "127.0.0.1",
            "127.0.0.1:7717",
            "127.9.9.9",
            "[::1]",
            "[::1]:7717",
            "mcp.team.svc",
            "MCP.team.svc:1",
            "proxy:8080",
        ] {
            assert_eq!(rejection_status(&[(HOST, host)]), None, "{host}");
        }
        for host in [
            "",
            "evil.com",
            "evil.com:7717",
            "localhost.evil.com",
            "127.0.0.1.evil.com",
            "10.0.0.1",
            "proxy",
            "proxy:80",
            "[::2]",
            "localhost@evil.com",
            "localhost:80:80",
            "\u{e9}",
        ] {
            assert_eq!(rejection_status(&[(HOST, host)]), Some(403), "{host}");
        }
        assert_eq!(rejection_status(&[]), Some(400));
        assert_eq!(rejection_status(&[(HOST, "localhost"), (HOST, "localhost")]), Some(400));
    }

    #[test]
    fn writes_require_the_token_if_one_is_set() {
        let (open, closed) = (Authorization::unchecked(), Authorization::new(AllowedHosts::default()));
        let closed = closed.with_token(BearerToken::new("right".into()));
        for (shown, expected) in [
            (Some("Bearer right"), Ok(())),
            (Some("Bearer wrong"), Err(AuthorizationError::InvalidToken)),
            (Some("right"), Err(AuthorizationError::InvalidToken)),
            (None, Err(AuthorizationError::InvalidToken)),
        ] {
            let headers = shown.map(|shown| (AUTHORIZATION, HeaderValue::from_static(shown)));
            let headers = headers.into_iter().collect();
            assert_eq!(
                (closed.check_write(&headers), open.check_write(&headers)),
                (expected, Ok(())),
                "{shown:?}"
            );
        }
    }

    #[test]
    fn only_allowed_origins_are_accepted() {
        for origin in
            ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1", "https://app.example.com"]
        {
            assert_eq!(rejection_status(&[(HOST, "localhost"), (ORIGIN, origin)]), None, "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://evil.com",
            "https://app.example.com:444",
            "http://localhost.evil.com",
            "file://localhost",
        ] {
            assert_eq!(rejection_status(&[(HOST, "localhost"), (ORIGIN, origin)]), Some(403), "{origin}");
        }
    }
}
