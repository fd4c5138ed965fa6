use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use secrecy::ExposeSecret;
use url::Url;

use super::{
    Digest, DigestKey, EnvVar, Header, HttpAuth, HttpEndpoint, HttpTransport, HttpTransportKind, Isolation,
    Literal, OAuthGrant, OAuthSettings, OAuthSpec, ProtocolMode, SecretKeyRef, StdioEndpoint, StdioTransport,
    Tls, Transport, ValueFrom,
};

/// The parts that define a connection, by name and in canonical form. Two connections are the same if and only if their
/// parts are equal.
///
/// The order of variables and headers is ignored. If a name occurs twice, the last value counts, as it does when the
/// connection is made. Header names are in lower case. URLs are in the form in which they are requested: scheme and
/// host in lower case, without the default port and the fragment. The order of arguments is significant.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionParts<'a>(BTreeMap<String, PartValue<'a>>);

/// The value of one part. It may contain secrets, so it is compared and digested but never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PartValue<'a>(Vec<Cow<'a, [u8]>>);

/// The working directory of processes that are declared in a directory source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingDirectory {
    /// The absolute path of the directory source.
    pub root: PathBuf,
    /// The working directory of each process that declares no `cwd`. `None` means the folder of the declaring file.
    pub default_cwd: Option<PathBuf>,
}

impl<'a> ConnectionParts<'a> {
    /// Returns the parts of a resolved transport, including secret values, and the protocol.
    pub fn resolved(transport: &'a Transport, protocol: ProtocolMode) -> Self {
        Self::of_transport(transport).with_protocol(protocol)
    }

    /// Adds the protocol, unless it is the default.
    #[must_use]
    pub fn with_protocol(mut self, protocol: ProtocolMode) -> Self {
        let name = match protocol {
            ProtocolMode::Auto => return self,
            ProtocolMode::Legacy => "legacy",
            ProtocolMode::Modern => "modern",
        };
        self.0.insert("protocol".to_owned(), PartValue::from_texts([name]));
        self
    }

    /// Adds the isolation and whether the server gets roots, unless these are the defaults.
    #[must_use]
    pub fn with_isolation(mut self, isolation: Isolation, roots: bool) -> Self {
        if isolation == Isolation::Session {
            self.0.insert("isolation".to_owned(), PartValue::from_texts(["session"]));
        }
        if roots {
            self.0.insert("roots".to_owned(), PartValue::from_texts(["true"]));
        }
        self
    }

    fn of_transport(transport: &'a Transport) -> Self {
        match transport {
            Transport::Stdio(StdioEndpoint { command, args, cwd, env }) => {
                let env = env.iter().map(|(name, value)| {
                    (name.as_str(), PartValue::from([Cow::from(value.expose_secret().as_bytes())]))
                });
                let cwd = cwd.as_deref().map(|cwd| Cow::from(cwd.as_os_str().as_encoded_bytes()));
                Self::stdio(Cow::from(command.as_bytes()), args, cwd, env)
            }
            Transport::Http(HttpEndpoint { kind, url, headers, ca, oauth }) => {
                let headers = headers.iter().map(|(name, value)| {
                    (name.as_str(), PartValue::from([Cow::from(value.expose_secret().as_bytes())]))
                });
                let ca = ca.as_ref().map(|ca| PartValue::from([Cow::from(ca.expose_secret().as_bytes())]));
                let oauth = oauth.as_deref().map(resolved_oauth_value);
                Self::http(*kind, normalized_url(url.clone()), headers, ca, oauth)
            }
        }
    }

    /// Returns the parts of a process as declared, with references in place of their values. `location` is the folder
    /// of the declaring file and the directory source that contains it; `None` for an object in a cluster.
    pub fn declared_stdio(stdio: &'a StdioTransport, location: Option<(&Path, &WorkingDirectory)>) -> Self {
        let StdioTransport { command: _, args, cwd: _, env, env_file, stop: _ } = stdio;
        let location = location
            .map(|(folder, directory)| (directory.root.join(folder), directory.default_cwd.as_deref()));
        let location = location.as_ref().map(|(folder, default_cwd)| (folder.as_path(), *default_cwd));
        let (command, cwd) = stdio.resolve_paths(location);
        let env = env.iter().map(|EnvVar { name, value, value_from }| {
            (name.as_str(), declared_value(value.as_ref(), value_from.as_ref()))
        });
        let bytes = |path: PathBuf| Cow::from(path.into_os_string().into_encoded_bytes());
        let mut parts = Self::stdio(bytes(command), args, cwd.map(bytes), env);
        if let Some(env_file) = env_file {
            parts.0.insert("envFile".to_owned(), PartValue::from_texts([env_file.as_str()]));
        }
        parts
    }

