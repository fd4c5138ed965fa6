//! Decides the protocol era of a request, and checks that its headers match its body.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, StatusCode};
use rmcp::model::{ErrorCode, ProtocolVersion};

use super::response::ResponseError;
use crate::text::sanitize;
use crate::wire::{Era, RequestParams};

const VERSION_HEADER: &str = "mcp-protocol-version";
const METHOD_HEADER: &str = "mcp-method";
const NAME_HEADER: &str = "mcp-name";
const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
pub(super) const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
/// The maximum length of a value in an error about a header.
pub(super) const MAX_QUOTED_CHARS: usize = 100;

/// Returns the era of a message.
///
/// Decides for each message: a modern protocol version in `_meta` is modern, for `initialize` too; any other
/// `initialize` is legacy; of the other messages those with a modern version in the header are modern, and all else is
/// legacy (2026-07-28, Versioning and Streamable HTTP).
/// A modern request is rejected if required `_meta` members are missing or if its headers do not match its body.
pub(super) fn request_era(
    headers: &HeaderMap,
    method: Option<&str>,
    is_request: bool,
    params: &RequestParams<'_>,
) -> Result<Era, ResponseError> {
    let meta = params.meta.as_ref();
    let version = meta.and_then(|meta| meta.get_string(VERSION_KEY));
    if method == Some("initialize") && !version.as_deref().is_some_and(is_modern_version) {
        return Ok(Era::Legacy);
    }
    let header = single_header(headers, VERSION_HEADER)?;
    let Some(version) = version else {
        return era_without_meta(header, method, is_request);
    };
    if header != Some(&*version) {
        return Err(header_mismatch(VERSION_HEADER, header, &version));
    }
    if !is_supported(&version) {
        return Err(unsupported_version(&version));
    }
    if !is_modern_version(&version) {
        return Ok(Era::Legacy);
    }
    let capabilities = meta.and_then(|meta| meta.get(CAPABILITIES_KEY));
    if !capabilities.is_some_and(|value| value.get().starts_with('{')) {
        return Err(missing_meta());
    }
    let method = method.unwrap_or_default();
    let found = single_header(headers, METHOD_HEADER)?;
    if found != Some(method) {
        return Err(header_mismatch(METHOD_HEADER, found, method));
    }
    let named = match method {
        "tools/call" | "prompts/get" => params.members.get_string("name"),
        "resources/read" => params.members.get_string("uri"),
        _ => None,
    };
    if let Some(name) = named {
        let found = single_header(headers, NAME_HEADER)?;
        if found.and_then(decode_header_value).as_deref() != Some(&*name) {
            return Err(header_mismatch(NAME_HEADER, found, &name));
        }
    }
    Ok(Era::Modern)
}

/// Returns the protocol version for an `initialize` result: the requested one, or the newest that has `initialize`.
pub(super) fn negotiate_version(requested: &str) -> &'static str {
    ProtocolVersion::KNOWN_VERSIONS
        .iter()
        .find(|version| version.as_str() == requested && version.has_initialize())
        .unwrap_or(&ProtocolVersion::LATEST_WITH_INITIALIZE)
        .as_str()
}

/// Returns all supported protocol versions, newest first.
pub(super) fn supported_versions() -> impl Iterator<Item = &'static str> {
    ProtocolVersion::KNOWN_VERSIONS.iter().rev().map(ProtocolVersion::as_str)
}

fn era_without_meta(
    header: Option<&str>,
    method: Option<&str>,
    is_request: bool,
) -> Result<Era, ResponseError> {
    match header {
        Some(version) if !is_supported(version) => Err(unsupported_version(version)),
        Some(version) if is_modern_version(version) => {
            // The modern era requires no `_meta` in notifications.
            if is_request { Err(missing_meta()) } else { Ok(Era::Modern) }
        }
        None if method == Some("server/discover") => Err(missing_meta()),
        _ => Ok(Era::Legacy),
    }
}

fn is_supported(version: &str) -> bool {
    supported_versions().any(|supported| supported == version)
}

/// Returns the first protocol version of the modern era.
pub(super) fn first_modern_version() -> &'static str {
    ProtocolVersion::NO_INITIALIZE.as_str()
}

fn is_modern_version(version: &str) -> bool {
    version >= first_modern_version()
}

/// Returns the value of a header that may occur at most once.
pub(super) fn single_header<'a>(
    headers: &'a HeaderMap,
    name: &str,
) -> Result<Option<&'a str>, ResponseError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().map(http::HeaderValue::to_str).transpose();
    match (value, values.next()) {
        (Ok(value), None) => Ok(value),
        _ => Err(ResponseError::bad_request(
            ErrorCode::HEADER_MISMATCH,
            format!("{name} must occur once and consist of visible ASCII characters"),
        )),
    }
}

/// Decodes a header value that may be wrapped as `=?base64?…?=`.
pub(super) fn decode_header_value(value: &str) -> Option<Cow<'_, str>> {
    let Some(wrapped) = value.strip_prefix("=?base64?").and_then(|value| value.strip_suffix("?=")) else {
        return Some(Cow::Borrowed(value));
    };
    String::from_utf8(STANDARD.decode(wrapped).ok()?).ok().map(Cow::Owned)
}

