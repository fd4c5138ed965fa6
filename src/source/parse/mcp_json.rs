//! Parses `.mcp.json` and `mcp.json`, the files in which agents declare their servers: each entry is an `McpServer`.
//! Pure.
//!
//! Keys that agents add to a server (approvals, descriptions) are ignored. An unknown key is only a warning, because
//! such files are written for other programs. `${VAR}` is kept as written until the endpoint is made.

use jsonc_parser::ast::{Object as Fields, ObjectProp, Value};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Map, json};

use super::excerpt::{ParseError, did_you_mean, excerpt};
use super::expand::has_variables;
use super::file::FileParser;
use super::names::{expose_prefix, slug};
use super::object::{ObjectSpec, ParsedObject, TargetMode};
use super::positions::Position;
use crate::resource::{
    CallTimeout, McpServerSpec, ObjectKey, Problem, Reason, Violation, is_reserved_header,
};

/// The keys of the map of servers: that of most agents, and that of VS Code.
const SERVER_MAP_KEYS: [&str; 2] = ["mcpServers", "servers"];

/// The prompts of VS Code and the schema that editors add.
const IGNORED_EDITOR_KEYS: [&str; 2] = ["inputs", "$schema"];

/// Keys that have a meaning to agents and none to evenkeel.
const IGNORED_AGENT_KEYS: &[&str] = &[
    "alwaysAllow",
    "alwaysLoad",
    "autoApprove",
    "description",
    "gallery",
    "icon",
    "name",
    "trust",
    "version",
];

/// Keys that have a meaning to evenkeel; candidates for the correction of a mistyped key.
const SERVER_KEYS: &[&str] = &[
    "args",
    "command",
    "cwd",
    "disabled",
    "enabled",
    "env",
    "headers",
    "httpUrl",
    "serverUrl",
    "timeout",
    "transport",
    "type",
    "url",
];

/// Parses every entry of a file.
pub fn parse(text: &str, file: &mut FileParser<'_>) {
    let json = JsonText::new(text);
    // As editors accept such files: with comments and trailing commas, and otherwise strict JSON.
    let options = ParseOptions {
        allow_comments: true,
        allow_loose_object_property_names: false,
        allow_trailing_commas: true,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let root = match parse_to_ast(text, &CollectOptions::default(), &options) {
        Ok(parsed) => parsed.value,
        Err(error) => {
            return file.report_unidentified(
                json.error_at(error.range(), format!("invalid JSON: {}", error.kind())),
            );
        }
    };
    // An empty file declares nothing.
    let Some(root) = root else { return };
    let Value::Object(root) = root else {
        return file.report_unidentified(
            json.error_at(root.range(), "expected an object with mcpServers in it".to_owned()),
        );
    };
    let is_known = |property: &&ObjectProp<'_>| {
        let name = property.name.as_str();
        SERVER_MAP_KEYS.contains(&name) || IGNORED_EDITOR_KEYS.contains(&name)
    };
    if !root.properties.is_empty() && !root.properties.iter().any(|property| is_known(&property)) {
        let message = "nothing is declared here: neither mcpServers nor servers is present";
        file.report_unrecognized(Some(json.error_at(root.range(), message.to_owned())));
    }
    for property in &root.properties {
        let name = property.name.as_str();
        match &property.value {
            Value::Object(servers) if SERVER_MAP_KEYS.contains(&name) => {
                for entry in &servers.properties {
                    let server = parse_server(entry, &json, file);
                    file.parsed.servers.push(server);
                }
            }
            _ if SERVER_MAP_KEYS.contains(&name) => {
                let message = format!("expected an object in {name} with one key for each server");
                file.report_unidentified(json.error_at(property.value.range(), message));
            }
            _ if IGNORED_EDITOR_KEYS.contains(&name) => {}
            _ => {
                let suggestion = did_you_mean(name, SERVER_MAP_KEYS);
                file.warn(
                    json.error_at(property.range, format!("the key {name:?} has no effect{suggestion}")),
                );
            }
        }
    }
}

fn parse_server(
    entry: &ObjectProp<'_>,
    json: &JsonText<'_>,
    file: &mut FileParser<'_>,
) -> ParsedObject<McpServerSpec> {
    let name = entry.name.as_str();
    let key = ObjectKey::new(file.target.namespace(), slug(name));
    let position = json.position(entry.range);
    let source_text = |range: Range| json.text.get(range.start..range.end).unwrap_or_default();
    // A document with only this entry, so that it can be saved without the other entries.
    let text = format!(
        "{{\"mcpServers\":{{{}:{}}}}}",
        source_text(entry.name.range()),
        source_text(entry.value.range())
    );
    ParsedObject {
        line: position.line,
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        document: text.into(),
        spec: parse_spec(entry, &key, json, file),
        key,
    }
}

