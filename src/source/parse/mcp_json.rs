//! `.mcp.json` and `mcp.json`, the files that agents have their servers in: each entry is an `McpServer`. Pure.
//!
//! What agents write beside the server itself (approvals, descriptions) is let pass; a key that is not known is
//! a warning, since such files are made for others. `${VAR}` stays as it is written until the endpoint is made.

use jsonc_parser::ast::{Object as Fields, ObjectProp, Value};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};
use serde_json::{Map, json};

use super::excerpt::{ParseError, did_you_mean, excerpt};
use super::expand::has_variables;
use super::file::FileParser;
use super::names::{prefix, slug};
use super::object::{ObjectSpec, ParsedObject, TargetMode};
use super::positions::Position;
use crate::resource::{
    CallTimeout, McpServerSpec, ObjectKey, Problem, Reason, Violation, is_reserved_header,
};

/// The keys of the list of servers: of most agents, and of VS Code.
const SERVER_MAP_KEYS: [&str; 2] = ["mcpServers", "servers"];

/// What VS Code asks people for, and what editors write.
const IGNORED_EDITOR_KEYS: [&str; 2] = ["inputs", "$schema"];

/// Keys that say something to agents and nothing to us.
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

/// Keys that have a meaning here, for those who mistype one.
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

/// Reads every entry of a file.
pub fn parse(text: &str, file: &mut FileParser<'_>) {
    let source = JsonText::new(text);
    // As editors take such files: with comments and trailing commas, and else strictly.
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
            return file
                .report_unidentified(source.error_at(error.range(), format!("no JSON: {}", error.kind())));
        }
    };
    // An empty file declares nothing.
    let Some(root) = root else { return };
    let Value::Object(root) = root else {
        return file.report_unidentified(
            source.error_at(root.range(), "expected an object with mcpServers in it".to_owned()),
        );
    };
    let is_known = |property: &&ObjectProp<'_>| {
        let name = property.name.as_str();
        SERVER_MAP_KEYS.contains(&name) || IGNORED_EDITOR_KEYS.contains(&name)
    };
    if !root.properties.is_empty() && !root.properties.iter().any(|property| is_known(&property)) {
        let message = "nothing is declared here: there is no mcpServers and no servers";
        file.report_unrecognized(Some(source.error_at(root.range(), message.to_owned())));
    }
    for property in &root.properties {
        let name = property.name.as_str();
        match &property.value {
            Value::Object(list) if SERVER_MAP_KEYS.contains(&name) => {
                for entry in &list.properties {
                    let server = parse_server(entry, &source, file);
                    file.parsed.servers.push(server);
                }
            }
            _ if SERVER_MAP_KEYS.contains(&name) => {
                let message = format!("expected an object in {name}, with a key for each server");
                file.report_unidentified(source.error_at(property.value.range(), message));
            }
            _ if IGNORED_EDITOR_KEYS.contains(&name) => {}
            _ => {
                let meant = did_you_mean(name, SERVER_MAP_KEYS);
                file.warn(source.error_at(property.range, format!("the key {name:?} has no effect{meant}")));
            }
        }
    }
}

fn parse_server(
    entry: &ObjectProp<'_>,
    source: &JsonText<'_>,
    file: &mut FileParser<'_>,
) -> ParsedObject<McpServerSpec> {
    let name = entry.name.as_str();
    let key = ObjectKey::new(file.target.namespace(), slug(name));
    let place = source.position(entry.range);
    let written = |range: Range| source.text.get(range.start..range.end).unwrap_or_default();
    // Alone, so that it can be remembered without its neighbours.
    let text =
        format!("{{\"mcpServers\":{{{}:{}}}}}", written(entry.name.range()), written(entry.value.range()));
    ParsedObject {
        line: place.line,
        labels: std::collections::BTreeMap::new(),
        annotations: std::collections::BTreeMap::new(),
        document: text.into(),
        spec: parse_spec(entry, &key, source, file),
        key,
    }
}

fn parse_spec(
    entry: &ObjectProp<'_>,
    key: &ObjectKey,
    source: &JsonText<'_>,
    file: &mut FileParser<'_>,
) -> Result<McpServerSpec, Problem> {
    let Value::Object(fields) = &entry.value else {
        let mistake = source.error_at(entry.value.range(), "expected an object".to_owned());
        return Err(file.reject::<McpServerSpec>(key, Reason::InvalidSpec, vec![mistake]));
    };
    let mut draft = ServerDraft::default();
    for property in &fields.properties {
        draft.add_property(property, source);
    }
    for warning in std::mem::take(&mut draft.warnings) {
        file.warn(ParseError {
            message: format!("{} {key}: {}", McpServerSpec::KIND, warning.message),
            ..warning
        });
    }
    let whole = |message: String| source.error_at(entry.name.range(), message);
    let transport = draft.build_spec();
    if draft.errors.is_empty() {
        match transport {
            Ok(spec) => {
                let spec = with_entry_settings(spec, entry.name.as_str(), draft.suspend, draft.timeout);
                let broken = spec_violations(&spec, file.target, fields, source);
                if broken.is_empty() {
                    return Ok(spec);
                }
                draft.errors = broken;
            }
            Err(Problem { reason, message }) => {
                return Err(file.reject::<McpServerSpec>(key, reason, vec![whole(message)]));
            }
        }
    }
    Err(file.reject::<McpServerSpec>(key, Reason::InvalidSpec, draft.errors))
}