    /// Returns the parts of an HTTP connection as declared, with references in place of their values.
    pub fn declared_http(http: &'a HttpTransport) -> Self {
        let HttpTransport { url, transport, headers, tls, auth } = http;
        // A text with unexpanded variables is not a URL yet.
        let url = Some(url)
            .filter(|url| !url.contains("${"))
            .and_then(|url| Url::parse(url).ok())
            .map_or_else(|| Cow::from(url.as_bytes()), normalized_url);
        let headers = headers.iter().map(|Header { name, value, value_from }| {
            (name.as_str(), declared_value(value.as_ref(), value_from.as_ref()))
        });
        let ca = tls.as_ref().and_then(|Tls { ca_secret_ref }| ca_secret_ref.as_ref());
        let ca = ca.map(|ca| secret_ref_value(ca));
        let oauth = auth.as_ref().and_then(|HttpAuth { oauth }| oauth.as_ref());
        Self::http(*transport, url, headers, ca, oauth.map(declared_oauth_value))
    }

    fn stdio(
        command: Cow<'a, [u8]>,
        args: &'a [String],
        cwd: Option<Cow<'a, [u8]>>,
        env: impl Iterator<Item = (&'a str, PartValue<'a>)>,
    ) -> Self {
        let fixed = [
            ("transport".to_owned(), PartValue::from_texts(["stdio"])),
            ("command".to_owned(), PartValue::from([command])),
            ("args".to_owned(), PartValue::from_texts(args.iter().map(String::as_str))),
            ("cwd".to_owned(), PartValue(cwd.into_iter().collect())),
        ];
        let env = env.map(|(name, value)| (format!("env {name}"), value));
        Self(fixed.into_iter().chain(env).collect())
    }

    fn http(
        kind: HttpTransportKind,
        url: Cow<'a, [u8]>,
        headers: impl Iterator<Item = (&'a str, PartValue<'a>)>,
        ca: Option<PartValue<'a>>,
        oauth: Option<PartValue<'a>>,
    ) -> Self {
        let transport = match kind {
            HttpTransportKind::StreamableHttp => "http",
            HttpTransportKind::Sse => "sse",
        };
        let fixed = [
            ("transport".to_owned(), PartValue::from_texts([transport])),
            ("url".to_owned(), PartValue::from([url])),
        ];
        let headers = headers.map(|(name, value)| (format!("header {}", name.to_ascii_lowercase()), value));
        let ca = ca.map(|ca| ("tls".to_owned(), ca));
        let oauth = oauth.map(|oauth| ("oauth".to_owned(), oauth));
        Self(fixed.into_iter().chain(headers).chain(ca).chain(oauth).collect())
    }

    /// Returns the parts by name.
    pub fn into_parts(self) -> BTreeMap<String, PartValue<'a>> {
        self.0
    }

    /// Returns the keyed digest of all parts. Two digests are equal if and only if the parts are.
    pub fn digest(&self, key: &DigestKey) -> Digest {
        // The number of values separates the values of a part from the name of the next part.
        let counts: Vec<_> =
            self.0.values().map(|PartValue(values)| (values.len() as u64).to_be_bytes()).collect();
        let parts = self.0.iter().zip(&counts).flat_map(|((name, PartValue(values)), count)| {
            [name.as_bytes(), count.as_slice()].into_iter().chain(values.iter().map(|value| &**value))
        });
        key.digest(parts)
    }
}

impl<'a> PartValue<'a> {
    /// Creates a value from texts.
    pub fn from_texts(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self(texts.into_iter().map(|text| Cow::from(text.as_bytes())).collect())
    }

    /// Creates a value from one owned text.
    pub fn from_string(text: String) -> Self {
        Self(vec![Cow::from(text.into_bytes())])
    }

