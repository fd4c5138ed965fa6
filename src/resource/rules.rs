//! The CEL rules of the CRDs, implemented in Rust, so that files are validated as an API server would validate them.
//!
//! Types that cannot hold an invalid value (durations, enums, unknown fields) are checked during parsing; this module
//! has the remaining rules. A test evaluates the CEL rules of the generated CRDs and compares the results.

use globset::Glob;
use url::Url;

use super::literal::contains_redaction;
use super::{
    EnvVar, Header, Isolation, Literal, McpServerSpec, NameFilter, OAuthGrant, OAuthSpec, SecretKeyRef,
    SkillSpec, ValueFrom,
};

#[cfg(test)]
mod tests;

/// A rule that a spec violates: the path of the field, starting at `spec`, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Violation {
    /// The path of the field, such as `spec.stdio.env[2]`.
    pub path: String,
    /// A message that says what is wrong and what is allowed.
    pub message: String,
}

/// Returns every rule that the spec of an `McpServer` violates; empty if it is valid.
pub fn check_server(spec: &McpServerSpec) -> Vec<Violation> {
    let mut violations = Violations::default();
    if spec.stdio.is_some() == spec.http.is_some() {
        violations.add("spec", "exactly one of stdio and http must be set");
    }
    if let Some(stdio) = &spec.stdio {
        if stdio.command.is_empty() {
            violations.add("spec.stdio.command", "command must not be empty");
        }
        for (path, text) in stdio
            .args
            .iter()
            .enumerate()
            .map(|(index, arg)| (format!("spec.stdio.args[{index}]"), arg))
            .chain([("spec.stdio.command".to_owned(), &stdio.command)])
        {
            if text.contains('\0') {
                violations.add(path, "must not contain a NUL character");
            }
        }
        violations.check_len("spec.stdio.args", stdio.args.len(), 256);
        violations.check_len("spec.stdio.env", stdio.env.len(), 256);
        violations.check_unique("spec.stdio.env", stdio.env.iter().map(|var| var.name.as_str()));
        for (index, EnvVar { name, value, value_from }) in stdio.env.iter().enumerate() {
            let path = format!("spec.stdio.env[{index}]");
            violations.check_pattern(
                &path,
                "name",
                name,
                is_env_var_name,
                "a letter or _, then letters, digits, _, . or -",
            );
            violations.check_value(&path, value.is_some(), value_from.as_ref());
            violations.check_not_redacted(&path, name, value.as_ref());
        }
    }
    if let Some(http) = &spec.http {
        violations.check_url("spec.http.url", &http.url);
        violations.check_len("spec.http.headers", http.headers.len(), 64);
        let names: Vec<_> = http.headers.iter().map(|header| header.name.to_ascii_lowercase()).collect();
        for (index, name) in names.iter().enumerate() {
            if names.iter().take(index).any(|earlier| earlier == name) {
                let message =
                    format!("a header is declared twice, {name}; header names are case-insensitive");
                violations.add("spec.http.headers", message);
            }
        }
        for (index, Header { name, value, value_from }) in http.headers.iter().enumerate() {
            let path = format!("spec.http.headers[{index}]");
            violations.check_pattern(&path, "name", name, is_header_name, "a token of RFC 9110");
            if is_reserved_header(name) {
                let message =
                    "this header is set by evenkeel itself, or applies to a single connection; remove it";
                violations.add(format!("{path}.name"), format!("{name}: {message}"));
            }
            violations.check_value(&path, value.is_some(), value_from.as_ref());
            violations.check_not_redacted(&path, name, value.as_ref());
        }
        if let Some(reference) = http.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref()) {
            violations.check_secret_ref("spec.http.tls.caSecretRef", reference);
        }
        if let Some(oauth) = http.auth.as_ref().and_then(|auth| auth.oauth.as_ref()) {
            check_oauth(oauth, &mut violations);
            if names.iter().any(|name| name == "authorization") {
                let message = "auth.oauth sets the header Authorization; remove it from headers";
                violations.add("spec.http.headers", message);
            }
        }
    }
    if let Some(prefix) = &spec.expose.prefix {
        let is_valid = prefix.len() <= 32 && prefix.bytes().all(is_name_byte);
        if !is_valid {
            violations.add("spec.expose.prefix", "must be at most 32 letters, digits, _ or -");
        }
    }
    violations.check_filter("spec.expose.tools", &spec.expose.tools);
    violations.check_filter("spec.expose.prompts", &spec.expose.prompts);
    violations.check_filter("spec.expose.resources", &spec.expose.resources);
    if spec.roots && spec.isolation == Isolation::Shared {
        violations.add("spec.roots", "roots requires isolation: Session");
    }
    if !(1..=1024).contains(&spec.max_sessions) {
        violations.add("spec.maxSessions", "maxSessions must be from 1 to 1024");
    }
    if spec.retry.initial.get() > spec.retry.max.get() {
        violations.add("spec.retry.initial", "initial must not be longer than max");
    }
    let interval = spec.health.interval.get();
    if !interval.is_zero() && interval.as_secs() < 5 {
        violations.add("spec.health.interval", "interval must be 0s (off) or at least 5s");
    }
    if !(1..=20).contains(&spec.health.failures) {
        violations.add("spec.health.failures", "failures must be from 1 to 20");
    }
    violations.0
}

