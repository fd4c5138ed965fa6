//! The CRDs' CEL rules, once more in Rust, so that a file is judged as the API server would judge it.
//!
//! Types that cannot hold a bad value (durations, enums, unknown fields) are checked when they are read;
//! what is left is here. A test evaluates the CEL of the generated CRDs and compares.

use globset::Glob;
use url::Url;

use super::{EnvVar, Filter, Header, McpServerSpec, SecretKeyRef, SkillSpec, ValueFrom};

/// A rule that a spec breaks: the field's path from `spec`, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Violation {
    /// Such as `spec.stdio.env[2]`.
    pub path: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Every rule that the spec of an `McpServer` breaks; empty if it is valid.
pub fn check_server(spec: &McpServerSpec) -> Vec<Violation> {
    let mut found = Findings::default();
    if spec.stdio.is_some() == spec.http.is_some() {
        found.add("spec", "exactly one of stdio and http must be set");
    }
    if let Some(stdio) = &spec.stdio {
        if stdio.command.is_empty() {
            found.add("spec.stdio.command", "command must not be empty");
        }
        for (path, text) in stdio
            .args
            .iter()
            .enumerate()
            .map(|(index, arg)| (format!("spec.stdio.args[{index}]"), arg))
            .chain([("spec.stdio.command".to_owned(), &stdio.command)])
        {
            if text.contains('\0') {
                found.add(path, "must not contain a NUL character");
            }
        }
        found.bounded("spec.stdio.args", stdio.args.len(), 256);
        found.bounded("spec.stdio.env", stdio.env.len(), 256);
        found.unique("spec.stdio.env", stdio.env.iter().map(|var| var.name.as_str()));
        for (index, EnvVar { name, value, value_from }) in stdio.env.iter().enumerate() {
            let path = format!("spec.stdio.env[{index}]");
            found.pattern(&path, "name", name, is_variable, "a letter or _, then letters, digits, _, . or -");
            found.value(&path, value.is_some(), value_from.as_ref());
        }
    }
    if let Some(http) = &spec.http {
        found.url("spec.http.url", &http.url);
        found.bounded("spec.http.headers", http.headers.len(), 64);
        let names: Vec<_> = http.headers.iter().map(|header| header.name.to_ascii_lowercase()).collect();
        if names.iter().enumerate().any(|(index, name)| names.iter().take(index).any(|before| before == name))
        {
            let message = "a header is declared twice; upper and lower case make no difference";
            found.add("spec.http.headers", message);
        }
        for (index, Header { name, value, value_from }) in http.headers.iter().enumerate() {
            let path = format!("spec.http.headers[{index}]");
            found.pattern(&path, "name", name, is_header, "a token of RFC 9110");
            if is_own_header(name) {
                let message =
                    "this header is set by evenkeel itself, or belongs to a single connection; leave it out";
                found.add(format!("{path}.name"), format!("{name}: {message}"));
            }
            found.value(&path, value.is_some(), value_from.as_ref());
        }
        if let Some(reference) = http.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref()) {
            found.secret("spec.http.tls.caSecretRef", reference);
        }
    }
    if let Some(prefix) = &spec.expose.prefix {
        let fits = prefix.len() <= 32 && prefix.bytes().all(is_name_byte);
        if !fits {
            found.add("spec.expose.prefix", "must be at most 32 letters, digits, _ or -");
        }
    }
    found.filter("spec.expose.tools", &spec.expose.tools);
    found.filter("spec.expose.prompts", &spec.expose.prompts);
    found.filter("spec.expose.resources", &spec.expose.resources);
    if spec.retry.initial.get() > spec.retry.max.get() {
        found.add("spec.retry.initial", "initial must not be longer than max");
    }
    let interval = spec.health.interval.get();
    if !interval.is_zero() && interval.as_secs() < 5 {
        found.add("spec.health.interval", "interval must be 0s (off) or at least 5s");
    }
    if !(1..=20).contains(&spec.health.failures) {
        found.add("spec.health.failures", "failures must be from 1 to 20");
    }
    found.0
}

