//! The headers of HTTP requests, and how they must agree with the body in the modern era.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use serde_json::Value;

use super::message::{IncomingRequest, member};

/// A header as text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Says which header is missing or does not match. `schema` is the called tool's `inputSchema`.
pub(super) fn check_headers(
    headers: &HeaderMap,
    request: &IncomingRequest<'_>,
    version: &str,
    schema: Option<&Value>,
) -> Result<(), String> {
    check_header(headers, "MCP-Protocol-Version", Some(version))?;
    check_header(headers, "Mcp-Method", Some(request.method))?;
    let named = match request.method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        _ => None,
    };
    if let Some(named) = named {
        let name = member(request.params, named)
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
            .unwrap_or_default();
        check_header(headers, "Mcp-Name", Some(&name))?;
    }
    if let Some(schema) = schema {
        let arguments = member(request.params, "arguments")
            .and_then(|raw| serde_json::from_str(raw.get()).ok())
            .unwrap_or(Value::Null);
        check_param_headers(headers, schema, &arguments)?;
    }
    Ok(())
}

/// The arguments that the tool's schema wants mirrored as `Mcp-Param-…`.
fn check_param_headers(headers: &HeaderMap, schema: &Value, arguments: &Value) -> Result<(), String> {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let argument = &arguments[name];
        if let Some(header) = property["x-mcp-header"].as_str() {
            let want = match argument {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            check_header(headers, &format!("Mcp-Param-{header}"), want.as_deref())?;
        }
        check_param_headers(headers, property, argument)?;
    }
    Ok(())
}

fn check_header(headers: &HeaderMap, name: &str, want: Option<&str>) -> Result<(), String> {
    let mut values = headers.get_all(name).iter();
    let found = match values.next().map(|value| value.to_str()) {
        None => None,
        Some(Ok(text)) => Some(decode_value(text).ok_or_else(|| format!("{name} is not decodable"))?),
        Some(Err(_)) => return Err(format!("{name} is not ASCII")),
    };
    match (found.as_deref(), want) {
        _ if values.next().is_some() => Err(format!("{name} is given twice")),
        (found, want) if found == want => Ok(()),
        (None, _) => Err(format!("{name} is missing")),
        (Some(found), _) => Err(format!("{name} is {found:?} and the body says {want:?}")),
    }
}

fn decode_value(text: &str) -> Option<String> {
    match text.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(text.to_owned()),
        Some(encoded) => String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok(),
    }
}
