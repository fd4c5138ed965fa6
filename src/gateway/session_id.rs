//! Sealed session ids: an id contains its session, encrypted, so that any process with the key can restore it.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

use crate::upstream::ViewName;

/// The format of the sealed content, bound into the key and the ciphertext: ids of another format are rejected.
const SEAL_FORMAT: &[u8] = b"evenkeel session 1";
/// The maximum length of an id. Longer ids were not created by evenkeel.
const MAX_ID_BYTES: usize = 1_024;
/// The maximum length of a client name or version in an id, so that the id stays below [`MAX_ID_BYTES`].
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
    /// The creation time in seconds since 1970.
    #[serde(rename = "t")]
    pub(super) issued_at: i64,
}

impl SealedSession {
    /// Returns the view that the session was opened on.
    pub(super) fn view(&self) -> ViewName {
        match &self.namespace {
            None => ViewName::All,
            Some(namespace) => ViewName::Namespace(namespace.clone()),
        }
    }
}

/// The key that seals session ids. Processes with the same key share sessions.
#[derive(Debug)]
pub struct SessionKey {
    key: LessSafeKey,
    random: SystemRandom,
}

/// The error of a failed random number generator or cipher. Neither is expected.
#[derive(Debug, thiserror::Error)]
#[error("the random number generator of the system failed")]
pub struct SealError;

impl From<ring::error::Unspecified> for SealError {
    fn from(_: ring::error::Unspecified) -> Self {
        Self
    }
}

impl SessionKey {
    /// Derives a key from secret bytes. The same bytes may be used for other purposes too.
    pub fn new(secret: &[u8]) -> Result<Self, SealError> {
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, SEAL_FORMAT).extract(secret);
        let key = pseudorandom.expand(&[b"key"], &CHACHA20_POLY1305)?;
        Ok(Self { key: LessSafeKey::new(UnboundKey::from(key)), random: SystemRandom::new() })
    }

    /// Creates the id of a new session. Two ids are never equal, even for equal content.
    pub(super) fn seal(&self, content: &SealedSession) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce)?;
        let mut sealed = serde_json::to_vec(content).map_err(|_| SealError)?;
        let aad = Aad::from(SEAL_FORMAT);
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat()))
    }

    /// Returns the content of an id; `None` if it was not sealed with this key.
    pub(super) fn open(&self, id: &str) -> Option<SealedSession> {
        if id.len() > MAX_ID_BYTES {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(id).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.key.open_in_place(nonce, Aad::from(SEAL_FORMAT), &mut sealed).ok()?;
        serde_json::from_slice(plain).ok()
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
            issued_at: 1_790_000_000,
        }
    }

    #[test]
    fn id_opens_in_any_process_with_the_same_key() {
        let id = SessionKey::new(b"k").unwrap().seal(&sealed_session()).unwrap();
        let other_process = SessionKey::new(b"k").unwrap();
        assert_eq!(other_process.open(&id), Some(sealed_session()));
        assert!(id.bytes().all(|byte| byte.is_ascii_graphic()), "{id}");
        assert!(id.len() < 256 && !id.contains("claude"), "{id}");
        assert_ne!(id, other_process.seal(&sealed_session()).unwrap());
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
                issued_at: i64::MAX,
                ..sealed_session()
            };
            let id = key.seal(&content).unwrap();
            assert_eq!(key.open(&id), Some(content), "{worst:?} yields an id of {} bytes", id.len());
        }
        assert_eq!(bounded_client_name("Claude\n Code\0"), "Claude Code");
    }

    #[test]
    fn forged_or_damaged_id_is_rejected() {
        let key = SessionKey::new(b"k").unwrap();
        let id = key.seal(&sealed_session()).unwrap();
        assert_eq!(SessionKey::new(b"other").unwrap().open(&id), None);
        for at in 0..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(key.open(&changed), None, "{changed}");
        }
        for id in ["", "a", "AAAA", &"A".repeat(64), &"A".repeat(100_000), "%%%", &id[1..], &format!("{id}A")]
        {
            assert_eq!(key.open(id), None);
        }
    }
}
