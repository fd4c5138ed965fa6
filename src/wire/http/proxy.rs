//! The HTTP proxy of evenkeel's environment: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`.

use std::net::IpAddr;
use std::sync::LazyLock;

use http::{HeaderValue, Uri};
use hyper_util::client::proxy::matcher::Matcher;

/// The proxy for one server.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    /// The address of the proxy.
    pub(super) uri: Uri,
    /// The `Proxy-Authorization`, from the user and password of the variable.
    pub(super) authorization: Option<HeaderValue>,
}

impl Proxy {
    /// Returns the proxy of the environment for a server; `None` if it is reached directly, as one on this machine
    /// always is.
    pub(super) fn from_environment(server: &Uri) -> Option<Self> {
        static MATCHER: LazyLock<Matcher> = LazyLock::new(Matcher::from_env);
        Self::for_server(&MATCHER, server)
    }

    fn for_server(matcher: &Matcher, server: &Uri) -> Option<Self> {
        if is_local(server.host()?) {
            return None;
        }
        let proxy = matcher.intercept(server)?;
        let authorization = proxy.basic_auth().map(|value| {
            let mut value = value.clone();
            value.set_sensitive(true);
            value
        });
        Some(Self { uri: proxy.uri().clone(), authorization })
    }

    /// Returns the `host:port` of the proxy, for messages.
    pub(super) fn authority(&self) -> &str {
        self.uri.authority().map_or("?", http::uri::Authority::as_str)
    }
}

fn is_local(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || host.to_ascii_lowercase().ends_with(".localhost")
        || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_of_a_server() {
        let matcher = Matcher::builder()
            .https("http://user:pass@proxy.corp:3128")
            .http("proxy.corp:8080")
            .no("internal.corp,10.0.0.0/8")
            .build();
        let proxy = |server: &'static str| {
            let proxy = Proxy::for_server(&matcher, &Uri::from_static(server))?;
            Some((proxy.authority().to_owned(), proxy.authorization.is_some()))
        };
        for (server, expected) in [
            ("https://mcp.example.com/", Some(("proxy.corp:3128", true))),
            ("http://mcp.example.com:8000/", Some(("proxy.corp:8080", false))),
            ("https://internal.corp/", None),
            ("https://git.internal.corp/", None),
            ("http://10.1.2.3:80/", None),
            ("http://localhost:3000/", None),
            ("http://127.0.0.1:3000/", None),
            ("https://[::1]:3000/", None),
        ] {
            let expected = expected.map(|(authority, authorized)| (authority.to_owned(), authorized));
            assert_eq!(proxy(server), expected, "{server}");
        }
    }
}
