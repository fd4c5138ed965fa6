//! Reads the responses of the handshake: what `server/discover` says about the era of a server, and results whose members
//! have other types than the specification defines, such as `"capabilities": []`.

use http::StatusCode;
use rmcp::model::ErrorCode;
use serde_json::{Map, Value, json};

use super::handshake_result::MODERN_VERSION;
use super::{ConnectionError, FailureSource};

/// The outcome of the probe (`server/discover`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ProbeOutcome {
    /// The server is modern, or rejects the request as a modern server does.
    Modern,
    /// Anything else identifies a legacy server (2026-07-28, Versioning, Backward Compatibility).
    Legacy,
}

/// A result of the handshake with members of the right types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HandshakeResponse {
    /// The result. Contains only the members that evenkeel uses.
    pub(super) result: Value,
    /// True if a member had another type than the specification defines.
    pub(super) was_invalid: bool,
}

/// Determines the era from the result of the probe.
pub(super) fn probe_result_outcome(result: &[u8]) -> ProbeOutcome {
    let result: Value = serde_json::from_slice(result).unwrap_or_default();
    supported_outcome(result.get("supportedVersions"))
}

/// Determines the era from a JSON-RPC error in response to the probe.
pub(super) fn probe_error_outcome(error: &[u8]) -> ProbeOutcome {
    let error: Value = serde_json::from_slice(error).unwrap_or_default();
    let code = error.get("code").and_then(Value::as_i64).and_then(|code| i32::try_from(code).ok());
    match code.map(ErrorCode) {
        Some(ErrorCode::UNSUPPORTED_PROTOCOL_VERSION) => supported_outcome(error.pointer("/data/supported")),
        Some(ErrorCode::HEADER_MISMATCH | ErrorCode::MISSING_REQUIRED_CLIENT_CAPABILITY) => {
            ProbeOutcome::Modern
        }
        _ => ProbeOutcome::Legacy,
    }
}

/// Determines the era from the failure of the probe; `None` if the failure does not depend on the request, so that
/// `initialize` would fail as well.
pub(super) fn probe_failure_outcome(error: &ConnectionError) -> Option<ProbeOutcome> {
    if error.retry_after.is_some() {
        return None;
    }
    let is_legacy = match error.failure_source {
        FailureSource::Response => true,
        // The server ended the connection after it had received the request.
        FailureSource::Connection => error.dispatched,
        FailureSource::Status(status) => {
            let rejects_every_request = matches!(
                status,
                StatusCode::UNAUTHORIZED
                    | StatusCode::PROXY_AUTHENTICATION_REQUIRED
                    | StatusCode::REQUEST_TIMEOUT
                    | StatusCode::TOO_EARLY
                    | StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::SERVICE_UNAVAILABLE
            );
            !rejects_every_request && (status.is_client_error() || status.is_server_error())
        }
        FailureSource::Exit(_)
        | FailureSource::Session
        | FailureSource::RetryAfter
        | FailureSource::LocalLimit => false,
    };
    is_legacy.then_some(ProbeOutcome::Legacy)
}

/// A server that supports only legacy revisions is legacy even if it implements the probe.
fn supported_outcome(versions: Option<&Value>) -> ProbeOutcome {
    let versions = versions.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let mut versions = versions.iter().filter_map(Value::as_str).peekable();
    let is_legacy = versions.peek().is_none() || versions.all(|version| version < MODERN_VERSION);
    if is_legacy { ProbeOutcome::Legacy } else { ProbeOutcome::Modern }
}

/// Reads the result of `initialize`; `None` if it is not an object with a protocol version.
pub(super) fn initialize_result(raw: &[u8]) -> Option<HandshakeResponse> {
    let mut reader = MemberReader::new(raw)?;
    let version = reader.text("protocolVersion")?;
    let result = json!({
        "protocolVersion": version,
        "capabilities": reader.capabilities(),
        "serverInfo": reader.server_info(None),
        "instructions": reader.text("instructions"),
    });
    Some(reader.finish(result))
}

/// Reads the result of `server/discover`; `None` if it is not an object with versions.
pub(super) fn discover_result(raw: &[u8]) -> Option<HandshakeResponse> {
    let mut reader = MemberReader::new(raw)?;
    let versions = reader.members.get("supportedVersions")?.as_array()?;
    let versions: Vec<_> = versions.iter().filter(|version| version.is_string()).cloned().collect();
    let capabilities = reader.capabilities();
    let meta = reader.members.get("_meta").cloned();
    let server_info = reader.server_info(meta.as_ref().and_then(|meta| meta.get(SERVER_INFO_KEY)));
    let result = json!({
        "resultType": "complete",
        "supportedVersions": versions,
        "capabilities": capabilities,
        "instructions": reader.text("instructions"),
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": { SERVER_INFO_KEY: server_info },
    });
    Some(reader.finish(result))
}

