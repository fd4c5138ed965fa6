use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

use super::oauth::OAuthSettings;
use super::server::HttpTransportKind;

/// The transport of a server, with all references resolved.
#[derive(Debug)]
pub enum Transport {
    /// A child process.
    Stdio(StdioEndpoint),
    /// Streamable HTTP.
    Http(HttpEndpoint),
}

impl Transport {
    /// True if the server is a process that evenkeel starts.
    pub fn is_stdio(&self) -> bool {
        matches!(self, Self::Stdio(_))
    }
}

/// A child process with everything that is needed to start it.
pub struct StdioEndpoint {
    /// The program to run.
    pub command: String,
    /// The arguments.
    pub args: Vec<String>,
    /// The absolute working directory; `None` for evenkeel's own working directory.
    pub cwd: Option<PathBuf>,
    /// The declared variables. If a name occurs twice, the last value counts.
    pub env: Vec<(String, SecretString)>,
}

/// An HTTP endpoint with everything that is needed to connect to it.
pub struct HttpEndpoint {
    /// The transport over HTTP.
    pub kind: HttpTransportKind,
    /// The URL. Its query may contain secrets, so it is never printed in full.
    pub url: Url,
    /// The headers of every request. If a name occurs twice, the last value counts.
    pub headers: Vec<(http::HeaderName, SecretString)>,
    /// PEM certificates to trust instead of the system's trust store.
    pub ca: Option<SecretString>,
    /// The OAuth settings; `None` without `auth.oauth`.
    pub oauth: Option<Box<OAuthSettings>>,
}

impl HttpEndpoint {
    /// Returns the URL for messages: without user name, password, query and fragment.
    pub fn redacted_url(&self) -> String {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port().map(|port| format!(":{port}")).unwrap_or_default();
        format!("{}://{host}{port}{}", self.url.scheme(), self.url.path())
    }
}

/// Omits the arguments, which may contain the values of variables.
impl fmt::Debug for StdioEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StdioEndpoint").field("command", &self.command).finish_non_exhaustive()
    }
}

impl fmt::Debug for HttpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpEndpoint").field("url", &self.redacted_url()).finish_non_exhaustive()
    }
}
