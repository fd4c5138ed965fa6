use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use secrecy::ExposeSecret;
use url::Url;

use super::{
    Digest, DigestKey, EnvVar, Header, HttpEndpoint, HttpTransport, Literal, SecretKeyRef, StdioEndpoint,
    StdioTransport, Tls, Transport, ValueFrom,
};

/// What a connection is made from: each part by its name, in the one spelling that all spellings of the same
/// connection have. Two connections are the same if, and only if, their parts are equal.
///
/// Variables and headers have no order, and of two of one name the last counts, as where they are used. A header's
/// name is in lower case. A URL is as it is requested: scheme and host in lower case, without the default port and
/// without a fragment. Arguments have an order.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnectionParts<'a>(BTreeMap<String, PartValue<'a>>);

/// The value of one part. May hold secrets, so it is compared and digested, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PartValue<'a>(Vec<Cow<'a, [u8]>>);

/// Where processes run that are declared in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingDirectory {
    /// The directory, absolute.
    pub root: PathBuf,
    /// Where each process runs that declares no `cwd`; without one it is the folder of the declaring file.
    pub default_cwd: Option<PathBuf>,
}

impl<'a> ConnectionParts<'a> {
    /// Gives the parts of what is connected to, values included.
    pub fn resolved(transport: &'a Transport) -> Self {
        match transport {
            Transport::Stdio(StdioEndpoint { command, args, cwd, env }) => {
                let env = env.iter().map(|(name, value)| {
                    (name.as_str(), PartValue::from([Cow::from(value.expose_secret().as_bytes())]))
                });
                let cwd = cwd.as_deref().map(|cwd| Cow::from(cwd.as_os_str().as_encoded_bytes()));
                Self::stdio(Cow::from(command.as_bytes()), args, cwd, env)
            }
            Transport::Http(HttpEndpoint { url, headers, ca }) => {
                let headers = headers.iter().map(|(name, value)| {
                    (name.as_str(), PartValue::from([Cow::from(value.expose_secret().as_bytes())]))
                });
                let ca = ca.as_ref().map(|ca| PartValue::from([Cow::from(ca.expose_secret().as_bytes())]));
                Self::http(normalized_url(url.clone()), headers, ca)
            }
        }
    }

    /// Gives the parts of a process as it is declared, where a reference stands for its value. `place` is the folder
    /// of the declaring file and what that is relative to; an object of a cluster has none.
    pub fn declared_stdio(stdio: &'a StdioTransport, place: Option<(&Path, &WorkingDirectory)>) -> Self {
        let StdioTransport { command: _, args, cwd: _, env } = stdio;
        let place = place.map(|(folder, base)| (base.root.join(folder), base.default_cwd.as_deref()));
        let place = place.as_ref().map(|(folder, home)| (folder.as_path(), *home));
        let (command, cwd) = stdio.resolve_paths(place);
        let env = env.iter().map(|EnvVar { name, value, value_from }| {
            (name.as_str(), declared_value(value.as_ref(), value_from.as_ref()))
        });
        let bytes = |path: PathBuf| Cow::from(path.into_os_string().into_encoded_bytes());
        Self::stdio(bytes(command), args, cwd.map(bytes), env)
    }

    /// Gives the parts of an HTTP connection as it is declared, where a reference stands for its value.
    pub fn declared_http(http: &'a HttpTransport) -> Self {
        let HttpTransport { url, headers, tls } = http;
        // What holds variables is no URL yet.
        let url = Some(url)
            .filter(|url| !url.contains("${"))
            .and_then(|url| Url::parse(url).ok())
            .map_or_else(|| Cow::from(url.as_bytes()), normalized_url);
        let headers = headers.iter().map(|Header { name, value, value_from }| {
            (name.as_str(), declared_value(value.as_ref(), value_from.as_ref()))
        });
        let ca = tls.as_ref().and_then(|Tls { ca_secret_ref }| ca_secret_ref.as_ref());
        let ca = ca.map(|ca| secret_ref_value(ca));
        Self::http(url, headers, ca)
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
        url: Cow<'a, [u8]>,
        headers: impl Iterator<Item = (&'a str, PartValue<'a>)>,
        ca: Option<PartValue<'a>>,
    ) -> Self {
        let fixed = [
            ("transport".to_owned(), PartValue::from_texts(["http"])),
            ("url".to_owned(), PartValue::from([url])),
        ];
        let headers = headers.map(|(name, value)| (format!("header {}", name.to_ascii_lowercase()), value));
        let ca = ca.map(|ca| ("tls".to_owned(), ca));
        Self(fixed.into_iter().chain(headers).chain(ca).collect())
    }

    /// Gives the parts by their names.
    pub fn into_parts(self) -> BTreeMap<String, PartValue<'a>> {
        self.0
    }

    /// Gives the keyed digest of all parts: equal if, and only if, they are.
    pub fn digest(&self, key: &DigestKey) -> Digest {
        // How many values a part has tells them from the name of the next.
        let counts: Vec<_> =
            self.0.values().map(|PartValue(values)| (values.len() as u64).to_be_bytes()).collect();
        let parts = self.0.iter().zip(&counts).flat_map(|((name, PartValue(values)), count)| {
            [name.as_bytes(), count.as_slice()].into_iter().chain(values.iter().map(|value| &**value))
        });
        key.digest(parts)
    }
}

impl<'a> PartValue<'a> {
    /// Makes one of texts.
    pub fn from_texts(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self(texts.into_iter().map(|text| Cow::from(text.as_bytes())).collect())
    }

    /// Makes one of a setting.
    pub fn from_string(text: String) -> Self {
        Self(vec![Cow::from(text.into_bytes())])
    }

    /// Gives the keyed digest.
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
    /// Gives what is run and where. `place` is the folder of the declaring file, and where a process runs that declares
    /// no `cwd`, if not there.
    ///
    /// `cwd` is relative to the folder, and a command with a slash to where the process runs. Without a place the command
    /// is as it is declared, and the process runs where evenkeel does.
    pub fn resolve_paths(&self, place: Option<(&Path, Option<&Path>)>) -> (PathBuf, Option<PathBuf>) {
        let command = PathBuf::from(&self.command);
        let Some((folder, home)) = place else { return (command, None) };
        let cwd = match &self.cwd {
            Some(cwd) => join_normalized(folder, Path::new(cwd)),
            None => join_normalized(home.unwrap_or(folder), Path::new("")),
        };
        let command = if self.command.contains('/') { join_normalized(&cwd, &command) } else { command };
        (command, Some(cwd))
    }
}

/// A value that is written out, or what it is taken from.
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

/// A value that is taken from a secret. That it may be missing is no other value.
fn secret_ref_value(secret: &SecretKeyRef) -> PartValue<'_> {
    let SecretKeyRef { name, key, optional: _ } = secret;
    PartValue::from_texts(["secret", name, key])
}

/// A URL as it is requested: no server is told a fragment.
fn normalized_url<'a>(mut url: Url) -> Cow<'a, [u8]> {
    url.set_fragment(None);
    Cow::from(String::from(url).into_bytes())
}

/// `path` seen from `folder`, without `.` and `..`; links are not looked at.
fn join_normalized(folder: &Path, path: &Path) -> PathBuf {
    let mut found = PathBuf::new();
    for part in folder.join(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                found.pop();
            }
            other => found.push(other),
        }
    }
    found
}
