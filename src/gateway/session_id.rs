//! Sealed session ids: an id contains its session, encrypted, so that any process with the key can restore it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::seal::{SealError, SealPurpose, SessionKey};
use crate::upstream::ViewName;
use crate::wire::ClientCapabilities;

/// The maximum length of a client name or version in an id, so that the id stays below 1,024 bytes.
const MAX_CLIENT_NAME_CHARS: usize = 64;

/// Shortens a client name or version and removes control characters, each of which would take six bytes in JSON.
pub(super) fn bounded_client_name(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(MAX_CLIENT_NAME_CHARS).collect()
}

/// The content of a session id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SealedSession {
    /// The negotiated protocol version.
    #[serde(rename = "v")]
    pub(super) version: String,
    /// The client name from `initialize`, shortened.
    #[serde(rename = "c")]
    pub(super) client: String,
    /// The client version from `initialize`, shortened.
    #[serde(rename = "cv")]
    pub(super) client_version: String,
    /// The namespace of the view; `None` is all namespaces.
    #[serde(rename = "n")]
    pub(super) namespace: Option<Arc<str>>,
    /// The id in the endpoint path; `None` for a path without one.
    #[serde(rename = "a", default, skip_serializing_if = "Option::is_none")]
    pub(super) path_id: Option<Arc<str>>,
    /// The creation time in seconds since 1970.
    #[serde(rename = "t")]
    pub(super) issued_at: i64,
    /// The capabilities of the client, as [`ClientCapabilities::bits`]. May be absent. Members that a process does not
    /// know are ignored, so replicas of two versions can share sessions.
    #[serde(rename = "k", default)]
    pub(super) capabilities: u8,
}

impl SealedSession {
    /// Returns the capabilities by which servers may ask the client for input. A client of a revision before 2025-06-18
    /// has none: elicitation was introduced then.
    pub(super) fn input_capabilities(&self) -> ClientCapabilities {
        if &*self.version < "2025-06-18" {
            return ClientCapabilities::NONE;
        }
        ClientCapabilities::from_bits(self.capabilities)
    }

    /// Returns the view that the session was opened on.
    pub(super) fn view(&self) -> ViewName {
        match &self.namespace {
            None => ViewName::All,
            Some(namespace) => ViewName::Namespace(namespace.clone()),
        }
    }
}

impl SessionKey {
    /// Creates the id of a new session. Two ids are never equal, even for equal content.
    pub(super) fn seal_session(&self, content: &SealedSession) -> Result<String, SealError> {
        self.seal(SealPurpose::Session, content)
    }

    /// Returns the content of a session id; `None` if it was not sealed with this key.
    pub(super) fn open_session(&self, id: &str) -> Option<SealedSession> {
        self.open(SealPurpose::Session, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed_session() -> SealedSession {
        SealedSession {
            version: "2025-11-25".into(),
            client: "claude".into(),
            client_version: "2".into(),
            namespace: Some("team-a".into()),
            path_id: None,
            issued_at: 1_790_000_000,
            capabilities: ClientCapabilities::FORM_ELICITATION.bits(),
        }
    }

    #[test]
    fn id_opens_in_any_process_with_the_same_key() {
        let id = SessionKey::new(b"k").unwrap().seal_session(&sealed_session()).unwrap();
        let other_process = SessionKey::new(b"k").unwrap();
        assert_eq!(other_process.open_session(&id), Some(sealed_session()));
        assert!(id.bytes().all(|byte| byte.is_ascii_graphic()), "{id}");
        assert!(id.len() < 256 && !id.contains("claude"), "{id}");
        let capabilities = other_process.open_session(&id).unwrap().input_capabilities();
        assert_eq!(capabilities, ClientCapabilities::FORM_ELICITATION);
        assert_ne!(id, other_process.seal_session(&sealed_session()).unwrap());
    }

    #[test]
    fn id_opens_for_any_client_name() {
        let key = SessionKey::new(b"k").unwrap();
        for worst in ["\0", "\u{1f}", "\u{7f}", "\u{9f}", "\"", "\\", "/", "\u{2028}", "🦀", "a"] {
            let name = bounded_client_name(&worst.repeat(100_000));
            let content = SealedSession {
                client: name.clone(),
                client_version: name,
                namespace: Some("n".repeat(63).into()),
                path_id: Some("i".repeat(64).into()),
                issued_at: i64::MAX,
                ..sealed_session()
            };
            let id = key.seal_session(&content).unwrap();
            assert_eq!(key.open_session(&id), Some(content), "{worst:?} yields an id of {} bytes", id.len());
        }
        assert_eq!(bounded_client_name("Claude\n Code\0"), "Claude Code");
    }

    #[test]
    fn id_of_an_earlier_version_opens() {
        let key = SessionKey::new(b"k").unwrap();
        let content = serde_json::json!({ "v": "2025-11-25", "c": "a", "cv": "1", "n": null, "t": 1 });
        let opened = key.open_session(&key.seal(SealPurpose::Session, &content).unwrap()).unwrap();
        assert_eq!(opened.input_capabilities(), ClientCapabilities::NONE);
    }

    #[test]
    fn clients_before_elicitation_have_no_capabilities() {
        for (version, expected) in
            [("2025-03-26", ClientCapabilities::NONE), ("2025-06-18", ClientCapabilities::FORM_ELICITATION)]
        {
            let session = SealedSession { version: version.into(), ..sealed_session() };
            assert_eq!(session.input_capabilities(), expected, "{version}");
        }
    }
}