/// The server's name, version and instructions in a result of `server/discover`.
#[derive(Debug)]
pub(super) struct DescribedServer {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) instructions: Option<String>,
}

/// Reads how a server describes itself in a result of `server/discover`; `None` if it does not.
pub(super) fn described_server(raw: &[u8]) -> Option<DescribedServer> {
    let HandshakeResponse { result, .. } = discover_result(raw)?;
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let info = result.get("_meta")?.get(SERVER_INFO_KEY)?;
    Some(DescribedServer {
        name: info.get("name").and_then(text)?,
        version: info.get("version").and_then(text)?,
        instructions: result.get("instructions").and_then(text),
    })
}

const SERVER_INFO_KEY: &str = "io.modelcontextprotocol/serverInfo";

/// Reads members and notes whether one has another type than expected. A member that is null counts as absent.
struct MemberReader {
    members: Map<String, Value>,
    was_invalid: bool,
}

impl MemberReader {
    fn new(raw: &[u8]) -> Option<Self> {
        let Ok(Value::Object(members)) = serde_json::from_slice(raw) else { return None };
        Some(Self { members, was_invalid: false })
    }

    fn finish(self, mut result: Value) -> HandshakeResponse {
        if let Value::Object(members) = &mut result {
            members.retain(|_, value| !value.is_null());
        }
        HandshakeResponse { result, was_invalid: self.was_invalid }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.members.get(name) {
            None => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => {
                self.was_invalid = true;
                None
            }
        }
    }

    /// Reads the capabilities. A capability is an object; any other value that is not null or false declares it too, such
    /// as the `[]` by which PHP writes an empty object, or `true`.
    fn capabilities(&mut self) -> Value {
        let mut capabilities = Map::new();
        let declared = self.members.get("capabilities").and_then(Value::as_object).cloned();
        self.was_invalid |= declared.is_none();
        let declared = declared.unwrap_or_default();
        for name in ["tools", "prompts", "resources", "completions", "logging"] {
            let capability = match declared.get(name) {
                None => continue,
                Some(Value::Object(capability)) => capability.clone(),
                Some(Value::Null | Value::Bool(false)) => {
                    self.was_invalid = true;
                    continue;
                }
                Some(_) => {
                    self.was_invalid = true;
                    Map::new()
                }
            };
            let mut members = Map::new();
            for flag in ["listChanged", "subscribe"] {
                match capability.get(flag) {
                    None => {}
                    Some(Value::Bool(value)) => drop(members.insert(flag.to_owned(), json!(value))),
                    Some(_) => self.was_invalid = true,
                }
            }
            capabilities.insert(name.to_owned(), members.into());
        }
        capabilities.into()
    }

