//! The headers of HTTP requests, and the checks that they match the body in the modern era.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hyper::HeaderMap;
use serde_json::Value;

use super::message::{IncomingRequest, member};

/// Returns a header as text.
pub(super) fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Checks that the headers match the request. `schema` is the `inputSchema` of the called tool. The error names the
/// header that is missing or does not match.
pub(super) fn check_headers(
    headers: &HeaderMap,
    request: &IncomingRequest<'_>,
    version: &str,
    schema: Option<&Value>,
) -> Result<(), String> {
    check_header(headers, "MCP-Protocol-Version", Some(version))?;
    check_header(headers, "Mcp-Method", Some(request.method))?;
    let key = match request.method {
        "tools/call" | "prompts/get" => Some("name"),
        "resources/read" => Some("uri"),
        _ => None,
    };
    if let Some(key) = key {
        let name = member(request.params, key)
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

/// Checks the `Mcp-Param-…` headers, which repeat the arguments that the schema marks with `x-mcp-header`.
fn check_param_headers(headers: &HeaderMap, schema: &Value, arguments: &Value) -> Result<(), String> {
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let argument = &arguments[name];
        if let Some(header) = property["x-mcp-header"].as_str() {
            let expected = match argument {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            check_header(headers, &format!("Mcp-Param-{header}"), expected.as_deref())?;
        }
        check_param_headers(headers, property, argument)?;
    }
    Ok(())
}

fn check_header(headers: &HeaderMap, name: &str, expected: Option<&str>) -> Result<(), String> {
    let mut values = headers.get_all(name).iter();
    let found = match values.next().map(|value| value.to_str()) {
        None => None,
        Some(Ok(text)) => Some(decode_value(text).ok_or_else(|| format!("{name} is not decodable"))?),
        Some(Err(_)) => return Err(format!("{name} is not ASCII")),
    };
    match (found.as_deref(), expected) {
        _ if values.next().is_some() => Err(format!("{name} is given twice")),
        (found, expected) if found == expected => Ok(()),
        (None, _) => Err(format!("{name} is missing")),
        (Some(found), _) => Err(format!("{name} is {found:?}, but the body has {expected:?}")),
    }
}

fn decode_value(text: &str) -> Option<String> {
    match text.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?=")) {
        None => Some(text.to_owned()),
        Some(encoded) => String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok(),
    }
}
