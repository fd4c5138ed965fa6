use std::sync::Arc;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use secrecy::{ExposeSecret, SecretString};

use super::answer::Refusal;
use crate::resource::Digest;

/// What a client shows to ask for work: it stands in the kubeconfig, which only its owner can read.
#[derive(Clone, Debug)]
pub struct Token(Arc<SecretString>);

impl Token {
    /// The token of this text.
    pub fn new(text: SecretString) -> Self {
        Self(Arc::new(text))
    }

    /// The text, for the kubeconfig.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

/// Who may ask for work.
#[derive(Clone, Debug)]
pub(super) enum Access {
    /// Who shows this token.
    Token(Token),
    /// Everyone who can ask at all.
    Granted,
}

impl Access {
    /// Refuses who may not.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Self::Token(token) = self else { return Ok(()) };
        let shown = headers.get(AUTHORIZATION).and_then(|shown| shown.to_str().ok()).unwrap_or_default();
        let shown = shown.strip_prefix("Bearer ").unwrap_or_default();
        // Digests, so that the time it takes tells nothing about the token.
        let [shown, token] = [shown, token.expose()].map(|text| Digest::of(text.as_bytes()));
        if shown == token { Ok(()) } else { Err(Refusal::unauthorized()) }
    }
}