    /// Reads the server's name and version, from a member of this name or from `other`. Both are texts for people, so
    /// they may be absent.
    fn server_info(&mut self, other: Option<&Value>) -> Value {
        let info = other.or_else(|| self.members.get("serverInfo"));
        let text = |name| info.and_then(|info| info.get(name)).and_then(Value::as_str).map(str::to_owned);
        let (name, version) = (text("name"), text("version"));
        // A modern server need not describe itself.
        self.was_invalid |= match info {
            None => self.members.contains_key("protocolVersion"),
            Some(_) => name.is_none() || version.is_none(),
        };
        json!({ "name": name.unwrap_or_default(), "version": version.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Reason;

    #[test]
    fn era_follows_from_the_response_to_the_probe() {
        use ProbeOutcome::{Legacy, Modern};
        for (result, expected) in [
            (r#"{"supportedVersions":["2026-07-28"],"capabilities":{}}"#, Modern),
            (r#"{"supportedVersions":["2025-11-25","2026-07-28"]}"#, Modern),
            // A later revision: not legacy, though not supported either.
            (r#"{"supportedVersions":["2099-01-01"]}"#, Modern),
            (r#"{"supportedVersions":["2025-06-18","2025-11-25"]}"#, Legacy),
            (r#"{"supportedVersions":[]}"#, Legacy),
            (r#"{"supportedVersions":null}"#, Legacy),
            (r#"{"supportedVersions":"2026-07-28"}"#, Legacy),
            ("{}", Legacy),
            (r#"{"protocolVersion":"2025-06-18","capabilities":{}}"#, Legacy),
            (r#"{"tools":[]}"#, Legacy),
            (r#"{"content":[],"isError":true}"#, Legacy),
            ("[]", Legacy),
            ("null", Legacy),
            (r#""ok""#, Legacy),
        ] {
            assert_eq!(probe_result_outcome(result.as_bytes()), expected, "{result}");
        }
        for (error, expected) in [
            (r#"{"code":-32601,"message":"Method not found"}"#, Legacy),
            (r#"{"code":-32602,"message":"Invalid request parameters"}"#, Legacy),
            (r#"{"code":-32000,"message":"Server not initialized"}"#, Legacy),
            (r#"{"code":-32022,"message":"","data":{"supported":["2026-07-28"]}}"#, Modern),
            (r#"{"code":-32022,"message":"","data":{"supported":["2025-11-25"]}}"#, Legacy),
            (r#"{"code":-32022,"message":""}"#, Legacy),
            (r#"{"code":-32020,"message":""}"#, Modern),
            (r#"{"code":-32021,"message":""}"#, Modern),
            (r#"{"code":"E","message":1}"#, Legacy),
            ("{}", Legacy),
        ] {
            assert_eq!(probe_error_outcome(error.as_bytes()), expected, "{error}");
        }
    }

    #[test]
    fn failed_probe_identifies_a_legacy_server_unless_every_request_would_fail() {
        let error = |failure_source, dispatched| ConnectionError {
            dispatched,
            failure_source,
            ..ConnectionError::new(Reason::ConnectFailed, "")
        };
        let status = |status| FailureSource::Status(StatusCode::from_u16(status).unwrap());
        for (source, dispatched, is_legacy) in [
            (FailureSource::Response, true, true),
            (FailureSource::Connection, true, true),
            (FailureSource::Connection, false, false),
            (FailureSource::Exit(std::time::Duration::ZERO), true, false),
            (FailureSource::RetryAfter, false, false),
            (status(400), false, true),
            (status(403), false, true),
            (status(404), false, true),
            (status(405), false, true),
            (status(500), true, true),
            (status(501), true, true),
            (status(502), true, true),
            (status(503), false, false),
            (status(401), false, false),
            (status(407), false, false),
            (status(429), false, false),
            (status(302), false, false),
        ] {
            let outcome = probe_failure_outcome(&error(source, dispatched));
            assert_eq!(outcome, is_legacy.then_some(ProbeOutcome::Legacy), "{source:?} {dispatched}");
        }
    }

    #[test]
    fn valid_results_keep_what_evenkeel_uses() {
        let response = initialize_result(
            br#"{"protocolVersion":"2025-06-18","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":false},"x":{}},"serverInfo":{"name":"a","version":"1","icons":[{}]},"instructions":"Do."}"#,
        )
        .unwrap();
        let expected = json!({
            "protocolVersion": "2025-06-18",
            "capabilities": { "tools": { "listChanged": true }, "resources": { "subscribe": false } },
            "serverInfo": { "name": "a", "version": "1" },
            "instructions": "Do.",
        });
        assert_eq!(response, HandshakeResponse { result: expected, was_invalid: false });
        let response = discover_result(
            br#"{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"a","version":"1"}}}"#,
        )
        .unwrap();
        assert!(!response.was_invalid);
        assert_eq!(response.result["_meta"][SERVER_INFO_KEY], json!({ "name": "a", "version": "1" }));
        assert_eq!(response.result["capabilities"], json!({ "tools": {} }));
    }

    #[test]
    fn members_of_the_wrong_type_are_mended_and_noted() {
        let with = |member: &str, value: &str| {
            let mut result = json!({
                "protocolVersion": "2025-06-18", "capabilities": {}, "serverInfo": { "name": "a", "version": "1" }
            });
            result[member] = serde_json::from_str(value).unwrap();
            initialize_result(result.to_string().as_bytes()).unwrap()
        };
        for (member, value, pointer, expected) in [
            ("capabilities", "null", "/capabilities", json!({})),
            ("capabilities", "[]", "/capabilities", json!({})),
            ("capabilities", r#"{"tools":[]}"#, "/capabilities", json!({ "tools": {} })),
            ("capabilities", r#"{"tools":true}"#, "/capabilities", json!({ "tools": {} })),
            ("capabilities", r#"{"tools":false}"#, "/capabilities", json!({})),
            ("capabilities", r#"{"prompts":null}"#, "/capabilities", json!({})),
            ("capabilities", r#"{"tools":{"listChanged":null}}"#, "/capabilities", json!({ "tools": {} })),
            ("capabilities", r#"{"tools":{"listChanged":"yes"}}"#, "/capabilities", json!({ "tools": {} })),
            ("serverInfo", "null", "/serverInfo", json!({ "name": "", "version": "" })),
            ("serverInfo", r#"{"name":"a"}"#, "/serverInfo", json!({ "name": "a", "version": "" })),
            (
                "serverInfo",
                r#"{"name":"a","version":2}"#,
                "/serverInfo",
                json!({ "name": "a", "version": "" }),
            ),
            ("serverInfo", r#""a""#, "/serverInfo", json!({ "name": "", "version": "" })),
        ] {
            let response = with(member, value);
            assert!(response.was_invalid, "{member}: {value}");
            assert_eq!(response.result.pointer(pointer), Some(&expected), "{member}: {value}");
        }
        let response = with("instructions", "null");
        assert!(response.was_invalid && response.result.get("instructions").is_none());
        for raw in ["{}", "null", "[]", r#"{"protocolVersion":1,"capabilities":{}}"#] {
            assert_eq!(initialize_result(raw.as_bytes()), None, "{raw}");
        }
    }
}