fn check_oauth(oauth: &OAuthSpec, violations: &mut Violations) {
    const PATH: &str = "spec.http.auth.oauth";
    if oauth.client_secret_ref.is_some() && oauth.client_id.is_none() {
        violations.add(PATH, "clientSecretRef requires clientId");
    }
    let is_confidential = oauth.client_id.is_some() && oauth.client_secret_ref.is_some();
    if oauth.grant == OAuthGrant::ClientCredentials && !is_confidential {
        violations.add(PATH, "grant: ClientCredentials requires clientId and clientSecretRef");
    }
    violations.check_len(&format!("{PATH}.scopes"), oauth.scopes.len(), 64);
    for (index, scope) in oauth.scopes.iter().enumerate() {
        // RFC 6749 §3.3
        let is_scope_byte = |byte: u8| byte == b'!' || (b'#'..=b'~').contains(&byte) && byte != b'\\';
        if scope.is_empty() || !scope.bytes().all(is_scope_byte) {
            violations.add(format!("{PATH}.scopes[{index}]"), "must be one scope, without spaces and quotes");
        }
    }
    if let Some(issuer) = &oauth.issuer {
        violations.check_url(&format!("{PATH}.issuer"), issuer);
    }
    if let Some(reference) = &oauth.client_secret_ref {
        violations.check_secret_ref(&format!("{PATH}.clientSecretRef"), reference);
    }
}

/// Returns every rule that the spec of a `Skill` violates; empty if it is valid.
pub fn check_skill(spec: &SkillSpec) -> Vec<Violation> {
    let mut violations = Violations::default();
    let sources = [spec.inline.is_some(), spec.path.is_some(), spec.config_map_ref.is_some()];
    if sources.into_iter().filter(|set| *set).count() != 1 {
        violations.add("spec", "exactly one of inline, path and configMapRef must be set");
    }
    if let Some(reference) = &spec.config_map_ref {
        violations.check_reference_name("spec.configMapRef", &reference.name);
    }
    violations.check_len("spec.serverRefs", spec.server_refs.len(), 64);
    for (index, reference) in spec.server_refs.iter().enumerate() {
        violations.check_reference_name(&format!("spec.serverRefs[{index}]"), &reference.name);
    }
    violations.0
}

/// Returns the violations of the additional rules for an `McpServer` in a cluster: fields that refer to local files or
/// to evenkeel's own environment are not allowed there.
pub fn check_cluster_server(spec: &McpServerSpec) -> Vec<Violation> {
    let mut violations = Violations::default();
    if spec.stdio.as_ref().is_some_and(|stdio| stdio.cwd.is_some()) {
        let message = "cwd is not supported for objects in a cluster; remove it";
        violations.add("spec.stdio.cwd", message);
    }
    if spec.stdio.as_ref().is_some_and(|stdio| stdio.env_file.is_some()) {
        let message = "envFile is not supported for objects in a cluster; use env with secretKeyRef";
        violations.add("spec.stdio.envFile", message);
    }
    let env = spec.stdio.iter().flat_map(|stdio| &stdio.env).map(|var| &var.value_from).enumerate();
    let headers =
        spec.http.iter().flat_map(|http| &http.headers).map(|header| &header.value_from).enumerate();
    let env = env.map(|(index, from)| ("stdio.env", index, from));
    for (list, index, from) in env.chain(headers.map(|(index, from)| ("http.headers", index, from))) {
        if from.as_ref().is_some_and(|from| from.env.is_some()) {
            let message = "env is not supported for objects in a cluster; use secretKeyRef";
            violations.add(format!("spec.{list}[{index}].valueFrom.env"), message);
        }
    }
    violations.0
}

/// Returns the violations of the additional rules for a `Skill` in a cluster.
pub fn check_cluster_skill(spec: &SkillSpec) -> Vec<Violation> {
    let mut violations = Violations::default();
    if spec.path.is_some() {
        let message = "path is not supported for objects in a cluster; use inline or configMapRef";
        violations.add("spec.path", message);
    }
    violations.0
}

/// The message for a value that was printed by evenkeel and read back.
const REDACTED_VALUE_MESSAGE: &str =
    "is \"<redacted>\", the placeholder that evenkeel prints instead of possible secrets";