    /// Returns the keyed digest of the value.
    pub fn digest(&self, key: &DigestKey) -> Digest {
        key.digest(self.0.iter().map(|value| &**value))
    }
}

impl<'a, const N: usize> From<[Cow<'a, [u8]>; N]> for PartValue<'a> {
    fn from(values: [Cow<'a, [u8]>; N]) -> Self {
        Self(values.into())
    }
}

impl StdioTransport {
    /// Returns the program to run and its working directory. `location` is the folder of the declaring file and, if it
    /// differs from that folder, the default working directory.
    ///
    /// `cwd` is relative to the folder. A command that contains a slash is relative to the working directory. Without a
    /// location, the command is returned as declared and the process inherits evenkeel's working directory (`None`).
    pub fn resolve_paths(&self, location: Option<(&Path, Option<&Path>)>) -> (PathBuf, Option<PathBuf>) {
        let command = PathBuf::from(&self.command);
        let Some((folder, default_cwd)) = location else { return (command, None) };
        let cwd = match &self.cwd {
            Some(cwd) => join_normalized(folder, Path::new(cwd)),
            None => join_normalized(default_cwd.unwrap_or(folder), Path::new("")),
        };
        let command = if self.command.contains('/') { join_normalized(&cwd, &command) } else { command };
        (command, Some(cwd))
    }
}

/// Returns the part for a declared value: the literal, or the reference.
fn declared_value<'a>(literal: Option<&'a Literal>, from: Option<&'a ValueFrom>) -> PartValue<'a> {
    if let Some(literal) = literal {
        return PartValue::from_texts(["value", literal.expose()]);
    }
    match from {
        Some(ValueFrom { secret_key_ref: Some(secret), env: _ }) => secret_ref_value(secret),
        Some(ValueFrom { secret_key_ref: None, env: Some(variable) }) => {
            PartValue::from_texts(["variable", variable])
        }
        Some(ValueFrom { secret_key_ref: None, env: None }) | None => PartValue::from_texts([]),
    }
}

/// Returns the part for a reference to a secret. `optional` is ignored because it does not change the value.
fn secret_ref_value(secret: &SecretKeyRef) -> PartValue<'_> {
    let SecretKeyRef { name, key, optional: _ } = secret;
    PartValue::from_texts(["secret", name, key])
}

/// Returns the part for resolved OAuth settings. Tokens are not part of it: a new one changes no connection.
fn resolved_oauth_value(settings: &OAuthSettings) -> PartValue<'_> {
    let OAuthSettings { client_id, client_secret, scopes, grant, issuer } = settings;
    let secret = client_secret.as_ref().map(ExposeSecret::expose_secret);
    oauth_value([client_id.as_deref(), secret, issuer.as_deref()], *grant, scopes)
}

/// Returns the part for declared OAuth settings.
fn declared_oauth_value(spec: &OAuthSpec) -> PartValue<'_> {
    let OAuthSpec { client_id, client_secret_ref, scopes, grant, issuer } = spec;
    let mut value = oauth_value([client_id.as_deref(), None, issuer.as_deref()], *grant, scopes);
    if let Some(reference) = client_secret_ref {
        value.0.extend(secret_ref_value(reference).0);
    }
    value
}

fn oauth_value<'a>(texts: [Option<&'a str>; 3], grant: OAuthGrant, scopes: &'a [String]) -> PartValue<'a> {
    let grant = match grant {
        OAuthGrant::AuthorizationCode => "authorization code",
        OAuthGrant::ClientCredentials => "client credentials",
    };
    let texts = texts.map(Option::unwrap_or_default);
    PartValue::from_texts(texts.into_iter().chain([grant]).chain(scopes.iter().map(String::as_str)))
}

/// Returns the URL as it is requested, that is, without the fragment.
fn normalized_url<'a>(mut url: Url) -> Cow<'a, [u8]> {
    url.set_fragment(None);
    Cow::from(String::from(url).into_bytes())
}

/// Joins `path` to `folder` and removes `.` and `..`. Symbolic links are not resolved.
fn join_normalized(folder: &Path, path: &Path) -> PathBuf {
    let mut joined = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                joined.pop();
            }
            other => joined.push(other),
        }
    }
    joined
}
