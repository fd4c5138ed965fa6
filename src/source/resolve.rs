//! Resolves the references of a spec into the endpoint that a connection is made from. Pure: the caller supplies the
//! environment and the secrets.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::StdioPolicy;
use crate::resource::{
    DigestKey, Endpoint, HttpEndpoint, HttpTransport, Literal, McpServerSpec, OAuthSettings, OAuthSpec,
    Problem, Reason, SecretKeyRef, StdioEndpoint, StdioTransport, Transport, ValueFrom, is_public_variable,
};

/// The environment of the evenkeel process at its start, for `valueFrom.env`.
#[derive(Clone, Debug, Default)]
pub struct Environment(Arc<HashMap<String, SecretString>>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        let pair = |(name, value): (K, V)| (name.into(), SecretString::from(value.into()));
        Self(Arc::new(variables.into_iter().map(pair).collect()))
    }
}

impl Environment {
    /// Returns the value of a variable. It is meant only for the server that refers to it.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(ExposeSecret::expose_secret)
    }
}

/// The result of a lookup of a secret.
#[derive(Clone, Debug)]
pub(super) enum SecretLookup {
    Found(SecretString),
    /// The secret or its key does not exist.
    Missing,
    /// It exists but cannot be used; holds the reason.
    Unusable(String),
    /// It cannot be read; holds the reason.
    Denied(Problem),
}

/// The sources of the values of references.
pub(super) struct ReferenceValues<'a> {
    /// Returns the location of a secret, for messages.
    pub secret_location: &'a dyn Fn(&SecretKeyRef) -> String,
    pub environment: &'a Environment,
    pub policy: &'a StdioPolicy,
    pub lookup_secret: &'a dyn Fn(&SecretKeyRef) -> SecretLookup,
    pub digest_key: &'a DigestKey,
}