fn header_mismatch(header: &str, found: Option<&str>, body: &str) -> ResponseError {
    let quoted = |text: &str| format!("{:?}", sanitize(text, MAX_QUOTED_CHARS));
    let found = found.map_or("missing".to_owned(), quoted);
    let message = format!("Header mismatch: {header} is {found}, the body has {}", quoted(body));
    ResponseError::bad_request(ErrorCode::HEADER_MISMATCH, message)
}

fn missing_meta() -> ResponseError {
    ResponseError::bad_request(
        ErrorCode::INVALID_PARAMS,
        format!(
            "Invalid params: a request of protocol version {} needs {VERSION_KEY} and {CAPABILITIES_KEY} in its _meta",
            ProtocolVersion::NO_INITIALIZE
        ),
    )
}

fn unsupported_version(version: &str) -> ResponseError {
    let supported: Vec<_> = supported_versions().collect();
    ResponseError::bad_request(ErrorCode::UNSUPPORTED_PROTOCOL_VERSION, "Unsupported protocol version")
        .with_data(serde_json::json!({ "supported": supported, "requested": version }))
        .with_status(StatusCode::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    const META: &str = r#""_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{}}"#;

    fn era_of(headers: &[(&str, &str)], method: &str, params: &str) -> Result<Era, (u16, i32)> {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_bytes(value.as_bytes()).unwrap())
            })
            .collect();
        let params = RequestParams::parse(params).unwrap();
        request_era(&headers, Some(method), !method.starts_with("notifications/"), &params)
            .map_err(|failure| (failure.status.as_u16(), failure.code().0))
    }

    #[test]
    fn era_is_decided_by_each_request() {
        let version = ("MCP-Protocol-Version", "2026-07-28");
        let list = ("Mcp-Method", "tools/list");
        let full = format!("{{{META}}}");
        let other = full.replace("2026-07-28", "2099-01-01");
        let older = full.replace("2026-07-28", "2025-11-25");
        let bare = full.replace("clientCapabilities", "x");
        for (headers, method, params, expected) in [
            (&[][..], "tools/list", "{}", Ok(Era::Legacy)),
            (&[("mcp-protocol-version", "2025-11-25")], "tools/list", "{}", Ok(Era::Legacy)),
            (&[version], "initialize", "{}", Ok(Era::Legacy)),
            (&[version, ("Mcp-Method", "initialize")], "initialize", &full, Ok(Era::Modern)),
            (&[], "initialize", &full, Err((400, -32020))),
            (&[], "initialize", &older, Ok(Era::Legacy)),
            (
                &[],
                "initialize",
                r#"{"_meta":{"io.modelcontextprotocol/protocolVersion":7}}"#,
                Ok(Era::Legacy),
            ),
            (&[version, list], "tools/list", &full, Ok(Era::Modern)),
            (&[version], "notifications/cancelled", "{}", Ok(Era::Modern)),
            (&[("mcp-protocol-version", "2025-11-25"), list], "tools/list", &older, Ok(Era::Legacy)),
            (&[("mcp-protocol-version", "1999-01-01")], "tools/list", "{}", Err((400, -32022))),
            (&[("mcp-protocol-version", "2099-01-01"), list], "tools/list", &other, Err((400, -32022))),
            (&[version], "tools/list", "{}", Err((400, -32602))),
            (&[], "server/discover", "{}", Err((400, -32602))),
            (&[version, list], "tools/list", &bare, Err((400, -32602))),
            (&[list], "tools/list", &full, Err((400, -32020))),
            (&[("mcp-protocol-version", "2025-11-25"), list], "tools/list", &full, Err((400, -32020))),
            (&[version], "tools/list", &full, Err((400, -32020))),
            (&[version, ("Mcp-Method", "ping")], "tools/list", &full, Err((400, -32020))),
        ] {
            assert_eq!(era_of(headers, method, params), expected, "{headers:?} {method} {params}");
        }
    }

    #[test]
    fn name_header_must_match_the_body() {
        for (name, header, agrees) in [
            ("a", Some("a"), true),
            ("a", Some("b"), false),
            ("a", None, false),
            ("ü", Some("=?base64?w7w=?="), true),
            ("ü", Some("=?base64?%?="), false),
            ("A\\u0042", Some("AB"), true),
        ] {
            let mut headers = vec![("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "tools/call")];
            headers.extend(header.map(|header| ("Mcp-Name", header)));
            let params = format!(r#"{{"name":"{name}",{META}}}"#);
            let expected = if agrees { Ok(Era::Modern) } else { Err((400, -32020)) };
            assert_eq!(era_of(&headers, "tools/call", &params), expected, "{name} {header:?}");
        }
    }

    #[test]
    fn initialize_negotiates_a_version_with_a_handshake() {
        for (requested, negotiated) in [
            ("2024-11-05", "2024-11-05"),
            ("2025-03-26", "2025-03-26"),
            ("2025-11-25", "2025-11-25"),
            ("2026-07-28", "2025-11-25"),
            ("1.0", "2025-11-25"),
        ] {
            assert_eq!(negotiate_version(requested), negotiated);
        }
    }
}
