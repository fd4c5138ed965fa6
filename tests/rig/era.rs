//! The conforming behavior in each era: handshake, checks and methods.

use std::sync::Arc;

use serde_json::value::RawValue;

use super::message::{IncomingRequest, InterimEvent, InterimSender, ListenStream, Outcome, member};
use super::script::{ResponseFormat, Script, ServerEra};
use super::server::{ClientSession, FakeServer};
use super::{headers, server_features, tools};

/// The revision of the modern era.
const MODERN_REVISION: &str = "2026-07-28";
/// The revisions of the legacy era, newest first.
const LEGACY_REVISIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
pub(super) const META_PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META_CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

impl FakeServer {
    /// Returns the correct response to a request that passed the checks.
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        request: &IncomingRequest<'_>,
        interim: &InterimSender,
    ) -> Outcome {
        let script = self.script();
        match (request.method, request.modern) {
            ("initialize", false) => self.initialize(request, &script),
            ("ping", false) => request.result("{}"),
            ("server/discover", true) => {
                let result = format!(
                    r#"{{"supportedVersions":{},"capabilities":{},"_meta":{{"io.modelcontextprotocol/serverInfo":{}}},"ttlMs":0,"cacheScope":"private"}}"#,
                    supported_revisions(script.era),
                    capabilities(&script),
                    server_info(&script)
                );
                request.result(&result)
            }
            ("tools/list", _) => {
                server_features::list_page(request, &script, "tools", &tools::descriptors(&script))
            }
            ("tools/call", _) => {
                if script.http.answers != ResponseFormat::Json {
                    let _ = interim.send(InterimEvent::Started);
                }
                tools::call(self, request, interim).await
            }
            ("subscriptions/listen", true) => Outcome::Listen(ListenStream {
                id: request.id.into(),
                filter: member(request.params, "notifications")
                    .map_or_else(|| super::script::raw_json("{}"), ToOwned::to_owned),
                guard: None,
            }),
            _ => server_features::handle_request(self, request, &script)
                .unwrap_or_else(|| request.error(404, -32601, "Method not found", None)),
        }
    }

    fn initialize(&self, request: &IncomingRequest<'_>, script: &Script) -> Outcome {
        let requested = member(request.params, "protocolVersion")
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
            .unwrap_or_default();
        let version = match &script.protocol {
            Some(version) => version.clone(),
            None if LEGACY_REVISIONS.contains(&requested.as_str()) => requested,
            None => LEGACY_REVISIONS[0].into(),
        };
        let (capabilities, info) = (capabilities(script), server_info(script));
        let members =
            format!(r#""capabilities":{capabilities},"serverInfo":{info},"instructions":"Ask the rig.""#);
        let text = request.result_message(&format!(r#"{{"protocolVersion":"{version}",{members}}}"#));
        let session = ClientSession { version, initialized: false };
        let mut state = self.state();
        let declared = member(request.params, "capabilities").map_or("{}", RawValue::get).to_owned();
        state.counters.client_capabilities.push(declared);
        if request.headers.is_none() || !script.http.sessions {
            state.sessionless_client = session;
            return Outcome::Response { status: 200, text, session: None };
        }
        state.last_number += 1;
        state.counters.sessions_opened += 1;
        let session_id = format!("{}-{}-{}", script.name, std::process::id(), state.last_number);
        state.sessions.insert(session_id.clone(), session);
        Outcome::Response { status: 200, text, session: Some(session_id) }
    }

    /// Returns the error for a request that a modern server must reject.
    pub(super) fn check_modern(&self, request: &IncomingRequest<'_>, meta: &str) -> Option<Outcome> {
        let script = self.script();
        let data = |requested: &str| {
            let supported: serde_json::Value = serde_json::from_str(supported_revisions(script.era)).unwrap();
            serde_json::json!({"supported": supported, "requested": requested}).to_string()
        };
        if request.method == "initialize" {
            // A client of the legacy era. This is not a violation.
            return Some(request.error(400, -32022, "Unsupported protocol version", Some(&data(""))));
        }
        let version = member(meta, META_PROTOCOL_VERSION)
            .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let refusal = match &version {
            None => Some((-32602, format!("Invalid params: _meta lacks {META_PROTOCOL_VERSION}"))),
            Some(_) if member(meta, META_CLIENT_CAPABILITIES).is_none() => {
                Some((-32602, format!("Invalid params: _meta lacks {META_CLIENT_CAPABILITIES}")))
            }
            Some(version) => request
                .headers
                .and_then(|headers| {
                    let tool = tools::called_input_schema(&script, request);
                    headers::check_headers(headers, request, version, tool.as_ref()).err()
                })
                .map(|mismatch| (-32020, format!("Header mismatch: {mismatch}"))),
        };
        if let Some((code, message)) = refusal {
            self.record_violation(format!("{}: {message}", request.method));
            return Some(request.error(400, code, &message, None));
        }
        let version = version.unwrap_or_default();
        (version != MODERN_REVISION)
            .then(|| request.error(400, -32022, "Unsupported protocol version", Some(&data(&version))))
    }

    /// Returns the error for a request that a legacy server must reject, and records violations that it may tolerate.
    pub(super) fn check_legacy(
        &self,
        request: &IncomingRequest<'_>,
        session: Option<&str>,
    ) -> Option<Outcome> {
        if request.method == "initialize" {
            return None;
        }
        let mut state = self.state();
        let client = match (request.headers.is_some() && state.script.http.sessions, session) {
            (false, _) => state.sessionless_client.clone(),
            (true, Some(session)) => {
                let Some(client) = state.sessions.get(session) else {
                    let (status, code, message) = &state.script.http.unknown_session;
                    return Some(request.error(*status, *code, message, None));
                };
                client.clone()
            }
            (true, None) => {
                return Some(request.error(400, -32000, "Bad Request: no valid session ID provided", None));
            }
        };
        if request.method == "server/discover" {
            // The probe of a client of both eras: an unknown method for a legacy server.
            return None;
        }
        if !client.initialized && request.method != "ping" {
            state.record_violation(format!("{} before notifications/initialized", request.method));
        }
        if let Some(headers) = request.headers
            && client.version.as_str() >= "2025-06-18"
            && headers::header_text(headers, "mcp-protocol-version") != Some(&client.version)
        {
            state.record_violation(format!(
                "{}: MCP-Protocol-Version is not {}",
                request.method, client.version
            ));
        }
        None
    }
}

fn capabilities(script: &Script) -> &str {
    script.capabilities.as_deref().map_or(r#"{"tools":{"listChanged":true}}"#, RawValue::get)
}

fn server_info(script: &Script) -> String {
    serde_json::json!({"name": script.name, "version": "1.0.0", "title": "The fault rig"}).to_string()
}

fn supported_revisions(era: ServerEra) -> &'static str {
    match era {
        ServerEra::Dual => r#"["2026-07-28","2025-11-25"]"#,
        ServerEra::Modern | ServerEra::Legacy => r#"["2026-07-28"]"#,
    }
}
