use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Refusal;

/// The host names under which the status API answers: the loopback ones, and those that were allowed.
///
/// A web page can make a browser ask a loopback address under a name of its own; it cannot make it say
/// one of these.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    allowed: Vec<String>,
}

impl Hosts {
    /// The loopback names, and these, at any port.
    pub fn new(allowed: Vec<String>) -> Self {
        Self { allowed }
    }

    fn allow(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host();
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            || self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    }
}

pub(super) async fn check(State(hosts): State<Arc<Hosts>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    if hosts.allow(host) { next.run(request).await } else { Refusal::host(host).into_response() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_and_what_was_allowed() {
        let hosts = Hosts::new(vec!["status.example.com".into()]);
        for (host, expected) in [
            ("localhost", true),
            ("LOCALHOST:7718", true),
            ("127.0.0.1:7718", true),
            ("127.1.2.3", true),
            ("[::1]:7718", true),
            ("status.example.com:80", true),
            ("", false),
            ("evil.example.com", false),
            ("localhost.evil.example.com", false),
            ("127.0.0.1.evil.example.com", false),
            ("10.0.0.1", false),
            ("0.0.0.0:7718", false),
            ("a@localhost@b", false),
        ] {
            assert_eq!(hosts.allow(host), expected, "{host:?}");
        }
    }
}