/// The rules that it breaks, but for those that only the values of variables can.
fn spec_violations(
    spec: &McpServerSpec,
    destination: &TargetMode,
    fields: &Fields<'_>,
    source: &JsonText<'_>,
) -> Vec<ParseError> {
    let url = spec.http.as_ref().is_some_and(|http| has_variables(&http.url));
    let broken = spec.check(destination);
    let broken = broken.iter().filter(|violation| !(url && violation.path == "spec.http.url"));
    let told = |Violation { path, message }: &Violation| {
        let path = ["spec.stdio.", "spec.http.", "spec."].iter().find_map(|outer| path.strip_prefix(outer));
        let path = path.unwrap_or_default();
        let field = path.split(['.', '[']).next().unwrap_or_default();
        let property = fields.properties.iter().find(|property| property.name.as_str() == field);
        let range = property.map_or(fields.range, |property| property.range);
        source.error_at(range, format!("{path}: {message}"))
    };
    broken.map(told).collect()
}

fn with_entry_settings(
    mut spec: McpServerSpec,
    name: &str,
    suspend: bool,
    timeout: Option<CallTimeout>,
) -> McpServerSpec {
    spec.suspend = suspend;
    spec.expose.prefix = prefix(name);
    if let Some(call) = timeout {
        spec.timeouts.call = call;
    }
    spec
}

/// An entry as far as it was read.
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
    fn add_property(&mut self, property: &ObjectProp<'_>, source: &JsonText<'_>) {
        let name = property.name.as_str();
        if self.seen_keys.iter().any(|seen| seen == name) {
            return self
                .errors
                .push(source.error_at(property.range, format!("the key {name:?} is there twice")));
        }
        self.seen_keys.push(name.to_owned());
        if let Err((range, expected)) = self.set_field(name, &property.value) {
            self.errors.push(source.error_at(range, format!("{name}: expected {expected}")));
            return;
        }
        if name == "headers" {
            self.remove_protocol_headers(&property.value, source);
        }
        if name == "timeout" && self.timeout.is_none() {
            let message = "timeout: not from 1000 (1s) to 86400000 (24h), in milliseconds; it has no effect";
            self.warnings.push(source.error_at(property.range, message.to_owned()));
        }
        if !SERVER_KEYS.contains(&name) && !IGNORED_AGENT_KEYS.contains(&name) {
            let message = format!(
                "the key {name:?} has no effect here{}",
                did_you_mean(name, SERVER_KEYS.iter().copied())
            );
            self.warnings.push(source.error_at(property.range, message));
        }
    }

    /// Agents' own files often set what the protocol sets anyway.
    fn remove_protocol_headers(&mut self, value: &Value<'_>, source: &JsonText<'_>) {
        for property in value.as_object().into_iter().flat_map(|headers| &headers.properties) {
            let name = property.name.as_str();
            if is_reserved_header(name) {
                let message = format!("headers: evenkeel sets {name} itself; it has no effect here");
                self.warnings.push(source.error_at(property.range, message));
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
                let list = value.as_array().ok_or((value.range(), "a list of texts"))?;
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
                let message = "type sse, the transport before streamable HTTP, is not supported; if the server \
                               has a streamable HTTP endpoint, say type http and its url";
                return Err(Problem::new(Reason::UnsupportedTransport, message));
            }
            Some(other) => {
                let message = format!("type {other:?} is not known; it is stdio or http");
                return Err(Problem::new(Reason::UnsupportedTransport, message));
            }
            None if command && url => {
                return Err(invalid(
                    "it has both a command and a url; say which with type stdio or type http",
                ));
            }
            None if command || url => command,
            None => return Err(invalid("it has neither a command nor a url")),
        };
        let (name, fields) = if stdio { ("stdio", &mut self.stdio) } else { ("http", &mut self.http) };
        serde_json::from_value(json!({ name: std::mem::take(fields) }))
            .map_err(|error| invalid(&error.to_string()))
    }
}

/// Where something else was expected, and what.
type TypeMismatch = (Range, &'static str);

fn string_value(value: &Value<'_>) -> Result<String, TypeMismatch> {
    let text = value.as_string_lit().ok_or((value.range(), "a text in quotes"))?;
    Ok(text.value.clone().into_owned())
}

fn bool_value(value: &Value<'_>) -> Result<bool, TypeMismatch> {
    Ok(value.as_boolean_lit().ok_or((value.range(), "true or false"))?.value)
}

/// Variables or headers. VS Code has numbers among them, and null for what is not to be set.
fn name_value_pairs(value: &Value<'_>) -> Result<serde_json::Value, TypeMismatch> {
    let fields = value.as_object().ok_or((value.range(), "an object of texts"))?;
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

/// A text and where its lines begin.
struct JsonText<'a> {
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> JsonText<'a> {
    fn new(text: &'a str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(index, _)| index + 1);
        Self { text, line_starts: std::iter::once(0).chain(breaks).collect() }
    }

    fn position(&self, range: Range) -> Position {
        let line = self.line_starts.partition_point(|start| *start <= range.start).saturating_sub(1);
        let start = self.line_starts.get(line).copied().unwrap_or_default();
        let column = self.text.get(start..range.start).map_or(0, |before| before.chars().count());
        let small = |number: usize| u32::try_from(number + 1).unwrap_or(u32::MAX);
        Position { line: small(line), column: Some(small(column)) }
    }

    fn error_at(&self, range: Range, message: String) -> ParseError {
        let place = self.position(range);
        let before = self.line_starts.get(place.line.saturating_sub(2) as usize).copied().unwrap_or_default();
        let around = self.text.get(before..).unwrap_or_default();
        let excerpt = excerpt(around, place.line.saturating_sub(1).max(1), place);
        ParseError { position: place, message, excerpt: Some(excerpt) }
    }
}
