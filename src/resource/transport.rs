use std::fmt;
use std::path::PathBuf;

use secrecy::SecretString;
use url::Url;

/// Variables that every child inherits; the rest of evenkeel's environment may hold credentials.
const INHERITED_VARIABLES: [&str; 9] =
    ["HOME", "LOGNAME", "PATH", "SHELL", "TERM", "USER", "LANG", "TZ", "TMPDIR"];

/// True for a variable of evenkeel's own environment that every child inherits, since it is no secret.
pub fn is_inherited_variable(variable: &str) -> bool {
    INHERITED_VARIABLES.contains(&variable) || variable.starts_with("LC_")
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

impl HttpEndpoint {
    /// The URL for a person: without user name, password, query and fragment.
    pub fn redacted_url(&self) -> String {
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
        f.debug_struct("HttpEndpoint").field("url", &self.redacted_url()).finish_non_exhaustive()
    }
}
