use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::envelope::Id;
use super::splice::{members, rewrite};
use super::{Edit, Level, List};
use crate::resource::ServerInfo;

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
pub struct Peer {
    /// The protocol it speaks.
    pub era: Era,
    /// What it told of itself.
    pub about: Arc<About>,
    /// What it offers.
    pub capabilities: Capabilities,
    /// The members that every modern request's `_meta` must carry.
    meta: Vec<(&'static str, String)>,
}

/// What a server told of itself, in its own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct About {
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
pub struct Capabilities {
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

impl Capabilities {
    /// Whether it has this list at all, and if so, whether it says when it changes.
    pub fn list(self, list: List) -> Option<bool> {
        match list {
            List::Tools => self.tools,
            List::Prompts => self.prompts,
            List::Resources | List::Templates => self.resources,
        }
    }

    /// The lists that it has.
    pub fn lists(self) -> impl Iterator<Item = List> {
        List::ALL.into_iter().filter(move |list| self.list(*list).is_some())
    }
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
            about: Arc::default(),
            capabilities: Capabilities::default(),
            meta: Vec::new(),
        }
    }

    /// A peer after its handshake.
    pub(super) fn new(era: Era, about: About, capabilities: Capabilities) -> Self {
        let meta = match era {
            Era::Legacy => Vec::new(),
            Era::Modern => vec![
                (VERSION_KEY, json!(about.protocol_version).to_string()),
                (CLIENT_KEY, client_info().to_string()),
                (CAPABILITIES_KEY, "{}".to_owned()),
            ],
        };
        Self { era, about: Arc::new(about), capabilities, meta }
    }

    /// The `_meta` of a request on this connection, made from the agent's: what belongs to the agent's own
    /// connection is taken out, what this one needs is put in, and the progress token becomes `token`.
    ///
    /// A modern server sends log messages only where a request says from which level on: that of the agent's
    /// session, where the agent's own request does not say so itself.
    ///
    /// Returns the text, if there is to be a `_meta`, and the agent's progress token, if it sent one.
    pub(super) fn meta(
        &self,
        agent: Option<&str>,
        token: &Id,
        level: Option<Level>,
    ) -> Result<(Option<String>, Option<Id>), serde_json::Error> {
        let mut edits =
            vec![Edit::Remove(VERSION_KEY), Edit::Remove(CLIENT_KEY), Edit::Remove(CAPABILITIES_KEY)];
        let (mut progress, mut told_level) = (None, false);
        let level = level.map(|level| format!("\"{level}\""));
        let own = std::str::from_utf8(token.as_bytes()).unwrap_or("0");
        if let Some(agent) = agent {
            for (key, value) in members(agent)? {
                if key == PROGRESS_KEY {
                    progress = Some(Id::of(value));
                }
                told_level |= key == LOG_LEVEL_KEY;
            }
        } else if self.meta.is_empty() {
            return Ok((None, None));
        }
        match (self.era, &level) {
            (Era::Legacy, _) => edits.push(Edit::Remove(LOG_LEVEL_KEY)),
            (Era::Modern, Some(level)) if !told_level => edits.push(Edit::Set(LOG_LEVEL_KEY, level)),
            (Era::Modern, _) => {}
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

impl Peer {
    /// What a modern server is asked to tell, as the filter of `subscriptions/listen`; `None` if it tells nothing.
    pub(super) fn changes_told(&self) -> Option<String> {
        let lists = [List::Tools, List::Prompts, List::Resources].into_iter();
        let told = lists.filter(|list| self.capabilities.list(*list) == Some(true));
        let told: Vec<_> = told.map(|list| format!(r#""{}":true"#, list.filter())).collect();
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

    fn peer(era: Era) -> Peer {
        let about = About { protocol_version: "2026-07-28".into(), ..About::default() };
        Peer::new(era, about, Capabilities::default())
    }

    #[test]
    fn a_legacy_server_sees_nothing_of_the_agents_connection() {
        let agent = r#"{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{},"io.modelcontextprotocol/clientCapabilities":{},"traceparent":"00-1","progressToken":"p"}"#;
        let (meta, progress) = peer(Era::Legacy).meta(Some(agent), &Id::number(9), None).unwrap();
        assert_eq!(meta.unwrap(), r#"{"traceparent":"00-1","progressToken":9}"#);
        assert_eq!(progress.unwrap().as_bytes(), b"\"p\"");
        assert!(peer(Era::Legacy).meta(None, &Id::number(9), None).unwrap().0.is_none());
    }

    #[test]
    fn a_modern_server_gets_the_meta_of_its_own_connection() {
        let (meta, progress) = peer(Era::Modern).meta(None, &Id::number(9), None).unwrap();
        let meta = meta.unwrap();
        assert!(progress.is_none());
        let value: serde_json::Value = serde_json::from_str(&meta).unwrap();
        assert_eq!(value[VERSION_KEY], "2026-07-28");
        assert_eq!(value[CLIENT_KEY]["name"], "evenkeel");
        assert_eq!(value[CAPABILITIES_KEY], json!({}));
        let agent = r#"{"io.modelcontextprotocol/clientCapabilities":{"sampling":{}},"x/y":1}"#;
        let (meta, _) = peer(Era::Modern).meta(Some(agent), &Id::number(9), None).unwrap();
        let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
        assert_eq!(value[CAPABILITIES_KEY], json!({}));
        assert_eq!(value["x/y"], 1);
    }

    #[test]
    fn a_modern_server_is_told_the_level_of_the_agent() {
        for (agent, level, expected) in [
            (None, Some(Level::Info), json!("info")),
            (Some("{}"), None, json!(null)),
            (Some(r#"{"io.modelcontextprotocol/logLevel":"error"}"#), Some(Level::Info), json!("error")),
        ] {
            let (meta, _) = peer(Era::Modern).meta(agent, &Id::number(9), level).unwrap();
            let value: serde_json::Value = serde_json::from_str(&meta.unwrap()).unwrap();
            assert_eq!(value[LOG_LEVEL_KEY], expected, "{agent:?} {level:?}");
        }
    }
}