impl ReferenceValues<'_> {
    /// Returns the endpoint of `spec`. `folder` is the folder of the declaring file, if `spec` is declared in a file.
    ///
    /// A process runs in `cwd`, which is relative to the folder of the declaring file; without `cwd` it runs in that
    /// folder, or in the working directory of the policy. A `command` with a slash is relative to the working directory
    /// of the process. Without a folder both are used as declared. A secret is passed on byte for byte, except that a
    /// header value loses the line break at its end, because no header can contain one. `filled_values` are the values
    /// that already replaced references in the spec.
    ///
    /// Errors: a reference that was not found, or the policy rule that denies the server.
    pub fn resolve(
        &self,
        spec: &McpServerSpec,
        folder: Option<&Path>,
        filled_values: Vec<SecretString>,
    ) -> Result<Arc<Endpoint>, Problem> {
        self.policy.check(spec)?;
        let mut referenced = filled_values;
        let transport = match (&spec.stdio, &spec.http) {
            (Some(stdio), _) => Transport::Stdio(self.resolve_stdio(stdio, folder, &mut referenced)?),
            (None, Some(http)) => Transport::Http(self.resolve_http(http)?),
            (None, None) => return Err(invalid_spec("spec: exactly one of stdio and http must be set")),
        };
        Ok(Arc::new(
            Endpoint::new(transport, spec.protocol, self.digest_key)
                .with_isolation(spec.isolation, spec.roots, self.digest_key)
                .with_referenced_values(referenced),
        ))
    }

    fn resolve_stdio(
        &self,
        stdio: &StdioTransport,
        folder: Option<&Path>,
        referenced: &mut Vec<SecretString>,
    ) -> Result<StdioEndpoint, Problem> {
        let (command, cwd) =
            stdio.resolve_paths(folder.map(|folder| (folder, self.policy.working_directory())));
        let command = command
            .into_os_string()
            .into_string()
            .map_err(|_| invalid_spec("spec.stdio.command: the path of its folder is not valid UTF-8"))?;
        let mut env = Vec::with_capacity(stdio.env.len());
        for var in &stdio.env {
            let field = format!("variable {}", var.name);
            if let Some(value) = self.resolve_value(&field, var.value.as_ref(), var.value_from.as_ref())? {
                if value.expose_secret().contains('\0') {
                    return Err(invalid_spec(&format!(
                        "{field}: the value contains a NUL character, which a variable cannot contain"
                    )));
                }
                let variable = var.value_from.as_ref().and_then(|from| from.env.as_deref());
                if var.value.is_none() && !variable.is_some_and(is_public_variable) {
                    referenced.push(value.clone());
                }
                env.push((var.name.clone(), value));
            }
        }
        Ok(StdioEndpoint { command, args: stdio.args.clone(), cwd, env })
    }

    fn resolve_http(&self, http: &HttpTransport) -> Result<HttpEndpoint, Problem> {
        let url = Url::parse(&http.url).map_err(|error| invalid_spec(&format!("spec.http.url: {error}")))?;
        let mut headers = Vec::with_capacity(http.headers.len());
        for header in &http.headers {
            let field = format!("header {}", header.name);
            let Some(value) =
                self.resolve_value(&field, header.value.as_ref(), header.value_from.as_ref())?
            else {
                continue;
            };
            let text = value.expose_secret();
            let text = text.strip_suffix('\n').unwrap_or(text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            let name = HeaderName::from_bytes(header.name.as_bytes())
                .map_err(|_| invalid_spec(&format!("{field}: the name is not a valid header name")))?;
            if HeaderValue::from_str(text).is_err() {
                return Err(invalid_spec(&format!(
                    "{field}: the value contains a line break or another character that a header cannot contain"
                )));
            }
            headers.push((name, SecretString::from(text)));
        }
        let ca = match http.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref()) {
            Some(reference) => self.resolve_secret("spec.http.tls.caSecretRef", reference)?,
            None => None,
        };
        let oauth = match http.auth.as_ref().and_then(|auth| auth.oauth.as_ref()) {
            Some(oauth) => Some(Box::new(self.resolve_oauth(oauth)?)),
            None => None,
        };
        Ok(HttpEndpoint { kind: http.transport, url, headers, ca, oauth })
    }

    fn resolve_oauth(&self, oauth: &OAuthSpec) -> Result<OAuthSettings, Problem> {
        let client_secret = match &oauth.client_secret_ref {
            Some(reference) => self.resolve_secret("spec.http.auth.oauth.clientSecretRef", reference)?,
            None => None,
        };
        let client_secret = client_secret
            .map(|secret| SecretString::from(secret.expose_secret().trim_end_matches(['\r', '\n'])));
        Ok(OAuthSettings {
            client_id: oauth.client_id.clone(),
            client_secret,
            scopes: oauth.scopes.clone(),
            grant: oauth.grant,
            issuer: oauth.issuer.clone(),
        })
    }

    /// Resolves a value; returns `None` if it is omitted because an optional secret is missing.
    fn resolve_value(
        &self,
        field: &str,
        literal: Option<&Literal>,
        value_from: Option<&ValueFrom>,
    ) -> Result<Option<SecretString>, Problem> {
        if let Some(literal) = literal {
            return Ok(Some(SecretString::from(literal.expose())));
        }
        if let Some(reference) = value_from.and_then(|value_from| value_from.secret_key_ref.as_ref()) {
            return self.resolve_secret(field, reference);
        }
        let Some(name) = value_from.and_then(|value_from| value_from.env.as_ref()) else {
            return Err(invalid_spec(&format!("{field}: neither value nor valueFrom is set")));
        };
        match self.environment.0.get(name) {
            Some(value) => Ok(Some(value.clone())),
            None => Err(Problem::new(
                Reason::VariableNotFound,
                format!(
                    "{field}: the variable {name:?} is not set in evenkeel's environment; set it and restart evenkeel"
                ),
            )),
        }
    }

    fn resolve_secret(&self, field: &str, reference: &SecretKeyRef) -> Result<Option<SecretString>, Problem> {
        let SecretKeyRef { name, key, optional } = reference;
        let not_found = |message: String| Problem::new(Reason::SecretNotFound, message);
        match (self.lookup_secret)(reference) {
            SecretLookup::Found(value) => Ok(Some(value)),
            SecretLookup::Missing if *optional => Ok(None),
            SecretLookup::Missing => Err(not_found(format!(
                "{field}: secret {name:?} with key {key:?} was not found in {}",
                (self.secret_location)(reference)
            ))),
            SecretLookup::Unusable(reason) => Err(not_found(format!(
                "{field}: secret {name:?} with key {key:?} cannot be used: {} {reason}",
                (self.secret_location)(reference)
            ))),
            SecretLookup::Denied(Problem { reason, message }) => {
                Err(Problem::new(reason, format!("{field}: secret {name:?} cannot be read: {message}")))
            }
        }
    }
}