#[derive(Default)]
struct Violations(Vec<Violation>);

impl Violations {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation { path: path.into(), message: message.into() });
    }

    fn check_len(&mut self, path: &str, len: usize, max: usize) {
        if len > max {
            self.add(path, format!("has {len} entries; at most {max} are allowed"));
        }
    }

    fn check_unique<'a>(&mut self, path: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = std::collections::BTreeSet::new();
        for name in names {
            if !seen.insert(name) {
                self.add(path, format!("{name} is set twice"));
            }
        }
    }

    fn check_pattern(
        &mut self,
        path: &str,
        field: &str,
        text: &str,
        matches: fn(&str) -> bool,
        allowed: &str,
    ) {
        if !matches(text) {
            self.add(format!("{path}.{field}"), format!("{text:?} must be {allowed}"));
        }
    }

    fn check_value(&mut self, path: &str, literal: bool, from: Option<&ValueFrom>) {
        if literal == from.is_some() {
            self.add(path, "exactly one of value and valueFrom must be set");
        }
        let Some(from) = from else { return };
        if from.secret_key_ref.is_some() == from.env.is_some() {
            self.add(format!("{path}.valueFrom"), "exactly one of secretKeyRef and env must be set");
        }
        if let Some(reference) = &from.secret_key_ref {
            self.check_secret_ref(&format!("{path}.valueFrom.secretKeyRef"), reference);
        }
    }

    fn check_reference_name(&mut self, path: &str, name: &str) {
        self.check_pattern(path, "name", name, is_reference_name, "a DNS name in lower case");
    }

    fn check_secret_ref(&mut self, path: &str, reference: &SecretKeyRef) {
        self.check_reference_name(path, &reference.name);
        self.check_pattern(path, "key", &reference.key, is_secret_key, "letters, digits, -, _ or .");
    }

    fn check_not_redacted(&mut self, path: &str, name: &str, value: Option<&Literal>) {
        if value.is_some_and(Literal::is_redacted) {
            let message =
                format!("the value of {name} {REDACTED_VALUE_MESSAGE}; set the real value, or valueFrom");
            self.add(format!("{path}.value"), message);
        }
    }

    fn check_url(&mut self, path: &str, text: &str) {
        if contains_redaction(text) {
            self.add(path, format!("a part of the URL {REDACTED_VALUE_MESSAGE}; set the complete URL"));
            return;
        }
        if !(text.starts_with("http://") || text.starts_with("https://")) {
            self.add(path, "url must start with http:// or https://");
            return;
        }
        match Url::parse(text) {
            // The query of the URL may contain a secret, so the message does not repeat the URL.
            Err(error) => self.add(path, format!("url is not valid: {error}")),
            Ok(url) if !url.username().is_empty() || url.password().is_some() => {
                self.add(
                    path,
                    "url must not contain a user name or password; use headers with a secretKeyRef",
                );
            }
            Ok(_) => {}
        }
    }

    fn check_filter(&mut self, path: &str, filter: &NameFilter) {
        for (field, globs) in [("allow", &filter.allow), ("deny", &filter.deny)] {
            self.check_len(&format!("{path}.{field}"), globs.len(), 256);
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

/// Returns true if a text is a valid name of an environment variable.
pub fn is_env_var_name(name: &str) -> bool {
    name.len() <= 256
        && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
}

fn is_header_name(name: &str) -> bool {
    name.len() <= 256 && http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

/// The headers that a declaration cannot set: protocol headers, which evenkeel sets for each request, and hop-by-hop
/// headers, which apply to one connection. A trailing hyphen marks a prefix.
const RESERVED_HEADERS: [&str; 18] = [
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

/// Returns true if a declaration cannot set this header.
pub fn is_reserved_header(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED_HEADERS
        .iter()
        .any(|reserved| if reserved.ends_with('-') { name.starts_with(reserved) } else { name == *reserved })
}

/// Returns true if a text is a valid name in a reference. The rule also keeps a reference inside the secrets directory
/// and a field selector restricted to one object: no slash, no leading dot, no comma.
fn is_reference_name(name: &str) -> bool {
    let is_lower_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_match = name.bytes().next().is_some_and(is_lower_alphanumeric)
        && name.bytes().next_back().is_some_and(is_lower_alphanumeric);
    name.len() <= 253
        && ends_match
        && name.bytes().all(|byte| is_lower_alphanumeric(byte) || matches!(byte, b'-' | b'.'))
}

/// Returns true if Kubernetes accepts a text as a key of a Secret.
pub fn is_secret_key(key: &str) -> bool {
    let only_dots = key.bytes().all(|byte| byte == b'.');
    key.len() <= 253 && !only_dots && key.bytes().all(|byte| is_name_byte(byte) || byte == b'.')
}
