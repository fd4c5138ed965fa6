//! Parses one entry of the JSON files of agents into the spec of a server. Pure.

use jsonc_parser::ast::{Object as Fields, ObjectProp, Value};
use jsonc_parser::common::Ranged;
use serde_json::{Map, json};

use super::super::excerpt::{ParseError, did_you_mean};
use super::super::expand::{editor_variable_advice, has_variables};
use super::super::file::FileParser;
use super::super::names::expose_prefix;
use super::super::object::ObjectSpec;
use super::json_text::JsonText;
use super::time_limits::{TimeLimits, time_limit_keys};
use super::values::{
    TypeMismatch, find_in_texts, flag, has_unexpanded_reference, is_absent, is_comment, name_value_pairs,
    text, texts,
};
use crate::resource::{McpServerSpec, ObjectKey, Problem, Reason, Violation, is_reserved_header};

/// Keys that have a meaning to agents and none to evenkeel.
const IGNORED_KEYS: &[&str] = &[
    "alwaysAllow",
    "alwaysLoad",
    "autoApprove",
    "default_tools_approval_mode",
    "description",
    "dev",
    "gallery",
    "icon",
    "name",
    "supports_parallel_tool_calls",
    "tags",
    "title",
    "trust",
    "version",
];

/// The keys of each setting, as different tools spell them; the first stands for all. Filters of tools: `includeTools`
/// and `excludeTools` of Gemini CLI, `enabledTools` and `disabledTools` of Kimi Code, Roo Code and Windsurf,
/// `enabled_tools` and `disabled_tools` of Codex, `tools` of Copilot. `environment` and a list in `command`: opencode.
const SETTINGS: &[&[&str]] = &[
    &["args"],
    &["bearerTokenEnvVar", "bearer_token_env_var"],
    &["command"],
    &["cwd"],
    &["disabled"],
    &["enabled"],
    &["env", "environment"],
    &["envFile"],
    &["excludeTools", "disabledTools", "disabled_tools"],
    &["headers", "http_headers"],
    &["includeTools", "enabledTools", "enabled_tools", "tools"],
    &["type", "transport", "transportType"],
    &["url", "httpUrl", "serverUrl"],
];

fn setting_of(key: &str) -> Option<&'static str> {
    SETTINGS.iter().find(|keys| keys.contains(&key)).and_then(|keys| keys.first().copied())
}

/// Parses an entry. The object alone is rejected if it cannot be used.
pub fn parse_entry(
    entry: &ObjectProp<'_>,
    key: &ObjectKey,
    json: &JsonText<'_>,
    file: &mut FileParser<'_>,
) -> Result<McpServerSpec, Problem> {
    let Value::Object(fields) = &entry.value else {
        let error = json.error_at(entry.value.range(), "expected an object".to_owned());
        return Err(file.reject::<McpServerSpec>(key, Reason::InvalidSpec, vec![error]));
    };
    let entry_error = |message: String| json.error_at(entry.name.range(), message);
    let mut draft = ServerDraft::default();
    for property in &fields.properties {
        draft.add_property(property, json);
    }
    // A server that is not started needs no values.
    let editor_variables = std::mem::take(&mut draft.editor_variables);
    if draft.suspend { &mut draft.warnings } else { &mut draft.errors }.extend(editor_variables);
    let built = draft.build_spec().map(|mut spec| {
        let warnings = draft.apply_settings(&mut spec, entry.name.as_str());
        draft.warnings.extend(warnings.into_iter().map(entry_error));
        spec
    });
    for warning in std::mem::take(&mut draft.warnings) {
        let message = format!("{} {key}: {}", McpServerSpec::KIND, warning.message);
        file.warn(ParseError { message, ..warning });
    }
    let (reason, errors) = match built {
        Ok(spec) if draft.errors.is_empty() => {
            let violations = spec.check(file.target);
            let url_has_variables = spec.http.as_ref().is_some_and(|http| has_variables(&http.url));
            // Only the expanded URL can violate its rule.
            let violations = violations
                .iter()
                .filter(|violation| !(url_has_variables && violation.path == "spec.http.url"));
            let errors: Vec<_> = violations.map(|violation| error_of(violation, fields, json)).collect();
            if errors.is_empty() {
                for advice in spec.advice(true) {
                    let warning = error_of(&advice, fields, json);
                    let message = format!("{} {key}: {}", McpServerSpec::KIND, warning.message);
                    file.warn(ParseError { message, ..warning });
                }
                return Ok(spec);
            }
            (Reason::InvalidSpec, errors)
        }
        Err(Problem { reason, message }) if draft.errors.is_empty() => (reason, vec![entry_error(message)]),
        _ => (Reason::InvalidSpec, draft.errors),
    };
    Err(file.reject::<McpServerSpec>(key, reason, errors))
}

