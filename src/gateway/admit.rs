//! What a request must have before anything in it is looked at: a host and an origin that are ours.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{ACCEPT, CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, StatusCode};

/// Hosts and origins beside the loopback ones.
///
/// A web page must not reach a local endpoint by a name of its own that resolves here (DNS rebinding), so
/// every request names a host that we know, and one that a browser sends from a page names a known origin.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// `host` for any port, or `host:port`.
    pub hosts: Vec<String>,
    /// Whole origins, `https://app.example.com`.
    pub origins: Vec<String>,
}

/// Why a request is turned away.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) StatusCode, pub(super) &'static str);

impl Allowed {
    /// Checks `Host` and `Origin`.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else {
            return Err(Refused(StatusCode::BAD_REQUEST, "one Host header is needed"));
        };
        if !host.to_str().is_ok_and(|host| self.knows_host(host)) {
            return Err(Refused(
                StatusCode::FORBIDDEN,
                "this Host is not allowed; if it is meant, start evenkeel with --allowed-host",
            ));
        }
        for origin in headers.get_all(ORIGIN) {
            if !origin.to_str().is_ok_and(|origin| self.knows_origin(origin)) {
                return Err(Refused(
                    StatusCode::FORBIDDEN,
                    "this Origin is not allowed; if it is meant, start evenkeel with --allowed-origin",
                ));
            }
        }
        Ok(())
    }

    /// True if `host`, the value of a `Host` header, is ours.
    pub fn knows_host(&self, host: &str) -> bool {
        let name = without_port(host);
        is_loopback(name)
            || self
                .hosts
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(host) || allowed.eq_ignore_ascii_case(name))
    }

    fn knows_origin(&self, origin: &str) -> bool {
        let local = |scheme| {
            let host = origin.strip_prefix(scheme)?;
            Some(is_loopback(without_port(host)))
        };
        local("http://").or_else(|| local("https://")) == Some(true)
            || self.origins.iter().any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin))
    }
}

/// True if the body is said to be JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| essence(value).eq_ignore_ascii_case("application/json"))
}

/// True if an answer of this type is welcome. No `Accept` at all welcomes everything.
pub(super) fn accepts(headers: &HeaderMap, main: &str, sub: &str) -> bool {
    if !headers.contains_key(ACCEPT) {
        return true;
    }
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let Some((range_main, range_sub)) = essence(range).split_once('/') else {
            return false;
        };
        (range_main == "*" || range_main.eq_ignore_ascii_case(main))
            && (range_sub == "*" || range_sub.eq_ignore_ascii_case(sub))
    })
}

fn essence(value: &str) -> &str {
    value.split_once(';').map_or(value, |(essence, _)| essence).trim()
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

    fn admitted(headers: &[(http::HeaderName, &str)]) -> Option<u16> {
        let allowed = Allowed {
            hosts: vec!["mcp.team.svc".into(), "proxy:8080".into()],
            origins: vec!["https://app.example.com".into()],
        };
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        allowed.admit(&map).err().map(|refused| refused.0.as_u16())
    }

    #[test]
    fn only_known_hosts() {
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
            assert_eq!(admitted(&[(HOST, host)]), None, "{host}");
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
            assert_eq!(admitted(&[(HOST, host)]), Some(403), "{host}");
        }
        assert_eq!(admitted(&[]), Some(400));
        assert_eq!(admitted(&[(HOST, "localhost"), (HOST, "localhost")]), Some(400));
    }

    #[test]
    fn only_known_origins() {
        for origin in
            ["http://localhost:3000", "https://127.0.0.1", "http://[::1]:1", "https://app.example.com"]
        {
            assert_eq!(admitted(&[(HOST, "localhost"), (ORIGIN, origin)]), None, "{origin}");
        }
        for origin in [
            "null",
            "",
            "http://evil.com",
            "https://app.example.com:444",
            "http://localhost.evil.com",
            "file://localhost",
        ] {
            assert_eq!(admitted(&[(HOST, "localhost"), (ORIGIN, origin)]), Some(403), "{origin}");
        }
    }

    #[test]
    fn media_types_are_read_kindly() {
        let with = |value: &'static str| HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(value))]);
        for value in ["text/event-stream", "application/json, Text/Event-Stream;q=0.9", "*/*", "text/*"] {
            assert!(accepts(&with(value), "text", "event-stream"), "{value}");
        }
        for value in ["application/json", "", "text/html"] {
            assert!(!accepts(&with(value), "text", "event-stream"), "{value}");
        }
        assert!(accepts(&HeaderMap::new(), "text", "event-stream"));
        let json = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(value))]))
        };
        assert!(
            json("application/json; charset=utf-8")
                && json("Application/JSON")
                && !json("text/plain")
                && !json("")
        );
    }
}