/// Every rule that the spec of a `Skill` breaks; empty if it is valid.
pub fn check_skill(spec: &SkillSpec) -> Vec<Violation> {
    let mut found = Findings::default();
    let sources = [spec.inline.is_some(), spec.path.is_some(), spec.config_map_ref.is_some()];
    if sources.into_iter().filter(|set| *set).count() != 1 {
        found.add("spec", "exactly one of inline, path and configMapRef must be set");
    }
    if let Some(reference) = &spec.config_map_ref {
        found.reference("spec.configMapRef", &reference.name);
    }
    found.bounded("spec.serverRefs", spec.server_refs.len(), 64);
    for (index, reference) in spec.server_refs.iter().enumerate() {
        found.reference(&format!("spec.serverRefs[{index}]"), &reference.name);
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<Violation>);

impl Findings {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation { path: path.into(), message: message.into() });
    }

    fn bounded(&mut self, path: &str, len: usize, max: usize) {
        if len > max {
            self.add(path, format!("has {len} entries; at most {max} are allowed"));
        }
    }

    fn unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.add(path, format!("{name} is set twice"));
            }
        }
    }

    fn pattern(&mut self, path: &str, field: &str, text: &str, fits: fn(&str) -> bool, allowed: &str) {
        if !fits(text) {
            self.add(format!("{path}.{field}"), format!("{text:?} must be {allowed}"));
        }
    }

    fn value(&mut self, path: &str, literal: bool, from: Option<&ValueFrom>) {
        if literal == from.is_some() {
            self.add(path, "exactly one of value and valueFrom must be set");
        }
        let Some(from) = from else { return };
        if from.secret_key_ref.is_some() == from.env.is_some() {
            self.add(format!("{path}.valueFrom"), "exactly one of secretKeyRef and env must be set");
        }
        if let Some(reference) = &from.secret_key_ref {
            self.secret(&format!("{path}.valueFrom.secretKeyRef"), reference);
        }
    }

    fn reference(&mut self, path: &str, name: &str) {
        self.pattern(path, "name", name, is_reference, "a DNS name in lower case");
    }

    fn secret(&mut self, path: &str, reference: &SecretKeyRef) {
        self.reference(path, &reference.name);
        self.pattern(path, "key", &reference.key, is_secret_key, "letters, digits, -, _ or .");
    }

    fn url(&mut self, path: &str, text: &str) {
        if !(text.starts_with("http://") || text.starts_with("https://")) {
            self.add(path, "url must start with http:// or https://");
            return;
        }
        match Url::parse(text) {
            // The text may hold a secret in its query, so it is not repeated.
            Err(error) => self.add(path, format!("url is not valid: {error}")),
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                self.add(path, "url must not hold a user name or password; use headers with a secretKeyRef");
            }
            Ok(_) => {}
        }
    }

    fn filter(&mut self, path: &str, filter: &Filter) {
        for (field, globs) in [("allow", &filter.allow), ("deny", &filter.deny)] {
            self.bounded(&format!("{path}.{field}"), globs.len(), 256);
            for glob in globs {
                if let Err(error) = Glob::new(glob) {
                    self.add(format!("{path}.{field}"), error.to_string());
                }
            }
        }
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-')
}

fn is_variable(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
}

fn is_header(name: &str) -> bool {
    name.len() <= 256 && http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

/// The headers that a declaration cannot set: those of the protocol, which evenkeel sets for each request, and those
/// that belong to a connection and not to what is sent over it.
const OWN_HEADERS: [&str; 18] = [
    "accept",
    "connection",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "mcp-method",
    "mcp-name",
    "mcp-protocol-version",
    "mcp-session-id",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "mcp-param-",
];

/// Whether a header is one that no declaration can set.
pub fn is_own_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    OWN_HEADERS.iter().any(|own| if own.ends_with('-') { name.starts_with(own) } else { name == *own })
}

/// A name that is referred to. Also what keeps a reference inside the secrets directory, and a selector of the API
/// server to one object: no slash, no leading dot, no comma.
fn is_reference(name: &str) -> bool {
    let lower = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(lower) && name.bytes().next_back().is_some_and(lower);
    name.len() <= 253 && ends && name.bytes().all(|byte| lower(byte) || matches!(byte, b'-' | b'.'))
}

