use secrecy::SecretString;

use super::connection::ConnectionParts;
use super::server::{Isolation, ProtocolMode};
use super::transport::Transport;
use super::{Digest, DigestKey};

/// The address of a server with every reference resolved: all that is needed to connect.
///
/// Two endpoints with equal digests define the same connection. The digest is keyed and never printed.
#[derive(Debug)]
pub struct Endpoint {
    /// The transport with its resolved values.
    pub transport: Transport,
    /// The protocol era that is used with the server.
    pub protocol: ProtocolMode,
    digest: Digest,
    referenced_values: Vec<SecretString>,
}

impl Endpoint {
    /// Creates an endpoint and computes its connection digest.
    pub fn new(transport: Transport, protocol: ProtocolMode, key: &DigestKey) -> Self {
        let digest = ConnectionParts::resolved(&transport, protocol).digest(key);
        Self { transport, protocol, digest, referenced_values: Vec::new() }
    }

    /// Changes the connection digest to that of an endpoint with this isolation.
    #[must_use]
    pub fn with_isolation(self, isolation: Isolation, roots: bool, key: &DigestKey) -> Self {
        let parts = ConnectionParts::resolved(&self.transport, self.protocol);
        let digest = parts.with_isolation(isolation, roots).digest(key);
        Self { digest, ..self }
    }

    /// Records the values that come from references instead of the declaration itself. Values of headers and the URL
    /// can be omitted: they are treated as secret regardless of their origin.
    #[must_use]
    pub fn with_referenced_values(self, referenced: Vec<SecretString>) -> Self {
        Self { referenced_values: referenced, ..self }
    }

    /// Returns the values that come from references instead of the declaration itself.
    pub fn referenced_values(&self) -> &[SecretString] {
        &self.referenced_values
    }

    /// Returns the connection digest. If it is unchanged, the connection need not be replaced.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::super::server::HttpTransportKind;
    use super::super::transport::{HttpEndpoint, StdioEndpoint};
    use super::*;

    fn http(url: &str, header: &str) -> Endpoint {
        let transport = Transport::Http(HttpEndpoint {
            kind: HttpTransportKind::StreamableHttp,
            url: Url::parse(url).unwrap(),
            headers: vec![(http::header::AUTHORIZATION, header.to_owned().into())],
            ca: None,
            oauth: None,
        });
        Endpoint::new(transport, ProtocolMode::Auto, &DigestKey::new(b"k"))
    }

    #[test]
    fn digest_depends_on_url_and_header_values() {
        let one = http("http://a/mcp", "x").digest();
        assert_eq!(one, http("http://a/mcp", "x").digest());
        assert_ne!(one, http("http://a/mcp", "y").digest());
        assert_ne!(one, http("http://b/mcp", "x").digest());
        assert_eq!(one, http("HTTP://A:80/mcp#x", "x").digest());
    }

    #[test]
    fn digest_depends_on_the_isolation() {
        let key = DigestKey::new(b"k");
        let digest =
            |isolation, roots| http("http://a/mcp", "x").with_isolation(isolation, roots, &key).digest();
        let shared = digest(Isolation::Shared, false);
        assert_eq!(shared, http("http://a/mcp", "x").digest());
        let (isolated, with_roots) = (digest(Isolation::Session, false), digest(Isolation::Session, true));
        assert!(shared != isolated && isolated != with_roots);
    }

    #[test]
    fn digest_ignores_env_order_but_not_argument_order() {
        let digest = |args: &[&str], env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
            let args = args.iter().map(ToString::to_string).collect();
            let stdio = StdioEndpoint { command: "c".into(), args, cwd: None, env };
            Endpoint::new(Transport::Stdio(stdio), ProtocolMode::Auto, &DigestKey::new(b"k")).digest()
        };
        let one = digest(&["x", "y"], &[("A", "1"), ("B", "2")]);
        assert_eq!(one, digest(&["x", "y"], &[("B", "2"), ("A", "1")]));
        assert_eq!(one, digest(&["x", "y"], &[("A", "0"), ("B", "2"), ("A", "1")]));
        assert_ne!(one, digest(&["y", "x"], &[("A", "1"), ("B", "2")]));
        assert_ne!(one, digest(&["x", "y"], &[("A", "2"), ("B", "1")]));
        assert_ne!(digest(&["env A"], &[]), digest(&[], &[("A", "")]));
    }

    #[test]
    fn debug_output_contains_no_secrets() {
        let endpoint = http("http://user:hunter2@a:81/mcp?key=hunter2", "hunter2");
        let text = format!("{endpoint:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("http://a:81/mcp"), "{text}");
    }
}
