use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::client_capabilities::ClientCapabilities;
use super::envelope::JsonRpcId;
use super::json_edit::{JsonEdit, Members, json_string};
use super::secret_mask::SecretMask;
use super::{ListKind, LogLevel};
use crate::resource::ServerInfo;

/// The part of a server's instructions that is kept, in characters.
const MAX_INSTRUCTIONS_CHARS: usize = 4_096;
/// The maximum length of the server's name and version, in characters.
const MAX_NAME_CHARS: usize = 256;
/// The modern MCP revision that evenkeel implements.
pub(super) const MODERN_VERSION: &str = "2026-07-28";

/// The protocol era of a server or agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Era {
    /// 2024-11-05 to 2025-11-25: `initialize` and sessions.
    Legacy,
    /// 2026-07-28 and later: `server/discover`, no sessions, `_meta` on every request.
    Modern,
}

/// The result of the handshake with a server.
#[derive(Clone, Debug)]
pub struct HandshakeResult {
    /// The negotiated era.
    pub era: Era,
    /// The server's description of itself.
    pub description: Arc<ServerDescription>,
    /// The server's capabilities.
    pub capabilities: ServerCapabilities,
    /// The members of `_meta` that belong to a connection, with their values for every modern request. `None` in the
    /// legacy era.
    connection_meta: [(&'static str, Option<String>); 3],
}

/// A server's description of itself. The texts are the server's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerDescription {
    /// The server's name and version.
    pub server_info: ServerInfo,
    /// The negotiated revision.
    pub protocol_version: String,
    /// The server's instructions for models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Arc<str>>,
}

impl ServerDescription {
    /// Builds a description from the server's own texts, which are redacted and bounded.
    pub(super) fn new(
        mask: &SecretMask,
        protocol_version: String,
        name_and_version: Option<(&str, &str)>,
        instructions: Option<&str>,
    ) -> Self {
        let server_info = name_and_version.map(|(name, version)| ServerInfo {
            name: mask.redacted_line(name, MAX_NAME_CHARS),
            version: mask.redacted_line(version, MAX_NAME_CHARS),
        });
        let instructions = instructions.map(str::trim).filter(|text| !text.is_empty());
        let instructions = instructions
            .map(|text| mask.redact(text).chars().take(MAX_INSTRUCTIONS_CHARS).collect::<String>());
        Self {
            server_info: server_info.unwrap_or_default(),
            protocol_version,
            instructions: instructions.map(Arc::from),
        }
    }
}

/// The capabilities of a server that evenkeel uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCapabilities {
    /// `Some` if the server has tools; true if it sends `list_changed` for them.
    pub tools: Option<bool>,
    /// `Some` if the server has prompts; true if it sends `list_changed` for them.
    pub prompts: Option<bool>,
    /// `Some` if the server has resources; true if it sends `list_changed` for them.
    pub resources: Option<bool>,
    /// The server supports `resources/subscribe`.
    pub subscribe: bool,
    /// The server completes arguments.
    pub completions: bool,
    /// The server sends log messages and accepts a minimum level for them.
    pub logging: bool,
}

impl ServerCapabilities {
    /// Every list, without `list_changed`.
    pub const ALL_LISTS: Self = Self {
        tools: Some(false),
        prompts: Some(false),
        resources: Some(false),
        subscribe: false,
        completions: false,
        logging: false,
    };

    /// Returns `Some` if the server has this list; true if it sends `list_changed` for it.
    pub fn list_changed(self, list: ListKind) -> Option<bool> {
        match list {
            ListKind::Tools => self.tools,
            ListKind::Prompts => self.prompts,
            ListKind::Resources | ListKind::Templates => self.resources,
        }
    }

    /// Returns the lists that the server has.
    pub fn offered_lists(self) -> impl Iterator<Item = ListKind> {
        ListKind::ALL.into_iter().filter(move |list| self.list_changed(*list).is_some())
    }
}

const PROTOCOL_VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_INFO_KEY: &str = "io.modelcontextprotocol/clientInfo";
const CLIENT_CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL_KEY: &str = "io.modelcontextprotocol/logLevel";
const PROGRESS_TOKEN_KEY: &str = "progressToken";

impl HandshakeResult {
    /// Returns the value before the handshake: nothing is added to requests.
    pub(super) fn unknown() -> Self {
        Self::new(Era::Legacy, ServerDescription::default(), ServerCapabilities::default())
    }

    /// Builds the result of a completed handshake.
    pub(super) fn new(era: Era, description: ServerDescription, capabilities: ServerCapabilities) -> Self {
        let if_modern = |value: serde_json::Value| (era == Era::Modern).then(|| value.to_string());
        let connection_meta = [
            (PROTOCOL_VERSION_KEY, if_modern(json!(description.protocol_version))),
            (CLIENT_INFO_KEY, if_modern(client_info())),
            (CLIENT_CAPABILITIES_KEY, if_modern(json!({}))),
        ];
        Self { era, description: Arc::new(description), capabilities, connection_meta }
    }