/// Returns the secrets that a spec refers to.
pub(super) fn secret_references(spec: &McpServerSpec) -> impl Iterator<Item = &SecretKeyRef> {
    let env = spec.stdio.iter().flat_map(|stdio| &stdio.env).map(|var| &var.value_from);
    let headers = spec.http.iter().flat_map(|http| &http.headers).map(|header| &header.value_from);
    let tls = spec.http.iter().filter_map(|http| http.tls.as_ref());
    let oauth = spec.http.iter().filter_map(|http| http.auth.as_ref()?.oauth.as_ref());
    env.chain(headers)
        .filter_map(|from| from.as_ref()?.secret_key_ref.as_ref())
        .chain(tls.filter_map(|tls| tls.ca_secret_ref.as_ref()))
        .chain(oauth.filter_map(|oauth| oauth.client_secret_ref.as_ref()))
}

fn invalid_spec(message: &str) -> Problem {
    Problem::new(Reason::InvalidSpec, message)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn test_secret(reference: &SecretKeyRef) -> SecretLookup {
        match (reference.name.as_str(), reference.key.as_str()) {
            ("github", "token") => SecretLookup::Found("hunter2\n".into()),
            ("github", "lines") => SecretLookup::Found("hunter2\nhunter2".into()),
            ("github", "nul") => SecretLookup::Found("hunter2\0".into()),
            ("huge", _) => SecretLookup::Unusable("is larger than 1 MiB".into()),
            _ => SecretLookup::Missing,
        }
    }

    /// Returns the endpoint with its values, or the problem, on one line.
    fn resolve_to_text(spec: Value) -> String {
        let environment = Environment::from_iter([("PROXY", "hunter3"), ("EMPTY", "")]);
        let references = ReferenceValues {
            secret_location: &|reference| format!("/run/secrets/{}/{}", reference.name, reference.key),
            environment: &environment,
            policy: &StdioPolicy::allow_all(),
            lookup_secret: &test_secret,
            digest_key: &DigestKey::new(b"k"),
        };
        let spec: McpServerSpec = serde_json::from_value(spec).unwrap();
        let values = |pairs: &[(String, SecretString)]| {
            let pair =
                |(name, value): &(String, SecretString)| format!(" {name}={:?}", value.expose_secret());
            pairs.iter().map(pair).collect::<String>()
        };
        match references.resolve(&spec, Some(Path::new("/srv/fleet/team")), Vec::new()) {
            Ok(endpoint) => match &endpoint.transport {
                Transport::Stdio(stdio) => {
                    let cwd = stdio.cwd.as_ref().unwrap().display();
                    format!("{} {:?} in {cwd}{}", stdio.command, stdio.args, values(&stdio.env))
                }
                Transport::Http(http) => {
                    let headers: Vec<_> =
                        http.headers.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
                    let ca = http.ca.as_ref().map(ExposeSecret::expose_secret);
                    format!("{} ca={ca:?}{}", http.url, values(&headers))
                }
            },
            Err(problem) => problem.to_string(),
        }
    }

    #[test]
    fn command_and_cwd_are_resolved_against_the_declaring_folder() {
        for (command, cwd, expected) in [
            ("npx", json!(null), "npx [] in /srv/fleet/team"),
            ("npx", json!("./"), "npx [] in /srv/fleet/team"),
            ("npx", json!("../x/./y"), "npx [] in /srv/fleet/x/y"),
            ("npx", json!("/opt"), "npx [] in /opt"),
            ("npx", json!("../../../../.."), "npx [] in /"),
            ("./bin/s", json!("x"), "/srv/fleet/team/x/bin/s [] in /srv/fleet/team/x"),
            ("bin/s", json!(null), "/srv/fleet/team/bin/s [] in /srv/fleet/team"),
            ("/bin/s", json!("x"), "/bin/s [] in /srv/fleet/team/x"),
        ] {
            let spec = json!({ "stdio": { "command": command, "cwd": cwd } });
            assert_eq!(resolve_to_text(spec), expected, "{command} {cwd}");
        }
    }

    #[test]
    fn values_are_read_from_their_declared_source() {
        let from = |name: &str, key: &str, optional: bool| {
            let reference = json!({ "name": name, "key": key, "optional": optional });
            json!({ "secretKeyRef": reference })
        };
        for (value, in_variable, in_header) in [
            (json!({ "value": "plain" }), "\"plain\"", "\"plain\""),
            (json!({ "value": "" }), "\"\"", "\"\""),
            (json!({ "valueFrom": { "env": "PROXY" } }), "\"hunter3\"", "\"hunter3\""),
            (json!({ "valueFrom": { "env": "EMPTY" } }), "\"\"", "\"\""),
            (json!({ "valueFrom": from("github", "token", false) }), "\"hunter2\\n\"", "\"hunter2\""),
        ] {
            let mut item = value.clone();
            item["name"] = json!("x");
            let spec = json!({ "stdio": { "command": "c", "env": [item.clone()] } });
            assert_eq!(resolve_to_text(spec), format!("c [] in /srv/fleet/team x={in_variable}"), "{value}");
            let spec = json!({ "http": { "url": "https://a/mcp", "headers": [item] } });
            assert_eq!(resolve_to_text(spec), format!("https://a/mcp ca=None x={in_header}"), "{value}");
        }
        let tls = json!({ "http": {
            "url": "https://a/", "tls": { "caSecretRef": { "name": "github", "key": "token" } },
        } });
        assert_eq!(resolve_to_text(tls), "https://a/ ca=Some(\"hunter2\\n\")");
        let optional = json!({ "stdio": {
            "command": "c", "env": [{ "name": "x", "valueFrom": from("github", "no", true) }],
        } });
        assert_eq!(resolve_to_text(optional), "c [] in /srv/fleet/team");
    }

    #[test]
    fn missing_reference_is_named_and_no_value_is_shown() {
        let from = |name: &str, key: &str| json!({ "secretKeyRef": { "name": name, "key": key } });
        for (transport, value_from, expected) in [
            (
                "stdio",
                json!({ "env": "HTTPS_PROXY" }),
                "VariableNotFound: variable x: the variable \"HTTPS_PROXY\" is not set",
            ),
            (
                "stdio",
                from("github", "no"),
                "SecretNotFound: variable x: secret \"github\" with key \"no\" was not found in /run/secrets/github/no",
            ),
            (
                "http",
                from("none", "token"),
                "SecretNotFound: header x: secret \"none\" with key \"token\" was not found",
            ),
            (
                "http",
                from("huge", "token"),
                "SecretNotFound: header x: secret \"huge\" with key \"token\" cannot be used: \
                 /run/secrets/huge/token is larger than 1 MiB",
            ),
            ("http", from("github", "lines"), "InvalidSpec: header x: the value contains a line break"),
            ("stdio", from("github", "nul"), "InvalidSpec: variable x: the value contains a NUL"),
        ] {
            let item = json!([{ "name": "x", "valueFrom": value_from }]);
            let spec = match transport {
                "stdio" => json!({ "stdio": { "command": "c", "env": item } }),
                _ => json!({ "http": { "url": "https://a/mcp", "headers": item } }),
            };
            let message = resolve_to_text(spec);
            assert!(message.starts_with(expected), "{message}");
            assert!(!message.contains("hunter"), "{message}");
        }
    }

    #[test]
    fn secret_references_are_found_in_env_headers_and_tls() {
        let from = |key: &str| json!({ "secretKeyRef": { "name": "n", "key": key } });
        let spec: McpServerSpec = serde_json::from_value(json!({
            "stdio": { "command": "c", "env": [
                { "name": "A", "value": "x" }, { "name": "B", "valueFrom": from("b") },
                { "name": "C", "valueFrom": { "env": "D" } },
            ] },
            "http": {
                "url": "http://a", "headers": [{ "name": "E", "valueFrom": from("e") }],
                "tls": { "caSecretRef": { "name": "n", "key": "ca" } },
            },
        }))
        .unwrap();
        let keys: Vec<_> = secret_references(&spec).map(|reference| reference.key.as_str()).collect();
        assert_eq!(keys, ["b", "e", "ca"]);
    }
}
