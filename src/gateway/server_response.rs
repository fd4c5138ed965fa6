//! Builds the response to an agent from that of a server.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use rmcp::model::ErrorCode;

use super::not_found::with_not_found_code;
use super::response::{build_message, result_message_for_era};
use super::result_for_era::with_cache_members;
use super::route_target::RouteTarget;
use super::routed_method::RoutedMethod;
use super::structured_content::with_structured_object;
use crate::wire::{Era, JsonRpcId, RpcResponse};

/// Builds the HTTP status and the whole message from a response, adapted to the agent's era. `server_era` is that of the
/// server; `None` for a response of evenkeel itself.
pub(super) fn server_response(
    id: &JsonRpcId,
    response: &RpcResponse,
    target: &RouteTarget,
    server_era: Option<Era>,
    era: Era,
) -> (StatusCode, Bytes) {
    let method = target.method;
    match response {
        RpcResponse::Result(raw) if method == RoutedMethod::ReadResource && era == Era::Modern => {
            (StatusCode::OK, result_message_for_era(id, &with_cache_members(raw), era))
        }
        RpcResponse::Result(raw) if method == RoutedMethod::CallTool && era == Era::Legacy => {
            (StatusCode::OK, result_message_for_era(id, &with_structured_object(raw), era))
        }
        RpcResponse::Result(raw) => (StatusCode::OK, result_message_for_era(id, raw, era)),
        RpcResponse::Error(raw) => {
            // It was parsed as JSON before, so this never fails.
            let error = std::str::from_utf8(raw).unwrap_or("null");
            let error = if method == RoutedMethod::ReadResource {
                with_not_found_code(error, target.upstream_name().unwrap_or_default(), server_era, era)
            } else {
                Cow::Borrowed(error)
            };
            (http_status_of_error(&error, era), build_message(Some(id), "error", &[error.as_bytes()]))
        }
    }
}

/// Returns the HTTP status of an error. Only the modern era maps some codes to a status other than 200.
fn http_status_of_error(error: &str, era: Era) -> StatusCode {
    #[derive(serde::Deserialize)]
    struct ErrorWithCode {
        code: i32,
    }
    let code = serde_json::from_str(error).map(|ErrorWithCode { code }| ErrorCode(code));
    match (era, code) {
        (Era::Modern, Ok(ErrorCode::METHOD_NOT_FOUND)) => StatusCode::NOT_FOUND,
        (
            Era::Modern,
            Ok(
                ErrorCode::HEADER_MISMATCH
                | ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY
                | ErrorCode::UNSUPPORTED_PROTOCOL_VERSION,
            ),
        ) => StatusCode::BAD_REQUEST,
        _ => StatusCode::OK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modern_errors_map_to_http_status() {
        for (raw, status) in [
            (r#"{"code":-32601,"message":"m"}"#, 404),
            (r#"{"code":-32021,"message":"m"}"#, 400),
            (r#"{"code":-32602,"message":"m"}"#, 200),
            (r#"{"message":"m"}"#, 200),
        ] {
            assert_eq!(http_status_of_error(raw, Era::Modern).as_u16(), status, "{raw}");
            assert_eq!(http_status_of_error(raw, Era::Legacy).as_u16(), 200, "{raw}");
        }
    }
}