    /// Builds the `_meta` of a request on this connection from the agent's: removes the members that belong to the
    /// agent's own connection, adds those of this one, and replaces the progress token with `token`.
    ///
    /// A modern server sends log messages for a request only if its `_meta` has a minimum level. `level` is that of the
    /// agent's session; it is used if the agent's request has none. It may ask for input that `capabilities` permit.
    ///
    /// Returns the JSON text, if the request needs a `_meta`, and the agent's progress token, if there is one.
    pub(super) fn request_meta(
        &self,
        agent: Option<&Members<'_>>,
        token: u64,
        level: Option<LogLevel>,
        capabilities: ClientCapabilities,
    ) -> (Option<String>, Option<JsonRpcId>) {
        if agent.is_none() && self.era == Era::Legacy {
            return (None, None);
        }
        let empty = Members::default();
        let agent = agent.unwrap_or(&empty);
        let capabilities = (capabilities != ClientCapabilities::NONE).then(|| capabilities.to_json());
        let connection_edits =
            self.connection_meta.each_ref().map(|(key, value)| match (value, &capabilities) {
                (Some(_), Some(capabilities)) if *key == CLIENT_CAPABILITIES_KEY => {
                    JsonEdit::Set(key, capabilities)
                }
                (Some(value), _) => JsonEdit::Set(key, value),
                (None, _) => JsonEdit::Remove(key),
            });
        let level =
            level.filter(|_| agent.get(LOG_LEVEL_KEY).is_none()).map(|level| json_string(level.as_str()));
        let level = match self.era {
            Era::Legacy => Some(JsonEdit::Remove(LOG_LEVEL_KEY)),
            Era::Modern => level.as_deref().map(|level| JsonEdit::Set(LOG_LEVEL_KEY, level)),
        };
        let progress = agent.get(PROGRESS_TOKEN_KEY).map(JsonRpcId::from_raw);
        let token = progress.as_ref().map(|_| token.to_string());
        let token = token.as_deref().map(|token| JsonEdit::Set(PROGRESS_TOKEN_KEY, token));
        let edits = connection_edits.into_iter().chain(level).chain(token);
        let mut text = String::with_capacity(agent.max_len(edits.clone()));
        agent.rewrite_into(edits, &mut text);
        (Some(text), progress)
    }
}

impl HandshakeResult {
    /// Returns the filter for `subscriptions/listen` that selects all list changes. `None` for a legacy server, and for
    /// one that sends no list changes.
    pub(super) fn listen_filter(&self) -> Option<String> {
        let lists = [ListKind::Tools, ListKind::Prompts, ListKind::Resources].into_iter();
        let notified = lists.filter(|list| self.capabilities.list_changed(*list) == Some(true));
        let members: Vec<_> =
            notified.map(|list| format!(r#""{}":true"#, list.listen_filter_member())).collect();
        (self.era == Era::Modern && !members.is_empty()).then(|| format!("{{{}}}", members.join(",")))
    }
}

/// Returns the `clientInfo` that evenkeel sends to servers.
pub(super) fn client_info() -> serde_json::Value {
    json!({ "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::parse_members;

    fn handshake_result(era: Era) -> HandshakeResult {
        let description =
            ServerDescription { protocol_version: "2026-07-28".into(), ..ServerDescription::default() };
        HandshakeResult::new(era, description, ServerCapabilities::default())
    }

    #[test]
    fn legacy_request_meta_drops_the_agents_connection_members() {
        let agent = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{},"traceparent":"00-1","progressToken":"p"}"#;
        let (meta, progress) = handshake_result(Era::Legacy).request_meta(
            Some(&parse_members(agent).unwrap()),
            9,
            None,
            ClientCapabilities::NONE,
        );
        assert_eq!(meta.unwrap(), r#"{"traceparent":"00-1","progressToken":9}"#);
        assert_eq!(progress.unwrap().as_bytes(), b"\"p\"");
        assert!(
            handshake_result(Era::Legacy).request_meta(None, 9, None, ClientCapabilities::NONE).0.is_none()
        );
    }

    #[test]
    fn modern_request_meta_describes_evenkeels_own_connection() {
        let (meta, progress) =
            handshake_result(Era::Modern).request_meta(None, 9, None, ClientCapabilities::NONE);
        let meta = meta.unwrap();
        assert!(progress.is_none());
        let value: serde_json::Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(value[PROTOCOL_VERSION_KEY], "2026-07-28");
        assert_eq!(value[CLIENT_INFO_KEY]["name"], "evenkeel");
        assert_eq!(value[CLIENT_CAPABILITIES_KEY], json!({}));
        let agent = r#"{"io.modelcontextprotocol/clientCapabilities":{"sampling":{}},"x/y":1}"#;
        for (capabilities, expected) in [
            (ClientCapabilities::NONE, json!({})),
            (ClientCapabilities::FORM_ELICITATION, json!({ "elicitation": { "form": {} } })),
        ] {
            let agent = parse_members(agent).unwrap();
            let (meta, _) = handshake_result(Era::Modern).request_meta(Some(&agent), 9, None, capabilities);
            let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
            assert_eq!(value[CLIENT_CAPABILITIES_KEY], expected);
            assert_eq!(value["x/y"], 1);
        }
    }

    #[test]
    fn modern_request_meta_carries_the_agents_log_level() {
        for (agent, level, expected) in [
            (None, Some(LogLevel::Info), json!("info")),
            (Some("{}"), None, json!(null)),
            (Some(r#"{"io.modelcontextprotocol/logLevel":"error"}"#), Some(LogLevel::Info), json!("error")),
        ] {
            let agent = agent.map(|agent| parse_members(agent).unwrap());
            let (meta, _) = handshake_result(Era::Modern).request_meta(
                agent.as_ref(),
                9,
                level,
                ClientCapabilities::NONE,
            );
            let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
            assert_eq!(value[LOG_LEVEL_KEY], expected, "{agent:?} {level:?}");
        }
    }
}
