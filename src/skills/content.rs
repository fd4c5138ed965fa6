//! The MCP representation of skill files and of responses about them. Pure.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::ErrorCode;
use serde_json::{Value, json};

use crate::resource::bundle::SkillFile;
use crate::wire::RpcResponse;

/// Returns the JSON-RPC response for a result, or an invalid-params error with this message.
pub(super) fn response(result: Result<Value, String>) -> RpcResponse {
    result.map_or_else(
        |message| error(ErrorCode::INVALID_PARAMS, &message),
        |result| RpcResponse::Result(result.to_string().into()),
    )
}

/// Returns a JSON-RPC error.
pub(super) fn error(code: ErrorCode, message: &str) -> RpcResponse {
    RpcResponse::Error(json!({ "code": code.0, "message": message }).to_string().into())
}

/// Returns the URI of a skill file. It contains the namespace, so that no two skills share a URI.
pub(super) fn skill_uri(namespace: &str, name: &str, path: &str) -> String {
    let mut uri = format!("skill://{namespace}/{name}/");
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(uri, "%{byte:02X}");
        }
    }
    uri
}

/// Returns a file as the contents of an MCP resource.
pub(super) fn resource_contents(uri: &str, path: &str, file: &SkillFile) -> Value {
    match std::str::from_utf8(&file.bytes) {
        Ok(text) => json!({ "uri": uri, "mimeType": media_type(path, file), "text": text }),
        Err(_) => {
            json!({ "uri": uri, "mimeType": media_type(path, file), "blob": STANDARD.encode(&file.bytes) })
        }
    }
}

/// Returns the media type of a file.
pub(super) fn media_type(path: &str, file: &SkillFile) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("md") => "text/markdown",
        Some("json") => "application/json",
        Some("png") => "image/png",
        Some("svg") => "image/svg+xml",
        _ if std::str::from_utf8(&file.bytes).is_ok() => "text/plain",
        _ => "application/octet-stream",
    }
}
