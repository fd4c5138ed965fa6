//! How files of skills, and answers about them, are written in MCP. Pure.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rmcp::model::ErrorCode;
use serde_json::{Value, json};

use crate::resource::bundle::SkillFile;
use crate::wire::RpcResponse;

/// An answer as it goes over the wire.
pub(super) fn response(answer: Result<Value, String>) -> RpcResponse {
    match answer {
        Ok(result) => RpcResponse::Result(result.to_string().into()),
        Err(message) => {
            let error = json!({ "code": ErrorCode::INVALID_PARAMS.0, "message": message });
            RpcResponse::Error(error.to_string().into())
        }
    }
}

/// The URI of a file. The namespace is in it, so that no two skills have one URI.
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

/// A file as the contents of a resource.
pub(super) fn resource_contents(uri: &str, path: &str, file: &SkillFile) -> Value {
    match std::str::from_utf8(&file.bytes) {
        Ok(text) => json!({ "uri": uri, "mimeType": media_type(path, file), "text": text }),
        Err(_) => {
            json!({ "uri": uri, "mimeType": media_type(path, file), "blob": STANDARD.encode(&file.bytes) })
        }
    }
}

/// The media type of a file.
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
