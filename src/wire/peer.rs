use serde_json::json;

use super::Edit;
use super::envelope::Id;
use super::splice::{members, rewrite};
use crate::resource::ServerInfo;

/// Which of the two protocols a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Era {
    /// 2024-11-05 to 2025-11-25: `initialize`, sessions.
    Legacy,
    /// 2026-07-28 on: `server/discover`, no session, `_meta` on every request.
    Modern,
}

/// What the handshake told of a server.
#[derive(Clone, Debug)]
pub struct Peer {
    /// The protocol it speaks.
    pub era: Era,
    /// The revision that was agreed on.
    pub version: String,
    /// What it calls itself; its own words.
    pub info: ServerInfo,
    /// True if it offers tools.
    pub tools: bool,
    /// True if it says when its tools change.
    pub tools_list_changed: bool,
    /// The members that every modern request's `_meta` must carry.
    meta: Vec<(&'static str, String)>,
}

const VERSION_KEY: &str = "io.modelcontextprotocol/protocolVersion";
const CLIENT_KEY: &str = "io.modelcontextprotocol/clientInfo";
const CAPABILITIES_KEY: &str = "io.modelcontextprotocol/clientCapabilities";
const LOG_LEVEL_KEY: &str = "io.modelcontextprotocol/logLevel";
const PROGRESS_KEY: &str = "progressToken";

impl Peer {
    /// What is known before the handshake: nothing is added to requests.
    pub(super) fn unknown() -> Self {
        Self {
            era: Era::Legacy,
            version: String::new(),
            info: ServerInfo::default(),
            tools: false,
            tools_list_changed: false,
            meta: Vec::new(),
        }
    }

    /// A peer after its handshake.
    pub(super) fn new(
        era: Era,
        version: String,
        info: ServerInfo,
        tools: bool,
        tools_list_changed: bool,
    ) -> Self {
        let meta = match era {
            Era::Legacy => Vec::new(),
            Era::Modern => vec![
                (VERSION_KEY, json!(version).to_string()),
                (CLIENT_KEY, client_info().to_string()),
                (CAPABILITIES_KEY, "{}".to_owned()),
            ],
        };
        Self { era, version, info, tools, tools_list_changed, meta }
    }

    /// The `_meta` of a request on this connection, made from the agent's: what belongs to the agent's own
    /// connection is taken out, what this one needs is put in, and the progress token becomes `token`.
    ///
    /// Returns the text, if there is to be a `_meta`, and the agent's progress token, if it sent one.
    pub(super) fn meta(
        &self,
        agent: Option<&str>,
        token: &Id,
    ) -> Result<(Option<String>, Option<Id>), serde_json::Error> {
        let mut edits =
            vec![Edit::Remove(VERSION_KEY), Edit::Remove(CLIENT_KEY), Edit::Remove(CAPABILITIES_KEY)];
        let mut progress = None;
        let own = std::str::from_utf8(token.as_bytes()).unwrap_or("0");
        if let Some(agent) = agent {
            for (key, value) in members(agent)? {
                if key == PROGRESS_KEY {
                    progress = Some(Id::of(value));
                }
            }
        } else if self.meta.is_empty() {
            return Ok((None, None));
        }
        if self.era == Era::Legacy {
            edits.push(Edit::Remove(LOG_LEVEL_KEY));
        }
        if progress.is_some() {
            edits.push(Edit::Set(PROGRESS_KEY, own));
        }
        for (key, value) in &self.meta {
            match edits.iter_mut().find(|edit| matches!(edit, Edit::Remove(found) if found == key)) {
                Some(edit) => *edit = Edit::Set(key, value),
                None => edits.push(Edit::Set(key, value)),
            }
        }
        Ok((Some(rewrite(agent.unwrap_or("{}"), &edits)?), progress))
    }
}

/// How evenkeel introduces itself to servers.
pub(super) fn client_info() -> serde_json::Value {
    json!({ "name": "evenkeel", "version": env!("CARGO_PKG_VERSION") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(era: Era) -> Peer {
        Peer::new(era, "2026-07-28".into(), ServerInfo::default(), true, true)
    }

    #[test]
    fn a_legacy_server_sees_nothing_of_the_agents_connection() {
        let agent = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{},"traceparent":"00-1","progressToken":"p"}"#;
        let (meta, progress) = peer(Era::Legacy).meta(Some(agent), &Id::number(9)).unwrap();
        assert_eq!(meta.unwrap(), r#"{"traceparent":"00-1","progressToken":9}"#);
        assert_eq!(progress.unwrap().as_bytes(), b"\"p\"");
        assert!(peer(Era::Legacy).meta(None, &Id::number(9)).unwrap().0.is_none());
    }

    #[test]
    fn a_modern_server_gets_the_meta_of_its_own_connection() {
        let (meta, progress) = peer(Era::Modern).meta(None, &Id::number(9)).unwrap();
        let meta = meta.unwrap();
        assert!(progress.is_none());
        let value: serde_json::Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(value[VERSION_KEY], "2026-07-28");
        assert_eq!(value[CLIENT_KEY]["name"], "evenkeel");
        assert_eq!(value[CAPABILITIES_KEY], json!({}));
        let agent = r#"{"io.modelcontextprotocol/clientCapabilities":{"sampling":{}},"x/y":1}"#;
        let (meta, _) = peer(Era::Modern).meta(Some(agent), &Id::number(9)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
        assert_eq!(value[CAPABILITIES_KEY], json!({}));
        assert_eq!(value["x/y"], 1);
    }
}
