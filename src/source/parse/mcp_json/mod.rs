//! Parses `.mcp.json` and `mcp.json`, the files in which agents declare their servers: each entry is an `McpServer`.
//! Pure.
//!
//! Such files are written for other programs. So an entry that cannot be used affects nothing but its own object,
//! settings of agents (approvals, descriptions) are ignored, and an unknown key is only a warning. `${VAR}` is kept as
//! written until the endpoint is made.

mod entry;
mod json_text;
mod time_limits;
mod values;

use jsonc_parser::ast::{ObjectProp, Value};
use jsonc_parser::common::{Range, Ranged};
use jsonc_parser::{CollectOptions, ParseOptions, parse_to_ast};

use self::entry::parse_entry;
use self::json_text::JsonText;
use self::values::{is_absent, is_comment};
use super::excerpt::did_you_mean;
use super::file::FileParser;
use super::names::slug;
use super::object::ParsedObject;
use crate::resource::{McpServerSpec, ObjectKey};

/// The keys of the map of servers: that of most agents, and that of VS Code.
const SERVER_MAP_KEYS: [&str; 2] = ["mcpServers", "servers"];

/// The prompts of VS Code and the schema that editors add.
const IGNORED_EDITOR_KEYS: [&str; 2] = ["inputs", "$schema"];

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
    let Some(root) = root.filter(|root| !is_absent(root)) else { return };
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
        if SERVER_MAP_KEYS.contains(&name) {
            parse_server_map(property, &json, file);
        } else if !IGNORED_EDITOR_KEYS.contains(&name) && !is_comment(name) {
            let suggestion = did_you_mean(name, SERVER_MAP_KEYS);
            file.warn(json.error_at(property.range, format!("the key {name:?} has no effect{suggestion}")));
        }
    }
}

fn parse_server_map(property: &ObjectProp<'_>, json: &JsonText<'_>, file: &mut FileParser<'_>) {
    let servers = match &property.value {
        Value::Object(servers) => servers,
        absent if is_absent(absent) => return,
        other => {
            let name = property.name.as_str();
            let message = format!("expected an object in {name} with one key for each server");
            return file.report_unidentified(json.error_at(other.range(), message));
        }
    };
    for entry in &servers.properties {
        let name = entry.name.as_str();
        if name.trim().is_empty() {
            let message = "this entry has no name, so it declares nothing; give it one".to_owned();
            file.warn(json.error_at(entry.range, message));
        } else if !is_absent(&entry.value) && !is_comment(name) {
            let server = parse_server(entry, json, file);
            file.parsed.servers.push(server);
        }
    }
}

fn parse_server(
    entry: &ObjectProp<'_>,
    json: &JsonText<'_>,
    file: &mut FileParser<'_>,
) -> ParsedObject<McpServerSpec> {
    let key = ObjectKey::new(file.target.namespace(), slug(entry.name.as_str(), "server"));
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
        spec: parse_entry(entry, &key, json, file),
        key,
    }
}