fn parse_spec(
    entry: &ObjectProp<'_>,
    key: &ObjectKey,
    json: &JsonText<'_>,
    file: &mut FileParser<'_>,
) -> Result<McpServerSpec, Problem> {
    let Value::Object(fields) = &entry.value else {
        let error = json.error_at(entry.value.range(), "expected an object".to_owned());
        return Err(file.reject::<McpServerSpec>(key, Reason::InvalidSpec, vec![error]));
    };
    let mut draft = ServerDraft::default();
    for property in &fields.properties {
        draft.add_property(property, json);
    }
    for warning in std::mem::take(&mut draft.warnings) {
        file.warn(ParseError {
            message: format!("{} {key}: {}", McpServerSpec::KIND, warning.message),
            ..warning
        });
    }
    let entry_error = |message: String| json.error_at(entry.name.range(), message);
    let built = draft.build_spec();
    if draft.errors.is_empty() {
        match built {
            Ok(spec) => {
                let spec = with_entry_settings(spec, entry.name.as_str(), draft.suspend, draft.timeout);
                let violations = spec_violations(&spec, file.target, fields, json);
                if violations.is_empty() {
                    return Ok(spec);
                }
                draft.errors = violations;
            }
            Err(Problem { reason, message }) => {
                return Err(file.reject::<McpServerSpec>(key, reason, vec![entry_error(message)]));
            }
        }
    }
    Err(file.reject::<McpServerSpec>(key, Reason::InvalidSpec, draft.errors))
}

/// Returns the rules that the spec violates, except those that only the expanded values can violate.
fn spec_violations(
    spec: &McpServerSpec,
    target: &TargetMode,
    fields: &Fields<'_>,
    json: &JsonText<'_>,
) -> Vec<ParseError> {
    let url_has_variables = spec.http.as_ref().is_some_and(|http| has_variables(&http.url));
    let violations = spec.check(target);
    let violations =
        violations.iter().filter(|violation| !(url_has_variables && violation.path == "spec.http.url"));
    let to_error = |Violation { path, message }: &Violation| {
        let path = ["spec.stdio.", "spec.http.", "spec."].iter().find_map(|outer| path.strip_prefix(outer));
        let path = path.unwrap_or_default();
        let field = path.split(['.', '[']).next().unwrap_or_default();
        let property = fields.properties.iter().find(|property| property.name.as_str() == field);
        let range = property.map_or(fields.range, |property| property.range);
        json.error_at(range, format!("{path}: {message}"))
    };
    violations.map(to_error).collect()
}

fn with_entry_settings(
    mut spec: McpServerSpec,
    name: &str,
    suspend: bool,
    timeout: Option<CallTimeout>,
) -> McpServerSpec {
    spec.suspend = suspend;
    spec.expose.prefix = expose_prefix(name);
    if let Some(call) = timeout {
        spec.timeouts.call = call;
    }
    spec
}

/// The part of an entry that was parsed so far.
#[derive(Default)]
struct ServerDraft {
    transport_type: Option<String>,
    stdio: Map<String, serde_json::Value>,
    http: Map<String, serde_json::Value>,
    suspend: bool,
    timeout: Option<CallTimeout>,
    errors: Vec<ParseError>,
    warnings: Vec<ParseError>,
    seen_keys: Vec<String>,
}

impl ServerDraft {
    fn add_property(&mut self, property: &ObjectProp<'_>, json: &JsonText<'_>) {
        let name = property.name.as_str();
        if self.seen_keys.iter().any(|key| key == name) {
            return self.errors.push(json.error_at(property.range, format!("duplicate key {name:?}")));
        }
        self.seen_keys.push(name.to_owned());
        if let Err((range, expected)) = self.set_field(name, &property.value) {
            self.errors.push(json.error_at(range, format!("{name}: expected {expected}")));
            return;
        }
        if name == "headers" {
            self.remove_protocol_headers(&property.value, json);
        }
        if name == "timeout" && self.timeout.is_none() {
            let message = "timeout: must be from 1000 to 86400000 milliseconds (1s to 24h); it has no effect";
            self.warnings.push(json.error_at(property.range, message.to_owned()));
        }
        if !SERVER_KEYS.contains(&name) && !IGNORED_AGENT_KEYS.contains(&name) {
            let message = format!(
                "the key {name:?} has no effect here{}",
                did_you_mean(name, SERVER_KEYS.iter().copied())
            );
            self.warnings.push(json.error_at(property.range, message));
        }
    }

    /// Removes headers that the protocol sets anyway; files of agents often contain them.
    fn remove_protocol_headers(&mut self, value: &Value<'_>, json: &JsonText<'_>) {
        for property in value.as_object().into_iter().flat_map(|headers| &headers.properties) {
            let name = property.name.as_str();
            if is_reserved_header(name) {
                let message = format!("headers: evenkeel sets {name} itself; this value has no effect");
                self.warnings.push(json.error_at(property.range, message));
            }
        }
        if let Some(serde_json::Value::Array(headers)) = self.http.get_mut("headers") {
            headers.retain(|header| !header["name"].as_str().is_some_and(is_reserved_header));
        }
    }