/// Whether Kubernetes takes a text as a key of a Secret.
pub fn is_secret_key(key: &str) -> bool {
    let dots = key.bytes().all(|byte| byte == b'.');
    key.len() <= 253 && !dots && key.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::resource::{McpServer, Skill};
    use kube::CustomResourceExt;

    /// Specs as written in a manifest, and the rules they break.
    fn servers() -> Vec<(Value, &'static [&'static str])> {
        let env = |var: Value| json!({ "stdio": { "command": "c", "env": [var] } });
        let headers = |names: &[&str]| {
            let headers: Vec<_> = names.iter().map(|name| json!({ "name": name, "value": "x" })).collect();
            json!({ "http": { "url": "http://a", "headers": headers } })
        };
        let own = ["Host", "mcp-session-id", "Mcp-Param-Region"].into_iter().chain(OWN_HEADERS);
        let own = own.map(|name| (headers(&[name]), &["this header is set by evenkeel itself"][..]));
        let mut all: Vec<(Value, &'static [&'static str])> = vec![
            (json!({ "stdio": { "command": "c" } }), &[]),
            (json!({ "http": { "url": "https://a/mcp" } }), &[]),
            (json!({}), &["exactly one of stdio and http"]),
            (
                json!({ "stdio": { "command": "c" }, "http": { "url": "http://a" } }),
                &["exactly one of stdio and http"],
            ),
            (json!({ "stdio": { "command": "" } }), &["command must not be empty"]),
            (json!({ "http": { "url": "ftp://a" } }), &["url must start with"]),
            (env(json!({ "name": "A" })), &["exactly one of value and valueFrom"]),
            (env(json!({ "name": "A", "value": "" })), &[]),
            (
                env(json!({ "name": "A", "value": "x", "valueFrom": { "env": "B" } })),
                &["exactly one of value and valueFrom"],
            ),
            (env(json!({ "name": "A", "valueFrom": {} })), &["exactly one of secretKeyRef and env"]),
            (
                env(
                    json!({ "name": "A", "valueFrom": { "env": "B", "secretKeyRef": { "name": "n", "key": "k" } } }),
                ),
                &["exactly one of secretKeyRef and env"],
            ),
            (
                json!({ "http": { "url": "http://a", "headers": [{ "name": "X" }] } }),
                &["exactly one of value and valueFrom"],
            ),
            (
                json!({ "http": { "url": "http://a" }, "retry": { "initial": "2m", "max": "1m" } }),
                &["initial must not be longer than max"],
            ),
            (
                json!({ "http": { "url": "http://a" }, "health": { "interval": "2s" } }),
                &["interval must be 0s (off) or at least 5s"],
            ),
            (json!({ "http": { "url": "http://a" }, "health": { "interval": "0s" } }), &[]),
            (
                headers(&[
                    "X-A",
                    "X-B",
                    "Authorization",
                    "Proxy-Authorization",
                    "mcp-own",
                    "Cookie",
                    "User-Agent",
                ]),
                &[],
            ),
            (headers(&["X-A", "X-B", "x-a"]), &["a header is declared twice"]),
            (
                json!({ "http": { "url": "http://a" }, "health": { "failures": 0 } }),
                &["failures must be from 1 to 20"],
            ),
            (
                json!({ "http": { "url": "http://a" }, "health": { "failures": 21 } }),
                &["failures must be from 1 to 20"],
            ),
        ];
        all.extend(own);
        all
    }

    fn skills() -> Vec<(Value, &'static [&'static str])> {
        let message: &[&str] = &["exactly one of inline, path and configMapRef"];
        vec![
            (json!({ "inline": "x" }), &[]),
            (json!({ "path": "x" }), &[]),
            (json!({}), message),
            (json!({ "inline": "x", "path": "y" }), message),
            (json!({ "inline": "x", "path": "y", "configMapRef": { "name": "z" } }), message),
        ]
    }

    #[test]
    fn the_rules_here_and_the_cel_in_the_crd_agree() {
        let schema = |crd: k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition| {
            let crd = serde_json::to_value(crd).unwrap();
            crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
        };
        let server = schema(McpServer::crd());
        for (spec, expected) in servers() {
            let typed: McpServerSpec = serde_json::from_value(spec.clone()).unwrap();
            let ours: Vec<_> = check_server(&typed).into_iter().map(|violation| violation.message).collect();
            assert_matches(&spec, &ours, expected);
            assert_matches(&spec, &cel(&server, &serde_json::to_value(typed).unwrap()), expected);
        }
        let skill = schema(Skill::crd());
        for (spec, expected) in skills() {
            let typed: SkillSpec = serde_json::from_value(spec.clone()).unwrap();
            let ours: Vec<_> = check_skill(&typed).into_iter().map(|violation| violation.message).collect();
            assert_matches(&spec, &ours, expected);
            assert_matches(&spec, &cel(&skill, &serde_json::to_value(typed).unwrap()), expected);
        }
    }

    #[test]
    fn what_only_files_can_get_wrong_is_refused_too() {
        for (spec, expected) in [
            (json!({ "http": { "url": "http://user:pw@a/" } }), "must not hold a user name"),
            (
                json!({ "stdio": { "command": "c", "env": [{ "name": "1A", "value": "" }] } }),
                "\"1A\" must be",
            ),
            (
                json!({ "stdio": { "command": "c", "env": [{ "name": "A", "value": "1" }, { "name": "A", "value": "2" }] } }),
                "A is set twice",
            ),
            (json!({ "stdio": { "command": "c" }, "expose": { "prefix": "a b" } }), "at most 32 letters"),
            (json!({ "stdio": { "command": "c" }, "expose": { "tools": { "allow": ["[a"] } } }), "unclosed"),
            (
                json!({ "http": { "url": "http://a", "tls": { "caSecretRef": { "name": "../x", "key": "k" } } } }),
                "must be a DNS name",
            ),
            (
                json!({ "http": { "url": "http://a", "tls": { "caSecretRef": { "name": "x", "key": ".." } } } }),
                "must be letters, digits",
            ),
        ] {
            let typed: McpServerSpec = serde_json::from_value(spec.clone()).unwrap();
            let found: Vec<_> = check_server(&typed).iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), 1, "{spec}: {found:?}");
            assert!(found[0].contains(expected), "{spec}: {found:?}");
        }
    }

    #[test]
    fn a_skill_refers_to_names_that_there_can_be() {
        let referring = |map: &str, server: &str| json!({ "configMapRef": { "name": map }, "serverRefs": [{ "name": "a" }, { "name": server }] });
        for (spec, expected) in [
            (referring("notes", "clock"), &[][..]),
            (referring("a.b-c", "a.b"), &[]),
            (referring("a,b", "clock"), &["spec.configMapRef.name: \"a,b\" must be a DNS name"]),
            (
                referring("notes,metadata.name=notes", "clock"),
                &["spec.configMapRef.name: \"notes,metadata.name=notes\" must be"],
            ),
            (referring("", "clock"), &["spec.configMapRef.name: \"\" must be"]),
            (referring("notes", "../x"), &["spec.serverRefs[1].name: \"../x\" must be"]),
        ] {
            let typed: SkillSpec = serde_json::from_value(spec.clone()).unwrap();
            let found: Vec<_> = check_skill(&typed).iter().map(ToString::to_string).collect();
            assert_matches(&spec, &found, expected);
        }
    }

    fn assert_matches(spec: &Value, found: &[String], expected: &[&str]) {
        assert_eq!(found.len(), expected.len(), "{spec}: {found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "{spec}: {found:?}");
        }
    }

    /// Evaluates every CEL rule of a schema against a value, as the API server does.
    fn cel(schema: &Value, value: &Value) -> Vec<String> {
        let mut broken = Vec::new();
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            let mut env = cel::Env::stdlib();
            env.add_extension(cel::extensions::strings).unwrap();
            let env = std::sync::Arc::new(env);
            let program = env.compile(rule["rule"].as_str().unwrap()).unwrap();
            let mut context = cel::Context::with_env(env);
            context.add_variable("self", value.clone()).unwrap();
            let verdict = program.execute(&context);
            if !matches!(verdict, Ok(cel::Value::Bool(true))) {
                assert!(matches!(verdict, Ok(cel::Value::Bool(false))), "{rule}: {verdict:?}");
                broken.push(rule["message"].as_str().unwrap().to_owned());
            }
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            match value.get(name) {
                None | Some(Value::Null) => {}
                Some(value) => broken.extend(cel(schema, value)),
            }
        }
        if let Some(values) = value.as_array() {
            broken.extend(values.iter().flat_map(|value| cel(&schema["items"], value)));
        }
        broken
    }
}
