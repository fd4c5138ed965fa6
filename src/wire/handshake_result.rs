use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::envelope::JsonRpcId;
use super::json_edit::{JsonEdit, Members, json_string};
use super::{ListKind, LogLevel};
use crate::resource::ServerInfo;

/// The modern revision that evenkeel speaks.
pub(super) const MODERN_VERSION: &str = "2026-07-28";

/// Which of the two protocols a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Era {
    /// 2024-11-05 to 2025-11-25: `initialize`, sessions.
    Legacy,
    /// 2026-07-28 on: `server/discover`, no session, `_meta` on every request.
    Modern,
}

/// What the handshake told of a server.
#[derive(Clone, Debug)]
pub struct HandshakeResult {
    /// The protocol it speaks.
    pub era: Era,
    /// What it told of itself.
    pub description: Arc<ServerDescription>,
    /// What it offers.
    pub capabilities: ServerCapabilities,
    /// The members of `_meta` that belong to a connection, with what every modern request must say there.
    connection_meta: [(&'static str, Option<String>); 3],
}

/// What a server told of itself, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServerDescription {
    /// What it calls itself.
    pub server_info: ServerInfo,
    /// The revision that was agreed on.
    pub protocol_version: String,
    /// What it wants models to know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Arc<str>>,
}

/// What a server offers, as far as evenkeel uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerCapabilities {
    /// It has tools, and whether it says when they change.
    pub tools: Option<bool>,
    /// It has prompts, and whether it says when they change.
    pub prompts: Option<bool>,
    /// It has resources, and whether it says when they change.
    pub resources: Option<bool>,
    /// It says when a resource changes that it was asked to watch.
    pub subscribe: bool,
    /// It completes arguments.
    pub completions: bool,
    /// It sends log messages, from a level on that it can be told.
    pub logging: bool,
}

impl ServerCapabilities {
    /// Whether it has this list at all, and if so, whether it says when it changes.
    pub fn list_changed(self, list: ListKind) -> Option<bool> {
        match list {
            ListKind::Tools => self.tools,
            ListKind::Prompts => self.prompts,
            ListKind::Resources | ListKind::Templates => self.resources,
        }
    }

    /// The lists that it has.
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
    /// What is known before the handshake: nothing is added to requests.
    pub(super) fn unknown() -> Self {
        Self::new(Era::Legacy, ServerDescription::default(), ServerCapabilities::default())
    }

    /// A peer after its handshake.
    pub(super) fn new(era: Era, about: ServerDescription, capabilities: ServerCapabilities) -> Self {
        let own = |value: serde_json::Value| (era == Era::Modern).then(|| value.to_string());
        let meta = [
            (PROTOCOL_VERSION_KEY, own(json!(about.protocol_version))),
            (CLIENT_INFO_KEY, own(client_info())),
            (CLIENT_CAPABILITIES_KEY, own(json!({}))),
        ];
        Self { era, description: Arc::new(about), capabilities, connection_meta: meta }
    }

    /// The `_meta` of a request on this connection, made from the agent's: what belongs to the agent's own
    /// connection is taken out, what this one needs is put in, and the progress token becomes `token`.
    ///
    /// A modern server sends log messages only where a request says from which level on: that of the agent's
    /// session, where the agent's own request does not say so itself.
    ///
    /// Returns the text, if there is to be a `_meta`, and the agent's progress token, if it sent one.
    pub(super) fn request_meta(
        &self,
        agent: Option<&Members<'_>>,
        token: u64,
        level: Option<LogLevel>,
    ) -> (Option<String>, Option<JsonRpcId>) {
        if agent.is_none() && self.era == Era::Legacy {
            return (None, None);
        }
        let nothing = Members::default();
        let agent = agent.unwrap_or(&nothing);
        let own = self.connection_meta.each_ref().map(|(key, value)| match value {
            Some(value) => JsonEdit::Set(key, value),
            None => JsonEdit::Remove(key),
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
        let edits = own.into_iter().chain(level).chain(token);
        let mut text = String::with_capacity(agent.max_len(edits.clone()));
        agent.rewrite_into(edits, &mut text);
        (Some(text), progress)
    }
}

impl HandshakeResult {
    /// What a modern server is asked to tell, as the filter of `subscriptions/listen`; `None` if it tells nothing.
    pub(super) fn listen_filter(&self) -> Option<String> {
        let lists = [ListKind::Tools, ListKind::Prompts, ListKind::Resources].into_iter();
        let told = lists.filter(|list| self.capabilities.list_changed(*list) == Some(true));
        let told: Vec<_> = told.map(|list| format!(r#""{}":true"#, list.listen_filter_member())).collect();
        (self.era == Era::Modern && !told.is_empty()).then(|| format!("{{{}}}", told.join(",")))
    }
}

/// How evenkeel introduces itself to servers.
pub(super) fn client_info() -> serde_json::Value {
    json!({ "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::members;

    fn handshake_result(era: Era) -> HandshakeResult {
        let about =
            ServerDescription { protocol_version: "2026-07-28".into(), ..ServerDescription::default() };
        HandshakeResult::new(era, about, ServerCapabilities::default())
    }

    #[test]
    fn legacy_request_meta_drops_the_agents_connection_members() {
        let agent = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{},"traceparent":"00-1","progressToken":"p"}"#;
        let (meta, progress) =
            handshake_result(Era::Legacy).request_meta(Some(&members(agent).unwrap()), 9, None);
        assert_eq!(meta.unwrap(), r#"{"traceparent":"00-1","progressToken":9}"#);
        assert_eq!(progress.unwrap().as_bytes(), b"\"p\"");
        assert!(handshake_result(Era::Legacy).request_meta(None, 9, None).0.is_none());
    }

    #[test]
    fn modern_request_meta_describes_evenkeels_own_connection() {
        let (meta, progress) = handshake_result(Era::Modern).request_meta(None, 9, None);
        let meta = meta.unwrap();
        assert!(progress.is_none());
        let value: serde_json::Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(value[PROTOCOL_VERSION_KEY], "2026-07-28");
        assert_eq!(value[CLIENT_INFO_KEY]["name"], "evenkeel");
        assert_eq!(value[CLIENT_CAPABILITIES_KEY], json!({}));
        let agent = r#"{"io.modelcontextprotocol/clientCapabilities":{"sampling":{}},"x/y":1}"#;
        let (meta, _) = handshake_result(Era::Modern).request_meta(Some(&members(agent).unwrap()), 9, None);
        let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
        assert_eq!(value[CLIENT_CAPABILITIES_KEY], json!({}));
        assert_eq!(value["x/y"], 1);
    }

    #[test]
    fn modern_request_meta_carries_the_agents_log_level() {
        for (agent, level, expected) in [
            (None, Some(LogLevel::Info), json!("info")),
            (Some("{}"), None, json!(null)),
            (Some(r#"{"io.modelcontextprotocol/logLevel":"error"}"#), Some(LogLevel::Info), json!("error")),
        ] {
            let agent = agent.map(|agent| members(agent).unwrap());
            let (meta, _) = handshake_result(Era::Modern).request_meta(agent.as_ref(), 9, level);
            let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
            assert_eq!(value[LOG_LEVEL_KEY], expected, "{agent:?} {level:?}");
        }
    }
}