/// Returns the error for a violated rule, at the key that set the field.
fn error_of(Violation { path, message }: &Violation, fields: &Fields<'_>, json: &JsonText<'_>) -> ParseError {
    let path = ["spec.stdio.", "spec.http.", "spec."].iter().find_map(|outer| path.strip_prefix(outer));
    let path = path.unwrap_or_default();
    let field = match path.split(['.', '[']).next().unwrap_or_default() {
        "expose" if path.ends_with("allow") => "includeTools",
        "expose" if path.ends_with("deny") => "excludeTools",
        field => field,
    };
    let property =
        fields.properties.iter().find(|property| setting_of(property.name.as_str()) == Some(field));
    let range = property.map_or(fields.range, |property| property.range);
    json.error_at(range, format!("{path}: {message}"))
}

/// The part of an entry that was parsed so far.
#[derive(Default)]
struct ServerDraft {
    transport_type: Option<String>,
    stdio: Map<String, serde_json::Value>,
    http: Map<String, serde_json::Value>,
    /// The arguments in a list in `command`, before those in `args`.
    command_args: Vec<String>,
    bearer_token_variable: Option<String>,
    suspend: bool,
    allowed_tools: Option<Vec<String>>,
    denied_tools: Vec<String>,
    limits: TimeLimits,
    /// The variables that only an editor can fill in.
    editor_variables: Vec<ParseError>,
    errors: Vec<ParseError>,
    warnings: Vec<ParseError>,
    seen_keys: Vec<String>,
}

impl ServerDraft {
    fn add_property(&mut self, property: &ObjectProp<'_>, json: &JsonText<'_>) {
        let (key, value) = (property.name.as_str(), &property.value);
        if self.seen_keys.iter().any(|seen| seen == key) {
            return self.errors.push(json.error_at(property.range, format!("duplicate key {key:?}")));
        }
        self.seen_keys.push(key.to_owned());
        if is_absent(value) || IGNORED_KEYS.contains(&key) || is_comment(key) {
            return;
        }
        let result = match setting_of(key) {
            Some(setting) => self.set(setting, key, value, json),
            None if time_limit_keys().any(|limit| limit == key) => text(value).map(|number| {
                let warning = self.limits.set(key, &number);
                self.warnings.extend(warning.map(|message| json.error_at(property.range, message)));
            }),
            None => {
                let known = SETTINGS.iter().flat_map(|keys| keys.iter().copied()).chain(time_limit_keys());
                let message = format!("the key {key:?} has no effect here{}", did_you_mean(key, known));
                return self.warnings.push(json.error_at(property.range, message));
            }
        };
        if let Err((range, expected)) = result {
            return self.errors.push(json.error_at(range, format!("{key}: expected {expected}")));
        }
        let is_expanded = setting_of(key).is_some_and(|setting| setting != "envFile");
        let advice = find_in_texts(value, &editor_variable_advice).filter(|_| is_expanded);
        if let Some((range, advice)) = advice {
            self.editor_variables.push(json.error_at(range, format!("{key}: {advice}")));
        }
        // An argument with blanks may be a script, whose shell expands it.
        let is_script = |text: &str| key == "args" && text.contains(char::is_whitespace);
        let unexpanded = |text: &str| (has_unexpanded_reference(text) && !is_script(text)).then_some(());
        if let Some((range, ())) = find_in_texts(value, &unexpanded) {
            let message = format!(
                "{key}: $NAME and {{env:NAME}} are passed on as written; write ${{NAME}} for the variable NAME of \
                 evenkeel's environment"
            );
            self.warnings.push(json.error_at(range, message));
        }
    }

    fn set(
        &mut self,
        setting: &'static str,
        key: &str,
        value: &Value<'_>,
        json: &JsonText<'_>,
    ) -> Result<(), TypeMismatch> {
        match setting {
            "type" => self.transport_type = Some(text(value)?),
            "command" if value.as_array().is_some() => {
                let mut words = texts(value)?.into_iter();
                let command = words.next().ok_or((value.range(), "a command in the list"))?;
                self.stdio.insert("command".to_owned(), command.into());
                self.command_args = words.collect();
            }
            "command" | "cwd" | "envFile" => {
                self.stdio.insert(setting.to_owned(), text(value)?.into());
            }
            "args" => {
                self.stdio.insert("args".to_owned(), texts(value)?.into());
            }
            "env" => extend_list(&mut self.stdio, "env", name_value_pairs(value)?),
            "headers" => {
                let mut headers = name_value_pairs(value)?;
                headers.retain(|header| !header["name"].as_str().is_some_and(is_reserved_header));
                extend_list(&mut self.http, "headers", headers);
                self.warn_of_protocol_headers(value, json);
            }
            "bearerTokenEnvVar" => self.bearer_token_variable = Some(text(value)?),
            "url" => {
                self.http.insert("url".to_owned(), text(value)?.into());
            }
            "disabled" => self.suspend |= flag(value)?,
            "enabled" => self.suspend |= !flag(value)?,
            // In Codex, an object of approvals.
            "includeTools" if key == "tools" && value.as_object().is_some() => {}
            "includeTools" => {
                let names = texts(value)?;
                if names.is_empty() {
                    let message = format!("{key}: the list is empty, so no tool of this server is exposed");
                    self.warnings.push(json.error_at(value.range(), message));
                }
                self.allowed_tools.get_or_insert_default().extend(names.iter().map(|name| tool_name(name)));
            }
            "excludeTools" => {
                self.denied_tools.extend(texts(value)?.iter().map(|name| tool_name(name)));
            }
            _ => {}
        }
        Ok(())
    }

