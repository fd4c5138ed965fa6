use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use super::{ConnectionParts, Digest, DigestKey};

/// Variables that every child inherits; the rest of evenkeel's environment may hold credentials.
const INHERITED: [&str; 9] = ["HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "TZ", "TMPDIR"];

/// True for a variable of evenkeel's own environment that every child inherits, since it is no secret.
pub fn is_inherited(variable: &str) -> bool {
    INHERITED.contains(&variable) || variable.starts_with("LC_")
}

/// How to reach a server, with every reference resolved: what a connection is made from.
///
/// Two endpoints with equal digests are the same connection; the digest is keyed and never printed.
#[derive(Debug)]
pub struct Endpoint {
    /// The transport with its values.
    pub transport: Transport,
    digest: Digest,
    referenced: Vec<SecretString>,
}

/// The two transports.
#[derive(Debug)]
pub enum Transport {
    /// A child process.
    Stdio(StdioEndpoint),
    /// Streamable HTTP.
    Http(HttpEndpoint),
}

/// A child process, ready to start.
pub struct StdioEndpoint {
    /// The program, as declared.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The absolute working directory; `None` for evenkeel's own.
    pub cwd: Option<PathBuf>,
    /// Declared variables; of two of one name the last counts.
    pub env: Vec<(String, SecretString)>,
}

/// An HTTP endpoint, ready to connect to.
pub struct HttpEndpoint {
    /// The endpoint; may hold secrets in its query, so it is never printed whole.
    pub url: Url,
    /// Headers of every request; of two of one name the last counts.
    pub headers: Vec<(http::HeaderName, SecretString)>,
    /// PEM certificates to trust instead of the system's.
    pub ca: Option<SecretString>,
}

impl Endpoint {
    /// An endpoint and its connection digest.
    pub fn new(transport: Transport, key: &DigestKey) -> Self {
        let digest = ConnectionParts::resolved(&transport).digest(key);
        Self { transport, digest, referenced: Vec::new() }
    }

    /// The same, knowing which of its values stand elsewhere than in the declaration. Headers and the URL need not be
    /// among them: they count as secret wherever they come from.
    #[must_use]
    pub fn with_references(self, referenced: Vec<SecretString>) -> Self {
        Self { referenced, ..self }
    }

    /// The values that stand elsewhere than in the declaration.
    pub fn referenced(&self) -> &[SecretString] {
        &self.referenced
    }

    /// The connection digest: equal means that the connection need not be replaced.
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

impl HttpEndpoint {
    /// The URL for a person: without user name, password, query and fragment.
    pub fn display(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{host}{port}{}", self.url.scheme(), self.url.path())
    }
}

/// Arguments may hold the values of variables.
impl fmt::Debug for StdioEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdioEndpoint").field("command", &self.command).finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpEndpoint").field("url", &self.display()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(url: &str, header: &str) -> Endpoint {
        let transport = Transport::Http(HttpEndpoint {
            url: Url::parse(url).unwrap(),
            headers: vec![(http::header::AUTHORIZATION, header.to_owned().into())],
            ca: None,
        });
        Endpoint::new(transport, &DigestKey::new(b"k"))
    }

    #[test]
    fn the_digest_follows_values() {
        let one = http("http://a/mcp", "x").digest();
        assert_eq!(one, http("http://a/mcp", "x").digest());
        assert_ne!(one, http("http://a/mcp", "y").digest());
        assert_ne!(one, http("http://b/mcp", "x").digest());
        assert_eq!(one, http("HTTP://A:80/mcp#x", "x").digest());
    }

    #[test]
    fn variables_have_no_order_and_arguments_do() {
        let digest = |args: &[&str], env: &[(&str, &str)]| {
            let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
            let args = args.iter().map(ToString::to_string).collect();
            let stdio = StdioEndpoint { command: "c".into(), args, cwd: None, env };
            Endpoint::new(Transport::Stdio(stdio), &DigestKey::new(b"k")).digest()
        };
        let one = digest(&["x", "y"], &[("A", "1"), ("B", "2")]);
        assert_eq!(one, digest(&["x", "y"], &[("B", "2"), ("A", "1")]));
        assert_eq!(one, digest(&["x", "y"], &[("A", "0"), ("B", "2"), ("A", "1")]));
        assert_ne!(one, digest(&["y", "x"], &[("A", "1"), ("B", "2")]));
        assert_ne!(one, digest(&["x", "y"], &[("A", "2"), ("B", "1")]));
        assert_ne!(digest(&["env A"], &[]), digest(&[], &[("A", "")]));
    }

    #[test]
    fn children_inherit_only_what_is_harmless() {
        let variables = ["PATH", "LC_ALL", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD", "HOME", "EVENKEEL_TOKEN"];
        let kept: Vec<_> = variables.into_iter().filter(|variable| is_inherited(variable)).collect();
        assert_eq!(kept, ["PATH", "LC_ALL", "HOME"]);
    }

    #[test]
    fn nothing_secret_is_printed() {
        let endpoint = http("http://user:hunter2@a:81/mcp?key=hunter2", "hunter2");
        let text = format!("{endpoint:?}");
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("http://a:81/mcp"), "{text}");
    }
}
