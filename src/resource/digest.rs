use std::fmt;

use ring::{digest, hmac};
use serde::{Deserialize, Serialize};

/// A SHA-256 digest, formatted as `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the unkeyed digest of bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self::of_parts([bytes])
    }

    /// Returns the unkeyed digest of the concatenation of parts.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        parts.into_iter().for_each(|part| context.update(part));
        Self::from_slice(context.finish().as_ref())
    }

    /// Returns the digest of the canonical JSON of a value: sorted keys, no white space.
    pub fn of_json(value: &impl Serialize) -> Self {
        // `Value` sorts its maps, so the order of struct fields does not matter.
        let value = serde_json::to_value(value).unwrap_or_default();
        Self::of(value.to_string().as_bytes())
    }

    /// Returns the first `digits` (at most 64) hexadecimal digits, for hash suffixes of names.
    pub fn hex_prefix(&self, digits: usize) -> String {
        let mut text = hex(&self.0);
        text.truncate(digits);
        text
    }

    /// Returns the first 64 bits as a number.
    pub fn first_u64(&self) -> u64 {
        self.0.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Returns the first 128 bits as a UUID, for identifiers that must be the same in every run.
    pub fn uuid(&self) -> String {
        let mut half = [0; 16];
        for (to, from) in half.iter_mut().zip(&self.0) {
            *to = *from;
        }
        uuid::Builder::from_custom_bytes(half).into_uuid().to_string()
    }

    fn from_slice(slice: &[u8]) -> Self {
        let mut bytes = [0; 32];
        for (to, from) in bytes.iter_mut().zip(slice) {
            *to = *from;
        }
        Self(bytes)
    }
}

/// The HMAC key for digests that depend on secrets. Without the key, a digest cannot be checked against guessed values.
#[derive(Clone)]
pub struct DigestKey(hmac::Key);

impl DigestKey {
    /// Creates a key from random bytes, which are stored in the state directory.
    pub fn new(bytes: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Returns the keyed digest of parts. The boundaries between parts are significant.
    pub fn digest<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
        let mut context = hmac::Context::with_key(&self.0);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        Digest::from_slice(context.sign().as_ref())
    }
}

impl fmt::Debug for DigestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestKey")
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a digest of the form sha256:<64 hexadecimal digits>");
        let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64).ok_or_else(invalid)?;
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let pair = digits.get(2 * index..2 * index + 2).ok_or_else(invalid)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| invalid())?;
        }
        Ok(Self(bytes))
    }
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_survives_a_round_trip_through_text() {
        let digest = Digest::of(b"abc");
        let text = digest.to_string();
        assert_eq!(text, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::try_from(text), Ok(digest));
        assert_eq!(Digest::of_parts([&b"a"[..], b"bc"]), digest);
        assert!(Digest::try_from("sha256:zz".to_owned()).is_err());
    }

    #[test]
    fn keyed_digest_depends_on_part_boundaries_and_key() {
        let key = DigestKey::new(b"key");
        assert_ne!(key.digest([&b"ab"[..], b"c"]), key.digest([&b"a"[..], b"bc"]));
        assert_ne!(key.digest([&b"a"[..]]), DigestKey::new(b"other").digest([&b"a"[..]]));
    }
}