    /// Warns of headers that the protocol sets anyway; files of agents often contain them.
    fn warn_of_protocol_headers(&mut self, value: &Value<'_>, json: &JsonText<'_>) {
        for property in value.as_object().into_iter().flat_map(|headers| &headers.properties) {
            let name = property.name.as_str();
            if is_reserved_header(name) {
                let message = format!("headers: evenkeel sets {name} itself; this value has no effect");
                self.warnings.push(json.error_at(property.range, message));
            }
        }
    }

    fn build_spec(&mut self) -> Result<McpServerSpec, Problem> {
        let invalid = |message: &str| Problem::new(Reason::InvalidSpec, message);
        let (command, url) = (self.stdio.contains_key("command"), self.http.contains_key("url"));
        let stdio = match self.transport_type.as_deref().map(normalized).as_deref() {
            Some("stdio" | "local") if command => true,
            Some("stdio" | "local") => return Err(invalid("a server of type stdio needs a command")),
            Some("http" | "streamablehttp" | "streamable" | "remote") if url => false,
            Some("sse" | "httpsse") if url => {
                self.http.insert("transport".to_owned(), "SSE".into());
                false
            }
            Some(kind @ ("http" | "streamablehttp" | "streamable" | "remote" | "sse" | "httpsse")) => {
                let kind = if kind.ends_with("sse") { "sse" } else { "http" };
                return Err(invalid(&format!("a server of type {kind} needs a url")));
            }
            Some(_) => {
                let given = self.transport_type.as_deref().unwrap_or_default();
                let message = format!("unknown type {given:?}; use stdio, http or sse");
                return Err(Problem::new(Reason::UnsupportedTransport, message));
            }
            None if command && url => {
                return Err(invalid("both command and url are set; set type to stdio or http"));
            }
            None if command || url => command,
            None => return Err(invalid("neither command nor url is set")),
        };
        if !self.command_args.is_empty() {
            let args = std::mem::take(&mut self.command_args).into_iter().map(Into::into);
            let args = args.chain(take_list(&mut self.stdio, "args")).collect::<Vec<_>>();
            self.stdio.insert("args".to_owned(), args.into());
        }
        if let Some(variable) = self.bearer_token_variable.take() {
            let header = json!({ "name": "Authorization", "value": format!("Bearer ${{{variable}}}") });
            extend_list(&mut self.http, "headers", vec![header]);
        }
        let (name, fields) = if stdio { ("stdio", &mut self.stdio) } else { ("http", &mut self.http) };
        serde_json::from_value(json!({ name: std::mem::take(fields) }))
            .map_err(|error| invalid(&error.to_string()))
    }

    /// Applies the settings that are not part of the connection. Returns warnings.
    fn apply_settings(&mut self, spec: &mut McpServerSpec, name: &str) -> Vec<String> {
        spec.suspend = self.suspend;
        spec.expose.prefix = expose_prefix(name);
        if let Some(allowed) = self.allowed_tools.take() {
            spec.expose.tools.allow = allowed;
        }
        spec.expose.tools.deny = std::mem::take(&mut self.denied_tools);
        self.limits.apply(spec)
    }
}

/// Returns a type as tools mean it: `streamableHttp`, `streamable-http` and `STREAMABLE_HTTP` are the same.
fn normalized(transport_type: &str) -> String {
    transport_type.to_ascii_lowercase().replace(['-', '_', ' '], "")
}

/// Returns the name of a tool in a filter; Gemini CLI permits arguments in parentheses after it.
fn tool_name(filter: &str) -> String {
    filter.split('(').next().unwrap_or_default().trim().to_owned()
}

fn take_list(fields: &mut Map<String, serde_json::Value>, name: &str) -> Vec<serde_json::Value> {
    match fields.remove(name) {
        Some(serde_json::Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn extend_list(fields: &mut Map<String, serde_json::Value>, name: &str, more: Vec<serde_json::Value>) {
    let mut list = take_list(fields, name);
    list.extend(more);
    fields.insert(name.to_owned(), list.into());
}
