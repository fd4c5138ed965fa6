use bytes::Bytes;

use super::error::{ConnectionError, FailureSource};
use super::secret_mask::SecretMask;
use crate::resource::Reason;

/// A JSON-RPC response.
#[derive(Clone, Debug)]
pub enum RpcResponse {
    /// The raw JSON of `result`.
    Result(Bytes),
    /// The raw JSON of `error`: an object with `code` and `message`.
    Error(Bytes),
}

impl RpcResponse {
    /// Returns the response.
    ///
    /// # Errors
    ///
    /// Fails if its result is not an object. Agents reject such a result, or wait on.
    pub fn require_object(self) -> Result<Self, ConnectionError> {
        match &self {
            Self::Result(raw) if !raw.starts_with(b"{") => {
                let excerpt: String = String::from_utf8_lossy(raw).chars().take(MAX_EXCERPT_CHARS).collect();
                Err(unusable_response(&format!("its result is {excerpt}, not an object")))
            }
            _ => Ok(self),
        }
    }
}

/// The most characters of a server's text in an error message.
const MAX_EXCERPT_CHARS: usize = 120;

/// Returns the error of a request whose response cannot be read. `text` is the response; `mask` redacts it.
pub(super) fn unreadable_response(text: &[u8], mask: &SecretMask) -> ConnectionError {
    let excerpt = mask.redacted_line(&String::from_utf8_lossy(text), MAX_EXCERPT_CHARS);
    let excerpt = if excerpt.is_empty() { "an empty body".to_owned() } else { format!("{excerpt:?}") };
    unusable_response(&format!("it is not valid JSON-RPC: {excerpt}"))
}

/// Returns the error of a request whose response is of no use, and why. The connection itself is unaffected.
pub(super) fn unusable_response(why: &str) -> ConnectionError {
    let message = format!("the server's response cannot be used: {why}");
    ConnectionError {
        failure_source: FailureSource::Response,
        ..ConnectionError::new(Reason::ConnectFailed, message).into_dispatched()
    }
}
