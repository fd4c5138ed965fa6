//! Sealing: texts that agents keep for evenkeel, encrypted, so that any process with the key can read them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The context in which the key is derived from its secret.
const KEY_CONTEXT: &[u8] = b"evenkeel session 1";

/// The purpose of a sealed text. A text that was sealed for one purpose cannot be opened for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SealPurpose {
    /// A session id.
    Session,
    /// The `requestState` of a result that asks a modern agent for input.
    RequestState,
    /// The id of a request for input to a legacy agent.
    RequestId,
}

impl SealPurpose {
    /// Returns the format, which is bound into the ciphertext: texts of another format are rejected.
    fn format(self) -> &'static [u8] {
        match self {
            Self::Session => KEY_CONTEXT,
            Self::RequestState => b"evenkeel request state 1",
            Self::RequestId => b"evenkeel request id 1",
        }
    }

    /// Returns the maximum length of a sealed text. Longer ones were not created by evenkeel.
    fn max_length(self) -> usize {
        match self {
            Self::Session | Self::RequestId => 1_024,
            // It contains the state of the server.
            Self::RequestState => 1 << 20,
        }
    }
}

/// The key that seals session ids and the state of requests. Processes with the same key share sessions.
#[derive(Debug)]
pub struct SessionKey {
    key: LessSafeKey,
    random: SystemRandom,
}

/// The error of a failed random number generator or cipher, or of a text that is too long. None is expected.
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
        let pseudorandom = hkdf::Salt::new(hkdf::HKDF_SHA256, KEY_CONTEXT).extract(secret);
        let key = pseudorandom.expand(&[b"key"], &CHACHA20_POLY1305)?;
        Ok(Self { key: LessSafeKey::new(UnboundKey::from(key)), random: SystemRandom::new() })
    }

    /// Seals a value. Two sealed texts are never equal, even for equal values.
    pub(super) fn seal(&self, purpose: SealPurpose, value: &impl Serialize) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce)?;
        let mut sealed = serde_json::to_vec(value).map_err(|_| SealError)?;
        let aad = Aad::from(purpose.format());
        self.key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)?;
        let text = URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat());
        if text.len() > purpose.max_length() { Err(SealError) } else { Ok(text) }
    }

    /// Returns the value in a sealed text; `None` if it was not sealed with this key for this purpose.
    pub(super) fn open<T: DeserializeOwned>(&self, purpose: SealPurpose, text: &str) -> Option<T> {
        if text.len() > purpose.max_length() {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.key.open_in_place(nonce, Aad::from(purpose.format()), &mut sealed).ok()?;
        serde_json::from_slice(plain).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::SealPurpose::{RequestId, RequestState, Session};
    use super::*;

    #[test]
    fn text_opens_in_any_process_with_the_same_key_and_for_its_purpose_alone() {
        let text = SessionKey::new(b"k").unwrap().seal(RequestId, &("claude", 7)).unwrap();
        let other_process = SessionKey::new(b"k").unwrap();
        assert_eq!(other_process.open(RequestId, &text), Some(("claude".to_owned(), 7)));
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains("claude"), "{text}");
        assert_ne!(text, other_process.seal(RequestId, &("claude", 7)).unwrap());
        for purpose in [Session, RequestState] {
            assert_eq!(other_process.open::<(String, u8)>(purpose, &text), None);
        }
    }

    #[test]
    fn forged_or_damaged_text_is_rejected() {
        let key = SessionKey::new(b"k").unwrap();
        let id = key.seal(Session, &"content").unwrap();
        let open = |text: &str| key.open::<String>(Session, text);
        assert_eq!(open(&id).as_deref(), Some("content"));
        assert_eq!(SessionKey::new(b"other").unwrap().open::<String>(Session, &id), None);
        for at in 0..id.len() {
            let mut changed = id.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(open(&changed), None, "{changed}");
        }
        for id in ["", "a", "AAAA", &"A".repeat(64), &"A".repeat(100_000), "%%%", &id[1..], &format!("{id}A")]
        {
            assert_eq!(open(id), None);
        }
    }
}
