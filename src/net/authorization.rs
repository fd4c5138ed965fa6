//! The authorization of HTTP requests. Every request to the MCP endpoint and to the status API passes it first.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use ring::digest::{SHA256, digest};
use secrecy::{ExposeSecret, SecretString};

/// Decides whether an HTTP request is served, and whether it may change anything. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Authorization {
    allowed_hosts: Option<Arc<AllowedHosts>>,
    token: Option<BearerToken>,
}

impl Authorization {
    /// Permits every request, for listeners with restricted access, such as a socket of the owner or a probe port.
    pub fn unchecked() -> Self {
        Self { allowed_hosts: None, token: None }
    }

    /// Permits requests with an allowed `Host` header and, if there is an `Origin` header, an allowed origin.
    pub fn new(allowed: AllowedHosts) -> Self {
        Self { allowed_hosts: Some(Arc::new(allowed)), token: None }
    }

    /// Requires a bearer token for requests that change something.
    #[must_use]
    pub fn with_token(self, token: BearerToken) -> Self {
        Self { token: Some(token), ..self }
    }

    /// Checks the `Host` and `Origin` headers of a request.
    pub fn check_request(&self, headers: &HeaderMap) -> Result<(), AuthorizationError> {
        self.allowed_hosts.as_ref().map_or(Ok(()), |hosts| hosts.check(headers))
    }

    /// Returns true if origins are named that are allowed in addition to loopback ones.
    pub fn names_origins(&self) -> bool {
        self.allowed_hosts.as_ref().is_some_and(|hosts| !hosts.origins.is_empty())
    }

    /// Returns the origin of a request if it is one of the named ones. Loopback origins count only if they are named.
    pub fn named_origin<'h>(&self, headers: &'h HeaderMap) -> Option<&'h HeaderValue> {
        let mut origins = headers.get_all(ORIGIN).into_iter();
        let (Some(origin), None) = (origins.next(), origins.next()) else { return None };
        let is_named = self.allowed_hosts.as_ref()?.names_origin(origin.to_str().ok()?);
        is_named.then_some(origin)
    }

    /// Checks the bearer token of a request that changes something.
    pub fn check_write(&self, headers: &HeaderMap) -> Result<(), AuthorizationError> {
        let Some(token) = &self.token else { return Ok(()) };
        let presented =
            headers.get(AUTHORIZATION).and_then(|presented| presented.to_str().ok()).unwrap_or_default();
        let presented = presented.strip_prefix("Bearer ").unwrap_or_default();
        // Comparing digests prevents timing attacks on the token.
        let [presented, token] = [presented, token.expose()].map(|text| digest(&SHA256, text.as_bytes()));
        if presented.as_ref() == token.as_ref() { Ok(()) } else { Err(AuthorizationError::InvalidToken) }
    }
}

/// The reason for which a request is denied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationError {
    /// The request has no `Host` header, or more than one.
    #[error("exactly one Host header is required")]
    HostCount,
    /// The `Host` header is not allowed.
    #[error(
        "the Host {0:?} is not allowed; use localhost, or start evenkeel with --allowed-host to allow this host"
    )]
    HostNotAllowed(String),
    /// The `Origin` header, which a browser sends for a web page, is not allowed.
    #[error("the Origin {0:?} is not allowed; start evenkeel with --allowed-origin to allow it")]
    OriginNotAllowed(String),
    /// The request would change something and has no bearer token or a wrong one.
    #[error(
        "this request requires the bearer token of the kubeconfig, whose path `evenkeel kubeconfig` prints"
    )]
    InvalidToken,
}

impl AuthorizationError {
    /// Returns the HTTP status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::HostCount => StatusCode::BAD_REQUEST,
            Self::HostNotAllowed(_) | Self::OriginNotAllowed(_) => StatusCode::FORBIDDEN,
            Self::InvalidToken => StatusCode::UNAUTHORIZED,
        }
    }
}

/// The allowed hosts and origins, in addition to loopback ones.
///
/// A web page must not reach a local endpoint through a host name that resolves to this machine (DNS rebinding).
/// Therefore every request must have an allowed host, and requests that a browser sends for a page an allowed origin.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts {
    /// The allowed hosts: `host` for any port, or `host:port`.
    pub hosts: Vec<String>,
    /// The allowed origins, in full: `https://app.example.com`.
    pub origins: Vec<String>,
}

/// The bearer token for requests that change something. It is in the kubeconfig, which only its owner can read.
#[derive(Clone, Debug)]
pub struct BearerToken(Arc<SecretString>);

impl BearerToken {
    /// Creates a token from its text.
    pub fn new(text: SecretString) -> Self {
        Self(Arc::new(text))
    }

    /// Returns the text, for the kubeconfig.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl AllowedHosts {
    /// Checks the `Host` and `Origin` headers.
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

    /// Returns true if `host`, the value of a `Host` header, is allowed.
    fn allows_host(&self, host: &str) -> bool {
        let name = without_port(host);
        is_loopback(name)
            || self
                .hosts
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
    }

    fn allows_origin(&self, origin: &str) -> bool {
        let is_local = |scheme| {
            let host = origin.strip_prefix(scheme)?;
            Some(is_loopback(without_port(host)))
        };
        is_local("http://").or_else(|| is_local("https://")) == Some(true) || self.names_origin(origin)
    }

    fn names_origin(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // The last colon of an IPv6 address without brackets is not followed by a port.
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
        Authorization::new(allowed).check_request(&map).err().map(|error| error.status().as_u16())
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
        for (header, expected) in [
            (Some("Bearer right"), Ok(())),
            (Some("Bearer wrong"), Err(AuthorizationError::InvalidToken)),
            (Some("right"), Err(AuthorizationError::InvalidToken)),
            (None, Err(AuthorizationError::InvalidToken)),
        ] {
            let headers = header.map(|header| (AUTHORIZATION, HeaderValue::from_static(header)));
            let headers = headers.into_iter().collect();
            assert_eq!(
                (closed.check_write(&headers), open.check_write(&headers)),
                (expected, Ok(())),
                "{header:?}"
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