    fn set_field(&mut self, name: &str, value: &Value<'_>) -> Result<(), TypeMismatch> {
        match name {
            "type" | "transport" => self.transport_type = Some(string_value(value)?),
            "command" | "cwd" => {
                self.stdio.insert(name.to_owned(), string_value(value)?.into());
            }
            "args" => {
                let list = value.as_array().ok_or((value.range(), "a list of strings"))?;
                let args: Vec<_> = list.elements.iter().map(string_value).collect::<Result<_, _>>()?;
                self.stdio.insert("args".to_owned(), args.into());
            }
            "env" => {
                self.stdio.insert("env".to_owned(), name_value_pairs(value)?);
            }
            "headers" => {
                self.http.insert("headers".to_owned(), name_value_pairs(value)?);
            }
            "url" | "httpUrl" | "serverUrl" => {
                self.http.insert("url".to_owned(), string_value(value)?.into());
            }
            "disabled" => self.suspend |= bool_value(value)?,
            "enabled" => self.suspend |= !bool_value(value)?,
            "timeout" => {
                let number = value.as_number_lit().ok_or((value.range(), "a number of milliseconds"))?;
                self.timeout = serde_json::from_value(json!(format!("{}ms", number.value))).ok();
            }
            _ => {}
        }
        Ok(())
    }

    fn build_spec(&mut self) -> Result<McpServerSpec, Problem> {
        let invalid = |message: &str| Problem::new(Reason::InvalidSpec, message);
        let (command, url) = (self.stdio.contains_key("command"), self.http.contains_key("url"));
        let stdio = match self.transport_type.as_deref() {
            Some("stdio" | "local") if command => true,
            Some("stdio" | "local") => return Err(invalid("a server of type stdio needs a command")),
            Some("http" | "streamable-http" | "streamableHttp" | "streamable_http" | "remote") if url => {
                false
            }
            Some("http" | "streamable-http" | "streamableHttp" | "streamable_http" | "remote") => {
                return Err(invalid("a server of type http needs a url"));
            }
            Some("sse") => {
                let message = "type sse (HTTP+SSE, the transport before Streamable HTTP) is not supported; if the \
                               server has a Streamable HTTP endpoint, set type to http and url to that endpoint";
                return Err(Problem::new(Reason::UnsupportedTransport, message));
            }
            Some(other) => {
                let message = format!("unknown type {other:?}; use stdio or http");
                return Err(Problem::new(Reason::UnsupportedTransport, message));
            }
            None if command && url => {
                return Err(invalid("both command and url are set; set type to stdio or http"));
            }
            None if command || url => command,
            None => return Err(invalid("neither command nor url is set")),
        };
        let (name, fields) = if stdio { ("stdio", &mut self.stdio) } else { ("http", &mut self.http) };
        serde_json::from_value(json!({ name: std::mem::take(fields) }))
            .map_err(|error| invalid(&error.to_string()))
    }
}

/// A value of an unexpected type: its range, and the expected type.
type TypeMismatch = (Range, &'static str);

fn string_value(value: &Value<'_>) -> Result<String, TypeMismatch> {
    let text = value.as_string_lit().ok_or((value.range(), "a string"))?;
    Ok(text.value.clone().into_owned())
}

fn bool_value(value: &Value<'_>) -> Result<bool, TypeMismatch> {
    Ok(value.as_boolean_lit().ok_or((value.range(), "true or false"))?.value)
}

/// Parses variables or headers. VS Code allows numbers as values, and null for a value that is not set.
fn name_value_pairs(value: &Value<'_>) -> Result<serde_json::Value, TypeMismatch> {
    let fields = value.as_object().ok_or((value.range(), "an object with string values"))?;
    let mut pairs = Vec::new();
    for property in &fields.properties {
        let value = match &property.value {
            Value::NullKeyword(_) => continue,
            Value::NumberLit(number) => number.value.to_owned(),
            value => string_value(value)?,
        };
        pairs.push(json!({ "name": property.name.as_str(), "value": value }));
    }
    Ok(pairs.into())
}

/// A text with the offsets of its lines.
struct JsonText<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> JsonText<'a> {
    fn new(text: &'a str) -> Self {
        let line_breaks =
            text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
        Self { text, line_starts: std::iter::once(0).chain(line_breaks).collect() }
    }

    fn position(&self, range: Range) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let start = self.line_starts.get(line).copied().unwrap_or_default();
        let column = self.text.get(start..range.start).map_or(0, |before| before.chars().count());
        let one_based = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
        Position { line: one_based(line), column: Some(one_based(column)) }
    }

    fn error_at(&self, range: Range, message: String) -> ParseError {
        let position = self.position(range);
        let context_start =
            self.line_starts.get(position.line.saturating_sub(2) as usize).copied().unwrap_or_default();
        let context = self.text.get(context_start..).unwrap_or_default();
        let excerpt = excerpt(context, position.line.saturating_sub(1).max(1), position);
        ParseError { position, message, excerpt: Some(excerpt) }
    }
}
